/**
 * Where the time of one of our steps goes: every kernel of the table is wrapped with a clock, the rest is TypeScript. `npm run bench -- engine
 * --profile train | train.bf16 | decode | prefill | eval`. A profile is not a measurement: nothing is compared here.
 */
import { loadBackend } from "../src/backend/load.ts";
import { loadModel } from "../src/model/index.ts";
import { Engine } from "../src/tensor/index.ts";
import { openEvaluation } from "./eval.ts";
import { PythonRival } from "./process.ts";
import { decodeOnce, decodePrompt, decodeTokens, modelPath, prefillPrompt } from "./text.ts";
import { OurTraining } from "./train.ts";

export const profiles = ["train", "train.f32", "train.bf16", "decode", "prefill", "eval"] as const;
export type ProfileName = (typeof profiles)[number];

export interface KernelTime {
  calls: number;
  milliseconds: number;
}
type KernelTable = Record<string, (...args: number[]) => void>;

type KernelLabel = (kernel: string, args: readonly number[]) => string;

/** Puts a clock around every kernel until it is disposed. Times, in milliseconds, are added up by `label`. */
function clockKernels(engine: Engine, label: KernelLabel): { readonly times: Map<string, KernelTime> } & Disposable {
  const table = engine.backend.kernels as unknown as KernelTable;
  const times = new Map<string, KernelTime>();
  const originals = { ...table };
  for (const [name, kernel] of Object.entries(originals)) {
    table[name] = (...args) => {
      const started = performance.now();
      kernel(...args);
      const milliseconds = performance.now() - started;
      const what = label(name, args);
      const time = times.get(what) ?? { calls: 0, milliseconds: 0 };
      times.set(what, { calls: time.calls + 1, milliseconds: time.milliseconds + milliseconds });
    };
  }
  return { times, [Symbol.dispose]: () => void Object.assign(table, originals) };
}

interface KernelProfile {
  readonly total: number;
  readonly kernels: Map<string, KernelTime>;
}

/** Runs `work` with a clock around every kernel (`label`: how times are named, by default after the kernel). */
export function timeKernels(engine: Engine, work: () => void, label: KernelLabel = (kernel) => kernel): KernelProfile {
  using clock = clockKernels(engine, label);
  const started = performance.now();
  work();
  return { total: performance.now() - started, kernels: clock.times };
}

function profileTable(title: string, { total, kernels }: KernelProfile, units: number): string {
  const used = [...kernels].filter(([, { calls }]) => calls > 0).sort(([, a], [, b]) => b.milliseconds - a.milliseconds);
  const inKernels = used.reduce((sum, [, { milliseconds }]) => sum + milliseconds, 0);
  const numCalls = used.reduce((sum, [, { calls }]) => sum + calls, 0);
  const row = (name: string, calls: number, milliseconds: number): string =>
    `${name.padEnd(30)} ${calls.toFixed(0).padStart(7)} ${milliseconds.toFixed(3).padStart(10)} ${((100 * milliseconds * units) / total).toFixed(1).padStart(6)}%`;
  return [
    `${title} (calls and milliseconds of one)`,
    ...used.map(([name, { calls, milliseconds }]) => row(name, calls / units, milliseconds / units)),
    row("outside kernels", numCalls / units, (total - inKernels) / units),
    row("total", numCalls / units, total / units),
  ].join("\n");
}

async function profileTrain(engine: Engine, precision: "f32" | "bf16"): Promise<string> {
  using training = new OurTraining(engine, precision);
  for (let i = 0; i < 3; i++) training.step();
  return profileTable(
    `train step, ${precision}`,
    timeKernels(engine, () => void training.step()),
    1,
  );
}

async function profileText(engine: Engine, name: "decode" | "prefill"): Promise<string> {
  using rival = new PythonRival();
  await rival.call("llama.prepare", { path: modelPath() });
  using model = loadModel(engine, modelPath(), { dtype: "bf16" });
  decodeOnce(model, decodePrompt, decodeTokens);
  if (name === "prefill") {
    decodeOnce(model, prefillPrompt, 0);
    return profileTable(
      "prefill of 512 tokens, bf16",
      timeKernels(engine, () => void decodeOnce(model, prefillPrompt, 0)),
      1,
    );
  }
  const prompt = timeKernels(engine, () => void decodeOnce(model, decodePrompt, 0));
  const whole = timeKernels(engine, () => void decodeOnce(model, decodePrompt, decodeTokens));
  // What the prompt took is taken off: a token at a time is left.
  for (const [kernel, time] of whole.kernels) {
    const before = prompt.kernels.get(kernel);
    time.calls -= before?.calls ?? 0;
    time.milliseconds -= before?.milliseconds ?? 0;
  }
  return profileTable("token of decoding, bf16", { total: whole.total - prompt.total, kernels: whole.kernels }, decodeTokens);
}

async function profileEval(engine: Engine): Promise<string> {
  using evaluation = await openEvaluation(engine);
  await evaluation.run();
  using clock = clockKernels(engine, (kernel) => kernel);
  const started = performance.now();
  await evaluation.run();
  return profileTable("evaluation, CMMLU, f32", { total: performance.now() - started, kernels: clock.times }, 1);
}

/** The profile as a table. */
export async function profile(name: ProfileName): Promise<string> {
  using engine = new Engine(await loadBackend());
  if (name === "eval") return await profileEval(engine);
  if (name === "decode" || name === "prefill") return await profileText(engine, name);
  return await profileTrain(engine, name === "train.bf16" ? "bf16" : "f32");
}

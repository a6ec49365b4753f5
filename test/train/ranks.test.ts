/** Runs over ranks: what they write, how they end and go on, whatever layout wrote the checkpoint. */
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadBackend } from "../../src/backend/load.ts";
import { openSafetensors } from "../../src/checkpoint/safetensors.ts";
import type { LayoutInput } from "../../src/config/layout.ts";
import { parseRunConfig, type RunConfigInput } from "../../src/config/run.ts";
import { loadModel } from "../../src/model/index.ts";
import { Engine } from "../../src/tensor/index.ts";
import { readCheckpointState, train, trainOnRanks } from "../../src/train/index.ts";
import { Random } from "../../src/util/random.ts";
import { checkpointOf, runTrain, tinyModel, tinyRun, trainedBytes, TrainProcess, writeConfig } from "./harness.ts";

const isLong = process.env["MOE_LONG"] === "1";
let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-ranks-"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));
/** Threads start slowly on a machine that others use. */
const patience = 240_000;

/** Seven layers with experts, capacity, noise, adaptive coefficients, a selection bias: all that a step has a state for. */
function runOf(changes: Partial<RunConfigInput> = {}, hf: Record<string, unknown> = {}): RunConfigInput {
  return tinyRun(folder, "skywork", {
    model: { config: { ...tinyModel("skywork"), num_hidden_layers: 7, ...hf } },
    microBatchSequences: 1,
    moe: {
      capacityFactor: 1,
      balanceGroupSequences: 1,
      jitterEpsilon: 0.01,
      auxiliaryLossCoefficient: { type: "adaptive", beta: 0.5 },
      biasUpdateRate: 0.01,
    },
    ...changes,
  });
}

/** A run in threads of this process, to its end; the folder of its last checkpoint. */
async function runTo(name: string, input: RunConfigInput, resume = false): Promise<string> {
  const options = { config: parseRunConfig(input), runFolder: join(folder, name), resume };
  const { pp = 1, dp = 1, tp = 1 } = input.layout ?? {};
  if (pp * dp * tp > 1) return (await trainOnRanks({ ...options, backend: { numThreads: 1 } })).folder;
  using engine = new Engine(await loadBackend({ numThreads: 1 }));
  const { folder: checkpoint } = await train({ ...options, engine });
  expect(engine.backend.liveBytes).toBe(0);
  return checkpoint;
}

/** Largest relative L2 distance of a tensor of two checkpoints, over weights and moments. */
function distance(a: string, b: string): number {
  let largest = 0;
  for (const name of ["model.safetensors", "optimizer.safetensors"]) {
    using one = openSafetensors(join(a, name));
    using two = openSafetensors(join(b, name));
    expect([...one.tensors.keys()]).toEqual([...two.tensors.keys()]);
    for (const tensor of one.tensors.keys()) {
      const [x, y] = [one, two].map((file) => {
        const { shape, dtype } = file.entry(tensor);
        const size = shape.reduce((n, length) => n * length, 1);
        const values = dtype === "BF16" ? new Uint16Array(size) : new Float32Array(size);
        file.read(tensor, new Uint8Array(values.buffer));
        return dtype === "BF16" ? new Float32Array(Uint32Array.from(values, (half) => half << 16).buffer) : values;
      });
      const norm = Math.hypot(...(x ?? []));
      largest = Math.max(largest, Math.hypot(...(x ?? []).map((value, i) => value - (y?.[i] ?? NaN))) / Math.max(norm, 1e-12));
    }
  }
  return largest;
}

const metricsOf = (name: string): Record<string, unknown>[] =>
  readFileSync(join(folder, name, "metrics.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);

describe("a run over a pipeline", () => {
  test(
    "writes the bytes that one rank writes: weights, moments, state, metrics",
    async () => {
      // Without clipping: the norm is added up in another order over ranks.
      const optimizer = { learningRate: 3e-3, clipNorm: null };
      const moe = { ...runOf().moe, similarityInterval: 3 };
      const data = { ...runOf().data, validation: { same: runOf().data.train } };
      const one = await runTo("bits-1", runOf({ optimizer, moe, data }));
      const two = await runTo("bits-2", runOf({ optimizer, moe, data, layout: { pp: 2, interleave: 2, schedule: "interleaved" } }));
      expect(trainedBytes(two)).toEqual(trainedBytes(one));
      const { seconds: _, ...state } = readCheckpointState(one).training;
      expect(readCheckpointState(two).training).toMatchObject(state);
      // What went between ranks is told of a run that has some, and of no other.
      const timed = new Set(["seconds", "tokensPerSecond", "mfu", "peakBytes", "gradNorm", "traffic"]);
      const plain = (name: string): unknown =>
        metricsOf(name).map((record) => Object.fromEntries(Object.entries(record).filter(([key]) => !timed.has(key))));
      expect(plain("bits-2")).toEqual(plain("bits-1"));
      expect(metricsOf("bits-2").some((record) => "traffic" in record)).toBe(true);
      expect(metricsOf("bits-1").some((record) => "traffic" in record)).toBe(false);
      expect(metricsOf("bits-2").map(({ type }) => type)).toContain("evaluation");
      expect(metricsOf("bits-2").map(({ type }) => type)).toContain("similarity");
    },
    patience,
  );

  test(
    "keeps a tied embedding the same on both ends, counted once in the norm",
    async () => {
      const one = await runTo("tied-1", runOf({}, { tie_word_embeddings: true }));
      const two = await runTo(
        "tied-2",
        runOf({ layout: { pp: 3, layers: [2, 4, 1], recompute: [2, 1, 0] } }, { tie_word_embeddings: true }),
      );
      expect(distance(one, two)).toBeLessThan(1e-4);
      for (const [i, record] of metricsOf("tied-1").entries()) {
        const norm = metricsOf("tied-2")[i]?.["gradNorm"];
        if (typeof norm === "number") expect(Math.abs(norm / Number(record["gradNorm"]) - 1)).toBeLessThan(1e-5);
      }
    },
    patience,
  );

  test(
    "traces a step of all ranks on request",
    async () => {
      const config = parseRunConfig(runOf({ layout: { pp: 2 }, numSteps: 4 }));
      const traceFile = join(folder, "trace.json");
      await trainOnRanks({ config, runFolder: join(folder, "traced"), traceFile, backend: { numThreads: 1 } });
      const { traceEvents } = JSON.parse(readFileSync(traceFile, "utf8")) as { traceEvents: Record<string, unknown>[] };
      const names = traceEvents.filter(({ ph, pid }) => ph === "X" && pid === 1).map(({ name }) => String(name));
      // 4 micro-batches through stage 1, what came for them and went, the optimizer.
      for (const kind of ["forward", "backward"]) {
        for (let m = 0; m < 4; m++) expect(names.filter((name) => name === `${kind} 1.${m}`)).toHaveLength(1);
      }
      expect(names.filter((name) => name.startsWith("recv"))).toHaveLength(4);
      expect(names.filter((name) => name.startsWith("send"))).toHaveLength(4);
      expect(names).toContain("optimizer");
      // What is alive on each rank, after everything that it computed.
      const memory = traceEvents.filter(({ ph, name, pid }) => ph === "C" && name === "memory" && pid === 1);
      expect(memory).toHaveLength(traceEvents.filter(({ ph, cat, pid }) => ph === "X" && cat === "compute" && pid === 1).length);
      for (const { args } of memory) expect((args as { bytes: number }).bytes).toBeGreaterThan(0);
      for (const event of traceEvents.filter(({ ph }) => ph === "X")) expect(Number(event["ts"])).toBeGreaterThanOrEqual(0);
    },
    patience,
  );
});

/** Every layout goes on from what every other wrote. */
const layouts: readonly (readonly [string, LayoutInput])[] = [
  ["one rank", {}],
  ["pp 2", { pp: 2, layers: [3, 4] }],
  ["pp 2 interleaved", { pp: 2, interleave: 2, schedule: "interleaved" }],
];
/** Of these the sums of gradients go another way: not the same bits, but close. */
const otherLayouts: readonly (readonly [string, LayoutInput])[] = [
  ["dp 2, tp 2, ZeRO-1", { dp: 2, tp: 2, zero: 1 }],
  ["pp 2, tp 2 (TP)", { pp: 2, tp: 2, strategy: "TP" }],
];

test(
  "a checkpoint written under one layout goes on under any other, and comes to the bytes of one rank",
  async () => {
    // Neither clipping, whose norm is added up in another order over ranks, nor a schedule that knows the number of steps: the rest is bits.
    const [optimizer, schedule] = [{ learningRate: 3e-3, clipNorm: null }, { name: "constant" } as const];
    const steps = (numSteps: number, layout: LayoutInput): RunConfigInput =>
      runOf({ numSteps, layout, precision: "bf16", optimizer, schedule });
    const whole = await runTo("cross-whole", steps(4, {}));
    for (const [from, first] of layouts) {
      const second = layouts[(layouts.findIndex(([name]) => name === from) + 1) % layouts.length]?.[1] ?? {};
      const name = `cross-${from.replaceAll(" ", "-")}`;
      await runTo(name, steps(2, first));
      const folderOf = await runTo(name, steps(4, second), true);
      expect(trainedBytes(folderOf), from).toEqual(trainedBytes(whole));
    }
    // It is a model folder as any other.
    using engine = new Engine(await loadBackend({ numThreads: 1 }));
    using model = loadModel(engine, checkpointOf(join(folder, "cross-pp-2"), 4));
    expect(model.config.numLayers).toBe(7);
  },
  patience,
);

test(
  "parts that are cut, and moments spread by ZeRO, come together in one checkpoint and apart in another layout",
  async () => {
    const steps = (numSteps: number, layout: LayoutInput): RunConfigInput =>
      // Without the selection bias: it moves by signs, which rounding can turn.
      runOf({ numSteps, layout, schedule: { name: "constant" }, moe: { capacityFactor: 1, balanceGroupSequences: 1 } });
    const whole = await runTo("parts-whole", steps(3, {}));
    for (const [index, [from, layout]] of otherLayouts.entries()) {
      const name = `parts-${index}`;
      await runTo(name, steps(1, layout));
      const other = otherLayouts[(index + 1) % otherLayouts.length]?.[1] ?? {};
      const end = await runTo(name, steps(3, other), true);
      expect(distance(whole, end), from).toBeLessThan(1e-3);
    }
  },
  patience,
);

test(
  "a pipeline that is killed and resumed ends with the bits of one that was not",
  async () => {
    const run = runOf(
      { numSteps: 12, layout: { pp: 2, recompute: [1, 0] }, checkpoint: { intervalSteps: 2 } },
      { tie_word_embeddings: true },
    );
    const config = writeConfig(join(folder, "killed.json"), run);
    const reference = await runTo("killed-whole", run);
    const out = join(folder, "killed");
    const random = new Random(1);
    const kills = isLong ? 8 : 2;
    for (let attempt = 0; ; attempt++) {
      const process = new TrainProcess([config, "--out", out, "--resume"]);
      if (attempt < kills) {
        await process.seen(/saved/);
        await new Promise((resolve) => setTimeout(resolve, random.integer(30)));
        process.child.kill("SIGKILL");
      }
      const { code, stderr } = await process.finished;
      if (code === 0) break;
      expect(attempt, stderr).toBeLessThan(kills);
    }
    expect(trainedBytes(checkpointOf(out, 12))).toEqual(trainedBytes(reference));
  },
  patience,
);

test(
  "SIGINT lets every rank finish its step, saves one checkpoint, and the run goes on from it",
  async () => {
    const run = runOf({ numSteps: 2000, layout: { pp: 2 } });
    const config = writeConfig(join(folder, "stopped.json"), run);
    const out = join(folder, "stopped");
    const process = new TrainProcess([config, "--out", out, "--json"]);
    await process.seen(/training \d+\/2000/);
    process.child.kill("SIGINT");
    const { code, stdout, stderr } = await process.finished;
    expect(code, stderr).toBe(0);
    const { stopped, step } = JSON.parse(stdout) as { stopped: boolean; step: number };
    expect(stopped).toBe(true);
    expect(step).toBeLessThan(2000);
    expect(readCheckpointState(checkpointOf(out, step)).training.step).toBe(step);
  },
  patience,
);

describe("a layout that makes no sense", () => {
  test.each<readonly [string, LayoutInput, readonly string[], RegExp]>([
    ["a stage without layers", { pp: 2, layers: [7, 0] }, [], /layers \[7, 0\]: stage 1 has no layer/],
    ["more stages than layers", { pp: 8 }, [], /8 stages for 7 layers: some would have none/],
    [
      "another number of ranks than the layout has",
      { pp: 2 },
      ["--ranks", "3"],
      /--ranks 3: the layout has pp 2 \* dp 1 \* tp 1 = 2 ranks/,
    ],
  ])(
    "ends with one line that says what to do: %s",
    async (name, layout, flags, message) => {
      const slug = name.replaceAll(" ", "-");
      const config = writeConfig(join(folder, `${slug}.json`), runOf({ layout }));
      const { code, stderr } = await runTrain([config, "--out", join(folder, slug), ...flags]);
      expect(code, stderr).not.toBe(0);
      const lines = stderr.trim().split("\n");
      expect(lines.at(-1)).toMatch(message);
      expect(lines.filter((line) => line.startsWith("moe:"))).toHaveLength(1);
      expect(existsSync(join(folder, slug, "checkpoints", "step-00000006"))).toBe(false);
    },
    patience,
  );

  test.each<readonly [LayoutInput, RegExp]>([
    [{ pp: 2, layers: [3, 3] }, /layers \[3, 3\] add up to 6, the model has 7/],
    [{ pp: 3, layers: [4, 3] }, /has 2 entries for pp 3 \* interleave 1 = 3 stages/],
    [{ pp: 2, layers: [3, 4], recompute: [4, 0] }, /recompute 4 of stage 0, which has 3 layers/],
    [{ pp: 2, interleave: 2 }, /goes with "interleaved", and only with it/],
    [{ pp: 2, schedule: "zeroBubble" }, /simulated, not run; use "1f1b" or "interleaved"/],
  ])(
    "is refused: %j",
    async (layout, message) => {
      await expect(runTo(`refused-${JSON.stringify(layout).replaceAll(/\W/g, "")}`, runOf({ layout }))).rejects.toThrow(message);
    },
    patience,
  );
});

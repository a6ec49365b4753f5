/**
 * Row `eval.cmmlu`: 200 rows of CMMLU (25 of each of 8 subjects) on SmolLM2-135M-Instruct in f32, ours beside lm-evaluation-harness on
 * PyTorch with the same weights, rows and prompts. Rows a second; both sides must choose equally often rightly.
 *
 * The rows are not part of the repository (their licence forbids it): `MOE_SHARED_DATA` names the folder that holds `cmmlu/`.
 */
import { existsSync, readdirSync } from "node:fs";
import { basename, join } from "node:path";
import { loadBackend } from "../src/backend/load.ts";
import { copyTokenizer, loadTokenizer } from "../src/checkpoint/tokenizer.ts";
import { evaluateTasks } from "../src/eval/index.ts";
import { loadModel, saveModel } from "../src/model/index.ts";
import { Engine } from "../src/tensor/index.ts";
import { messageOf, startRival, type Context } from "./context.ts";
import { fastest, interleave, type Row, type Side } from "./measure.ts";
import { cacheFolder, PythonRival } from "./process.ts";
import { modelPath } from "./text.ts";

const threads = 2;
const rowsPerSubject = 25;
const row = { name: "eval.cmmlu", unit: "rows/s", bar: 2 } as const;

function dataFolder(): string | null {
  const folder = process.env["MOE_SHARED_DATA"] ?? join(import.meta.dirname, "..", "..", "shared", "data");
  return existsSync(join(folder, "cmmlu", "test")) ? folder : null;
}

/** The model in Hugging Face form and f32: what the rival reads. Made once. */
async function rivalModel(engine: Engine): Promise<string> {
  const folder = join(cacheFolder(), "smollm2-135m-f32");
  if (existsSync(folder)) return folder;
  const source = modelPath();
  using python = new PythonRival();
  await python.call("llama.prepare", { path: source });
  const tokenizer = await loadTokenizer(source);
  using model = loadModel(engine, source, { dtype: "f32" });
  saveModel(model, folder);
  copyTokenizer(source, folder, tokenizer);
  return folder;
}

/** Sides of the rival by batch size: a batch of rows pads, a batch of one does not, and neither is always faster. */
async function rivalSides(
  model: string,
  data: string,
  subjects: readonly string[],
): Promise<{ rivals: PythonRival[]; sides: Record<string, Side>; accuracy: { rival: number }; note: string | null }> {
  const rivals: PythonRival[] = [];
  const sides: Record<string, Side> = {};
  const accuracy = { rival: Number.NaN };
  for (const batch of [1, 16]) {
    const rival = await startRival("linear.versions");
    if (typeof rival === "string") return { rivals, sides, accuracy, note: rival };
    rivals.push(rival);
    try {
      const settings = { model, data: join(data, "cmmlu"), subjects, threads, batch_size: batch, dtype: "float32" };
      await rival.call("eval.setup", settings);
    } catch (error) {
      return { rivals, sides, accuracy, note: messageOf(error) };
    }
    sides[`batch ${batch}`] = {
      sample: async () => {
        const answer = await rival.call("eval.run", { limit: rowsPerSubject });
        accuracy.rival = Number(answer["accuracy"]);
        return Number(answer["rows"]) / Number(answer["seconds"]);
      },
    };
  }
  return { rivals, sides, accuracy, note: null };
}

/** Our side: the rows of the data folder through `evaluateTasks`; `run` gives the accuracy. The caller disposes it. */
export async function openEvaluation(
  engine: Engine,
): Promise<{ readonly folder: string; readonly subjects: readonly string[]; run: () => Promise<number> } & Disposable> {
  const data = dataFolder();
  if (data === null) throw new Error("no CMMLU rows here: MOE_SHARED_DATA names their folder");
  const subjects = readdirSync(join(data, "cmmlu", "test")).map((file) => basename(file, ".csv"));
  const folder = await rivalModel(engine);
  const model = loadModel(engine, folder, { dtype: "f32" });
  const tokenizer = await loadTokenizer(folder);
  const tasks = subjects.map((subject) => `cmmlu_${subject}`);
  const run = async (): Promise<number> => {
    const { results } = await evaluateTasks(model, tokenizer, tasks, { data, limit: rowsPerSubject, numFewshot: 0 });
    const scores = Object.values(results.results).map((metrics) => Number(metrics["acc,none"]));
    return scores.reduce((a, b) => a + b, 0) / scores.length;
  };
  return { folder, subjects, run, [Symbol.dispose]: () => model[Symbol.dispose]() };
}

/** The row; without the data or the rival it says so. */
export async function evalRow({ effort, log }: Context): Promise<Row> {
  const data = dataFolder();
  if (data === null) return { ...row, ours: [], rival: [], note: "no CMMLU rows here: MOE_SHARED_DATA names their folder" };
  log("eval.cmmlu: starting");
  using engine = new Engine(await loadBackend({ numThreads: threads }));
  const started: PythonRival[] = [];
  try {
    using evaluation = await openEvaluation(engine);
    const { folder, subjects } = evaluation;
    let accuracy = Number.NaN;
    const ours: Side = {
      sample: async () => {
        const before = performance.now();
        accuracy = await evaluation.run();
        return (subjects.length * rowsPerSubject) / ((performance.now() - before) / 1000);
      },
    };
    const { rivals, sides, accuracy: theirs, note } = await rivalSides(folder, data, subjects);
    started.push(...rivals);
    const samples = Math.min(3, effort.samples);
    const [our = [], ...rival] = await interleave([ours, ...Object.values(sides)], { samples, warmups: 1 });
    const others = Object.fromEntries(Object.keys(sides).map((name, index) => [name, rival[index] ?? []]));
    const told = `accuracy ${accuracy.toFixed(3)} (ours), ${theirs.rival.toFixed(3)} (lm-evaluation-harness)`;
    return { ...row, ours: our, rival: fastest(rival), others, note: note === null ? told : `${told}; ${note}` };
  } finally {
    for (const rival of started) rival[Symbol.dispose]();
  }
}

/**
 * Runs for tests of the dashboard, made by the real trainer: a dense model is trained for two steps, upcycled, and trained on as a MoE that
 * records everything. Beside it lie a trace (a step of two stages, by hand), results in lm-evaluation-harness's form and a planner's report.
 */
import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { loadBackend } from "../../src/backend/load.ts";
import { copyTokenizer, loadTokenizer } from "../../src/checkpoint/tokenizer.ts";
import { parseRunConfig } from "../../src/config/run.ts";
import { Engine } from "../../src/tensor/index.ts";
import { train } from "../../src/train/index.ts";
import { upcycle } from "../../src/upcycle/index.ts";
import { chromeTrace, type TraceSpan } from "../../src/util/chrome-trace.ts";
import { tinyRun } from "../train/harness.ts";

export const recordedSteps = 40;

/** Makes `runs/moe`, `runs/dense` and their text below `folder`; gives the folder of runs. */
export async function recordRuns(folder: string): Promise<string> {
  const runs = join(folder, "runs");
  using engine = new Engine(await loadBackend({ numThreads: 1 }));
  const base = tinyRun(folder, "dense", { numSteps: 2 });
  const dense = await train({ engine, config: parseRunConfig(base), runFolder: join(runs, "dense") });
  const upcycled = join(folder, "upcycled");
  const tokenizer = await loadTokenizer(dense.folder);
  upcycle(dense.folder, upcycled, { numExperts: 4, topK: 2, seed: 1 }, (out) => {
    copyTokenizer(dense.folder, out, tokenizer);
  });
  const text = join(folder, "text.txt");
  const { newTokenizer: _, ...rest } = base;
  const config = parseRunConfig({
    ...rest,
    model: { from: upcycled },
    data: { train: [{ path: text }], validation: { held: [{ path: text }] }, sequenceLength: 32 },
    numSteps: recordedSteps,
    moe: { capacityFactor: 1, auxiliaryLossCoefficient: { type: "adaptive", beta: 0.9 }, similarityInterval: 10 },
    evaluation: { intervalSteps: 10, maxSequences: 4 },
    samples: { intervalSteps: 20, prompts: ["the cat", "a stone"], maxTokens: 16 },
  });
  const run = join(runs, "moe");
  await train({ engine, config, runFolder: run });
  writeFileSync(join(run, "step.trace.json"), chromeTrace(twoStages()));
  mkdirSync(join(run, "eval"));
  writeFileSync(join(run, "eval", "results_2026-01-01T00-00-00.json"), JSON.stringify(evaluation));
  writePlan(join(run, "plan"));
  return runs;
}

/** 1F1B of four micro-batches on two stages: forward 10 us, backward 20 us. */
export function twoStages(): TraceSpan[] {
  const span = (rank: number, name: string, startUs: number, durationUs: number, category = "compute"): TraceSpan => ({
    name,
    category,
    rank,
    track: category,
    startUs,
    durationUs,
    args: { stage: rank },
  });
  const forwards = [0, 10, 40, 70];
  return [
    ...forwards.map((start, m) => span(0, `forward ${m}`, start, 10)),
    ...[30 + 10, 70, 100, 130].map((start, m) => span(0, `backward ${m}`, start + 10, 20)),
    ...[10, 40, 70, 100].map((start, m) => span(1, `forward ${m}`, start, 10)),
    ...[20, 50, 80, 110].map((start, m) => span(1, `backward ${m}`, start, 20)),
    span(0, "send 0", 10, 2, "communication"),
  ];
}

const evaluation = {
  results: { gsm8k: { alias: "gsm8k", "exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": 0.0625 } },
  group_subtasks: {},
  versions: { gsm8k: 3 },
  "n-shot": { gsm8k: 5 },
  higher_is_better: { gsm8k: { exact_match: true } },
  date: 1_767_225_600,
  model_name: "moe",
};

function writePlan(out: string): void {
  const main = resolve(import.meta.dirname, "../../src/cli/main.ts");
  const args = ["plan", "skywork-13b", "--cluster", "a800", "--gpus", "16", "--pp", "4", "--tp", "2", "--batch", "1048576", "--out", out];
  const result = spawnSync(process.execPath, [main, ...args], { encoding: "utf8" });
  if (result.status !== 0) throw new Error(`moe plan: ${result.stderr}`);
}

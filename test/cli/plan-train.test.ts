/** From a plan to a run: what `moe plan --out` writes is what `moe train --layout` takes, and the run's losses are those of one rank. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { toHuggingFaceConfig } from "../../src/config/model-huggingface.ts";
import { modelPresets } from "../../src/config/model-presets.ts";
import { plainRouting, type ModelConfig } from "../../src/config/model.ts";

const main = new URL("../../src/cli/main.ts", import.meta.url).pathname;
const model: ModelConfig = {
  ...modelPresets["mixtral-8x7b"],
  vocabSize: 300,
  hiddenSize: 32,
  ffnSize: 64,
  numLayers: 5,
  numHeads: 4,
  numKvHeads: 2,
  headDim: 8,
  maxPositions: 64,
  moe: { ...plainRouting, numExperts: 4, topK: 2, expertFfnSize: 64 },
};
let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-plan-train-"));
  const config = toHuggingFaceConfig(model, "float32");
  const words = ["plan", "the", "cluster", "before", "you", "pay", "for", "it", "then", "train"];
  // A sequence of words that does not repeat soon.
  const text = Array.from({ length: 4000 }, (_, i) => words[(i * i + 3 * i) % words.length]).join(" ");
  writeFileSync(join(folder, "text.txt"), text);
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  const run = {
    model: { config },
    newTokenizer: { vocabSize: 300 },
    data: { train: [{ path: join(folder, "text.txt") }], sequenceLength: 32 },
    batchSequences: 8,
    numSteps: 2,
    optimizer: { learningRate: 1e-3 },
  };
  writeFileSync(join(folder, "run.json"), JSON.stringify(run));
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

function moe(...args: string[]): string {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args], { encoding: "utf8" });
  expect(status, stderr).toBe(0);
  return stdout;
}
function losses(name: string, ...layout: string[]): number[] {
  moe("train", join(folder, "run.json"), ...layout, "--out", join(folder, name), "--json");
  return readFileSync(join(folder, name, "metrics.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as { loss?: number })
    .flatMap(({ loss }) => loss ?? []);
}

test("a planned layout of four ranks, with pipeline, tensor and expert parallelism and recomputation, trains with the losses of one rank", () => {
  const out = join(folder, "plan");
  const cluster = ["--cluster", "cpu", "--gpus", "4", "--sequence", "32", "--batch", "256"];
  const fixed = ["--pp", "2", "--tp", "2", "--ep", "2", "--etp", "1", "--recompute", "full"];
  moe("plan", join(folder, "config.json"), ...cluster, ...fixed, "--out", out);
  const alone = losses("alone");
  const planned = losses("planned", "--layout", join(out, "layout.json"));
  expect(alone).toHaveLength(2);
  expect(planned).toHaveLength(2);
  for (const [step, loss] of alone.entries()) expect(planned[step]).toBeCloseTo(loss, 4);
});

/**
 * Peak memory of our own trainer against what the planner says of the same layout: the most bytes that any rank had handed out, over two steps.
 *
 * The planner's software is `moe.ts`; ranks are threads. `MOE_LONG` adds layouts of 4 and 8 ranks.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadBackend } from "../../src/backend/load.ts";
import { findClusterPreset } from "../../src/config/cluster.ts";
import type { LayoutInput } from "../../src/config/layout.ts";
import { fromHuggingFaceConfig } from "../../src/config/model-huggingface.ts";
import { parseRunConfig } from "../../src/config/run.ts";
import { createCostModel } from "../../src/plan/cost.ts";
import { shapeOf } from "../../src/plan/shape.ts";
import { softwarePresets } from "../../src/plan/software.ts";
import { evenStages } from "../../src/plan/step-time.ts";
import type { StagePlan } from "../../src/plan/types.ts";
import { Engine } from "../../src/tensor/index.ts";
import { train, trainOnRanks } from "../../src/train/index.ts";
import { madeUpText } from "../train/harness.ts";

const numLayers = 8;
const dense = {
  model_type: "llama",
  vocab_size: 2048,
  hidden_size: 256,
  intermediate_size: 688,
  num_hidden_layers: numLayers,
  num_attention_heads: 8,
  num_key_value_heads: 8,
  max_position_embeddings: 256,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  tie_word_embeddings: false,
  bos_token_id: 0,
  eos_token_id: 0,
};
const [sequenceLength, batchSequences] = [256, 8];

const few: readonly LayoutInput[] = [{ tp: 2 }, { pp: 2, recompute: [4, 4] }];
const more: readonly LayoutInput[] = [
  {},
  { dp: 2, zero: 1 },
  { tp: 2, microBatchSequences: 4 },
  { tp: 2, sequenceParallel: true },
  { pp: 2 },
  { pp: 2, layers: [5, 3] },
  { pp: 4 },
  { dp: 2, tp: 2 },
  { pp: 2, tp: 2 },
  { pp: 2, dp: 2, tp: 2, zero: 1 },
  { pp: 4, tp: 2 },
];
const layouts = process.env["MOE_LONG"] === "1" ? [...few, ...more] : few;

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-runtime-memory-"));
  writeFileSync(join(folder, "text.txt"), madeUpText(4000));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Most bytes of any rank over two steps. */
async function measuredPeak(layout: LayoutInput): Promise<number> {
  const { microBatchSequences = 2, ...rest } = layout;
  const config = parseRunConfig({
    model: { config: dense },
    newTokenizer: { vocabSize: 300 },
    data: { train: [{ path: join(folder, "text.txt") }], sequenceLength },
    batchSequences,
    microBatchSequences: microBatchSequences ?? 2,
    numSteps: 2,
    optimizer: { learningRate: 1e-3 },
    layout: rest,
  });
  const options = { config, runFolder: mkdtempSync(join(folder, "run-")), resume: false };
  const { pp = 1, dp = 1, tp = 1 } = layout;
  if (pp * dp * tp > 1) await trainOnRanks({ ...options, backend: { numThreads: 1 } });
  else {
    using engine = new Engine(await loadBackend({ numThreads: 1 }));
    await train({ ...options, engine });
  }
  const lines = readFileSync(join(options.runFolder, "metrics.jsonl"), "utf8").trim().split("\n");
  return Math.max(...lines.map((line) => (JSON.parse(line) as { peakBytes?: number }).peakBytes ?? 0));
}

/** Stages of the layout: even unless it says, its first layers recomputed as it says. */
function stagesOf({ pp = 1, layers, recompute }: LayoutInput): StagePlan[] {
  let firstLayer = 0;
  return evenStages(numLayers, pp, "none").map((stage, s) => {
    const own = { ...stage, firstLayer, numLayers: layers?.[s] ?? stage.numLayers, fullRecompute: recompute?.[s] ?? 0 };
    firstLayer += own.numLayers;
    return own;
  });
}

function predictedPeak(layout: LayoutInput): number {
  const { pp = 1, dp = 1, tp = 1, zero = 0, sequenceParallel = false, microBatchSequences } = layout;
  const cost = createCostModel({
    workload: { model: shapeOf(fromHuggingFaceConfig(dense, "test")), sequenceLength, batchSequences, software: softwarePresets["moe.ts"] },
    cluster: findClusterPreset("cpu"),
    layout: { pp, dp, tp, ep: 1, etp: 1, microBatch: microBatchSequences ?? 2, interleave: 1, sequenceParallel, zero },
  });
  return Math.max(...stagesOf(layout).map((stage, s) => cost.stageMemory(stage, Math.min(pp - s, cost.numMicroBatches)).total));
}

describe("peak memory of a rank", () => {
  test.each(layouts.map((layout) => [JSON.stringify(layout), layout] as const))(
    "under %s is within 5% of the planner's",
    async (_, layout) => {
      expect(Math.abs(predictedPeak(layout) / (await measuredPeak(layout)) - 1)).toBeLessThan(0.05);
    },
    240_000,
  );
});

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
import { completeLayout, parseLayout, type LayoutInput } from "../../src/config/layout.ts";
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

/** The same with 8 experts in place of the networks, two a token. */
const sparse = { ...dense, model_type: "mixtral", intermediate_size: 344, num_local_experts: 8, num_experts_per_tok: 2 };
type ModelName = "dense" | "sparse";
const configs = { dense, sparse } as const;

type Case = readonly [model: ModelName, layout: LayoutInput];
const few: readonly Case[] = [
  ["dense", { tp: 2 }],
  ["dense", { pp: 2, recompute: [4, 4] }],
  ["sparse", { tp: 2, strategy: "EDP" }],
];
const more: readonly Case[] = [
  ["dense", {}],
  ["dense", { dp: 2, zero: 1 }],
  ["dense", { tp: 2, microBatchSequences: 4 }],
  ["dense", { tp: 2, sequenceParallel: true }],
  ["dense", { pp: 2 }],
  ["dense", { pp: 2, layers: [5, 3] }],
  ["dense", { pp: 4 }],
  ["dense", { dp: 2, tp: 2 }],
  ["dense", { pp: 2, tp: 2 }],
  ["dense", { pp: 2, dp: 2, tp: 2, zero: 1 }],
  ["dense", { pp: 4, tp: 2 }],
  ["sparse", {}],
  ["sparse", { dp: 2, zero: 1 }],
  ["sparse", { dp: 2, strategy: "EP" }],
  ["sparse", { tp: 2, strategy: "TP" }],
  ["sparse", { tp: 2, sequenceParallel: true, strategy: "EDP" }],
  ["sparse", { pp: 2, recompute: [2, 2] }],
  ["sparse", { dp: 2, tp: 2, strategy: "EP", zero: 1 }],
  ["sparse", { dp: 2, tp: 2, strategy: "ETP" }],
  ["sparse", { pp: 2, dp: 2, tp: 2, strategy: "EDP", zero: 1 }],
  ["sparse", { pp: 2, dp: 4, strategy: "EP" }],
  ["sparse", { pp: 4, tp: 2, strategy: "EDP" }],
];
const cases = process.env["MOE_LONG"] === "1" ? [...few, ...more] : few;

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-runtime-memory-"));
  writeFileSync(join(folder, "text.txt"), madeUpText(4000));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Most bytes of any rank over two steps. */
async function measuredPeak([name, layout]: Case): Promise<number> {
  const { microBatchSequences = 2, ...rest } = layout;
  const config = parseRunConfig({
    model: { config: configs[name] },
    newTokenizer: { vocabSize: 300 },
    data: { train: [{ path: join(folder, "text.txt") }], sequenceLength },
    batchSequences,
    microBatchSequences: microBatchSequences ?? 2,
    numSteps: 2,
    optimizer: { learningRate: 1e-3 },
    // The planner takes routing as even; tokens of a fresh router are not.
    ...(name === "sparse" ? { moe: { forcedBalance: true } } : {}),
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

function predictedPeak([name, layout]: Case): number {
  const { pp, dp, tp, ep, etp, zero, sequenceParallel } = completeLayout(parseLayout(layout), "test");
  const experts = name === "sparse" ? { ep, etp } : { ep: 1, etp: 1 };
  const model = shapeOf(fromHuggingFaceConfig(configs[name], "test"));
  const cost = createCostModel({
    workload: { model, sequenceLength, batchSequences, software: softwarePresets["moe.ts"] },
    cluster: findClusterPreset("cpu"),
    layout: { pp, dp, tp, ...experts, microBatch: layout.microBatchSequences ?? 2, interleave: 1, sequenceParallel, zero },
  });
  return Math.max(...stagesOf(layout).map((stage, s) => cost.stageMemory(stage, Math.min(pp - s, cost.numMicroBatches)).total));
}

describe("peak memory of a rank", () => {
  test.each(cases.map((one) => [one[0], JSON.stringify(one[1]), one] as const))(
    "of a %s model under %s is within 5% of the planner's",
    async (_, __, one) => {
      expect(Math.abs(predictedPeak(one) / (await measuredPeak(one)) - 1)).toBeLessThan(0.05);
    },
    240_000,
  );
});

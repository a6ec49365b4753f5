/**
 * Row `planner.memory`: the largest error of the planner's peak memory of a rank of our own trainer, of layouts of 1 to 8 ranks. What counts is the most
 * bytes that any rank had handed out over two steps, which is the same in every run. `--only planner.memory` measures and keeps what it measured
 * (`planner-memory.json`); the page takes what was kept.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadBackend } from "../src/backend/load.ts";
import { findClusterPreset } from "../src/config/cluster.ts";
import { completeLayout, numRanks, parseLayout, type LayoutInput } from "../src/config/layout.ts";
import { fromHuggingFaceConfig } from "../src/config/model-huggingface.ts";
import { parseRunConfig } from "../src/config/run.ts";
import { stagesOfRow } from "../src/plan/calibrate.ts";
import { createCostModel } from "../src/plan/cost.ts";
import { shapeOf } from "../src/plan/shape.ts";
import { softwarePresets } from "../src/plan/software.ts";
import { Engine } from "../src/tensor/index.ts";
import { train, trainOnRanks } from "../src/train/index.ts";
import { Random } from "../src/util/random.ts";
import { wanted, type Context } from "./context.ts";
import type { Row } from "./measure.ts";
import { percent, table } from "./planner-format.ts";

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
const configs = { dense, sparse } as const;

export type MemoryCase = readonly [model: keyof typeof configs, layout: LayoutInput];
export const memoryCases: readonly MemoryCase[] = [
  ["dense", {}],
  ["dense", { dp: 2, zero: 1 }],
  ["dense", { tp: 2 }],
  ["dense", { tp: 2, microBatchSequences: 4 }],
  ["dense", { tp: 2, sequenceParallel: true }],
  ["dense", { pp: 2 }],
  ["dense", { pp: 2, layers: [5, 3] }],
  ["dense", { pp: 2, recompute: [4, 4] }],
  ["dense", { pp: 4 }],
  ["dense", { dp: 2, tp: 2 }],
  ["dense", { pp: 2, tp: 2 }],
  ["dense", { pp: 2, dp: 2, tp: 2, zero: 1 }],
  ["dense", { pp: 4, tp: 2 }],
  ["sparse", {}],
  ["sparse", { dp: 2, zero: 1 }],
  ["sparse", { dp: 2, strategy: "EP" }],
  ["sparse", { tp: 2, strategy: "EDP" }],
  ["sparse", { tp: 2, strategy: "TP" }],
  ["sparse", { tp: 2, sequenceParallel: true, strategy: "EDP" }],
  ["sparse", { pp: 2, recompute: [2, 2] }],
  ["sparse", { dp: 2, tp: 2, strategy: "EP", zero: 1 }],
  ["sparse", { dp: 2, tp: 2, strategy: "ETP" }],
  ["sparse", { pp: 2, dp: 2, tp: 2, strategy: "EDP", zero: 1 }],
  ["sparse", { pp: 2, dp: 4, strategy: "EP" }],
  ["sparse", { pp: 4, tp: 2, strategy: "EDP" }],
];

export function memoryCaseName([model, layout]: MemoryCase): string {
  const parts = Object.entries(layout).map(([key, value]) => `${key} ${Array.isArray(value) ? `[${value.join(", ")}]` : String(value)}`);
  return `${model}: ${parts.length === 0 ? "one rank" : parts.join(", ")}`;
}

/** Most bytes of any rank over two steps. */
export async function measurePeak([name, layout]: MemoryCase): Promise<number> {
  const { microBatchSequences, ...rest } = layout;
  const folder = mkdtempSync(join(tmpdir(), "moe-planner-memory-"));
  try {
    writeFileSync(join(folder, "text.txt"), madeUpText());
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
    const options = { config, runFolder: join(folder, "run"), resume: false };
    if (numRanks(completeLayout(parseLayout(layout), "case")) > 1) await trainOnRanks({ ...options, backend: { numThreads: 1 } });
    else {
      using engine = new Engine(await loadBackend({ numThreads: 1 }));
      await train({ ...options, engine });
    }
    const lines = readFileSync(join(options.runFolder, "metrics.jsonl"), "utf8").trim().split("\n");
    return Math.max(...lines.map((line) => (JSON.parse(line) as { peakBytes?: number }).peakBytes ?? 0));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function madeUpText(): string {
  const random = new Random(1);
  const word = (): string => String.fromCharCode(...Array.from({ length: 1 + random.integer(8) }, () => 97 + random.integer(26)));
  return Array.from({ length: 4000 }, () => Array.from({ length: 8 }, word).join(" ")).join("\n");
}

/** Bytes of the fullest rank, as the planner has them. */
export function predictPeak([name, layout]: MemoryCase): number {
  const { pp, dp, tp, ep, etp, zero, sequenceParallel } = completeLayout(parseLayout(layout), "case");
  const experts = name === "sparse" ? { ep, etp } : { ep: 1, etp: 1 };
  const model = shapeOf(fromHuggingFaceConfig(configs[name], "case"));
  const cost = createCostModel({
    workload: { model, sequenceLength, batchSequences, software: softwarePresets["moe.ts"] },
    cluster: findClusterPreset("cpu"),
    layout: { pp, dp, tp, ...experts, microBatch: layout.microBatchSequences ?? 2, interleave: 1, sequenceParallel, zero },
  });
  const stages = stagesOfRow({ numLayers, pp, stageLayers: layout.layers ?? null, recomputedLayers: layout.recompute ?? null }, "none");
  return Math.max(...stages.map((stage, s) => cost.stageMemory(stage, Math.min(pp - s, cost.numMicroBatches)).total));
}

const file = join(import.meta.dirname, "planner-memory.json");

/** Bytes by case, as measured last; null where nothing was. */
export function savedPeaks(): Readonly<Record<string, number>> | null {
  return existsSync(file) ? (JSON.parse(readFileSync(file, "utf8")) as Record<string, number>) : null;
}

const name = "planner.memory";
export const memoryBar = 0.05;

export async function* memoryRows(context: Context): AsyncGenerator<Row> {
  if (wanted(context, [name]).length === 0) return;
  if (context.only === name) {
    const peaks: Record<string, number> = {};
    for (const one of memoryCases) {
      peaks[memoryCaseName(one)] = await measurePeak(one);
      context.log(`${name}: ${memoryCaseName(one)}: ${peaks[memoryCaseName(one)]} bytes`);
    }
    writeFileSync(file, `${JSON.stringify(peaks, null, 2)}\n`);
  }
  const peaks = savedPeaks();
  const errors =
    peaks === null ? [] : memoryCases.map((one) => Math.abs(predictPeak(one) / (peaks[memoryCaseName(one)] ?? Number.NaN) - 1));
  const note =
    peaks === null ? `nothing was measured yet: npm run bench -- planner --only ${name}` : `the largest of ${errors.length} layouts`;
  yield { name, ours: peaks === null ? [] : [Math.max(...errors)], rival: [], unit: "share", bar: peaks === null ? null : memoryBar, note };
}

/** Of `docs/planner-accuracy.md`, behind the times of our own trainer. */
export function memorySection(): string {
  const peaks = savedPeaks();
  if (peaks === null) return "";
  const mebibytes = (bytes: number): string => (bytes / 2 ** 20).toFixed(1);
  const body = memoryCases.map((one) => {
    const [measured, predicted] = [peaks[memoryCaseName(one)] ?? Number.NaN, predictPeak(one)];
    return [memoryCaseName(one), mebibytes(measured), mebibytes(predicted), percent(predicted / measured - 1)];
  });
  return `Peak memory of a rank, the fullest one of up to eight, over two steps (${numLayers} layers, hidden ${dense.hidden_size}, FFN ${dense.intermediate_size}; sparse: ${sparse.num_local_experts} experts of ${sparse.intermediate_size}, top-${sparse.num_experts_per_tok};
bar: ${percent(memoryBar)} each). Bytes handed out, which every run has alike; \`npm run bench -- planner --only ${name}\` measures them anew.

${table(["model and layout", "measured, MiB", "predicted, MiB", "error"], body)}
`;
}

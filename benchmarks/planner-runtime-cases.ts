/**
 * Which steps of our own trainer the planner is held to (theme `planner`, rows `planner.runtime`): small models in f32, ranks of one thread. Some runs
 * calibrate, the others are predicted: two-rank layouts that the calibration has not seen.
 *
 * f32, because its products run on the same units on every processor: those of bf16 take matrix units where there are some.
 */
import type { LayoutInput } from "../src/config/layout.ts";
import { fromHuggingFaceConfig } from "../src/config/model-huggingface.ts";
import type { ModelConfig } from "../src/config/model.ts";
import { parseRunConfig, type RunConfig } from "../src/config/run.ts";

export const vocabSize = 4096;

const common = {
  vocab_size: vocabSize,
  max_position_embeddings: 512,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  tie_word_embeddings: false,
};
const shapes = {
  small: {
    model_type: "llama",
    hidden_size: 256,
    intermediate_size: 1024,
    num_hidden_layers: 8,
    num_attention_heads: 4,
    num_key_value_heads: 4,
  },
  wide: {
    model_type: "llama",
    hidden_size: 512,
    intermediate_size: 1408,
    num_hidden_layers: 4,
    num_attention_heads: 8,
    num_key_value_heads: 8,
  },
  sparse: {
    model_type: "mixtral",
    hidden_size: 256,
    intermediate_size: 512,
    num_hidden_layers: 6,
    num_attention_heads: 4,
    num_key_value_heads: 4,
    num_local_experts: 8,
    num_experts_per_tok: 2,
  },
} as const;
export type ShapeName = keyof typeof shapes;

export interface RuntimeCase {
  readonly name: string;
  readonly role: "fit" | "predict";
  readonly shape: ShapeName;
  readonly sequenceLength: number;
  readonly batchSequences: number;
  readonly microBatch: number;
  readonly layout: LayoutInput;
}

type Work = readonly [shape: ShapeName, sequenceLength: number, batchSequences: number, microBatch: number];

function fit(name: string, [shape, sequenceLength, batchSequences, microBatch]: Work, layout: LayoutInput = {}): RuntimeCase {
  return { name, role: "fit", shape, sequenceLength, batchSequences, microBatch, layout };
}
function predict(name: string, work: Work, layout: LayoutInput): RuntimeCase {
  return { ...fit(name, work, layout), role: "predict" };
}

/** The first calibrate: one rank, and the two simplest layouts of two. */
export const runtimeCases: readonly RuntimeCase[] = [
  fit("one.small", ["small", 256, 4, 2]),
  fit("one.small.long", ["small", 512, 2, 1]),
  fit("one.wide", ["wide", 256, 2, 1]),
  fit("one.wide.long", ["wide", 512, 2, 1]),
  fit("one.sparse", ["sparse", 256, 4, 2]),
  fit("one.sparse.long", ["sparse", 512, 2, 1]),
  fit("dp2.small", ["small", 256, 8, 2], { dp: 2 }),
  fit("tp2.small", ["small", 256, 4, 2], { tp: 2 }),
  predict("dp2.wide", ["wide", 512, 4, 1], { dp: 2 }),
  predict("dp2.zero1", ["small", 256, 8, 2], { dp: 2, zero: 1 }),
  predict("tp2.wide", ["wide", 256, 4, 2], { tp: 2 }),
  predict("tp2.sequence", ["small", 512, 2, 1], { tp: 2, sequenceParallel: true }),
  predict("tp2.edp", ["sparse", 256, 4, 2], { tp: 2, strategy: "EDP" }),
  predict("dp2.ep", ["sparse", 256, 8, 2], { dp: 2, strategy: "EP" }),
  predict("pp2.even", ["small", 256, 4, 1], { pp: 2 }),
  predict("pp2.uneven", ["small", 256, 8, 1], { pp: 2, layers: [5, 3] }),
  predict("pp2.recompute", ["wide", 256, 4, 1], { pp: 2, recompute: [2, 1] }),
  predict("pp2.sparse", ["sparse", 256, 4, 1], { pp: 2 }),
];

export function modelOf({ shape }: RuntimeCase): ModelConfig {
  return fromHuggingFaceConfig({ ...common, ...shapes[shape] }, `the benchmark's ${shape} model`);
}

/** A run of it; tokens come from a file of random ids. Routing is even, as the planner takes it to be. */
export function runOf({ shape, sequenceLength, batchSequences, microBatch, layout }: RuntimeCase): RunConfig {
  return parseRunConfig({
    model: { config: {} },
    data: { train: [{ path: "random ids" }], sequenceLength },
    batchSequences,
    microBatchSequences: microBatch,
    numSteps: 100_000,
    optimizer: { learningRate: 1e-4 },
    ...(shape === "sparse" ? { moe: { forcedBalance: true } } : {}),
    layout,
  });
}

export function numRanksOf({ layout: { pp = 1, dp = 1, tp = 1 } }: RuntimeCase): number {
  return pp * dp * tp;
}

/**
 * Which steps of our own trainer the planner is held to (theme `planner`, rows `planner.runtime`): small models in f32, ranks of one thread. Some runs
 * calibrate, the others, two-rank layouts, are predicted.
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
  grouped: {
    model_type: "llama",
    hidden_size: 384,
    intermediate_size: 1152,
    num_hidden_layers: 6,
    num_attention_heads: 6,
    num_key_value_heads: 2,
  },
  deep: {
    model_type: "llama",
    hidden_size: 192,
    intermediate_size: 512,
    num_hidden_layers: 12,
    num_attention_heads: 3,
    num_key_value_heads: 3,
  },
  fine: {
    model_type: "mixtral",
    hidden_size: 256,
    intermediate_size: 128,
    num_hidden_layers: 4,
    num_attention_heads: 4,
    num_key_value_heads: 4,
    num_local_experts: 16,
    num_experts_per_tok: 4,
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

/**
 * What a run is for. The calibration is fitted to "fit"; the others are predicted. Runs of "seen" were looked at while the cost model was written;
 * those of "unseen" were written down before anything of them was measured, and the cost model has not changed since.
 */
export type RuntimeRole = "fit" | "seen" | "unseen";

export interface RuntimeCase {
  readonly name: string;
  readonly role: RuntimeRole;
  readonly shape: ShapeName;
  readonly sequenceLength: number;
  readonly batchSequences: number;
  readonly microBatch: number;
  readonly layout: LayoutInput;
}

type Work = readonly [shape: ShapeName, sequenceLength: number, batchSequences: number, microBatch: number];

function casesOf(role: RuntimeRole, cases: readonly (readonly [name: string, work: Work, layout?: LayoutInput])[]): RuntimeCase[] {
  return cases.map(([name, [shape, sequenceLength, batchSequences, microBatch], layout = {}]) => {
    return { name, role, shape, sequenceLength, batchSequences, microBatch, layout };
  });
}

/** Those that calibrate: one rank, and the two simplest layouts of two. */
const fitted = casesOf("fit", [
  ["one.small", ["small", 256, 4, 2]],
  ["one.small.long", ["small", 512, 2, 1]],
  ["one.wide", ["wide", 256, 2, 1]],
  ["one.wide.long", ["wide", 512, 2, 1]],
  ["one.sparse", ["sparse", 256, 4, 2]],
  ["one.sparse.long", ["sparse", 512, 2, 1]],
  ["dp2.small", ["small", 256, 8, 2], { dp: 2 }],
  ["tp2.small", ["small", 256, 4, 2], { tp: 2 }],
]);

const seen = casesOf("seen", [
  ["dp2.wide", ["wide", 512, 4, 1], { dp: 2 }],
  ["dp2.zero1", ["small", 256, 8, 2], { dp: 2, zero: 1 }],
  ["tp2.wide", ["wide", 256, 4, 2], { tp: 2 }],
  ["tp2.sequence", ["small", 512, 2, 1], { tp: 2, sequenceParallel: true }],
  ["tp2.edp", ["sparse", 256, 4, 2], { tp: 2, strategy: "EDP" }],
  ["dp2.ep", ["sparse", 256, 8, 2], { dp: 2, strategy: "EP" }],
  ["pp2.even", ["small", 256, 4, 1], { pp: 2 }],
  ["pp2.uneven", ["small", 256, 8, 1], { pp: 2, layers: [5, 3] }],
  ["pp2.recompute", ["wide", 256, 4, 1], { pp: 2, recompute: [2, 1] }],
  ["pp2.sparse", ["sparse", 256, 4, 1], { pp: 2 }],
  ["dp2.grouped", ["grouped", 256, 4, 2], { dp: 2 }],
  ["dp2.wide.zero1", ["wide", 256, 8, 2], { dp: 2, zero: 1 }],
  ["dp2.sparse", ["sparse", 512, 4, 1], { dp: 2 }],
  ["tp2.grouped", ["grouped", 256, 4, 2], { tp: 2 }],
  ["tp2.wide.sequence", ["wide", 512, 2, 1], { tp: 2, sequenceParallel: true }],
  ["tp2.experts", ["sparse", 512, 2, 1], { tp: 2, strategy: "TP" }],
  ["tp2.edp.sequence", ["sparse", 256, 4, 2], { tp: 2, strategy: "EDP", sequenceParallel: true }],
  ["pp2.grouped", ["grouped", 256, 6, 1], { pp: 2, layers: [4, 2] }],
  ["pp2.wide.long", ["wide", 512, 4, 1], { pp: 2, layers: [3, 1], recompute: [3, 0] }],
  ["pp2.sparse.pairs", ["sparse", 256, 8, 2], { pp: 2, layers: [4, 2] }],
]);

/** Of every axis some, most of a shape that nothing else is measured with; three heads over two ranks are uneven. */
const unseen = casesOf("unseen", [
  ["dp2.deep", ["deep", 256, 8, 2], { dp: 2 }],
  ["dp2.fine.zero1", ["fine", 256, 4, 2], { dp: 2, zero: 1 }],
  ["dp2.fine.ep", ["fine", 512, 4, 1], { dp: 2, strategy: "EP" }],
  ["tp2.deep", ["deep", 256, 4, 2], { tp: 2 }],
  ["tp2.fine.edp", ["fine", 256, 4, 2], { tp: 2, strategy: "EDP" }],
  ["tp2.fine.experts", ["fine", 256, 2, 1], { tp: 2, strategy: "TP" }],
  ["tp2.grouped.sequence", ["grouped", 512, 2, 1], { tp: 2, sequenceParallel: true }],
  ["pp2.deep", ["deep", 256, 8, 1], { pp: 2, layers: [7, 5] }],
  ["pp2.fine", ["fine", 512, 4, 1], { pp: 2, recompute: [1, 0] }],
  ["pp2.grouped.pairs", ["grouped", 256, 4, 2], { pp: 2, recompute: [3, 3] }],
]);

export const runtimeCases: readonly RuntimeCase[] = [...fitted, ...seen, ...unseen];

export function modelOf({ shape }: RuntimeCase): ModelConfig {
  return fromHuggingFaceConfig({ ...common, ...shapes[shape] }, `the benchmark's ${shape} model`);
}

/** A run of it; tokens come from a file of random ids. Routing is even, as the planner takes it to be. */
export function runOf(one: RuntimeCase): RunConfig {
  const { sequenceLength, batchSequences, microBatch, layout } = one;
  return parseRunConfig({
    model: { config: {} },
    data: { train: [{ path: "random ids" }], sequenceLength },
    batchSequences,
    microBatchSequences: microBatch,
    numSteps: 100_000,
    optimizer: { learningRate: 1e-4 },
    ...(modelOf(one).moe === null ? {} : { moe: { forcedBalance: true } }),
    layout,
  });
}

export function numRanksOf({ layout: { pp = 1, dp = 1, tp = 1 } }: RuntimeCase): number {
  return pp * dp * tp;
}

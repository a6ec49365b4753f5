/** What the tests of equality run, on one rank and on many: a layout, a model, twenty steps. */
import type { LayoutInput } from "../../src/config/layout.ts";
import type { RunConfigInput } from "../../src/config/run.ts";
import type { ChosenExperts } from "../../src/nn/index.ts";

export interface LayoutCase {
  readonly name: string;
  readonly model: ModelName;
  readonly layout: LayoutInput;
  /** Changes to the run. */
  readonly run?: Partial<RunConfigInput>;
}
export interface EqualityJob {
  readonly cases: readonly LayoutCase[];
  readonly folder: string;
  readonly numSteps: number;
}
/** Chosen experts and probabilities of every token, by "step/sequence/layer". */
export type Choices = Map<string, ChosenExperts>;
/** What a run of a case left. */
export interface Outcome {
  readonly losses: readonly number[];
  /** By step: drops of all layers, and the coefficients of the next step. */
  readonly drops: readonly number[];
  readonly coefficients: readonly (readonly number[])[];
  readonly gradNorms: readonly number[];
  readonly choices: Choices;
  readonly weights: ReadonlyMap<string, Float32Array>;
  /** Of each rank: bytes of weights, gradients and optimizer, less those of the closed form. */
  readonly stateError: readonly number[];
  /** Bytes alive in each rank's engine when all was disposed. */
  readonly leaked: readonly number[];
}

/** Of one rank. */
export type Expected = Omit<Outcome, "leaked" | "stateError">;

const shared = {
  vocab_size: 300,
  hidden_size: 36,
  intermediate_size: 50,
  num_hidden_layers: 2,
  num_attention_heads: 9,
  num_key_value_heads: 3,
  head_dim: 4,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  initializer_range: 0.1,
  tie_word_embeddings: false,
  bos_token_id: 0,
  eos_token_id: 0,
};
const skywork = {
  model_type: "skywork_moe",
  ...shared,
  num_experts: [5],
  num_experts_per_tok: 2,
  moe_use_skywork_gating: false,
  moe_2layer_gate: false,
  moe_feature_no_mul_topk: true,
  moe_expert_interval: 1,
  moe_use_logits_norm: true,
  moe_gate_norm_std: 1,
  moe_gate_norm_eps: 1e-6,
  moe_selection_bias: true,
};

/** 9 heads over 3 key-value heads, 300 ids, 50 columns: hardly anything divides. */
export const models = {
  dense: { model_type: "llama", ...shared, tie_word_embeddings: true },
  /** Normalized gates, selection bias, 5 experts. */
  skywork,
  seven: { ...skywork, num_hidden_layers: 7 },
  /** Biases of queries, keys and values; a shared expert with a gate; a dense layer between. */
  qwen2Moe: {
    model_type: "qwen2_moe",
    ...shared,
    num_experts: 6,
    num_experts_per_tok: 2,
    moe_intermediate_size: 20,
    shared_expert_intermediate_size: 27,
    decoder_sparse_step: 1,
    norm_topk_prob: true,
    mlp_only_layers: [],
    use_sliding_window: false,
  },
  /** One norm over all heads. */
  olmoe: { model_type: "olmoe", ...shared, num_experts: 5, num_experts_per_tok: 2, norm_topk_prob: false },
  /** A norm of each head. */
  qwen3Moe: {
    model_type: "qwen3_moe",
    ...shared,
    num_experts: 5,
    num_experts_per_tok: 2,
    moe_intermediate_size: 20,
    decoder_sparse_step: 1,
    norm_topk_prob: true,
    mlp_only_layers: [],
    use_sliding_window: false,
  },
  /** Fewer heads than ranks, one norm over all of them. */
  fewHeads: {
    model_type: "olmoe",
    ...shared,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    num_experts: 5,
    num_experts_per_tok: 2,
    norm_topk_prob: true,
  },
} as const satisfies Record<string, Record<string, unknown>>;
export type ModelName = keyof typeof models;

/** The run of a case: capacity that drops, noise, adaptive coefficients, a z-loss, balance groups of one sequence, few loss-bearing tokens. */
export function runOf({ model, layout, run }: LayoutCase, numSteps: number): RunConfigInput {
  const hasExperts = model !== "dense";
  const moe = {
    auxiliaryLossCoefficient: { type: "adaptive", alphaMax: 0.05, beta: 0.9 },
    capacityFactor: 1.1,
    balanceGroupSequences: 1,
    jitterEpsilon: 0.01,
    zLossCoefficient: 1e-3,
    switchLossCoefficient: 1e-3,
    sequenceLossCoefficient: 1e-3,
    ...(model === "skywork" || model === "seven" ? { biasUpdateRate: 1e-3 } : {}),
  } as const;
  return {
    model: { config: models[model] },
    data: { train: [{ path: "made up" }], sequenceLength: 16 },
    batchSequences: 8,
    microBatchSequences: 2,
    numSteps,
    seed: 5,
    optimizer: { learningRate: 3e-3 },
    schedule: { name: "cosine", warmupSteps: 3 },
    ...(hasExperts ? { moe } : {}),
    layout,
    ...run,
  };
}

/**
 * A plan and its model in the words of Megatron-LM's arguments, and what these cannot say. FlagScale's configurations have the same words: it hands
 * every key on as an argument, so keys here have underscores, and `true` is an argument without a value.
 *
 * Read in NVIDIA/Megatron-LM of August 2026: `megatron/training/arguments.py`, and `megatron/core/transformer/transformer_config.py`, whose fields become
 * arguments. What `Software` and a plan leave open (learning rates, data, checkpoints) is not here.
 */
import type { ModelConfig, MoeConfig, RopeScaling } from "../config/model.ts";
import type { EvaluatedLayout } from "./evaluate.ts";
import { exchangesTokens } from "./ffn-operations.ts";
import type { PlanLayout, Software } from "./types.ts";

export type MegatronArguments = Readonly<Record<string, string | number | true>>;

/** Rows of the vocabulary as Megatron pads it: a multiple of 128 for each tensor-parallel rank (`--make-vocab-size-divisible-by`). */
export function paddedVocabulary(vocabSize: number, tp: number): number {
  return Math.ceil(vocabSize / (128 * tp)) * 128 * tp;
}

/** What `--use-rope-scaling` takes for the numbers of Llama 3.1 that are no arguments. */
const llama3Scaling = { lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositions: 8192 } as const;

/** All but the vocabulary, which is the tokenizer's. */
export function megatronModel(model: ModelConfig): MegatronArguments {
  return {
    num_layers: model.numLayers,
    hidden_size: model.hiddenSize,
    ffn_hidden_size: model.ffnSize,
    num_attention_heads: model.numHeads,
    ...(model.numKvHeads === model.numHeads ? {} : { group_query_attention: true, num_query_groups: model.numKvHeads }),
    kv_channels: model.headDim,
    max_position_embeddings: model.maxPositions,
    position_embedding_type: "rope",
    rotary_base: model.ropeTheta,
    ...(isSayableScaling(model.ropeScaling) ? scalingArguments(model.ropeScaling) : {}),
    normalization: "RMSNorm",
    norm_epsilon: model.normEps,
    swiglu: true,
    disable_bias_linear: true,
    ...(model.tiedEmbeddings ? {} : { untie_embeddings_and_output_weights: true }),
    ...(model.qkvBias ? { add_qkv_bias: true } : {}),
    ...(model.qkNorm === "none" ? {} : { qk_layernorm: true }),
    ...windowArguments(model),
    init_method_std: model.initStd,
    ...(model.moe === null ? {} : expertArguments(model.moe, model.numLayers)),
  };
}

/** A window has a query's keys to its left and right, without its own. */
function windowArguments({ slidingWindow, numLayers }: ModelConfig): MegatronArguments {
  if (slidingWindow === null) return {};
  const { size, firstLayer } = slidingWindow;
  const skipped = firstLayer === 0 ? {} : { window_attn_skip_freq: `[0]*${firstLayer}+[1]*${numLayers - firstLayer}` };
  return { window_size: `${size - 1},0`, ...skipped };
}

function expertArguments(moe: MoeConfig, numLayers: number): MegatronArguments {
  const { layerInterval, scoring, renormalize, routedScale, groups, selectionBias, sharedExpert } = moe;
  return {
    num_experts: moe.numExperts,
    moe_router_topk: moe.topK,
    moe_ffn_hidden_size: moe.expertFfnSize,
    // A number N would be the layers 0, N, 2N, ...: ours are N - 1, 2N - 1, ...
    ...(layerInterval === 1 ? {} : { moe_layer_freq: repeated([...Array<number>(layerInterval - 1).fill(0), 1], numLayers) }),
    ...(scoring === "sigmoid" ? { moe_router_score_function: "sigmoid" } : {}),
    // The default, a softmax over the chosen, is also one over all that is divided by the sum of the chosen.
    ...(isPreSoftmax(scoring, renormalize) ? { moe_router_pre_softmax: true } : {}),
    ...(routedScale === 1 ? {} : { moe_router_topk_scaling_factor: routedScale }),
    ...(groups === null ? {} : { moe_router_num_groups: groups.numGroups, moe_router_group_topk: groups.topGroups }),
    ...(selectionBias && scoring === "sigmoid" ? { moe_router_enable_expert_bias: true } : {}),
    ...(sharedExpert === null ? {} : { moe_shared_expert_intermediate_size: sharedExpert.ffnSize }),
    ...(sharedExpert?.gate === true ? { moe_shared_expert_gate: true } : {}),
    moe_grouped_gemm: true,
  };
}
/** How experts are cut, and whether rows of the chosen travel to them or all tokens are gathered. */
export function megatronExperts({ moe }: ModelConfig, layout: PlanLayout): MegatronArguments {
  if (moe === null) return {};
  return {
    expert_model_parallel_size: layout.ep,
    expert_tensor_parallel_size: layout.etp,
    moe_token_dispatcher_type: layout.tp > 1 && !exchangesTokens(layout) ? "allgather" : "alltoall",
  };
}
function isPreSoftmax(scoring: MoeConfig["scoring"], renormalize: boolean): boolean {
  return scoring === "softmax" && !renormalize;
}

/** A list of `length` numbers that repeats `period`, as a Python expression. Without parentheses: FlagScale hands it to a shell as it is. */
function repeated(period: readonly number[], length: number): string {
  const rest = period.slice(0, length % period.length);
  const whole = `[${period.join(",")}]*${Math.floor(length / period.length)}`;
  return rest.length === 0 ? whole : `${whole}+[${rest.join(",")}]`;
}

function isSayableScaling(scaling: RopeScaling | null): boolean {
  if (scaling?.type === "linear") return Number.isInteger(scaling.factor);
  if (scaling?.type !== "llama3") return scaling === null;
  return Object.entries(llama3Scaling).every(([key, value]) => scaling[key as keyof typeof llama3Scaling] === value);
}
function scalingArguments(scaling: RopeScaling | null): MegatronArguments {
  if (scaling?.type === "linear") return { rotary_seq_len_interpolation_factor: scaling.factor };
  return scaling === null ? {} : { use_rope_scaling: true, rope_scaling_factor: scaling.factor };
}

/** Number types of the training program that was planned for. Without any of these Megatron computes in f32. */
export function megatronPrecision({ computeType, gradientBytes }: Software): MegatronArguments {
  if (computeType === "f32") return {};
  return {
    [computeType === "f16" ? "fp16" : "bf16"]: true,
    ...(computeType === "fp8" ? { fp8_format: "hybrid" } : {}),
    ...(gradientBytes === 4 ? { accumulate_allreduce_grads_in_fp32: true } : {}),
    ...(computeType !== "f16" && gradientBytes === 2 ? { grad_reduce_in_bf16: true } : {}),
  };
}

/** How it computes attention and experts. */
export function megatronSoftware({ attention, dropout, capacityFactor }: Software): MegatronArguments {
  return {
    ...(attention === "materialized" ? { attention_backend: "unfused" } : {}),
    // The default is 0.1.
    ...(dropout ? {} : { attention_dropout: 0, hidden_dropout: 0 }),
    ...(capacityFactor === null ? {} : { moe_expert_capacity_factor: capacityFactor }),
  };
}

/** Recomputation as Megatron does it: whole layers (a stage's first ones), or attention's inner part in all layers of the model. */
export interface MegatronRecompute {
  readonly granularity: "full" | "selective" | null;
  /** Whole layers of each stage: a layer of which the plan recomputes attention only beside whole ones counts, because keeping it would not fit. */
  readonly numLayers: readonly number[];
}

export function megatronRecompute({ stages }: EvaluatedLayout): MegatronRecompute {
  if (stages.some(({ fullRecompute }) => fullRecompute > 0))
    return { granularity: "full", numLayers: stages.map(({ fullRecompute, selectiveRecompute }) => fullRecompute + selectiveRecompute) };
  const isSelective = stages.some(({ selectiveRecompute }) => selectiveRecompute > 0);
  return { granularity: isSelective ? "selective" : null, numLayers: stages.map(() => 0) };
}

/** What Megatron cannot do of a plan, or does otherwise, whoever calls it. */
export function megatronNotes(plan: EvaluatedLayout, model: ModelConfig): string[] {
  const { tp, ep, sequenceParallel } = plan.layout;
  const { numHeads, numKvHeads, moe, vocabSize } = model;
  const padded = paddedVocabulary(vocabSize, tp);
  return kept([
    [numHeads % tp !== 0, `Megatron needs heads that divide by tp: ${numHeads} over ${tp}`],
    [
      numKvHeads % tp !== 0 && tp % numKvHeads !== 0,
      `Megatron needs key-value heads that are a multiple or a divisor of tp: ${numKvHeads} over ${tp}`,
    ],
    [(moe?.numExperts ?? 0) % ep !== 0, `Megatron needs experts that divide by ep: ${moe?.numExperts} over ${ep}`],
    [moe !== null && tp > 1 && !sequenceParallel, `Megatron needs sequence parallelism for experts with tp ${tp}`],
    [plan.schedule === "zeroBubble", "Megatron-LM's main branch has no zero-bubble schedule: it runs 1F1B"],
    [padded !== vocabSize, `Megatron takes the vocabulary from its tokenizer and pads it: ${padded} rows for ${vocabSize}`],
    ...recomputeNotes(plan),
    ...modelNotes(model),
  ]);
}
type Note = readonly [applies: boolean, text: string];
function kept(notes: readonly Note[]): string[] {
  return notes.filter(([applies]) => applies).map(([, text]) => text);
}

function recomputeNotes(plan: EvaluatedLayout): Note[] {
  const { granularity, numLayers } = megatronRecompute(plan);
  const list = (of: (stage: EvaluatedLayout["stages"][number]) => number): string => `[${plan.stages.map(of).join(", ")}]`;
  const selective = list((stage) => stage.selectiveRecompute);
  return [
    [
      granularity === "full" && plan.stages.some(({ selectiveRecompute }) => selectiveRecompute > 0),
      `Megatron recomputes whole layers or attention, not both: [${numLayers.join(", ")}] layers as a whole, of ${selective} of which the plan recomputes attention only`,
    ],
    [
      granularity === "selective" && plan.stages.some((stage) => stage.selectiveRecompute < stage.numLayers),
      `Megatron recomputes attention in every layer: the plan does in ${selective} of ${list((stage) => stage.numLayers)}`,
    ],
  ];
}

function modelNotes({ qkNorm, ropeScaling, moe }: ModelConfig): Note[] {
  return [
    [qkNorm === "all", "Megatron's norm of queries and keys is of each head: the model's is of all heads together"],
    [!isSayableScaling(ropeScaling), `Megatron's arguments have no such scaling of rotary embeddings: ${JSON.stringify(ropeScaling)}`],
    ...(moe === null ? [] : expertNotes(moe)),
  ];
}
function expertNotes(moe: MoeConfig): Note[] {
  const { gateNormalization, gateLayers, inputScale, sharedExpert, selectionBias, scoring, renormalize, topK, groups } = moe;
  const summed = groups === null ? 0 : Math.floor(topK / groups.topGroups);
  const scored = groups === null ? 0 : Math.min(2, moe.numExperts / groups.numGroups);
  const scoresFirst = scoring === "sigmoid" || isPreSoftmax(scoring, renormalize);
  return [
    [gateNormalization !== null, "Megatron has no gating logit normalization"],
    [gateLayers !== 1, `Megatron's gate is one matrix: the model's has ${gateLayers} layers`],
    [inputScale !== 1, `Megatron does not scale the experts' input: the model multiplies it by ${inputScale}`],
    [
      sharedExpert !== null && sharedExpert.scale !== 1,
      `Megatron does not scale the shared expert: the model does by ${sharedExpert?.scale}`,
    ],
    [selectionBias && scoring !== "sigmoid", `Megatron has a bias for choosing with sigmoid scores only: the model's are ${scoring}`],
    [
      scoring === "sigmoid" && renormalize !== topK > 1,
      `Megatron divides sigmoid scores by their sum where there are several: the model with top-${topK} ${renormalize ? "does" : "does not"}`,
    ],
    [
      groups !== null && (!scoresFirst || summed !== scored),
      `Megatron scores a group of experts by the ${summed} best ${scoresFirst ? "scores" : "logits"} in it: the model by the ${scored} best scores`,
    ],
  ];
}

/**
 * What the cost model is asked and what it answers. The search and the simulator build on these types only.
 *
 * Units: seconds, bytes, FLOPs; sizes are counts. A cost is that of **one device**, and of one micro-batch where it is not
 * said to be of a step. Forward, backward and recomputation times contain what the device's own host and its collectives
 * inside the layer (tensor, expert) take; what a schedule can overlap (messages between stages, the exchange of gradients)
 * is apart.
 */
import type { ModelConfig } from "../config/model.ts";
import type { ClusterConfig, ComputeType } from "../config/cluster.ts";

/** What a layer keeps for its backward pass: all; all but attention's scores and softmax; its input only. */
export const recomputeChoices = ["none", "selective", "full"] as const;
export type Recompute = (typeof recomputeChoices)[number];

/** A decoder as the cost model sees it: every `ModelConfig` has one (`shape.ts`), and so have GPT-2's kind, which we do not build. */
export interface ModelShape extends Pick<
  ModelConfig,
  "numLayers" | "hiddenSize" | "ffnSize" | "numHeads" | "numKvHeads" | "headDim" | "vocabSize" | "tiedEmbeddings" | "moe" | "slidingWindow"
> {
  /** Matrices of a dense FFN or an expert: 3 (SwiGLU) or 2 (GELU). */
  readonly ffnMatrices: 2 | 3;
  /** Biases of all products and affine LayerNorm with learned positions (GPT-2), or none of these. */
  readonly style: "gpt2" | "llama";
}

/** How the training program computes: what a model and a layout leave open. */
export interface Software {
  readonly computeType: ComputeType;
  /** Type in which logits are computed. */
  readonly headType: ComputeType;
  /**
   * `kept`: a micro-batch's logits stay in memory in f32 until its backward pass; `chunked`: the loss and its gradients are computed a chunk of rows at
   * a time, all in the forward pass.
   */
  readonly logits: "kept" | "chunked";
  /** `materialized`: scores and probabilities lie in memory (before FlashAttention). */
  readonly attention: "materialized" | "flash";
  /** Dropout on attention's probabilities and both residual branches. */
  readonly dropout: boolean;
  /** Bytes of a gradient while micro-batches add up: 2, or 4 (main gradients in f32). */
  readonly gradientBytes: 2 | 4;
  /** Bytes an element of a gradient has when data-parallel ranks exchange it. */
  readonly exchangeBytes: 2 | 4;
  /** Under sequence parallelism the gathered input of a product is kept for the backward pass (ours), not gathered again (Megatron's, the default). */
  readonly keepsGathered?: boolean;
  /** Gradients of weights are added to those of earlier micro-batches by the products that make them (ours), not by operations of their own (the default). */
  readonly fusedAccumulation?: boolean;
  /** Times that a gradient is read or written at the end of a step. Default 5: norm and unscaling both ways, the update. */
  readonly gradientPasses?: number;
  /** Keys that fused attention takes at a time: a query takes part in whole blocks of them. Default 1. */
  readonly attentionBlock?: number;
  /** Speed of fused attention's backward pass beside its forward pass. Default 5/6, as on cards (FlashAttention-2, arXiv 2307.08691, figure 5). */
  readonly attentionBackward?: number;
  /**
   * Ranks tell each other how many rows they send before tokens travel, and rows that came are copied into the order of their experts, results back into
   * that of the ranks (ours). Default: neither is counted.
   */
  readonly sortsArrived?: boolean;
  /** Seconds of the host for each row that an exchange of tokens sends, where it makes the lists of rows itself. Default 0. */
  readonly hostSecondsPerRow?: number;
  /**
   * Kept activations are let go as the backward pass goes down (ours): when it comes to the recomputed layers, which are a stage's first, those of the
   * others are free. Default: what is recomputed counts on top of all that is kept, as a margin.
   */
  readonly freesInBackward?: boolean;
  /** Tokens an expert takes at most, over the even share; null: dropless (the even share is assumed). */
  readonly capacityFactor: number | null;
}

export interface Workload {
  readonly model: ModelShape;
  readonly sequenceLength: number;
  /** Sequences of one optimizer step, over the whole cluster. */
  readonly batchSequences: number;
  readonly software: Software;
}

/**
 * How ranks are used, without saying which layers a stage has. dp * tp ranks make a stage; its experts are cut ep * etp ways
 * over the same ranks and repeated dp * tp / (ep * etp) times. Skywork-MoE's expert data parallelism is ep = tp, etp = 1.
 */
export interface PlanLayout {
  readonly pp: number;
  readonly dp: number;
  readonly tp: number;
  readonly ep: number;
  readonly etp: number;
  /** Sequences of one micro-batch of one data-parallel rank. */
  readonly microBatch: number;
  /** Model chunks of a stage (1: plain 1F1B). */
  readonly interleave: number;
  /** Norms, dropout and residuals cut along the sequence over tp; all-reduces become reduce-scatter and all-gather. */
  readonly sequenceParallel: boolean;
  /** 0: none; 1: optimizer states over dp; 2: and gradients; 3: and weights. */
  readonly zero: 0 | 1 | 2 | 3;
}

/** Consecutive layers of one device (or one chunk of it). */
export interface StagePlan {
  readonly firstLayer: number;
  readonly numLayers: number;
  /** Of its layers, how many recompute everything, and how many only attention's inner part; the others keep all. */
  readonly fullRecompute: number;
  readonly selectiveRecompute: number;
  /** Has the embedding, the head with its loss. */
  readonly embedding: boolean;
  readonly head: boolean;
}

/** The axes over which devices speak. */
export const axes = ["tp", "ep", "pp", "dp"] as const;
export type Axis = (typeof axes)[number];

/** Time and traffic of one pass over one layer, the embedding or the head. */
export interface PassCost {
  /** All of it, communication included. */
  readonly seconds: number;
  /** Of these, the ones in which collectives inside the layer run and nothing else does. */
  readonly communicationSeconds: number;
  /** FLOPs of matrix products and attention (a multiply-add is 2) that the device executes. */
  readonly flops: number;
  /** Bytes that the device sends, by axis. */
  readonly sentBytes: Readonly<Record<Axis, number>>;
}

export interface LayerCost {
  readonly forward: PassCost;
  readonly backward: PassCost;
  /** What is run again before the backward pass under the layer's recomputation choice. */
  readonly recompute: PassCost;
  /** Bytes kept from the forward to the backward pass, for one micro-batch. */
  readonly activationBytes: number;
  /** Parameters of one device: those that all data-parallel ranks share, and experts', which have a group of their own. */
  readonly parameters: number;
  readonly expertParameters: number;
}

/** Bytes of one device of a stage. */
export interface StageMemory {
  readonly weights: number;
  readonly gradients: number;
  readonly optimizer: number;
  /** Of all micro-batches in flight. */
  readonly activations: number;
  /** The largest of what lives for moments: a recomputed layer's activations, logits, buffers of collectives. */
  readonly workspace: number;
  readonly total: number;
}

/** Kinds of bytes that a device holds. */
export const memoryParts = [
  "weights",
  "gradients",
  "optimizer",
  "activations",
  "workspace",
] as const satisfies readonly (keyof StageMemory)[];
export type MemoryPart = (typeof memoryParts)[number];

/** What happens once a step on a stage, after the last backward pass. */
export interface StepEndCost {
  /** Exchange of gradients over data-parallel ranks, and of updated weights under ZeRO; what overlap hides is already taken off. */
  readonly gradientSeconds: number;
  readonly optimizerSeconds: number;
  /** Bytes that the device sends over `dp`. */
  readonly sentBytes: number;
}

/** Costs of one workload on one cluster under one layout, on one kind of device. Pure: the same arguments, the same answer. */
export interface CostModel {
  readonly workload: Workload;
  readonly cluster: ClusterConfig;
  readonly layout: PlanLayout;
  /** Micro-batches of one data-parallel rank in a step. */
  readonly numMicroBatches: number;
  layer(layer: number, recompute: Recompute): LayerCost;
  embedding(): LayerCost;
  head(): LayerCost;
  /** Seconds and bytes of handing a micro-batch's activations (or their gradient) to the next stage. */
  boundary(): { readonly seconds: number; readonly bytes: number };
  /** Seconds that a micro-batch's forward and backward passes on a stage take besides its layers. */
  readonly microBatchSeconds: number;
  stageMemory(stage: StagePlan, inFlight: number): StageMemory;
  stepEnd(stage: StagePlan): StepEndCost;
  /** Seconds of a step that no stage's work explains. */
  readonly stepSeconds: number;
}

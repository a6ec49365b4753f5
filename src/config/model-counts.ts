/**
 * What a model configuration can count of itself: parameters, FLOPs, bytes. Arithmetic only; tests compare each with the
 * module that `src/model` builds from the same configuration.
 *
 * FLOPs count a multiply-add as 2, matrix products and attention only (norms, rotations, softmax and the embedding look-up
 * are left out, as is usual for model FLOPs utilization).
 */
import { hasExperts, windowOfLayer, type ModelConfig } from "./model.ts";

/** Parameters by where they are. */
export interface ParameterCounts {
  /** Input embedding, and the output head where it is another matrix. */
  readonly embeddings: number;
  /** Projections with their biases, and QK norms. */
  readonly attention: number;
  /** Dense FFNs. */
  readonly dense: number;
  readonly experts: number;
  /** Experts that every token uses, and their gates. */
  readonly sharedExperts: number;
  /** Gates, and the biases that are added for choosing. */
  readonly routers: number;
  readonly norms: number;
}

/** Parameters of the whole model, by part. With `active`, only the experts that one token uses. */
export function parameterCounts(config: ModelConfig, { active = false } = {}): ParameterCounts {
  const { hiddenSize: H, numHeads, numKvHeads, headDim, numLayers } = config;
  const qkvSize = (numHeads + 2 * numKvHeads) * headDim;
  const attention = qkvSize * H + numHeads * headDim * H + (config.qkvBias ? qkvSize : 0) + qkNormSize(config);
  const numMoe = numMoeLayers(config);
  const { moe } = config;
  const expertsUsed = moe === null ? 0 : active ? moe.topK : moe.numExperts;
  return {
    embeddings: config.vocabSize * H * (config.tiedEmbeddings ? 1 : 2),
    attention: attention * numLayers,
    dense: (numLayers - numMoe) * 3 * H * config.ffnSize,
    experts: numMoe * expertsUsed * 3 * H * (moe?.expertFfnSize ?? 0),
    sharedExperts: numMoe * sharedExpertSize(config),
    routers: numMoe * (gateSize(config) + (moe?.selectionBias === true ? moe.numExperts : 0)),
    norms: (2 * numLayers + 1) * H,
  };
}
/** Norm weights of one layer's queries and keys. */
function qkNormSize({ qkNorm, headDim, numHeads, numKvHeads }: ModelConfig): number {
  if (qkNorm === "none") return 0;
  return qkNorm === "head" ? 2 * headDim : (numHeads + numKvHeads) * headDim;
}
/** Elements of one layer's gate matrices. */
function gateSize({ hiddenSize: H, moe }: ModelConfig): number {
  if (moe === null) return 0;
  const E = moe.numExperts;
  return moe.gateLayers === 1 ? E * H : 8 * E * H + E * 8 * E;
}
/** Elements of one layer's shared expert with its gate: all of them are matrices. */
function sharedExpertSize({ hiddenSize: H, moe }: ModelConfig): number {
  const shared = moe?.sharedExpert ?? null;
  return shared === null ? 0 : 3 * H * shared.ffnSize + (shared.gate ? H : 0);
}
/** Layers that have experts. */
export function numMoeLayers(config: ModelConfig): number {
  let n = 0;
  for (let layer = 0; layer < config.numLayers; layer++) if (hasExperts(config, layer)) n++;
  return n;
}
/** All parameters. A tied embedding counts once. */
export function numParams(config: ModelConfig): number {
  return sum(parameterCounts(config));
}
/** Parameters that one token uses: top-k experts of each layer, everything else whole (embeddings included). */
export function numActiveParams(config: ModelConfig): number {
  return sum(parameterCounts(config, { active: true }));
}
function sum(counts: ParameterCounts): number {
  return counts.embeddings + counts.attention + counts.dense + counts.experts + counts.sharedExperts + counts.routers + counts.norms;
}

/** FLOPs of one token's forward pass, averaged over the causal positions 0..seqLen-1 of a document. */
export function forwardFlopsPerToken(config: ModelConfig, seqLen: number): number {
  const { hiddenSize: H, numHeads, numKvHeads, headDim, numLayers } = config;
  const projections = numLayers * (2 * numHeads + 2 * numKvHeads) * headDim * H;
  const counts = parameterCounts(config, { active: true });
  const head = config.vocabSize * H;
  let keys = 0;
  for (let layer = 0; layer < numLayers; layer++) keys += meanVisibleKeys(seqLen, windowOfLayer(config, layer));
  // Scores and the weighted sum of values: two products of headDim per query head and key.
  const attention = 2 * keys * numHeads * headDim;
  const routers = numMoeLayers(config) * gateSize(config);
  return 2 * (projections + counts.dense + counts.experts + counts.sharedExperts + routers + head + attention);
}
/** FLOPs of one token of training: the forward pass, and twice as many backwards. Recomputation is not counted. */
export function flopsPerToken(config: ModelConfig, seqLen: number): number {
  return 3 * forwardFlopsPerToken(config, seqLen);
}
/** Mean over positions of the number of keys that a causal query sees. `window` 0: no window. */
function meanVisibleKeys(seqLen: number, window: number): number {
  if (window === 0 || window >= seqLen) return (seqLen + 1) / 2;
  return ((window * (window + 1)) / 2 + (seqLen - window) * window) / seqLen;
}

/** Bytes of keys and values that one token leaves in the cache of all layers, for elements of `elementBytes`. */
export function kvBytesPerToken(config: ModelConfig, elementBytes: number): number {
  return 2 * config.numLayers * config.numKvHeads * config.headDim * elementBytes;
}

export interface ActivationOptions {
  /** Tokens of one forward pass (a micro-batch). */
  readonly numTokens: number;
  /** Bytes of an activation: 4 for f32, 2 for bf16. */
  readonly elementBytes: number;
  /** Layers whose activations are recomputed: only their input is kept. Default 0. */
  readonly recomputeLayers?: number;
}

/**
 * Bytes that a training step keeps between the forward and the backward pass: what the tape saves, dropless. The logits'
 * chunk, gradients and the caller's own tensors are not in it.
 */
export function activationBytes(config: ModelConfig, { numTokens, elementBytes, recomputeLayers = 0 }: ActivationOptions): number {
  let perToken = 0;
  for (let layer = 0; layer < config.numLayers; layer++) {
    perToken += layer < recomputeLayers ? recomputedBytes(config, layer, elementBytes) : layerBytes(config, layer, elementBytes);
  }
  // The final norm's input and 1/rms, and the gradient of its output (which the loss computes in the forward pass).
  return numTokens * (perToken + 2 * config.hiddenSize * elementBytes + 4);
}
function layerBytes(config: ModelConfig, layer: number, elementBytes: number): number {
  const { hiddenSize: H, numHeads, numKvHeads, headDim } = config;
  const [Q, C] = [numHeads * headDim, numKvHeads * headDim];
  // Input, its norm; queries, keys, values, attention's output and log-sum-exp; the residual sum.
  let bytes = elementBytes * (3 * H + 2 * Q + 2 * C) + 4 * numHeads;
  // 1/rms of both norms.
  bytes += 2 * 4;
  // With QK norm: what it normalized, and 1/rms of each head or of all.
  if (config.qkNorm !== "none") bytes += elementBytes * (Q + C) + 4 * (config.qkNorm === "head" ? numHeads + numKvHeads : 2);
  if (!hasExperts(config, layer) || config.moe === null) return bytes + elementBytes * (H + 3 * config.ffnSize);
  const { numExperts: E, topK: K, expertFfnSize: F } = config.moe;
  // Router: its f32 input, logits and probabilities; weights, indices and rows of the chosen.
  bytes += 4 * (H + 2 * E + 3 * K);
  // Of a two-layer gate, the hidden layer behind its tanh.
  if (config.moe.gateLayers === 2) bytes += 4 * 8 * E;
  // Shared expert: its input (in f32 it is the router's), gate, up and product; with a gate its output and the gate's logit.
  const shared = config.moe.sharedExpert;
  if (shared !== null) {
    bytes += (elementBytes === 4 ? 0 : elementBytes * H) + elementBytes * 3 * shared.ffnSize;
    if (shared.gate) bytes += elementBytes * H + 4;
  }
  // Experts: their input, gate, up, product and output, K times.
  return bytes + K * elementBytes * (2 * H + 3 * F);
}
/** A recomputed layer's input, and what the router returns. */
function recomputedBytes(config: ModelConfig, layer: number, elementBytes: number): number {
  const routing = hasExperts(config, layer) && config.moe !== null ? 4 * (2 * config.moe.numExperts + 2 * config.moe.topK) : 0;
  return config.hiddenSize * elementBytes + routing;
}

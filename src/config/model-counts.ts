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
  readonly routers: number;
  readonly norms: number;
}

/** Parameters of the whole model, by part. With `active`, only the experts that one token uses. */
export function parameterCounts(config: ModelConfig, { active = false } = {}): ParameterCounts {
  const { hiddenSize: H, numHeads, numKvHeads, headDim, numLayers } = config;
  const qkvSize = (numHeads + 2 * numKvHeads) * headDim;
  const attention = qkvSize * H + numHeads * headDim * H + (config.qkvBias ? qkvSize : 0) + (config.qkNorm ? 2 * headDim : 0);
  const numMoe = numMoeLayers(config);
  const { moe } = config;
  const expertsUsed = moe === null ? 0 : active ? moe.topK : moe.numExperts;
  return {
    embeddings: config.vocabSize * H * (config.tiedEmbeddings ? 1 : 2),
    attention: attention * numLayers,
    dense: (numLayers - numMoe) * 3 * H * config.ffnSize,
    experts: numMoe * expertsUsed * 3 * H * (moe?.expertFfnSize ?? 0),
    routers: numMoe * (moe?.numExperts ?? 0) * H,
    norms: (2 * numLayers + 1) * H,
  };
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
  return counts.embeddings + counts.attention + counts.dense + counts.experts + counts.routers + counts.norms;
}

/** FLOPs of one token's forward pass, averaged over the causal positions 0..seqLen-1 of a document. */
export function forwardFlopsPerToken(config: ModelConfig, seqLen: number): number {
  const { hiddenSize: H, numHeads, numKvHeads, headDim, numLayers, moe } = config;
  const projections = numLayers * (2 * numHeads + 2 * numKvHeads) * headDim * H;
  const counts = parameterCounts(config, { active: true });
  const head = config.vocabSize * H;
  let keys = 0;
  for (let layer = 0; layer < numLayers; layer++) keys += meanVisibleKeys(seqLen, windowOfLayer(config, layer));
  // Scores and the weighted sum of values: two products of headDim per query head and key.
  const attention = 2 * keys * numHeads * headDim;
  const router = moe === null ? 0 : counts.routers;
  return 2 * (projections + counts.dense + counts.experts + router + head + attention);
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
  // With QK norm: what it normalized, and 1/rms of each head.
  if (config.qkNorm) bytes += elementBytes * (Q + C) + 4 * (numHeads + numKvHeads);
  if (!hasExperts(config, layer) || config.moe === null) return bytes + elementBytes * (H + 3 * config.ffnSize);
  const { numExperts: E, topK: K, expertFfnSize: F } = config.moe;
  // Router: its f32 input, logits and probabilities; weights, indices and rows of the chosen.
  bytes += 4 * (H + 2 * E + 3 * K);
  // Experts: their input, gate, up, product and output, K times.
  return bytes + K * elementBytes * (2 * H + 3 * F);
}
/** A recomputed layer's input, and what the router returns. */
function recomputedBytes(config: ModelConfig, layer: number, elementBytes: number): number {
  const routing = hasExperts(config, layer) && config.moe !== null ? 4 * (config.moe.numExperts + 2 * config.moe.topK) : 0;
  return config.hiddenSize * elementBytes + routing;
}

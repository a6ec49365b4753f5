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

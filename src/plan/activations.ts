/**
 * Bytes that a layer, the embedding and the head keep from their forward to their backward pass on one rank, for one micro-batch.
 *
 * The counting is that of "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198, section 4): for GPT-2's
 * kind with scores in memory it is exactly S b H (10 + 24 / t + 5 a S / (H t)) bytes, with sequence parallelism S b H / t (34 + 5 a S / H), and
 * 2 S b H where everything is recomputed. For our own models it is what their tape keeps (`activationBytes` in
 * `src/config/model-counts.ts`; a test compares).
 */
import { expertsOf } from "./shape.ts";
import { expertSizes, largestShare, type RankSizes } from "./sizes.ts";
import type { PlanLayout, Recompute, Software, Workload } from "./types.ts";

/** Bytes of a layer under a recomputation choice. */
export function layerActivationBytes(
  workload: Workload,
  layer: number,
  sizes: RankSizes,
  layout: PlanLayout,
  recompute: Recompute,
): number {
  const { model } = workload;
  const { rowTokens, elementBytes: e } = sizes;
  if (recompute === "full") return e * rowTokens * model.hiddenSize + routingBytes(workload, layer, sizes);
  const inner = recompute === "none" ? attentionInnerBytes(workload, sizes, layout) : 0;
  return attentionBytes(workload, sizes) + inner + ffnBytes(workload, layer, sizes, layout);
}

/** Input, its norm, queries, keys, values, attention's output; statistics of norm and softmax; dropout's mask. */
function attentionBytes({ model, software }: Workload, sizes: RankSizes): number {
  const { hiddenSize: H } = model;
  const { tokens: T, rowTokens, queryColumns: Q, keyColumns: C, heads, elementBytes: e } = sizes;
  const statistics = model.style === "llama" ? 4 * (rowTokens + T * heads) : 0;
  return e * ((rowTokens + productTokens(software, sizes)) * H + T * (2 * Q + 2 * C)) + (software.dropout ? rowTokens * H : 0) + statistics;
}

/** Tokens of the kept input of a product that follows a norm. */
function productTokens({ keepsGathered = false }: Software, { tokens, rowTokens }: RankSizes): number {
  return keepsGathered ? tokens : rowTokens;
}

/** Scores' softmax, dropout's mask and its output: what selective recomputation does not keep, and fused attention never has. */
function attentionInnerBytes(
  { sequenceLength: S, software }: Workload,
  { heads, elementBytes: e }: RankSizes,
  { microBatch }: PlanLayout,
): number {
  if (software.attention === "flash") return 0;
  return (software.dropout ? 2 * e + 1 : e) * heads * microBatch * S * S;
}

function ffnBytes(workload: Workload, layer: number, sizes: RankSizes, layout: PlanLayout): number {
  const { model, software } = workload;
  const { hiddenSize: H, ffnMatrices } = model;
  const { tokens: T, rowTokens, ffnColumns, elementBytes: e } = sizes;
  // Residual sum, its norm with its statistic, dropout's mask.
  const outer =
    e * (rowTokens + productTokens(software, sizes)) * H +
    (model.style === "llama" ? 4 * rowTokens : 0) +
    (software.dropout ? rowTokens * H : 0);
  const experts = expertSizes(model, layer, sizes, layout, software.capacityFactor);
  const moe = expertsOf(model, layer);
  if (experts === null || moe === null) return outer + e * T * ffnMatrices * ffnColumns;
  const { numExperts: E, topK: K, gateLayers, sharedExpert: shared } = moe;
  let bytes = outer - e * productTokens(software, sizes) * H + 4 * rowTokens * (H + 2 * E + 3 * K + (gateLayers === 2 ? 8 * E : 0));
  if (shared !== null) {
    bytes += (e === 4 ? 0 : e * T * H) + e * T * ffnMatrices * largestShare(shared.ffnSize, layout.tp);
    if (shared.gate) bytes += T * (e * H + 4);
  }
  // Experts: their input, gate, up, product and output.
  return bytes + e * experts.experts * experts.rowsPerExpert * (2 * H + ffnMatrices * experts.columns);
}

/** What the router returns stays even where a layer is recomputed: its choice must be the same. */
function routingBytes({ model }: Workload, layer: number, { rowTokens }: RankSizes): number {
  const moe = expertsOf(model, layer);
  return moe === null ? 0 : 4 * rowTokens * (2 * moe.numExperts + 2 * moe.topK);
}

/** The embedding keeps dropout's mask. */
export function embeddingActivationBytes({ model, software }: Workload, { rowTokens }: RankSizes): number {
  return software.dropout ? rowTokens * model.hiddenSize : 0;
}
/** Input of the final norm and of the head, and the logits in f32. */
export function headActivationBytes({ model, software }: Workload, { tokens, rowTokens, vocabRows, elementBytes: e }: RankSizes): number {
  const logits = software.logits === "kept" ? 4 * tokens * vocabRows : 0;
  return 2 * e * rowTokens * model.hiddenSize + 4 * rowTokens + logits;
}

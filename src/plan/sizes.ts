/**
 * Sizes of one rank's share of a model under a layout: heads, columns, experts, tokens, parameters. Where a count does not divide, the
 * share is the largest rank's, because it is the one that the others wait for and that must fit.
 */
import { expertsOf } from "./shape.ts";
import type { ModelShape, PlanLayout, Workload } from "./types.ts";

/** The largest share of `total` over `ranks`. */
export function largestShare(total: number, ranks: number): number {
  return Math.ceil(total / ranks);
}

export interface RankSizes {
  /** Tokens of a micro-batch; and those for which this rank does norms, dropout and residuals (fewer with sequence parallelism). */
  readonly tokens: number;
  readonly rowTokens: number;
  /** Query heads and the columns of queries, keys (as many of values). */
  readonly heads: number;
  readonly queryColumns: number;
  readonly keyColumns: number;
  readonly ffnColumns: number;
  readonly vocabRows: number;
  /** Bytes of an activation and a weight. */
  readonly elementBytes: number;
}

export function rankSizes(
  { model, sequenceLength }: Pick<Workload, "model" | "sequenceLength">,
  layout: PlanLayout,
  elementBytes: number,
): RankSizes {
  const tokens = layout.microBatch * sequenceLength;
  const heads = largestShare(model.numHeads, layout.tp);
  return {
    tokens,
    rowTokens: layout.sequenceParallel ? largestShare(tokens, layout.tp) : tokens,
    heads,
    queryColumns: heads * model.headDim,
    keyColumns: largestShare(model.numKvHeads, Math.min(layout.tp, model.numKvHeads)) * model.headDim,
    ffnColumns: largestShare(model.ffnSize, layout.tp),
    vocabRows: largestShare(model.vocabSize, layout.tp),
    elementBytes,
  };
}

/** Experts of one rank, their columns, and the rows that each of them gets when all experts get the same. */
export interface ExpertSizes {
  readonly experts: number;
  readonly columns: number;
  readonly rowsPerExpert: number;
  /** Tokens times top-k that this rank sends to experts. */
  readonly sentRows: number;
}

/**
 * Shares of a layer with experts. The ep * etp ranks that hold one set of experts see tokens * ep * etp / tp different tokens of a
 * micro-batch, whatever the strategy, so that every rank's experts work on tokens * topK * etp / tp rows.
 */
export function expertSizes(
  model: ModelShape,
  layer: number,
  { tokens }: RankSizes,
  { tp, ep, etp }: PlanLayout,
  capacityFactor: number | null,
): ExpertSizes | null {
  const moe = expertsOf(model, layer);
  if (moe === null) return null;
  const rows = (tokens * moe.topK * ep * etp) / tp / moe.numExperts;
  return {
    experts: largestShare(moe.numExperts, ep),
    columns: largestShare(moe.expertFfnSize, etp),
    rowsPerExpert: Math.max(1, Math.ceil(rows * (capacityFactor ?? 1))),
    sentRows: (tokens * moe.topK) / tp,
  };
}

/** Parameters of one rank's share of a layer: those of which every data-parallel rank has a copy, and experts'. */
export function layerParameters(
  model: ModelShape,
  layer: number,
  sizes: RankSizes,
  layout: PlanLayout,
): { shared: number; experts: number } {
  const { hiddenSize: H, ffnMatrices } = model;
  const { queryColumns: Q, keyColumns: C, ffnColumns: F } = sizes;
  const gpt = model.style === "gpt2";
  // Of GPT-2: biases of every product, and a norm's shift.
  let shared = (Q + 2 * C) * H + Q * H + (gpt ? Q + 2 * C + H : 0) + 2 * H * (gpt ? 2 : 1);
  const experts = expertSizes(model, layer, sizes, layout, null);
  const moe = expertsOf(model, layer);
  if (experts === null || moe === null) return { shared: shared + ffnMatrices * H * F + (gpt ? F + H : 0), experts: 0 };
  shared += moe.gateLayers === 1 ? moe.numExperts * H : 8 * moe.numExperts * (H + moe.numExperts);
  if (moe.selectionBias) shared += moe.numExperts;
  if (moe.sharedExpert !== null)
    shared += ffnMatrices * H * largestShare(moe.sharedExpert.ffnSize, layout.tp) + (moe.sharedExpert.gate ? H : 0);
  return { shared, experts: experts.experts * ffnMatrices * H * experts.columns };
}

/** Parameters of the embedding's share (GPT-2's positions are on every rank). */
export function embeddingParameters(model: ModelShape, { vocabRows }: RankSizes, sequenceLength: number): number {
  return (vocabRows + (model.style === "gpt2" ? sequenceLength : 0)) * model.hiddenSize;
}
/** Parameters of the head's share with the final norm; a tied matrix counts where a stage has the head only. */
export function headParameters(model: ModelShape, { vocabRows }: RankSizes): number {
  return vocabRows * model.hiddenSize + model.hiddenSize * (model.style === "gpt2" ? 2 : 1);
}

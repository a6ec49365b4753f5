/**
 * Bytes that a training step's collectives are given, by axis, in closed form: what EDP, EP, ETP and TP cost, before any is run. Tests and the report
 * compare them with what communicators count, to the byte.
 *
 * An operand is what a rank gives: all of it in a sum or a scattered sum, its own part in a gather, what it sends in an exchange. Added up over all ranks.
 *
 * Legend: S = dp * M * T tokens of the step, counted once (M micro-batches of T tokens on each replica), P = tp, H hidden, E experts, K choices, F columns of an
 * expert, L layers (all with experts), V vocabulary. All in f32; dropless; heads that divide; no shared expert; dp > 1 or terms of dp are 0.
 */
import type { Layout } from "../../../src/config/layout.ts";
import type { ModelConfig } from "../../../src/config/model.ts";

export interface StepShape {
  /** Of a micro-batch of one replica. */
  readonly numTokens: number;
  readonly numMicroBatches: number;
}
export type AxisBytes = Readonly<Record<"tp" | "dp" | "edp" | "block", number>>;

/** Whether rows travel between ranks, or all ranks of a block see the same tokens. */
export function exchanges({ tp, ep, etp, sequenceParallel }: Layout): boolean {
  return ep * etp > 1 && (ep * etp !== tp || (sequenceParallel && ep > 1));
}

export function stepBytes(model: ModelConfig, layout: Layout, shape: StepShape): AxisBytes {
  const { dp, tp } = layout;
  const ranks = dp * tp;
  const passes = dp * shape.numMicroBatches;
  return {
    tp: tp === 1 ? 0 : passes * tensorParallelBytes(model, layout, shape.numTokens) + gradientsOverTp(model, layout),
    block: passes * exchangeBytes(model, layout, shape.numTokens),
    ...gradientBytes(model, layout, ranks),
  };
}

/** Activations of one micro-batch of one replica, forward and backward. */
function tensorParallelBytes(model: ModelConfig, layout: Layout, T: number): number {
  const { hiddenSize: H, numLayers: L, moe } = model;
  const [E, K] = [moe?.numExperts ?? 0, moe?.topK ?? 0];
  const { tp: P, sequenceParallel } = layout;
  // A sum, or a scattered sum, is given T rows by each of P ranks; a gather is given T rows by all of them together.
  const [sum, gather] = [4 * P * T * H, 4 * T * H];
  // Into a part of a computation and out of it, forward and backward: two sums, or two gathers and two scattered sums.
  const around = sequenceParallel ? 2 * (gather + sum) : 2 * sum;
  // Embedding (out only) and head (in only) are one such pair, half each; the loss has two numbers a token and rank.
  const ends = (sequenceParallel ? 2 * (gather + sum) : 2 * sum) / 1;
  const loss = 4 * 2 * T * P;
  const logits = sequenceParallel ? 4 * T * E : 0;
  // Gradients of the combine weights: a part each, or each its own rows.
  const exchanged = exchanges(layout);
  const weights = exchanged ? 4 * T * K : 4 * P * T * K;
  // Without sequence parallelism, rows that ranks hold alike are cut before the exchange and gathered after it.
  const experts = exchanged ? (sequenceParallel ? 0 : 2 * gather) : around;
  return L * (around + experts + weights + logits) + ends + loss;
}

/** Rows to the experts and back, forward and backward, to each of the etp ranks that hold an expert's columns; and how many, where ranks do not know. */
function exchangeBytes(model: ModelConfig, layout: Layout, T: number): number {
  if (!exchanges(layout)) return 0;
  const { hiddenSize: H, numLayers: L, moe } = model;
  const [E, K] = [moe?.numExperts ?? 0, moe?.topK ?? 0];
  const { tp, ep, etp } = layout;
  const counts = ep * etp === tp ? 0 : 4 * E * tp;
  return L * (4 * 4 * T * K * etp * H + counts);
}

/** Of what is on all tp ranks, whose tokens differ under sequence parallelism: norms and routers. */
function gradientsOverTp({ hiddenSize: H, numLayers: L, moe }: ModelConfig, { tp, dp, sequenceParallel }: Layout): number {
  return sequenceParallel ? 4 * dp * tp * (L * (2 * H + (moe?.numExperts ?? 0) * H) + H) : 0;
}

function gradientBytes(model: ModelConfig, { dp, tp, ep, etp }: Layout, ranks: number): Pick<AxisBytes, "dp" | "edp"> {
  const { hiddenSize: H, headDim: D, numHeads, numKvHeads, numLayers: L, vocabSize: V, moe } = model;
  const [E, F] = [moe?.numExperts ?? 0, moe?.expertFfnSize ?? 0];
  const cut = L * (2 * numHeads + 2 * numKvHeads) * D * H + 2 * V * H;
  const whole = L * (2 * H + E * H) + H;
  const replicas = (dp * tp) / (ep * etp);
  return {
    dp: dp === 1 ? 0 : 4 * (ranks / tp) * (cut + tp * whole),
    edp: replicas === 1 ? 0 : 4 * replicas * L * 3 * E * H * F,
  };
}

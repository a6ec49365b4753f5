/**
 * What one forward pass tells every layer with experts, and the arithmetic of capacity that layers and trainers share.
 *
 * A balance group is a run of whole sequences over which capacity, drops and the losses that are not linear in the batch are
 * computed. No layout, accumulation or parallelism splits a group, so none of them can change a result.
 *
 * Legend: T tokens, K choices, E experts, G groups.
 */
import type { Tensor } from "../../tensor/index.ts";
import type { Interval } from "../../util/partition.ts";
import type { Experts } from "./experts.ts";

export interface CapacitySettings {
  /** Multiple of an expert's fair share K * T / E of a group that it keeps. */
  readonly factor: number;
  /** Who is dropped where there are more: the smallest weights, or the last tokens. */
  readonly dropBy: "probability" | "position";
  /** Every expert computes exactly its capacity in every group, rows of zeros where it has fewer tokens: the shapes never change. */
  readonly pad: boolean;
}

/** Multiplicative noise on what the router sees (never on what the experts see): uniform in [1 - epsilon, 1 + epsilon]. */
export interface JitterSettings {
  readonly epsilon: number;
  /** With `step` and the layer, the key of the noise: the same key gives the same noise, in any layout and when recomputed. */
  readonly seed: number;
  readonly step: number;
  /** For each group, the index of its first token in the whole global batch. One entry where there are no groups. */
  readonly rowOffsets: readonly number[];
}

/** Absent parts: dropless, one group, all tokens take part, no noise. Evaluation and generation give nothing at all. */
export interface RoutingContext {
  /** G + 1 ascending row numbers from 0 to T. */
  readonly groupOffsets?: readonly number[] | undefined;
  /** Null: dropless. Training only. */
  readonly capacity?: CapacitySettings | null | undefined;
  /** i32 [T], 1 where a token takes part; others (padding) are sent to no expert. Must live until the backward pass. */
  readonly valid?: Tensor | null | undefined;
  readonly jitter?: JitterSettings | null | undefined;
  /** Token t chooses experts t * K, t * K + 1, ... modulo E, whatever its scores: for benchmarks, never for training. */
  readonly forcedBalance?: boolean | undefined;
  /** Called by every layer with experts, in order, with what its experts are about to see: for measurements, not under a tape. */
  readonly observe?: ((layer: number, experts: Experts, x_TH: Tensor) => void) | undefined;
}

/** What an expert keeps of each group's assignments; null: all. */
export function capacitiesOf(
  groupOffsets: readonly number[],
  { capacity, valid }: RoutingContext,
  topK: number,
  numExperts: number,
): number[] | null {
  if (capacity === undefined || capacity === null) return null;
  const numValid = validPerGroup(groupOffsets, valid?.toInt32Array() ?? null);
  return numValid.map((numTokens) => expertCapacity(capacity.factor, topK, numTokens, numExperts));
}

/** The context as a rank sees it that has rows start..end-1 only: what is keyed by rows keeps its key. */
export function contextOfRows(
  { groupOffsets, jitter, ...rest }: RoutingContext,
  numTokens: number,
  { start, end }: Interval,
): RoutingContext {
  const offsets = groupOffsets ?? [0, numTokens];
  const parts = offsets.slice(0, -1).flatMap((first, g) => {
    const [from, to] = [Math.max(first, start), Math.min(offsets[g + 1] ?? first, end)];
    return from < to ? [{ from, rowOffset: (jitter?.rowOffsets[g] ?? 0) + from - first }] : [];
  });
  return {
    ...rest,
    groupOffsets: [...parts.map(({ from }) => from - start), end - start],
    jitter: jitter === undefined || jitter === null ? null : { ...jitter, rowOffsets: parts.map(({ rowOffset }) => rowOffset) },
  };
}

/**
 * Assignments that an expert keeps: ceil(factor * topK * numTokens / numExperts). At least 1 wherever there is a token, and no more
 * than numTokens: a token chooses an expert once.
 */
export function expertCapacity(factor: number, topK: number, numTokens: number, numExperts: number): number {
  return Math.min(numTokens, Math.max(Math.sign(numTokens), Math.ceil((factor * topK * numTokens) / numExperts)));
}

/** Assignments beyond `capacity` (per expert), summed: what a group with this capacity drops, or would drop. */
export function droppedAssignments(counts: Iterable<number>, capacity: number): number {
  let dropped = 0;
  for (const count of counts) dropped += Math.max(0, count - capacity);
  return dropped;
}

/** Tokens of each group that take part. */
export function validPerGroup(groupOffsets: readonly number[], valid: ArrayLike<number> | null): number[] {
  return groupOffsets.slice(0, -1).map((start, g) => {
    const end = groupOffsets[g + 1] ?? start;
    if (valid === null) return end - start;
    let count = 0;
    for (let t = start; t < end; t++) count += valid[t] === 0 ? 0 : 1;
    return count;
  });
}

export interface DropSettings {
  readonly factor: number;
  readonly topK: number;
  readonly numExperts: number;
}
/**
 * What each group drops under a capacity factor, or, where nothing is dropped, would have dropped (the virtual drop rate of
 * dropless training). `counts`: [G, E] before dropping; `numValid`: tokens of each group that take part.
 */
export function droppedPerGroup(counts: Int32Array, numValid: readonly number[], { factor, topK, numExperts }: DropSettings): number[] {
  return numValid.map((numTokens, g) =>
    droppedAssignments(counts.subarray(g * numExperts, (g + 1) * numExperts), expertCapacity(factor, topK, numTokens, numExperts)),
  );
}

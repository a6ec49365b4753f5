/**
 * Whether two runs of one router chose the same experts, and how near to a tie a choice was that flipped.
 *
 * Two layouts of one computation round differently, and a token whose last chosen expert is almost level with the next one may
 * flip. That is no error, but it is counted and shown: a flip with a large margin would be one.
 *
 * Legend: T tokens, E experts, K choices.
 */
import type { Routing } from "./block.ts";
import type { RouterSettings } from "./router.ts";

/** One run's choices. */
export interface ChosenExperts {
  /** [T, K], -1 for a token that takes no part. */
  readonly indices: Int32Array;
  /** [T, E]: what the choice was made by (`selectionScores`). */
  readonly scores: Float32Array;
}

export interface RoutingFlip {
  readonly token: number;
  /** Experts that only the first run chose, and only the second, ascending. */
  readonly onlyA: readonly number[];
  readonly onlyB: readonly number[];
  /**
   * The near-tie margin: how far apart the scores of the experts are that changed places, the larger of what the two runs say. The
   * unit is that of the scores.
   */
  readonly margin: number;
}
export interface RoutingComparison {
  readonly numTokens: number;
  readonly flips: readonly RoutingFlip[];
  /** Largest margin of a flip; 0 without flips. */
  readonly largestMargin: number;
}

/** Compares the sets of chosen experts of each token; their order within a token does not count. Both runs have T, K and E alike. */
export function compareRouting(a: ChosenExperts, b: ChosenExperts, topK: number): RoutingComparison {
  const numTokens = a.indices.length / topK;
  const numExperts = numTokens === 0 ? 0 : a.scores.length / numTokens;
  const flips: RoutingFlip[] = [];
  for (let token = 0; token < numTokens; token++) {
    const [inA, inB] = [a, b].map(({ indices }) => new Set(indices.subarray(token * topK, (token + 1) * topK)));
    if (inA === undefined || inB === undefined) continue;
    const onlyA = [...inA.difference(inB)].sort((x, y) => x - y);
    const onlyB = [...inB.difference(inA)].sort((x, y) => x - y);
    if (onlyA.length === 0 && onlyB.length === 0) continue;
    const row = ({ scores }: ChosenExperts): Float32Array => scores.subarray(token * numExperts, (token + 1) * numExperts);
    const margin = Math.max(spread(row(a), onlyA, onlyB), spread(row(b), onlyB, onlyA));
    flips.push({ token, onlyA, onlyB, margin });
  }
  return { numTokens, flips, largestMargin: flips.reduce((most, { margin }) => Math.max(most, margin), 0) };
}

/** Largest score of `chosen` less the smallest of `left`, by the run that chose so. Infinite where a token took part in one run only. */
function spread(scores: Float32Array, chosen: readonly number[], left: readonly number[]): number {
  if ([...chosen, ...left].some((e) => e < 0)) return Infinity;
  const best = chosen.reduce((most, e) => Math.max(most, scores[e] ?? NaN), -Infinity);
  const least = left.reduce((most, e) => Math.min(most, scores[e] ?? NaN), Infinity);
  return best - least;
}

/**
 * [T, E]: the scores by which a router chose, bias included: probabilities (softmax), sigmoids of the (normalized) logits
 * (sigmoid), or the raw logits (softmaxOfTopK; normalization keeps their order). With `groups`, the choice of groups comes first
 * and is not in these numbers.
 */
export function selectionScores(
  { probs_TE, logits_TE }: Pick<Routing, "probs_TE" | "logits_TE">,
  { scoring, normalization }: Pick<RouterSettings, "scoring" | "normalization">,
  bias: Float32Array | null = null,
): Float32Array {
  const numExperts = probs_TE.dim(1);
  const scores = scoring === "softmax" ? probs_TE.toFloat32Array() : logits_TE.toFloat32Array();
  if (scoring === "sigmoid") {
    for (let at = 0; at < scores.length; at += numExperts) sigmoids(scores.subarray(at, at + numExperts), normalization);
  }
  return bias === null ? scores : scores.map((score, i) => score + (bias[i % numExperts] ?? 0));
}

/** In place. */
function sigmoids(row: Float32Array, normalization: RouterSettings["normalization"]): void {
  const mean = row.reduce((sum, value) => sum + value, 0) / row.length;
  const squares = row.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  const { lambda, eps, unbiased } = normalization ?? { lambda: 1, eps: 0, unbiased: false };
  const deviation = Math.sqrt(squares / Math.max(1, row.length - (unbiased ? 1 : 0)) + eps);
  for (const [e, value] of row.entries()) {
    const z = normalization === null ? value : deviation === 0 ? 0 : (lambda * (value - mean)) / deviation;
    row[e] = 1 / (1 + Math.exp(-z));
  }
}

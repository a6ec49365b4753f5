/**
 * The kernel contract's part for mixtures of experts: the router with its losses and measurements, the pieces around its gate, and the way of
 * tokens to experts and back. The experts themselves are grouped products (`kernels-linear.ts`). Conventions: `kernels.ts`, whose
 * table these join.
 *
 * Legend: T tokens, H hidden, E experts, k choices, G balance groups, R rows of all experts.
 */
import type { DTypeCode, Ptr } from "./codes.ts";

export const moeSignatures = {
  routerForward: "ppppppnnnnniiiiifff",
  routerBackward: "pppppppnnniiiifff",
  routerZLoss: "ppppnnf",
  routerStatistics: "ppnn",
  jitter: "ppnnniif",
  tanhForward: "ppn",
  tanhBackward: "pppn",
  sigmoidGateForward: "pppnnfi",
  sigmoidGateBackward: "pppppnnfi",
  dispatchPlan: "ppppppppnnnnii",
  permuteBackward: "pppnnnii",
  combineForward: "ppppnnni",
  combineBackward: "ppppppnnni",
} as const satisfies Record<string, string>;

/** Shapes are in square brackets; an element type in brackets means the code given by that argument. */
export interface MoeKernels {
  /**
   * Router of T tokens over E experts, all f32. z = logits, or with normalize = 1 the normalized lambda * (logits - mean) /
   * sqrt(variance + eps) (variance over n, or n - 1 with unbiased) of Skywork-MoE (arXiv 2406.06563, section 4.1).
   * Scores by `scoring` (routerScorings): softmax(z); z; sigmoid(z). indices i32[T,k]: the k largest of scores + bias[E] (0: none)
   * in descending order, ties to the lower index, NaN after every number; with numGroups > 1 among the experts of the
   * topGroups groups (equal runs of experts) with the largest sum of their two (one where a group is one expert) largest scores
   * + bias, ties to the lower group. With forced = 1: indices[t,j] = (t k + j) mod E.
   * probs[T,E]: softmax: the scores. softmaxOfTopK: softmax of z over the chosen, 0 elsewhere. sigmoid: scores over their sum.
   * weights[T,k]: scores of the chosen (softmaxOfTopK: their probs), divided by their sum with renormalize (0 where it is 0),
   * times scale. A token with valid[t] (i32[T], 0: all valid) = 0 gets indices -1, weights 0, probs 0.
   */
  routerForward(
    probs: Ptr,
    weights: Ptr,
    indices: Ptr,
    logits: Ptr,
    bias: Ptr,
    valid: Ptr,
    T: number,
    E: number,
    k: number,
    numGroups: number,
    topGroups: number,
    scoring: number,
    normalize: number,
    unbiased: number,
    renormalize: number,
    forced: number,
    lambda: number,
    eps: number,
    scale: number,
  ): void;
  /**
   * dLogits[T,E] overwritten, from dWeights[T,k] and dProbs[T,E] (0 for none: gradient of probs from balance losses). The choice
   * is taken as given; where a sum that was divided by is 0, its quotients have no gradient. indices -1: a row of zeros.
   */
  routerBackward(
    dLogits: Ptr,
    dWeights: Ptr,
    dProbs: Ptr,
    probs: Ptr,
    weights: Ptr,
    indices: Ptr,
    logits: Ptr,
    T: number,
    E: number,
    k: number,
    scoring: number,
    normalize: number,
    unbiased: number,
    renormalize: number,
    lambda: number,
    eps: number,
    scale: number,
  ): void;
  /**
   * sum (one f64; 0 for none) = sum over tokens of logsumexp(logits[t])^2; dLogits[T,E] (f32; 0 for none) overwritten with gradScale
   * times its gradient. Tokens with valid[t] (i32[T], 0: all valid) = 0 add nothing. (arXiv 2202.08906, equation 5)
   */
  routerZLoss(sum: Ptr, dLogits: Ptr, logits: Ptr, valid: Ptr, T: number, E: number, gradScale: number): void;
  /**
   * out f64[3]: sums over the rows of probs[T,E] f32 of max1/max2, max2/max3 (a denominator below 1e-20, or missing, is 1e-20) and
   * the entropy -sum p log p (only of p > 0). max1 >= max2 >= max3 are a row's largest; below 0, or NaN, counts as 0.
   */
  routerStatistics(out: Ptr, probs: Ptr, T: number, E: number): void;
  /**
   * out[T,H] = x * u, f32, u = 1 + epsilon * v with v uniform in [-1, 1) in steps of 2^-23, a function of (keyHigh, keyLow, firstRow + t,
   * column) only: h = mix(mix(mix(keyHigh) ^ keyLow) ^ row), v = (mix(h + column * 0x9e3779b9) >> 8) * 2^-23 - 1, 32-bit words,
   * mix the finalizer of MurmurHash3. out may be x.
   */
  jitter(out: Ptr, x: Ptr, T: number, H: number, firstRow: number, keyHigh: number, keyLow: number, epsilon: number): void;
  /** out[n] = tanh(x), f32. */
  tanhForward(out: Ptr, x: Ptr, n: number): void;
  /** dx[n] = dOut * (1 - out^2), f32. */
  tanhBackward(dx: Ptr, dOut: Ptr, out: Ptr, n: number): void;
  /** out[T,H] (dtype) = scale * sigmoid(gate[t]) * x[t]; gate f32[T]. */
  sigmoidGateForward(out: Ptr, x: Ptr, gate: Ptr, T: number, H: number, scale: number, dtype: DTypeCode): void;
  /** dx[T,H] (dtype) and dGate[T] (f32) overwritten. */
  sigmoidGateBackward(dx: Ptr, dGate: Ptr, dOut: Ptr, x: Ptr, gate: Ptr, T: number, H: number, scale: number, dtype: DTypeCode): void;
  /**
   * Sorts T*k assignments by expert, then group, stable in (token, choice). groupOffsets i32[G+1] ascending from 0 to T.
   * offsets i32[E+1]; rowToken i32[R]: token of each row; slotRow i32[T,k]: row of each assignment, -1 where dropped or where its
   * index is below 0; counts i32[G,E]: assignments before dropping.
   * capacities i32[G] or 0 (dropless): an expert keeps at most capacities[g] of group g's assignments: by position (byProbability 0:
   * lowest token first) or the largest weights[T,k] (f32, NaN as infinity) first, ties to the lower token; kept rows stay in token order.
   * pad 1 (with capacities): every expert has exactly capacities[g] rows of group g, the last of them with rowToken -1 where it
   * keeps fewer.
   */
  dispatchPlan(
    offsets: Ptr,
    rowToken: Ptr,
    slotRow: Ptr,
    counts: Ptr,
    indices: Ptr,
    weights: Ptr,
    groupOffsets: Ptr,
    capacities: Ptr,
    T: number,
    k: number,
    E: number,
    G: number,
    byProbability: number,
    pad: number,
  ): void;
  /** Backward of gathering rows by rowToken: dx[T,H] (+)= sum over the k slots of dOut[slotRow[t,j]] (rows -1 skipped), j ascending. */
  permuteBackward(dx: Ptr, dOut: Ptr, slotRow: Ptr, T: number, k: number, H: number, dtype: DTypeCode, accumulate: number): void;
  /** out[T,H] = sum over j of weights[t,j] * y[slotRow[t,j],H], j ascending, -1 skipped. weights f32. */
  combineForward(out: Ptr, y: Ptr, slotRow: Ptr, weights: Ptr, T: number, k: number, H: number, dtype: DTypeCode): void;
  /** dy[R,H] = weight * dOut[token] (rows of no assignment are not written), dWeights[T,k] (f32) = dot(dOut[t], y[row]), 0 where dropped. */
  combineBackward(
    dy: Ptr,
    dWeights: Ptr,
    dOut: Ptr,
    y: Ptr,
    slotRow: Ptr,
    weights: Ptr,
    T: number,
    k: number,
    H: number,
    dtype: DTypeCode,
  ): void;
}

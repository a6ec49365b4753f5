/**
 * The MoE router: softmax over experts, with the logit normalization of Skywork-MoE (arXiv 2406.06563, section 4.1), and the k
 * largest probabilities made to sum to 1. The plain twin of native/router.c.
 *
 * The choice is made among the probabilities as stored, in f32, so that two that round to the same value are a tie here too.
 * Legend: T tokens, E experts, k choices.
 */
import type { Ptr } from "../kernels.ts";
import { softmax } from "./loss.ts";
import type { ReferenceMemory } from "./memory.ts";
import { at } from "./memory.ts";

/** Centred logits and 1 / sqrt(variance + eps); `divisor` is E, or E - 1 for the unbiased variance. */
function standardize(logits: Float64Array, unbiased: number, eps: number): { centred: Float64Array; rstd: number; divisor: number } {
  const mean = logits.reduce((a, b) => a + b, 0) / logits.length;
  const centred = logits.map((logit) => logit - mean);
  const divisor = unbiased === 1 ? logits.length - 1 : logits.length;
  const variance = centred.reduce((sum, c) => sum + c * c, 0) / divisor;
  return { centred, rstd: 1 / Math.sqrt(variance + eps), divisor };
}

/** Indices of the k largest, descending, ties to the lower index. */
function topK(values: Float64Array, k: number): Int32Array {
  const order = Array.from(values.keys()).sort((a, b) => at(values, b) - at(values, a) || a - b);
  return Int32Array.from(order.slice(0, k));
}

export function routerForward(
  memory: ReferenceMemory,
  probs: Ptr,
  weights: Ptr,
  indices: Ptr,
  logits: Ptr,
  T: number,
  E: number,
  k: number,
  normalize: number,
  unbiased: number,
  lambda: number,
  eps: number,
): void {
  for (let t = 0; t < T; t++) {
    const row = memory.loadF32(logits + t * E * 4, E);
    let z = row;
    if (normalize === 1) {
      const { centred, rstd } = standardize(row, unbiased, eps);
      z = centred.map((c) => lambda * c * rstd);
    }
    const stored = softmax(z).probs.map(Math.fround);
    const chosen = topK(stored, k);
    const chosenProbs = Float64Array.from(chosen, (e) => at(stored, e));
    const sum = chosenProbs.reduce((a, b) => a + b, 0);
    memory.storeF32(probs + t * E * 4, stored);
    memory.storeI32(indices + t * k * 4, chosen);
    memory.storeF32(
      weights + t * k * 4,
      chosenProbs.map((p) => p / sum),
    );
  }
}

export function routerBackward(
  memory: ReferenceMemory,
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
  normalize: number,
  unbiased: number,
  lambda: number,
  eps: number,
): void {
  for (let t = 0; t < T; t++) {
    const p = memory.loadF32(probs + t * E * 4, E);
    const w = memory.loadF32(weights + t * k * 4, k);
    const dw = memory.loadF32(dWeights + t * k * 4, k);
    const chosen = memory.loadI32(indices + t * k * 4, k);
    const dp = dProbs === 0 ? new Float64Array(E) : memory.loadF32(dProbs + t * E * 4, E);

    // weights = p[chosen] / S, so dp[chosen] gains (dw - dot(dw, weights)) / S.
    const S = chosen.reduce((sum, e) => sum + at(p, e), 0);
    const dot = dw.reduce((sum, d, j) => sum + d * at(w, j), 0);
    for (let j = 0; j < k; j++) {
      const e = at(chosen, j);
      dp[e] = at(dp, e) + (at(dw, j) - dot) / S;
    }

    const mean = p.reduce((sum, prob, e) => sum + prob * at(dp, e), 0);
    let dz: Float64Array = p.map((prob, e) => prob * (at(dp, e) - mean));
    if (normalize === 1) dz = backwardOfNormalization(dz, memory.loadF32(logits + t * E * 4, E), unbiased, lambda, eps);
    memory.storeF32(dLogits + t * E * 4, dz);
  }
}

/** z = lambda c rstd: the mean's part is the centring of dz, the variance's part is along c. */
function backwardOfNormalization(dz: Float64Array, logits: Float64Array, unbiased: number, lambda: number, eps: number): Float64Array {
  const { centred, rstd, divisor } = standardize(logits, unbiased, eps);
  const meanDz = dz.reduce((a, b) => a + b, 0) / dz.length;
  const along = dz.reduce((sum, d, e) => sum + d * at(centred, e), 0);
  return dz.map((d, e) => lambda * rstd * (d - meanDz - (at(centred, e) * rstd * rstd * along) / divisor));
}

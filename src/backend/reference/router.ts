/**
 * The MoE router: scores of experts, with the logit normalization of Skywork-MoE (arXiv 2406.06563, section 4.1), the k chosen
 * and their weights, and the backward of it. The plain twin of native/router.c.
 *
 * The choice is made among the scores as stored, in f32, so that two that round to the same value are a tie here too.
 * Legend: T tokens, E experts, k choices.
 */
import type { Ptr } from "../kernels.ts";
import { routerScorings } from "../kernels.ts";
import { softmax } from "./loss.ts";
import type { ReferenceMemory } from "./memory.ts";
import { at } from "./memory.ts";

/** Centred logits and 1 / sqrt(variance + eps), 0 where that is no number; `divisor` is E, or E - 1 for the unbiased variance. */
function standardize(logits: Float64Array, unbiased: number, eps: number): { centred: Float64Array; rstd: number; divisor: number } {
  const mean = logits.reduce((a, b) => a + b, 0) / logits.length;
  const centred = logits.map((logit) => logit - mean);
  const divisor = Math.max(1, unbiased === 1 ? logits.length - 1 : logits.length);
  const variance = centred.reduce((sum, c) => sum + c * c, 0) / divisor + eps;
  return { centred, rstd: variance === 0 ? 0 : 1 / Math.sqrt(variance), divisor };
}

function sigmoid(z: number): number {
  return 1 / (1 + Math.exp(-z));
}

function sumOf(values: Float64Array): number {
  return values.reduce((a, b) => a + b, 0);
}

/** Indices of the k largest among `candidates` (ascending), descending, ties to the lower index, NaN as -infinity. */
function topK(values: Float64Array, k: number, candidates: readonly number[]): number[] {
  const rank = (e: number): number => (Number.isNaN(at(values, e)) ? -Infinity : at(values, e));
  const before = (a: number, b: number): number => (rank(a) === rank(b) ? a - b : rank(a) > rank(b) ? -1 : 1);
  return candidates.toSorted(before).slice(0, k);
}

/** Experts of the `topGroups` groups with the largest sums of their two best scores. */
function allowedExperts(select: Float64Array, numGroups: number, topGroups: number): number[] {
  const E = select.length;
  const run = E / numGroups;
  const scores = Float64Array.from({ length: numGroups }, (_, g) => {
    const members = Array.from({ length: run }, (_unused, i) => g * run + i);
    const best = topK(select, 2, members).map((e) => (Number.isNaN(at(select, e)) ? -Infinity : at(select, e)));
    return Math.fround(best.reduce((a, b) => a + b));
  });
  const groups = new Set(topK(scores, topGroups, Array.from(scores.keys())));
  return Array.from(select.keys()).filter((e) => groups.has(Math.floor(e / run)));
}

interface Choice {
  readonly bias: Float64Array | null;
  readonly k: number;
  readonly numGroups: number;
  readonly topGroups: number;
  readonly forced: number;
}

function choose(scores: Float64Array, t: number, { bias, k, numGroups, topGroups, forced }: Choice): number[] {
  const E = scores.length;
  if (forced === 1) return Array.from({ length: k }, (_, j) => (t * k + j) % E);
  const select = bias === null ? scores : scores.map((score, e) => Math.fround(score + at(bias, e)));
  return topK(select, k, numGroups > 1 ? allowedExperts(select, numGroups, topGroups) : Array.from(scores.keys()));
}

/** Scores as stored, and what the balance losses see (softmaxOfTopK: known after the choice). */
function scoresOf(z: Float64Array, scoring: number): { scores: Float64Array; probs: Float64Array } {
  if (scoring === routerScorings.softmax) {
    const scores = softmax(z).probs.map(Math.fround);
    return { scores, probs: scores };
  }
  if (scoring === routerScorings.softmaxOfTopK) return { scores: z.map(Math.fround), probs: new Float64Array(z.length) };
  const scores = z.map((value) => Math.fround(sigmoid(value)));
  const sum = sumOf(scores);
  return { scores, probs: scores.map((score) => (sum === 0 ? 0 : score / sum)) };
}

export function routerForward(
  memory: ReferenceMemory,
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
): void {
  const mask = valid === 0 ? null : memory.loadI32(valid, T);
  const choice: Choice = { bias: bias === 0 ? null : memory.loadF32(bias, E), k, numGroups, topGroups, forced };
  for (let t = 0; t < T; t++) {
    let p: Float64Array = new Float64Array(E);
    let w: Float64Array = new Float64Array(k);
    let chosen: number[] = Array.from({ length: k }, () => -1);
    if (mask === null || at(mask, t) !== 0) {
      let z = memory.loadF32(logits + t * E * 4, E);
      if (normalize === 1) {
        const { centred, rstd } = standardize(z, unbiased, eps);
        z = centred.map((c) => lambda * c * rstd);
      }
      const { scores, probs: seen } = scoresOf(z, scoring);
      p = Float64Array.from(seen);
      chosen = choose(scores, t, choice);
      w = Float64Array.from(chosen, (e) => at(scores, e));
      if (scoring === routerScorings.softmaxOfTopK) {
        w = softmax(w).probs;
        for (const [j, e] of chosen.entries()) p[e] = at(w, j);
      } else if (renormalize === 1) {
        const sum = sumOf(w);
        w = w.map((value) => (sum === 0 ? 0 : value / sum));
      }
    }
    memory.storeF32(probs + t * E * 4, p);
    memory.storeI32(indices + t * k * 4, Int32Array.from(chosen));
    memory.storeF32(
      weights + t * k * 4,
      w.map((value) => value * scale),
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
  scoring: number,
  normalize: number,
  unbiased: number,
  renormalize: number,
  lambda: number,
  eps: number,
  scale: number,
): void {
  for (let t = 0; t < T; t++) {
    const chosen = memory.loadI32(indices + t * k * 4, k);
    if (at(chosen, 0) < 0) {
      memory.storeF32(dLogits + t * E * 4, new Float64Array(E));
      continue;
    }
    const row = memory.loadF32(logits + t * E * 4, E);
    const { centred, rstd } = standardize(row, unbiased, eps);
    const z = normalize === 1 ? centred.map((c) => lambda * c * rstd) : row;
    const dz = scoresBackward({
      z,
      probs: memory.loadF32(probs + t * E * 4, E),
      weights: memory.loadF32(weights + t * k * 4, k),
      dWeights: memory.loadF32(dWeights + t * k * 4, k),
      dProbs: dProbs === 0 ? new Float64Array(E) : memory.loadF32(dProbs + t * E * 4, E),
      chosen,
      scoring,
      quotient: renormalize === 1 && scoring !== routerScorings.softmaxOfTopK,
      scale,
    });
    memory.storeF32(dLogits + t * E * 4, normalize === 1 ? backwardOfNormalization(dz, row, unbiased, lambda, eps) : dz);
  }
}

interface RowBackward {
  readonly z: Float64Array;
  readonly probs: Float64Array;
  readonly weights: Float64Array;
  readonly dWeights: Float64Array;
  readonly dProbs: Float64Array;
  readonly chosen: Int32Array;
  readonly scoring: number;
  /** Weights were divided by the sum of the chosen scores. */
  readonly quotient: boolean;
  readonly scale: number;
}

/** The gradient of z of one token. */
function scoresBackward(row: RowBackward): Float64Array {
  const { z, probs, weights, dWeights, dProbs, chosen, scoring, quotient, scale } = row;
  const isSigmoid = scoring === routerScorings.sigmoid;
  const scores = isSigmoid ? z.map((value) => Math.fround(sigmoid(value))) : probs;
  const ds = Float64Array.from(dProbs);
  if (isSigmoid) {
    const total = sumOf(scores);
    const dot = probs.reduce((sum, prob, e) => sum + prob * at(dProbs, e), 0);
    for (let e = 0; e < ds.length; e++) ds[e] = total === 0 ? 0 : (at(dProbs, e) - dot) / total;
  }
  // weights = scale s[chosen] / S, so ds[chosen] gains (scale dw - dot(dw, weights)) / S; without the quotient scale dw.
  const S = quotient ? chosen.reduce((sum, e) => sum + at(scores, e), 0) : 1;
  const mixed = quotient ? dWeights.reduce((sum, d, j) => sum + d * at(weights, j), 0) : 0;
  for (const [j, e] of chosen.entries()) ds[e] = at(ds, e) + (S === 0 ? 0 : (scale * at(dWeights, j) - mixed) / S);
  if (isSigmoid) return ds.map((d, e) => d * at(scores, e) * (1 - at(scores, e)));
  const mean = probs.reduce((sum, prob, e) => sum + prob * at(ds, e), 0);
  return probs.map((prob, e) => prob * (at(ds, e) - mean));
}

/** z = lambda c rstd: the mean's part is the centring of dz, the variance's part is along c. */
function backwardOfNormalization(dz: Float64Array, logits: Float64Array, unbiased: number, lambda: number, eps: number): Float64Array {
  const { centred, rstd, divisor } = standardize(logits, unbiased, eps);
  const meanDz = sumOf(dz) / dz.length;
  const along = dz.reduce((sum, d, e) => sum + d * at(centred, e), 0);
  return dz.map((d, e) => lambda * rstd * (d - meanDz - (at(centred, e) * rstd * rstd * along) / divisor));
}

export function routerZLoss(
  memory: ReferenceMemory,
  sum: Ptr,
  dLogits: Ptr,
  logits: Ptr,
  valid: Ptr,
  T: number,
  E: number,
  gradScale: number,
): void {
  const mask = valid === 0 ? null : memory.loadI32(valid, T);
  let total = 0;
  for (let t = 0; t < T; t++) {
    const counts = mask === null || at(mask, t) !== 0;
    const { probs, logSumExp } = softmax(memory.loadF32(logits + t * E * 4, E));
    if (counts) total += logSumExp * logSumExp;
    const factor = counts ? 2 * gradScale * logSumExp : 0;
    const gradient = probs.map((p) => (counts ? factor * p : 0));
    if (dLogits !== 0) memory.storeF32(dLogits + t * E * 4, gradient);
  }
  if (sum !== 0) memory.storeF64(sum, total);
}

export function routerStatistics(memory: ReferenceMemory, out: Ptr, probs: Ptr, T: number, E: number): void {
  const sums = [0, 0, 0];
  for (let t = 0; t < T; t++) {
    const positive = memory.loadF32(probs + t * E * 4, E).filter((p) => p > 0);
    const [first = 0, second = 0, third = 0] = positive.toSorted((a, b) => b - a);
    const entropy = positive.reduce((sum, p) => sum - p * Math.log(p), 0);
    for (const [i, value] of [first / Math.max(second, 1e-20), second / Math.max(third, 1e-20), entropy].entries()) {
      sums[i] = (sums[i] ?? 0) + value;
    }
  }
  for (const [i, value] of sums.entries()) memory.storeF64(out + 8 * i, value);
}

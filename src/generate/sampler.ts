/**
 * Picks the next token from one row of logits. Pure functions of (logits, options, random stream): the same inputs give the
 * same token on every machine. Order of operations as in most servers: repetition penalty, temperature, top-k, top-p, draw.
 */
import { MoeError } from "../util/errors.ts";
import type { Random } from "../util/random.ts";

export interface SamplingOptions {
  /** 0: greedy. */
  readonly temperature: number;
  /** Keep the smallest set of tokens whose probability reaches this; 1: all. */
  readonly topP: number;
  /** Keep the k most probable; 0: all. */
  readonly topK: number;
  /** Divides positive and multiplies negative logits of tokens seen before (arXiv 1909.05858); 1: off. */
  readonly repetitionPenalty: number;
}

export const greedy: SamplingOptions = { temperature: 0, topP: 1, topK: 0, repetitionPenalty: 1 };

/** Throws `usage` for values that make no sense. */
export function checkSamplingOptions(options: SamplingOptions): void {
  const bad = (name: string, expected: string, got: number): MoeError => new MoeError("usage", `${name}: expected ${expected}, got ${got}`);
  if (!(options.temperature >= 0 && Number.isFinite(options.temperature)))
    throw bad("temperature", "a number of at least 0", options.temperature);
  if (!(options.topP > 0 && options.topP <= 1)) throw bad("top-p", "a number above 0 and at most 1", options.topP);
  if (!(Number.isSafeInteger(options.topK) && options.topK >= 0)) throw bad("top-k", "a whole number of at least 0", options.topK);
  if (!(options.repetitionPenalty > 0)) throw bad("repetition penalty", "a number above 0", options.repetitionPenalty);
}

/** Index of the largest logit, ties to the lower index; NaN is never the largest. */
export function argmax(logits: Float32Array): number {
  let best = 0;
  let largest = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < logits.length; i++) {
    const value = logits[i] ?? 0;
    if (value > largest) [best, largest] = [i, value];
  }
  return best;
}

/** Throws `file` when the largest logit is not a finite number: weights that hold NaN or infinity. */
export function checkLargestLogit(logit: number): void {
  if (Number.isFinite(logit)) return;
  throw new MoeError("file", `sampling: expected finite logits, got ${logit}; the model's weights are damaged or diverged`);
}

/**
 * The next token. `logits` [vocabulary] is not changed; `seen` are the ids so far (prompt and output), for the penalty.
 * Throws `file` when the largest logit is not a finite number: weights that hold NaN or infinity.
 */
export function sampleToken(logits: Float32Array, options: SamplingOptions, random: Random, seen: Iterable<number> = []): number {
  const adjusted = options.repetitionPenalty === 1 ? logits : penalized(logits, options.repetitionPenalty, seen);
  const best = argmax(adjusted);
  checkLargestLogit(adjusted[best] ?? Number.NaN);
  if (options.temperature === 0) return best;
  const kept = candidates(adjusted, options.topK);
  const probabilities = softmax(kept, adjusted, options.temperature);
  const count = nucleus(probabilities, options.topP);
  let total = 0;
  for (let i = 0; i < count; i++) total += probabilities[i] ?? 0;
  let remaining = random.uniform() * total;
  for (let i = 0; i < count; i++) {
    remaining -= probabilities[i] ?? 0;
    if (remaining < 0) return kept[i] ?? 0;
  }
  return kept[count - 1] ?? 0;
}

function penalized(logits: Float32Array, penalty: number, seen: Iterable<number>): Float32Array {
  const out = logits.slice();
  for (const id of new Set(seen)) {
    const value = out[id];
    if (value !== undefined) out[id] = value > 0 ? value / penalty : value * penalty;
  }
  return out;
}

/** Ids by descending logit (ties: lower id first), at most `topK` of them (0: all). */
function candidates(logits: Float32Array, topK: number): Uint32Array {
  // Sorted as 64-bit integers, the logit's order reversed above the id: comparing in JavaScript takes three times as long.
  const keys = new BigUint64Array(logits.length);
  const halves = new Uint32Array(keys.buffer);
  const value = new Float32Array(1);
  const bits = new Int32Array(value.buffer);
  let n = 0;
  for (let id = 0; id < logits.length; id++) {
    const logit = logits[id] ?? 0;
    if (!(logit > Number.NEGATIVE_INFINITY)) continue;
    value[0] = logit + 0; // -0 and 0 are a tie
    const pattern = bits[0] ?? 0;
    // Bit patterns of positive floats ascend with the value, those of negative ones descend; the sign bit sorts above.
    halves[2 * n + 1] = pattern < 0 ? pattern : ~pattern & 0x7fffffff;
    halves[2 * n] = id;
    n++;
  }
  const kept = topK > 0 ? Math.min(topK, n) : n;
  keys.subarray(0, n).sort();
  const ids = new Uint32Array(kept);
  for (let i = 0; i < kept; i++) ids[i] = halves[2 * i] ?? 0;
  return ids;
}

function softmax(ids: Uint32Array, logits: Float32Array, temperature: number): Float64Array {
  const top = logits[ids[0] ?? 0] ?? 0;
  const out = new Float64Array(ids.length);
  let sum = 0;
  for (let i = 0; i < ids.length; i++) {
    const p = Math.exp(((logits[ids[i] ?? 0] ?? 0) - top) / temperature);
    out[i] = p;
    sum += p;
  }
  for (let i = 0; i < out.length; i++) out[i] = (out[i] ?? 0) / sum;
  return out;
}

function nucleus(probabilities: Float64Array, topP: number): number {
  if (topP >= 1) return probabilities.length;
  let sum = 0;
  for (let i = 0; i < probabilities.length; i++) {
    sum += probabilities[i] ?? 0;
    if (sum >= topP) return i + 1;
  }
  return probabilities.length;
}

/**
 * Picks the next token from one row of logits. Pure functions of (logits, options, random stream): the same inputs give the
 * same token on every machine. Order of operations: logit bias, repetition, frequency and presence penalty, temperature, top-k, min-p,
 * top-p, draw.
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
  /** Keep what is at least this times as probable as the most probable token (arXiv 2407.01082); 0: all. */
  readonly minP: number;
  /** Divides positive and multiplies negative logits of tokens seen before (arXiv 1909.05858); 1: off. */
  readonly repetitionPenalty: number;
  /** Taken from the logit of a token once for each time that it was generated (the prompt does not count); 0: off. */
  readonly frequencyPenalty: number;
  /** Taken from the logit of a token that was generated; 0: off. */
  readonly presencePenalty: number;
  /** Added to the logits of these ids. */
  readonly logitBias: ReadonlyMap<number, number>;
}

/** Always the most probable token. The map is not to be changed. */
export const greedy: SamplingOptions = {
  temperature: 0,
  topP: 1,
  topK: 0,
  minP: 0,
  repetitionPenalty: 1,
  frequencyPenalty: 0,
  presencePenalty: 0,
  logitBias: new Map(),
};

/** `greedy` with the options that are given; those that are undefined count as absent. */
export function samplingOptions(options: { readonly [K in keyof SamplingOptions]?: SamplingOptions[K] | undefined }): SamplingOptions {
  return {
    temperature: options.temperature ?? greedy.temperature,
    topP: options.topP ?? greedy.topP,
    topK: options.topK ?? greedy.topK,
    minP: options.minP ?? greedy.minP,
    repetitionPenalty: options.repetitionPenalty ?? greedy.repetitionPenalty,
    frequencyPenalty: options.frequencyPenalty ?? greedy.frequencyPenalty,
    presencePenalty: options.presencePenalty ?? greedy.presencePenalty,
    logitBias: options.logitBias ?? greedy.logitBias,
  };
}

/** Whether bias or penalties change what the model gave. */
export function adjustsLogits({ repetitionPenalty, frequencyPenalty, presencePenalty, logitBias }: SamplingOptions): boolean {
  return repetitionPenalty !== 1 || frequencyPenalty !== 0 || presencePenalty !== 0 || logitBias.size > 0;
}

/** Throws `usage` for values that make no sense. */
export function checkSamplingOptions(options: SamplingOptions): void {
  const bad = (name: string, expected: string, got: number): MoeError => new MoeError("usage", `${name}: expected ${expected}, got ${got}`);
  if (!(options.temperature >= 0 && Number.isFinite(options.temperature)))
    throw bad("temperature", "a number of at least 0", options.temperature);
  if (!(options.topP > 0 && options.topP <= 1)) throw bad("top-p", "a number above 0 and at most 1", options.topP);
  if (!(Number.isSafeInteger(options.topK) && options.topK >= 0)) throw bad("top-k", "a whole number of at least 0", options.topK);
  if (!(options.minP >= 0 && options.minP <= 1)) throw bad("min-p", "a number from 0 to 1", options.minP);
  if (!(options.repetitionPenalty > 0)) throw bad("repetition penalty", "a number above 0", options.repetitionPenalty);
  if (!Number.isFinite(options.frequencyPenalty)) throw bad("frequency penalty", "a finite number", options.frequencyPenalty);
  if (!Number.isFinite(options.presencePenalty)) throw bad("presence penalty", "a finite number", options.presencePenalty);
  for (const [id, bias] of options.logitBias) if (!Number.isFinite(bias)) throw bad(`logit bias of token ${id}`, "a finite number", bias);
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

/** What penalties ask for. */
export interface TokenHistory {
  /** Ids of the prompt and of what was generated. */
  readonly seen: ReadonlySet<number>;
  /** How often an id was generated. */
  readonly generated: ReadonlyMap<number, number>;
}

/** The history of a prompt and of what was generated after it. */
export function historyOf(prompt: Iterable<number>, output: Iterable<number> = []): TokenHistory {
  const seen = new Set(prompt);
  const generated = new Map<number, number>();
  for (const id of output) {
    seen.add(id);
    generated.set(id, (generated.get(id) ?? 0) + 1);
  }
  return { seen, generated };
}

/**
 * The next token. `logits` [vocabulary] is not changed; `prompt` and `output` are the ids so far, for the penalties.
 * Throws `file` when the largest logit is not a finite number: weights that hold NaN or infinity.
 */
export function sampleToken(
  logits: Float32Array,
  options: SamplingOptions,
  random: Random,
  prompt: Iterable<number> = [],
  output: Iterable<number> = [],
): number {
  return drawToken(adjustsLogits(options) ? adjustLogits(logits.slice(), options, historyOf(prompt, output)) : logits, options, random);
}

/** Adds bias and penalties in place. Returns `logits`. */
export function adjustLogits(logits: Float32Array, options: SamplingOptions, { seen, generated }: TokenHistory): Float32Array {
  const { repetitionPenalty: penalty, frequencyPenalty, presencePenalty, logitBias } = options;
  const change = (id: number, by: (value: number) => number): void => {
    const value = logits[id];
    if (value !== undefined) logits[id] = by(value);
  };
  for (const [id, bias] of logitBias) change(id, (value) => value + bias);
  if (penalty !== 1) for (const id of seen) change(id, (value) => (value > 0 ? value / penalty : value * penalty));
  if (frequencyPenalty !== 0 || presencePenalty !== 0)
    for (const [id, count] of generated) change(id, (value) => value - count * frequencyPenalty - presencePenalty);
  return logits;
}

/** Where the order's tail begins, in temperatures below the largest logit: what follows has less than e^-24 of its probability each. */
const headTemperatures = 24;

/** The next token of logits that are adjusted already. Throws as `sampleToken`. */
export function drawToken(logits: Float32Array, options: SamplingOptions, random: Random): number {
  const { temperature, topK, minP } = options;
  const best = argmax(logits);
  const top = logits[best] ?? Number.NaN;
  checkLargestLogit(top);
  if (temperature === 0) return best;
  const weights = new Float64Array(logits.length);
  let total = 0;
  for (let id = 0; id < logits.length; id++) {
    const weight = Math.exp(((logits[id] ?? 0) - top) / temperature);
    // Also NaN is not kept.
    if (!(weight >= minP && weight > 0)) continue;
    weights[id] = weight;
    total += weight;
  }
  // Nearly every draw ends in the head of the order; the tail, most of the vocabulary, is sorted for the others only.
  const threshold = top - headTemperatures * temperature;
  const head = candidates(logits, threshold);
  const u = random.uniform();
  const ranked = head.length < topK ? null : drawRanked(head, weights, options, total, u);
  if (ranked !== null) return ranked;
  const all = candidates(logits, Number.NEGATIVE_INFINITY);
  // Sums in another order than `total` may fall short of it by a rounding error: the draw is then the last that is kept.
  const last = topK > 0 ? all.subarray(0, topK) : all;
  return drawRanked(all, weights, options, total, u) ?? last.findLast((id) => (weights[id] ?? 0) > 0) ?? best;
}

/** The draw `u` in [0, 1) among what top-k and top-p keep of ids in order; null where it lies beyond these ids. */
function drawRanked(ids: Uint32Array, weights: Float64Array, { topK, topP }: SamplingOptions, total: number, u: number): number | null {
  const kept = topK > 0 ? ids.subarray(0, topK) : ids;
  let mass = total;
  if (topK > 0) {
    mass = 0;
    for (const id of kept) mass += weights[id] ?? 0;
  }
  if (topP < 1) {
    const limit = topP * mass;
    let sum = 0;
    for (const id of kept) {
      sum += weights[id] ?? 0;
      if (sum >= limit) break;
    }
    if (sum < limit && topK === 0) return null;
    mass = sum;
  }
  let remaining = u * mass;
  for (const id of kept) {
    remaining -= weights[id] ?? 0;
    if (remaining < 0) return id;
  }
  return null;
}

/** Ids with a logit above `threshold`, by descending logit (ties: lower id first). */
function candidates(logits: Float32Array, threshold: number): Uint32Array {
  // Sorted as 64-bit integers, the logit's order reversed above the id: comparing in JavaScript takes three times as long.
  const keys = new BigUint64Array(logits.length);
  const halves = new Uint32Array(keys.buffer);
  const value = new Float32Array(1);
  const bits = new Int32Array(value.buffer);
  let n = 0;
  for (let id = 0; id < logits.length; id++) {
    const logit = logits[id] ?? 0;
    if (!(logit > threshold)) continue;
    value[0] = logit + 0; // -0 and 0 are a tie
    const pattern = bits[0] ?? 0;
    // Bit patterns of positive floats ascend with the value, those of negative ones descend; the sign bit sorts above.
    halves[2 * n + 1] = pattern < 0 ? pattern : ~pattern & 0x7fffffff;
    halves[2 * n] = id;
    n++;
  }
  keys.subarray(0, n).sort();
  const ids = new Uint32Array(n);
  for (let i = 0; i < n; i++) ids[i] = halves[2 * i] ?? 0;
  return ids;
}

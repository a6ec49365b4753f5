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
  if (!(options.repetitionPenalty >= 0.01 && options.repetitionPenalty <= 100))
    throw bad("repetition penalty", "a number from 0.01 to 100", options.repetitionPenalty);
  // Beyond, logits that are finite might become infinite.
  const summand = (name: string, value: number): void => {
    if (!(Math.abs(value) <= 1e6)) throw bad(name, "a number from -1e6 to 1e6", value);
  };
  summand("frequency penalty", options.frequencyPenalty);
  summand("presence penalty", options.presencePenalty);
  for (const [id, bias] of options.logitBias) summand(`logit bias of token ${id}`, bias);
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

/** Bins of a row by distance from the largest logit, and how many of them span one temperature. The last one takes the rest. */
const numBins = 1024;
const binsPerTemperature = 32;

/** The next token of logits that are adjusted already. Throws as `sampleToken`. */
export function drawToken(logits: Float32Array, options: SamplingOptions, random: Random): number {
  const { temperature, topP, topK } = options;
  const best = argmax(logits);
  checkLargestLogit(logits[best] ?? Number.NaN);
  if (temperature === 0) return best;
  const row = new BinnedRow(logits, best, options);
  const u = random.uniform();
  const whole: Place = { bin: numBins, count: 0, mass: row.mass };
  const byCount =
    topK > 0
      ? row.find(
          (before, bin) => before.count + bin.count >= topK,
          (kept) => kept.count >= topK,
        )
      : null;
  const first = byCount ?? whole;
  const byMass =
    topP < 1
      ? row.find(
          (before, bin) => before.mass + bin.mass >= topP * first.mass,
          (kept) => kept.mass >= topP * first.mass,
        )
      : null;
  const kept = byMass !== null && byMass.mass < first.mass ? byMass : first;
  const drawn = row.find(
    (before, bin) => before.mass + bin.mass > u * kept.mass,
    (sum) => sum.mass > u * kept.mass,
  );
  // Sums in another order than the total may fall short of it by a rounding error: the draw is then the last that is kept.
  return drawn?.id ?? kept.id ?? best;
}

/** Tokens from the most probable one on: how many, their weight, and the last of them. */
interface Place {
  readonly bin: number;
  readonly count: number;
  readonly mass: number;
  readonly id?: number;
}

/**
 * The tokens of a row in order of probability, without sorting all of them: what is asked of the order (where a count or a mass is reached)
 * concerns one bin each time, and only that one is sorted.
 */
class BinnedRow {
  readonly #logits: Float32Array;
  /** Probability of each token over that of the best; 0 where it is left out. */
  readonly #weights: Float64Array;
  readonly #binOf: Uint16Array;
  readonly #counts = new Uint32Array(numBins);
  readonly #masses = new Float64Array(numBins);
  readonly #sorted = new Map<number, Uint32Array>();
  readonly mass: number;

  constructor(logits: Float32Array, best: number, { temperature, minP }: SamplingOptions) {
    const top = logits[best] ?? 0;
    this.#logits = logits;
    this.#weights = new Float64Array(logits.length);
    this.#binOf = new Uint16Array(logits.length).fill(numBins);
    for (let id = 0; id < logits.length; id++) {
      const distance = (top - (logits[id] ?? 0)) / temperature;
      const weight = Math.exp(-distance);
      // Also NaN is left out.
      if (!(weight >= minP && weight > 0)) continue;
      const bin = Math.min(numBins - 1, Math.floor(distance * binsPerTemperature));
      this.#weights[id] = weight;
      this.#binOf[id] = bin;
      this.#counts[bin] = (this.#counts[bin] ?? 0) + 1;
      this.#masses[bin] = (this.#masses[bin] ?? 0) + weight;
    }
    this.mass = this.#masses.reduce((a, b) => a + b, 0);
  }
  /**
   * The first place of the order where `isThere`, looked for in the first bin that `holds` it; null where none does. Sums are of whole bins,
   * then of the bin's tokens one by one.
   */
  find(holds: (before: Place, bin: Place) => boolean, isThere: (kept: Place) => boolean): Place | null {
    let before: Place = { bin: 0, count: 0, mass: 0 };
    for (let bin = 0; bin < numBins; bin++) {
      const own: Place = { bin, count: this.#counts[bin] ?? 0, mass: this.#masses[bin] ?? 0 };
      if (own.count === 0) continue;
      if (holds(before, own)) {
        let kept = before;
        for (const id of this.#sortedBin(bin)) {
          kept = { bin, count: kept.count + 1, mass: kept.mass + (this.#weights[id] ?? 0), id };
          if (isThere(kept)) break;
        }
        return kept;
      }
      before = { bin, count: before.count + own.count, mass: before.mass + own.mass };
    }
    return null;
  }
  #sortedBin(bin: number): Uint32Array {
    const known = this.#sorted.get(bin);
    if (known !== undefined) return known;
    const ids = new Uint32Array(this.#counts[bin] ?? 0);
    let n = 0;
    for (let id = 0; id < this.#binOf.length; id++) if (this.#binOf[id] === bin) ids[n++] = id;
    const logits = this.#logits;
    ids.sort((a, b) => (logits[b] ?? 0) - (logits[a] ?? 0) || a - b);
    this.#sorted.set(bin, ids);
    return ids;
  }
}

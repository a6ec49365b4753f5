/**
 * Rotary position embedding (arXiv 2104.09864): the frequencies of each scaling type, and the table of angles that all
 * layers of a model share.
 *
 * Frequencies are computed in f64 and rounded once. `dynamic` scaling depends on the length of the sequence at hand: its
 * table is made for that length, so keys that were rotated for a shorter one do not fit it (see `forLength`).
 */
import { makeRopeTable, type Engine, type Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";

/** How positions beyond the training length are mapped into it. Same form as in the model configuration. */
export type RotaryScaling =
  | { readonly type: "linear" | "dynamic"; readonly factor: number }
  | {
      readonly type: "llama3";
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalMaxPositions: number;
    }
  | {
      readonly type: "yarn";
      readonly factor: number;
      readonly originalMaxPositions: number;
      readonly attentionFactor: number | null;
      readonly betaFast: number;
      readonly betaSlow: number;
      readonly truncate: boolean;
    };

export interface RotaryOptions {
  /** Base of the frequencies. */
  readonly theta: number;
  readonly headDim: number;
  readonly scaling: RotaryScaling | null;
  /** Training length, from which `dynamic` scaling starts. */
  readonly maxPositions: number;
}

/** Radians per position of each pair of features, and the factor of every cosine and sine. */
export interface RotaryFrequencies {
  readonly invFreq: Float32Array;
  readonly attentionScale: number;
}

/** Frequencies of a model for sequences of `numPositions`. */
export function rotaryFrequencies({ theta, headDim, scaling, maxPositions }: RotaryOptions, numPositions: number): RotaryFrequencies {
  const frequencies = (base: number): number[] => Array.from({ length: headDim / 2 }, (_, j) => base ** ((-2 * j) / headDim));
  const plain = frequencies(theta);
  switch (scaling?.type) {
    case undefined:
      return { invFreq: Float32Array.from(plain), attentionScale: 1 };
    case "linear":
      return { invFreq: Float32Array.from(plain, (f) => f / scaling.factor), attentionScale: 1 };
    case "dynamic": {
      const stretch = (scaling.factor * Math.max(numPositions, maxPositions)) / maxPositions - (scaling.factor - 1);
      return { invFreq: Float32Array.from(frequencies(theta * stretch ** (headDim / (headDim - 2)))), attentionScale: 1 };
    }
    case "llama3":
      return { invFreq: Float32Array.from(plain, (f) => llama3Frequency(f, scaling)), attentionScale: 1 };
    case "yarn":
      return yarnFrequencies(plain, theta, headDim, scaling);
    default:
      return scaling satisfies never;
  }
}

/** Llama 3.1: wavelengths above the original length are stretched, those below a fraction of it kept, a ramp between. */
function llama3Frequency(f: number, s: RotaryScaling & { type: "llama3" }): number {
  const wavesInContext = (s.originalMaxPositions * f) / (2 * Math.PI);
  if (wavesInContext < s.lowFreqFactor) return f / s.factor;
  if (wavesInContext > s.highFreqFactor) return f;
  const keep = (wavesInContext - s.lowFreqFactor) / (s.highFreqFactor - s.lowFreqFactor);
  return (1 - keep) * (f / s.factor) + keep * f;
}

/** YaRN (arXiv 2309.00071, section 3): a ramp over the pairs from kept to stretched, and warmer attention. */
function yarnFrequencies(plain: readonly number[], theta: number, headDim: number, s: RotaryScaling & { type: "yarn" }): RotaryFrequencies {
  const pairOf = (turns: number): number => (headDim * Math.log(s.originalMaxPositions / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
  const [fast, slow] = [pairOf(s.betaFast), pairOf(s.betaSlow)];
  const low = Math.max(0, s.truncate ? Math.floor(fast) : fast);
  const high = Math.min(headDim - 1, s.truncate ? Math.ceil(slow) : slow);
  const width = high === low ? 0.001 : high - low;
  const invFreq = Float32Array.from(plain, (f, j) => {
    const stretched = Math.min(1, Math.max(0, (j - low) / width));
    return (f / s.factor) * stretched + f * (1 - stretched);
  });
  return { invFreq, attentionScale: s.attentionFactor ?? (s.factor <= 1 ? 1 : 0.1 * Math.log(s.factor) + 1) };
}

export class RotaryEmbedding implements Disposable {
  readonly options: RotaryOptions;
  readonly #engine: Engine;
  #table: Tensor | null = null;
  #tableIsFor = 0;

  constructor(engine: Engine, options: RotaryOptions) {
    if (options.headDim % 2 !== 0) throw new MoeError("shape", `rotary embedding of an odd head dimension ${options.headDim}`);
    this.#engine = engine;
    this.options = options;
  }

  /**
   * The table f32 [P, headDim / 2, 2] for sequences of `numPositions` (P is at least that). Owned by this object, which may
   * replace it at the next call. With `incremental` (a KV cache), throws `unsupported` where dynamic scaling would need
   * other angles than those of the keys in the cache.
   */
  forLength(numPositions: number, { incremental = false } = {}): Tensor {
    const { scaling, maxPositions } = this.options;
    const stretches = scaling?.type === "dynamic" && numPositions > maxPositions;
    if (stretches && incremental) {
      throw new MoeError(
        "unsupported",
        `dynamic rotary scaling with a KV cache beyond ${maxPositions} positions (asked for ${numPositions}): cached keys would need other angles`,
      );
    }
    const wasStretched = scaling?.type === "dynamic" && this.#tableIsFor > maxPositions;
    const fits = stretches || wasStretched ? this.#tableIsFor === numPositions : this.#tableIsFor >= numPositions;
    if (this.#table === null || !fits) this.#rebuild(numPositions, stretches);
    if (this.#table === null) throw new MoeError("internal", "rotary embedding: no table");
    return this.#table;
  }
  #rebuild(numPositions: number, exact: boolean): void {
    const { scaling, maxPositions } = this.options;
    // Grown by doubling; dynamic scaling stays on its unstretched side.
    let length = exact ? numPositions : Math.max(64, 2 ** Math.ceil(Math.log2(Math.max(1, numPositions))));
    if (!exact && scaling?.type === "dynamic") length = Math.min(length, maxPositions);
    const { invFreq, attentionScale } = rotaryFrequencies(this.options, length);
    this.#table?.dispose();
    // Retained before the scope ends: the table outlives the step in which it was made.
    this.#engine.scope(() => {
      this.#table = makeRopeTable(this.#engine, invFreq, length, attentionScale).retain();
    });
    this.#tableIsFor = length;
  }
  [Symbol.dispose](): void {
    this.#table?.dispose();
    this.#table = null;
    this.#tableIsFor = 0;
  }
}

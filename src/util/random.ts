/**
 * Seeded random numbers: xoshiro128** (Blackman and Vigna, arXiv 1805.01407) over four 32-bit words, seeded through a
 * mixing function. The same seed gives the same numbers on every machine and JavaScript engine: only integer operations,
 * IEEE arithmetic and square roots are used (the logarithm is our own). Not for cryptography.
 *
 * Two ways to use it: a stream with a state that can be saved (`new Random(seed)`, `state`), and numbers keyed by what they
 * are for (`Random.keyed(seed, step, layer)`), which a recomputed span gets again without any state.
 */
import { MoeError } from "./errors.ts";

/** The four words of the generator, unsigned 32-bit integers, not all zero. */
export type RandomState = readonly [number, number, number, number];

export class Random {
  #a: number;
  #b: number;
  #c: number;
  #d: number;

  /** A generator from a seed (a safe non-negative integer), or from a saved `state`. Throws `configuration` for other seeds. */
  constructor(seed: number | RandomState) {
    const [a, b, c, d] = typeof seed === "number" ? mixedState([seed]) : seed;
    if ((a | b | c | d) === 0) throw new MoeError("configuration", "random state: the four words are all zero");
    this.#a = a | 0;
    this.#b = b | 0;
    this.#c = c | 0;
    this.#d = d | 0;
  }

  /** A generator for one purpose, named by a sequence of safe non-negative integers: equal keys, equal numbers. */
  static keyed(...keys: readonly number[]): Random {
    return new Random(mixedState(keys));
  }

  /** What `new Random(state)` continues from: the generator has no other state. */
  get state(): RandomState {
    return [this.#a >>> 0, this.#b >>> 0, this.#c >>> 0, this.#d >>> 0];
  }

  /** The next 32 bits, as an unsigned integer. */
  uint32(): number {
    const product = Math.imul(this.#b, 5);
    const result = Math.imul((product << 7) | (product >>> 25), 9) >>> 0;
    const t = this.#b << 9;
    this.#c ^= this.#a;
    this.#d ^= this.#b;
    this.#b ^= this.#c;
    this.#a ^= this.#d;
    this.#c ^= t;
    this.#d = (this.#d << 11) | (this.#d >>> 21);
    return result;
  }
  /** Uniform in [0, 1), 53 bits. */
  uniform(): number {
    const high = this.uint32() >>> 5;
    const low = this.uint32() >>> 6;
    return (high * 67108864 + low) / 9007199254740992;
  }
  /** Uniform integer in 0..n-1, without bias. `n` is at most 2^32. */
  integer(n: number): number {
    if (!(Number.isInteger(n) && n >= 1 && n <= 4294967296)) throw new MoeError("internal", `random integer below ${n}`);
    const limit = 4294967296 - (4294967296 % n);
    let word = this.uint32();
    while (word >= limit) word = this.uint32();
    return word % n;
  }
  /** Standard normal deviate. Its twin is thrown away, so that the four words stay the whole state. */
  normal(): number {
    return this.#normalPair()[0];
  }
  /** Fills `out` with normal deviates of this standard deviation, using both of every pair. */
  fillNormal(out: Float32Array, std: number): Float32Array {
    for (let i = 0; i < out.length; i += 2) {
      const [first, second] = this.#normalPair();
      out[i] = first * std;
      if (i + 1 < out.length) out[i + 1] = second * std;
    }
    return out;
  }
  /** Two independent standard normal deviates (Marsaglia's polar method). */
  #normalPair(): [number, number] {
    let u: number;
    let v: number;
    let s: number;
    do {
      u = 2 * this.uniform() - 1;
      v = 2 * this.uniform() - 1;
      s = u * u + v * v;
    } while (s >= 1 || s === 0);
    const factor = Math.sqrt((-2 * naturalLog(s)) / s);
    return [u * factor, v * factor];
  }
  /** Shuffles in place (Fisher and Yates). */
  shuffle<T extends { length: number; [index: number]: unknown }>(items: T): T {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.integer(i + 1);
      const item = items[i];
      items[i] = items[j];
      items[j] = item;
    }
    return items;
  }
}

/** Four well-mixed words from a sequence of integers (the finalizer of MurmurHash3 over each half of each key). */
function mixedState(keys: readonly number[]): RandomState {
  let hash = 0x9e3779b9;
  for (const key of keys) {
    if (!(Number.isSafeInteger(key) && key >= 0)) {
      throw new MoeError("configuration", `seed: expected an integer from 0 to 2^53 - 1, got ${key}`);
    }
    hash = mix32(hash ^ (key >>> 0));
    hash = mix32((hash + 0x9e3779b9) ^ Math.floor(key / 4294967296));
  }
  const word = (i: number): number => mix32(hash + Math.imul(i, 0x9e3779b9)) >>> 0;
  const state: RandomState = [word(1), word(2), word(3), word(4)];
  return state.every((w) => w === 0) ? [1, 2, 3, 4] : state;
}
function mix32(x: number): number {
  let h = x | 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return h ^ (h >>> 16);
}

/** ln(x) for a positive normal x: x = m 2^e with m in [sqrt(1/2), sqrt(2)), ln m = 2 atanh((m-1)/(m+1)) as a series. */
function naturalLog(x: number): number {
  let m = x;
  let e = 0;
  while (m < Math.SQRT1_2) {
    m *= 2;
    e--;
  }
  while (m >= Math.SQRT2) {
    m /= 2;
    e++;
  }
  const s = (m - 1) / (m + 1);
  const s2 = s * s;
  let sum = 0;
  for (let n = 23; n >= 1; n -= 2) sum = sum * s2 + 1 / n;
  return 2 * s * sum + e * Math.LN2;
}

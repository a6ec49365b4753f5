/**
 * Seeded random numbers that are the same on every machine: xoshiro128** (Blackman and Vigna, 2018) seeded through
 * splitmix32 from a list of integers, so that independent streams come from labels (`[seed, epoch]`, `[seed, layer, step]`)
 * instead of from drawing order. The state can be saved and restored. Not for secrets.
 */

/** Four 32-bit words. */
export type RandomState = readonly [number, number, number, number];

export class Random {
  #a: number;
  #b: number;
  #c: number;
  #d: number;

  /** A stream named by integers; each is taken modulo 2^32 and mixed in order. */
  constructor(...labels: readonly number[]) {
    let hash = 0x9e3779b9;
    for (const label of labels) {
      hash = splitmix(hash ^ (label >>> 0));
      hash = splitmix(hash ^ (Math.floor(label / 2 ** 32) >>> 0));
    }
    this.#a = hash = splitmix(hash);
    this.#b = hash = splitmix(hash);
    this.#c = hash = splitmix(hash);
    this.#d = splitmix(hash) | 1;
  }
  static fromState([a, b, c, d]: RandomState): Random {
    const random = new Random(0);
    random.#a = a >>> 0;
    random.#b = b >>> 0;
    random.#c = c >>> 0;
    random.#d = d >>> 0;
    return random;
  }
  get state(): RandomState {
    return [this.#a, this.#b, this.#c, this.#d];
  }

  /** Uniform integer in 0..2^32-1. */
  uint32(): number {
    const result = Math.imul(rotateLeft(Math.imul(this.#b, 5), 7), 9) >>> 0;
    const t = this.#b << 9;
    this.#c ^= this.#a;
    this.#d ^= this.#b;
    this.#b = (this.#b ^ this.#c) >>> 0;
    this.#a = (this.#a ^ this.#d) >>> 0;
    this.#c = (this.#c ^ t) >>> 0;
    this.#d = rotateLeft(this.#d, 11) >>> 0;
    return result;
  }
  /** Uniform in [0, 1) with 53 random bits. */
  uniform(): number {
    return ((this.uint32() >>> 5) * 2 ** 26 + (this.uint32() >>> 6)) / 2 ** 53;
  }
  /** Uniform integer in 0..n-1, without modulo bias (n at most 2^32). */
  integer(n: number): number {
    const limit = 2 ** 32 - (2 ** 32 % n);
    for (;;) {
      const value = this.uint32();
      if (value < limit) return value % n;
    }
  }
  /** Standard normal (Box-Muller; the second value of a pair is not kept, so the state is four words). */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }
  /** Fills with normal(0, std) values, both of each Box-Muller pair used. */
  fillNormal(out: Float32Array, std: number): Float32Array {
    for (let i = 0; i < out.length; i += 2) {
      const radius = std * Math.sqrt(-2 * Math.log(1 - this.uniform()));
      const angle = 2 * Math.PI * this.uniform();
      out[i] = radius * Math.cos(angle);
      if (i + 1 < out.length) out[i + 1] = radius * Math.sin(angle);
    }
    return out;
  }
  /** A random permutation of 0..n-1 (Fisher-Yates). */
  permutation(n: number): Uint32Array {
    const order = new Uint32Array(n);
    for (let i = 0; i < n; i++) {
      const j = this.integer(i + 1);
      order[i] = order[j] ?? 0;
      order[j] = i;
    }
    return order;
  }
}

function rotateLeft(x: number, k: number): number {
  return (x << k) | (x >>> (32 - k));
}

function splitmix(x: number): number {
  let z = (x + 0x9e3779b9) >>> 0;
  z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
  z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
  return (z ^ (z >>> 16)) >>> 0;
}

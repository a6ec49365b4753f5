/**
 * Seeded numbers for test operands, so that a failing case can be run again from its title.
 */
import type { DType } from "../../../src/backend/kernels.ts";
import { decodeBf16, encodeBf16 } from "../../../src/backend/reference/convert.ts";
import { decodeFp8, encodeFp8 } from "../../../src/util/fp8.ts";

export class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** Uniform in [0, 1): mulberry32 (Tommy Ettinger, public domain). */
  uniform(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let z = this.#state;
    z = Math.imul(z ^ (z >>> 15), z | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
  }

  /** Uniform integer in [low, high]. */
  integer(low: number, high: number): number {
    return low + Math.floor(this.uniform() * (high - low + 1));
  }

  integers(count: number, low: number, high: number): Float64Array {
    return Float64Array.from({ length: count }, () => this.integer(low, high));
  }

  /** Standard normal times `scale`, rounded to what `dtype` can hold. */
  normal(count: number, dtype: DType = "f32", scale = 1): Float64Array {
    const values = Float64Array.from(
      { length: count },
      () => scale * Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform()),
    );
    return representable(values, dtype);
  }

  /** 0..n-1 in random order. */
  permutation(n: number): number[] {
    return Array.from({ length: n }, (_, i) => ({ i, key: this.uniform() }))
      .sort((a, b) => a.key - b.key)
      .map(({ i }) => i);
  }
}

/** The nearest values that `dtype` can hold. */
export function representable(values: Float64Array, dtype: DType): Float64Array {
  switch (dtype) {
    case "f32":
      return values.map(Math.fround);
    case "bf16":
      return decodeBf16(encodeBf16(values));
    case "f16":
      return Float64Array.from(new Float16Array(values));
    case "fp8":
      return values.map((value) => decodeFp8("e4m3", encodeFp8("e4m3", value)));
    case "i32":
      return values.map((value) => value | 0);
    default:
      return dtype satisfies never;
  }
}

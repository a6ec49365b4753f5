/**
 * Storage types to f64 and back, for the reference backend.
 *
 * Decoding is exact. Encoding rounds once, from f64 straight to the storage type, to nearest even: rounding to f32 on the
 * way to bf16 would round twice, and the oracle would then disagree with itself by an ulp. Kernels that move values
 * without arithmetic between equal types copy bytes instead (a NaN keeps its payload only that way).
 */
import type { DTypeCode } from "../kernels.ts";
import { dtypeCodes } from "../kernels.ts";
import { MoeError } from "../../util/errors.ts";

/** Bytes of one element of `dtype`. Throws `internal` for a code that is none. */
export function elementBytes(dtype: DTypeCode): 1 | 2 | 4 {
  switch (dtype) {
    case dtypeCodes.f32:
    case dtypeCodes.i32:
      return 4;
    case dtypeCodes.bf16:
    case dtypeCodes.f16:
      return 2;
    case dtypeCodes.fp8:
      return 1;
    default:
      throw new MoeError("internal", `reference: expected a dtype code of kernels.ts, got ${String(dtype satisfies never)}`);
  }
}

/** The values of bf16 words: a bf16 is the upper half of an f32. */
export function decodeBf16(words: Uint16Array): Float64Array {
  const bits = new Uint32Array(words);
  for (let i = 0; i < bits.length; i++) bits[i] = (bits[i] ?? 0) << 16;
  return new Float64Array(new Float32Array(bits.buffer));
}

/** bf16 words nearest to `values`, ties to even, NaN quiet, too large to infinity. */
export function encodeBf16(values: Float64Array): Uint16Array {
  const rounded = new Float32Array(values);
  const bits = new Uint32Array(rounded.buffer);
  const words = new Uint16Array(values.length);
  for (let i = 0; i < words.length; i++) words[i] = nearestWord(bits[i] ?? 0, Math.abs(rounded[i] ?? 0), Math.abs(values[i] ?? 0));
  return words;
}

/** The bf16 word for an f32 with the given bits, where `between` is its absolute value and `value` that of the f64 it came from. */
function nearestWord(bits: number, between: number, value: number): number {
  const upper = bits >>> 16;
  const lower = bits & 0xffff;
  if (Number.isNaN(value)) return upper | 0x40;
  if (lower !== 0x8000) return upper + (lower > 0x8000 ? 1 : 0);
  // The f32 lies exactly between two bf16: what it lost on the way from f64 decides, and only then evenness.
  if (value !== between) return upper + (value > between ? 1 : 0);
  return upper + (upper & 1);
}

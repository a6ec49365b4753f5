/**
 * The two 8-bit floats of FP8 (arXiv 2209.05433; names as in PyTorch), to numbers and back.
 *
 * - `e4m3` (float8_e4m3fn): 4 exponent bits with bias 7, 3 of mantissa, largest 448, subnormals in steps of 2^-9, no infinities, one
 *   NaN per sign (0x7f, 0xff).
 * - `e5m2` (float8_e5m2): 5 exponent bits with bias 15, 2 of mantissa, largest 57344, subnormals in steps of 2^-16, infinities and NaN.
 *
 * Decoding is exact. Encoding rounds once, to nearest, ties to even, and saturates: what lies beyond the largest finite value, infinities
 * included, becomes the largest finite value of its sign. A NaN becomes 0x7f. PyTorch instead gives NaN (e4m3, beyond 464) or infinity
 * (e5m2, from 61440 on); below that the codes are the same.
 *
 * These are the definition. The kernels `castToFp8` and `castFromFp8` are the fast ones. Not here: scales (src/quant).
 */

export type Fp8Format = "e4m3" | "e5m2";

interface Layout {
  readonly mantissaBits: number;
  readonly bias: number;
  readonly largestCode: number;
  readonly nanCode: number;
}
const layouts: Readonly<Record<Fp8Format, Layout>> = {
  e4m3: { mantissaBits: 3, bias: 7, largestCode: 0x7e, nanCode: 0x7f },
  e5m2: { mantissaBits: 2, bias: 15, largestCode: 0x7b, nanCode: 0x7f },
};

/** The largest finite value of each format. */
export const fp8Largest: Readonly<Record<Fp8Format, number>> = { e4m3: 448, e5m2: 57344 };

/** The value of a code, 0 to 255. */
export function decodeFp8(format: Fp8Format, code: number): number {
  const { mantissaBits, bias, largestCode } = layouts[format];
  const magnitude = code & 0x7f;
  const sign = code & 0x80 ? -1 : 1;
  if (magnitude > largestCode) return format === "e5m2" && magnitude === largestCode + 1 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  const exponent = magnitude >> mantissaBits;
  const mantissa = magnitude & ((1 << mantissaBits) - 1);
  const significand = exponent === 0 ? mantissa : mantissa + (1 << mantissaBits);
  return sign * significand * 2 ** (Math.max(1, exponent) - bias - mantissaBits);
}

/** The values of all 256 codes. */
export function fp8Values(format: Fp8Format): Float32Array {
  return Float32Array.from({ length: 256 }, (_, code) => decodeFp8(format, code));
}

/** The code nearest to `value` (any f64), ties to even, saturating. */
export function encodeFp8(format: Fp8Format, value: number): number {
  const { mantissaBits, bias, largestCode, nanCode } = layouts[format];
  const sign = value < 0 || Object.is(value, -0) ? 0x80 : 0;
  if (Number.isNaN(value)) return nanCode;
  const magnitude = Math.abs(value);
  if (magnitude >= fp8Largest[format]) return sign | largestCode;
  const smallest = 1 - bias;
  // Never below the exponent of subnormals; log2 may be an ulp off next to a power of two, where both grids agree.
  let exponent = magnitude === 0 ? smallest : Math.max(smallest, Math.floor(Math.log2(magnitude)));
  if (2 ** exponent > magnitude && exponent > smallest) exponent--;
  const steps = roundToEven(magnitude / 2 ** (exponent - mantissaBits));
  // `steps` counts from 0 (subnormal) or from 2^mantissaBits; rounding up to the next power of two carries into the exponent by itself.
  return sign | (((exponent - smallest) << mantissaBits) + steps);
}

function roundToEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}

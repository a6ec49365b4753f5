/**
 * Element sums in rank order: the definition that every implementation of a sum follows (`native/ordered_sum.h` is its twin in C).
 *
 * sum[i] = (((part[0][i] + part[1][i]) + part[2][i]) + ...), every step rounded to f32; bf16 is widened to f32, and the sum is rounded once, to
 * nearest, ties to even.
 */

/** Of bits of f32, to nearest, ties to even; NaN is kept. */
function roundedToBf16(bits: number): number {
  const isNaN = (bits & 0x7fffffff) > 0x7f800000;
  return isNaN ? (bits >>> 16) | 0x40 : (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

/** parts: one a rank, all of one length and dtype (f32, or the bits of bf16). Returns a new array. */
export function orderedSum(
  parts: readonly (Float32Array<ArrayBuffer> | Uint16Array<ArrayBuffer>)[],
): Float32Array<ArrayBuffer> | Uint16Array<ArrayBuffer> {
  const [first] = parts;
  if (first === undefined) return new Float32Array(0);
  if (first instanceof Float32Array) return sumF32(parts as readonly Float32Array<ArrayBuffer>[], first);
  const wide = parts.map((part) => {
    const bits = new Uint32Array(part.length);
    for (let i = 0; i < part.length; i++) bits[i] = (part[i] ?? 0) << 16;
    return new Float32Array(bits.buffer);
  });
  const sum = sumF32(wide, wide[0] ?? new Float32Array(0));
  const bits = new Uint32Array(sum.buffer);
  // One rank's numbers are not summed: they keep their bits, a signalling NaN too.
  return parts.length === 1 ? first.slice() : Uint16Array.from(bits, roundedToBf16);
}

function sumF32(parts: readonly Float32Array[], first: Float32Array<ArrayBuffer>): Float32Array<ArrayBuffer> {
  const sum = first.slice();
  for (const part of parts.slice(1)) {
    for (let i = 0; i < sum.length; i++) sum[i] = (sum[i] ?? 0) + (part[i] ?? 0);
  }
  return sum;
}

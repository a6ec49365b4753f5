/**
 * Scales of FP8 matrices: how many there are, where each applies, and how they are chosen.
 *
 * A weight is code * scale. A scale is the largest magnitude of what it belongs to (the matrix, an output's row, a block of 128 x 128)
 * divided by 448, the largest E4M3, so that nothing saturates; 1 where all are 0. Scales are f32, and a weight is divided by its scale in
 * f32 before it is rounded. Stacked matrices [E, N, K] have E sets of scales, one after another.
 */
import { fp8Block, type Fp8Scaling } from "../backend/kernels.ts";
import { MoeError } from "../util/errors.ts";
import { fp8Largest, fp8Values } from "../util/fp8.ts";

/** Shape of the scales of a matrix [N, K]. */
export function scaleShape(scaling: Fp8Scaling, N: number, K: number): number[] {
  switch (scaling) {
    case "tensor":
      return [1];
    case "channel":
      return [N];
    case "block128":
      return [Math.ceil(N / fp8Block), Math.ceil(K / fp8Block)];
    default:
      return scaling satisfies never;
  }
}

/** Scales of a matrix [N, K]. */
export function numScales(scaling: Fp8Scaling, N: number, K: number): number {
  return scaleShape(scaling, N, K).reduce((n, size) => n * size, 1);
}

/**
 * What scales of this shape in a file belong to, for a matrix [N, K]: [] or [1] (also [1, 1]) the matrix, [N] or [N, 1] its rows,
 * [ceil(N / 128), ceil(K / 128)] blocks; null for another shape.
 */
export function scalingOfShape(shape: readonly number[], N: number, K: number): Fp8Scaling | null {
  const count = shape.reduce((n, size) => n * size, 1);
  if (count === 1 && shape.length <= 2) return "tensor";
  if (count === N && shape[0] === N && (shape.length === 1 || (shape.length === 2 && shape[1] === 1))) return "channel";
  const isBlocks = shape.length === 2 && shape[0] === Math.ceil(N / fp8Block) && shape[1] === Math.ceil(K / fp8Block);
  return isBlocks ? "block128" : null;
}

/** Index of the scale of element [n, k]. */
export function scaleIndex(scaling: Fp8Scaling, K: number, n: number, k: number): number {
  if (scaling === "tensor") return 0;
  return scaling === "channel" ? n : Math.floor(n / fp8Block) * Math.ceil(K / fp8Block) + Math.floor(k / fp8Block);
}

/** Updates `largest` (one a scale) with rows `firstRow`.. of a matrix of width K: whole rows. Throws `configuration` for a value that is not finite. */
export function noteLargest(
  largest: Float32Array,
  scaling: Fp8Scaling,
  values: Float32Array,
  firstRow: number,
  K: number,
  name: string,
): void {
  for (let at = 0; at < values.length;) {
    const n = firstRow + Math.floor(at / K);
    const k = at % K;
    const index = scaleIndex(scaling, K, n, k);
    const end = at + (scaling === "block128" ? Math.min(fp8Block, K - k) : K - k);
    let most = 0;
    for (; at < end; at++) {
      const magnitude = Math.abs(values[at] ?? 0);
      if (!(magnitude <= 3.4e38)) throw new MoeError("file", `${name}: expected finite weights, got ${values[at]} in row ${n}`);
      if (magnitude > most) most = magnitude;
    }
    largest[index] = Math.max(largest[index] ?? 0, most);
  }
}

/** Scales for largest magnitudes. */
export function scalesFor(largest: Float32Array): Float32Array {
  // Below f32's normal range a quotient would lose its precision, or be 0.
  return largest.map((value) => (value === 0 ? 1 : Math.max(value / fp8Largest.e4m3, 2 ** -126)));
}

/** Fills `into` with code * scale for elements `from`.. of a matrix of width K, row by row; each product rounded to f32. */
export function dequantize(
  into: Float32Array,
  codes: Uint8Array,
  scaling: Fp8Scaling,
  scales: Float32Array,
  K: number,
  from: number,
): void {
  const values = fp8Values("e4m3");
  for (let at = 0; at < into.length;) {
    const n = Math.floor((from + at) / K);
    const k = (from + at) % K;
    const scale = scales[scaleIndex(scaling, K, n, k)] ?? Number.NaN;
    const run = scaling === "block128" ? Math.min(fp8Block - (k % fp8Block), K - k) : K - k;
    const end = Math.min(into.length, at + run);
    for (; at < end; at++) into[at] = (values[codes[at] ?? 0] ?? 0) * scale;
  }
}

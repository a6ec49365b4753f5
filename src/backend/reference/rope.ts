/**
 * Rotary position embedding (Su et al., arXiv 2104.09864) in the half-split ("neox") pairing: the plain twin of native/rope.c.
 * The angle is an f32 product by contract, so that tables agree with checkpoints trained elsewhere; cos and sin are f64.
 */
import type { DTypeCode, Ptr } from "../kernels.ts";
import { elementBytes } from "./convert.ts";
import type { ReferenceMemory } from "./memory.ts";
import { at } from "./memory.ts";

export function ropeTable(memory: ReferenceMemory, table: Ptr, invFreq: Ptr, P: number, half: number, attentionScale: number): void {
  const frequencies = memory.loadF32(invFreq, half);
  const pairs = new Float64Array(P * half * 2);
  for (let p = 0; p < P; p++) {
    for (let j = 0; j < half; j++) {
      const angle = Math.fround(Math.fround(p) * at(frequencies, j));
      pairs[(p * half + j) * 2] = Math.cos(angle) * attentionScale;
      pairs[(p * half + j) * 2 + 1] = Math.sin(angle) * attentionScale;
    }
  }
  memory.storeF32(table, pairs);
}

export function ropeApply(
  memory: ReferenceMemory,
  x: Ptr,
  table: Ptr,
  positions: Ptr,
  M: number,
  heads: number,
  headDim: number,
  rowStride: number,
  half: number,
  inverse: number,
  dtype: DTypeCode,
): void {
  const ps = memory.loadI32(positions, M);
  const sign = inverse === 1 ? -1 : 1;
  for (let m = 0; m < M; m++) {
    const row = x + m * rowStride * elementBytes(dtype);
    const values = memory.load(row, heads * headDim, dtype);
    const pairs = memory.loadF32(table + at(ps, m) * half * 2 * 4, half * 2);
    for (let head = 0; head < heads; head++) {
      for (let j = 0; j < half; j++) {
        const cos = at(pairs, 2 * j);
        const sin = at(pairs, 2 * j + 1) * sign;
        const a = at(values, head * headDim + j);
        const b = at(values, head * headDim + half + j);
        values[head * headDim + j] = a * cos - b * sin;
        values[head * headDim + half + j] = b * cos + a * sin;
      }
    }
    memory.store(row, values, dtype);
  }
}

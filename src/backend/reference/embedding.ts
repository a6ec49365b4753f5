/**
 * Rows of an embedding table by token id, and their gradient: the plain twin of native/embedding.c.
 * The forward is exact (it copies). Legend: M tokens, H width, V vocabulary.
 */
import type { DTypeCode, Ptr } from "../kernels.ts";
import { dtypeCodes } from "../kernels.ts";
import { elementBytes } from "./convert.ts";
import type { ReferenceMemory } from "./memory.ts";
import { at } from "./memory.ts";

export function embeddingForward(
  memory: ReferenceMemory,
  out: Ptr,
  table: Ptr,
  ids: Ptr,
  M: number,
  H: number,
  V: number,
  dtype: DTypeCode,
): void {
  const tokens = memory.loadI32(ids, M);
  const rowBytes = H * elementBytes(dtype);
  if (rowBytes === 0) return;
  for (let m = 0; m < M; m++) {
    const id = at(tokens, m);
    const row = memory.bytes(out + m * rowBytes, rowBytes, elementBytes(dtype));
    if (id < 0 || id >= V) row.fill(0);
    else row.set(memory.bytes(table + id * rowBytes, rowBytes, elementBytes(dtype)));
  }
}

export function embeddingBackward(
  memory: ReferenceMemory,
  dTable: Ptr,
  dOut: Ptr,
  ids: Ptr,
  M: number,
  H: number,
  V: number,
  dtype: DTypeCode,
): void {
  const tokens = memory.loadI32(ids, M);
  const dOuts = memory.load(dOut, M * H, dtype);
  // One sum a distinct id, so that a table row is rounded once however often its id occurs.
  const sums = new Map<number, Float64Array>();
  for (let m = 0; m < M; m++) {
    const id = at(tokens, m);
    if (id < 0 || id >= V) continue;
    const sum = sums.get(id) ?? new Float64Array(H);
    for (let h = 0; h < H; h++) sum[h] = at(sum, h) + at(dOuts, m * H + h);
    sums.set(id, sum);
  }
  for (const [id, sum] of sums) memory.storeOrAdd(dTable + id * H * 4, sum, dtypeCodes.f32, 1);
}

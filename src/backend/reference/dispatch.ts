/**
 * Moving tokens to experts and back: the plain twin of native/dispatch.c. The plan is integers and exact; combining is f64 sums.
 *
 * Legend: T tokens, k choices of each, E experts, R rows in expert order, H width. slotRow[t,j] is the row of token t's
 * choice j, or -1 where the expert was full.
 */
import type { DTypeCode, Ptr } from "../kernels.ts";
import { MoeError } from "../../util/errors.ts";
import { elementBytes } from "./convert.ts";
import type { ReferenceMemory } from "./memory.ts";
import { at } from "./memory.ts";

export function dispatchPlan(
  memory: ReferenceMemory,
  offsets: Ptr,
  rowToken: Ptr,
  slotRow: Ptr,
  counts: Ptr,
  indices: Ptr,
  weights: Ptr,
  T: number,
  k: number,
  E: number,
  capacity: number,
  byProbability: number,
): void {
  const experts = memory.loadI32(indices, T * k);
  const priorities = byProbability === 1 && capacity > 0 ? memory.loadF32(weights, T * k) : new Float64Array(T * k);
  const slotsOf = Array.from({ length: E }, (): number[] => []);
  for (const [slot, e] of experts.entries()) {
    const slots = slotsOf[e];
    if (slots === undefined)
      throw new MoeError("internal", `reference dispatchPlan: expected an expert below ${E}, got ${e} in slot ${slot}`);
    slots.push(slot);
  }
  const starts = new Int32Array(E + 1);
  const rowOf = new Int32Array(T * k).fill(-1);
  const tokens: number[] = [];
  for (const [e, slots] of slotsOf.entries()) {
    const kept = capacity === 0 ? slots : slots.toSorted((a, b) => at(priorities, b) - at(priorities, a) || a - b).slice(0, capacity);
    for (const slot of kept.toSorted((a, b) => a - b)) {
      rowOf[slot] = tokens.length;
      tokens.push(Math.floor(slot / k));
    }
    starts[e + 1] = tokens.length;
  }
  memory.storeI32(offsets, starts);
  memory.storeI32(rowToken, Int32Array.from(tokens));
  memory.storeI32(slotRow, rowOf);
  memory.storeI32(
    counts,
    Int32Array.from(slotsOf, (slots) => slots.length),
  );
}

export function permuteBackward(
  memory: ReferenceMemory,
  dx: Ptr,
  dOut: Ptr,
  slotRow: Ptr,
  T: number,
  k: number,
  H: number,
  dtype: DTypeCode,
  accumulate: number,
): void {
  const rows = memory.loadI32(slotRow, T * k);
  const dxs = new Float64Array(T * H);
  for (const [slot, row] of rows.entries()) {
    if (row < 0) continue;
    const dRow = memory.load(dOut + row * H * elementBytes(dtype), H, dtype);
    const t = Math.floor(slot / k);
    for (let h = 0; h < H; h++) dxs[t * H + h] = at(dxs, t * H + h) + at(dRow, h);
  }
  memory.storeOrAdd(dx, dxs, dtype, accumulate);
}

export function combineForward(
  memory: ReferenceMemory,
  out: Ptr,
  y: Ptr,
  slotRow: Ptr,
  weights: Ptr,
  T: number,
  k: number,
  H: number,
  dtype: DTypeCode,
): void {
  const rows = memory.loadI32(slotRow, T * k);
  const ws = memory.loadF32(weights, T * k);
  const outs = new Float64Array(T * H);
  for (const [slot, row] of rows.entries()) {
    if (row < 0) continue;
    const yRow = memory.load(y + row * H * elementBytes(dtype), H, dtype);
    const t = Math.floor(slot / k);
    for (let h = 0; h < H; h++) outs[t * H + h] = at(outs, t * H + h) + at(ws, slot) * at(yRow, h);
  }
  memory.store(out, outs, dtype);
}

export function combineBackward(
  memory: ReferenceMemory,
  dy: Ptr,
  dWeights: Ptr,
  dOut: Ptr,
  y: Ptr,
  slotRow: Ptr,
  weights: Ptr,
  T: number,
  k: number,
  H: number,
  dtype: DTypeCode,
): void {
  const rows = memory.loadI32(slotRow, T * k);
  const ws = memory.loadF32(weights, T * k);
  const dOuts = memory.load(dOut, T * H, dtype);
  const dws = new Float64Array(T * k);
  for (const [slot, row] of rows.entries()) {
    if (row < 0) continue;
    const t = Math.floor(slot / k);
    const rowOffset = row * H * elementBytes(dtype);
    const yRow = memory.load(y + rowOffset, H, dtype);
    const dOutRow = dOuts.subarray(t * H, (t + 1) * H);
    dws[slot] = dOutRow.reduce((sum, d, h) => sum + d * at(yRow, h), 0);
    memory.store(
      dy + rowOffset,
      dOutRow.map((d) => at(ws, slot) * d),
      dtype,
    );
  }
  memory.storeF32(dWeights, dws);
}

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
  groupOffsets: Ptr,
  capacities: Ptr,
  T: number,
  k: number,
  E: number,
  G: number,
  byProbability: number,
  pad: number,
): void {
  const experts = memory.loadI32(indices, T * k);
  const starts = memory.loadI32(groupOffsets, G + 1);
  const limits = capacities === 0 ? null : memory.loadI32(capacities, G);
  const priorities = byProbability === 1 && limits !== null ? memory.loadF32(weights, T * k) : new Float64Array(T * k);
  const priority = (slot: number): number => (Number.isNaN(at(priorities, slot)) ? Infinity : at(priorities, slot));
  const first = (a: number, b: number): number => (priority(a) === priority(b) ? a - b : priority(a) > priority(b) ? -1 : 1);
  const slotsOf = slotsByExpert(experts, starts, k, E);
  const rowOf = new Int32Array(T * k).fill(-1);
  const rowOffsets = new Int32Array(E + 1);
  const tokens: number[] = [];
  for (let e = 0; e < E; e++) {
    for (let g = 0; g < G; g++) {
      const slots = slotsOf[g * E + e] ?? [];
      const limit = limits === null ? slots.length : at(limits, g);
      const kept = slots.toSorted(first).slice(0, limit);
      for (const slot of kept.toSorted((a, b) => a - b)) {
        rowOf[slot] = tokens.length;
        tokens.push(Math.floor(slot / k));
      }
      if (pad === 1) for (let i = kept.length; i < limit; i++) tokens.push(-1);
    }
    rowOffsets[e + 1] = tokens.length;
  }
  memory.storeI32(offsets, rowOffsets);
  memory.storeI32(rowToken, Int32Array.from(tokens));
  memory.storeI32(slotRow, rowOf);
  memory.storeI32(
    counts,
    Int32Array.from(slotsOf, (slots) => slots.length),
  );
}

/** Slots of each group and expert, [G, E], ascending. */
function slotsByExpert(experts: Int32Array, starts: Int32Array, k: number, E: number): number[][] {
  const slotsOf = Array.from({ length: (starts.length - 1) * E }, (): number[] => []);
  for (let g = 0; g + 1 < starts.length; g++) {
    for (let slot = at(starts, g) * k; slot < at(starts, g + 1) * k; slot++) {
      const e = at(experts, slot);
      if (e >= E) throw new MoeError("internal", `reference dispatchPlan: expected an expert below ${E}, got ${e} in slot ${slot}`);
      if (e >= 0) slotsOf[g * E + e]?.push(slot);
    }
  }
  return slotsOf;
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

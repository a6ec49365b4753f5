/**
 * RMS normalization (Zhang and Sennrich, arXiv 1910.07467, equation 4): the plain twin of native/norm.c.
 * Legend: M rows of H. All sums f64, rounded once.
 */
import type { DTypeCode, Ptr } from "../kernels.ts";
import { dtypeCodes } from "../kernels.ts";
import type { ReferenceMemory } from "./memory.ts";
import { at } from "./memory.ts";

export function rmsNormForward(
  memory: ReferenceMemory,
  out: Ptr,
  rstd: Ptr,
  x: Ptr,
  w: Ptr,
  M: number,
  H: number,
  eps: number,
  dtype: DTypeCode,
): void {
  const xs = memory.load(x, M * H, dtype);
  const ws = memory.loadF32(w, H);
  const outs = new Float64Array(M * H);
  const rstds = new Float64Array(M);
  for (let m = 0; m < M; m++) {
    let squares = 0;
    for (let h = 0; h < H; h++) squares += at(xs, m * H + h) ** 2;
    const r = 1 / Math.sqrt(squares / H + eps);
    rstds[m] = r;
    for (let h = 0; h < H; h++) outs[m * H + h] = at(xs, m * H + h) * r * at(ws, h);
  }
  memory.store(out, outs, dtype);
  if (rstd !== 0) memory.storeF32(rstd, rstds);
}

/** With n = x rstd: dx = rstd (dy w - n mean(dy w n)), dw += sum of dy n over rows. */
export function rmsNormBackward(
  memory: ReferenceMemory,
  dx: Ptr,
  dw: Ptr,
  dy: Ptr,
  x: Ptr,
  w: Ptr,
  rstd: Ptr,
  M: number,
  H: number,
  dtype: DTypeCode,
  accumulate: number,
): void {
  const dys = memory.load(dy, M * H, dtype);
  const xs = memory.load(x, M * H, dtype);
  const ws = memory.loadF32(w, H);
  const rstds = memory.loadF32(rstd, M);
  const dxs = new Float64Array(M * H);
  const dws = new Float64Array(H);
  for (let m = 0; m < M; m++) {
    const r = at(rstds, m);
    let dot = 0;
    for (let h = 0; h < H; h++) dot += at(dys, m * H + h) * at(ws, h) * at(xs, m * H + h) * r;
    for (let h = 0; h < H; h++) {
      const normalized = at(xs, m * H + h) * r;
      dxs[m * H + h] = r * (at(dys, m * H + h) * at(ws, h) - normalized * (dot / H));
      dws[h] = at(dws, h) + at(dys, m * H + h) * normalized;
    }
  }
  memory.storeOrAdd(dx, dxs, dtype, accumulate);
  if (dw !== 0) memory.storeOrAdd(dw, dws, dtypeCodes.f32, 1);
}

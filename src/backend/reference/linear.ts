/**
 * Linear layers, dense and grouped by expert: the plain twin of native/linear.c.
 *
 * Legend: M rows, K input features, N output features, E experts; x[M,K], w[N,K], y[M,N].
 * Sums are f64 and rounded once, where the fast kernels chain f32 fused multiply-adds in the same order.
 */
import type { DTypeCode, Ptr } from "../kernels.ts";
import { dtypeCodes } from "../kernels.ts";
import { MoeError } from "../../util/errors.ts";
import { elementBytes } from "./convert.ts";
import type { ReferenceMemory } from "./memory.ts";
import { at } from "./memory.ts";

export function linearForward(
  memory: ReferenceMemory,
  out: Ptr,
  x: Ptr,
  w: Ptr,
  bias: Ptr,
  M: number,
  N: number,
  K: number,
  xDtype: DTypeCode,
  wDtype: DTypeCode,
  outDtype: DTypeCode,
): void {
  const xs = memory.load(x, M * K, xDtype);
  const ws = memory.load(w, N * K, wDtype);
  const biases = bias === 0 ? new Float64Array(N) : memory.loadF32(bias, N);
  const ys = new Float64Array(M * N);
  for (let m = 0; m < M; m++) {
    for (let n = 0; n < N; n++) {
      let sum = 0;
      for (let k = 0; k < K; k++) sum += at(xs, m * K + k) * at(ws, n * K + k);
      ys[m * N + n] = sum + at(biases, n);
    }
  }
  memory.store(out, ys, outDtype);
}

export function linearForwardMany(
  memory: ReferenceMemory,
  out0: Ptr,
  out1: Ptr,
  out2: Ptr,
  x: Ptr,
  w0: Ptr,
  w1: Ptr,
  w2: Ptr,
  bias0: Ptr,
  bias1: Ptr,
  bias2: Ptr,
  M: number,
  N0: number,
  N1: number,
  N2: number,
  K: number,
  xDtype: DTypeCode,
  wDtype: DTypeCode,
  outDtype: DTypeCode,
): void {
  if (N0 > 0) linearForward(memory, out0, x, w0, bias0, M, N0, K, xDtype, wDtype, outDtype);
  if (N1 > 0) linearForward(memory, out1, x, w1, bias1, M, N1, K, xDtype, wDtype, outDtype);
  if (N2 > 0) linearForward(memory, out2, x, w2, bias2, M, N2, K, xDtype, wDtype, outDtype);
}

export function linearBackwardInput(
  memory: ReferenceMemory,
  dx: Ptr,
  dy: Ptr,
  w: Ptr,
  M: number,
  N: number,
  K: number,
  dyDtype: DTypeCode,
  wDtype: DTypeCode,
  dxDtype: DTypeCode,
  accumulate: number,
): void {
  const dys = memory.load(dy, M * N, dyDtype);
  const ws = memory.load(w, N * K, wDtype);
  const dxs = new Float64Array(M * K);
  for (let m = 0; m < M; m++) {
    for (let k = 0; k < K; k++) {
      let sum = 0;
      for (let n = 0; n < N; n++) sum += at(dys, m * N + n) * at(ws, n * K + k);
      dxs[m * K + k] = sum;
    }
  }
  memory.storeOrAdd(dx, dxs, dxDtype, accumulate);
}

export function linearBackwardWeight(
  memory: ReferenceMemory,
  dw: Ptr,
  dy: Ptr,
  x: Ptr,
  M: number,
  N: number,
  K: number,
  dyDtype: DTypeCode,
  xDtype: DTypeCode,
  accumulate: number,
): void {
  const dys = memory.load(dy, M * N, dyDtype);
  const xs = memory.load(x, M * K, xDtype);
  const dws = new Float64Array(N * K);
  for (let n = 0; n < N; n++) {
    for (let k = 0; k < K; k++) {
      let sum = 0;
      for (let m = 0; m < M; m++) sum += at(dys, m * N + n) * at(xs, m * K + k);
      dws[n * K + k] = sum;
    }
  }
  memory.storeOrAdd(dw, dws, dtypeCodes.f32, accumulate);
}

export function linearBackwardBias(
  memory: ReferenceMemory,
  db: Ptr,
  dy: Ptr,
  M: number,
  N: number,
  dyDtype: DTypeCode,
  accumulate: number,
): void {
  const dys = memory.load(dy, M * N, dyDtype);
  const dbs = new Float64Array(N);
  for (let n = 0; n < N; n++) {
    let sum = 0;
    for (let m = 0; m < M; m++) sum += at(dys, m * N + n);
    dbs[n] = sum;
  }
  memory.storeOrAdd(db, dbs, dtypeCodes.f32, accumulate);
}

/** First row and number of rows of each expert. Throws `internal` where offsets descend or do not start at 0. */
export function groups(memory: ReferenceMemory, offsets: Ptr, E: number): { first: number; rows: number }[] {
  const bounds = memory.loadI32(offsets, E + 1);
  return Array.from({ length: E }, (_, e) => {
    const first = at(bounds, e);
    const rows = at(bounds, e + 1) - first;
    if (rows < 0 || (e === 0 && first !== 0)) {
      throw new MoeError("internal", `reference grouped linear: expected offsets that ascend from 0, got [${bounds.join(", ")}]`);
    }
    return { first, rows };
  });
}

export function groupedLinearForward(
  memory: ReferenceMemory,
  out: Ptr,
  x: Ptr,
  w: Ptr,
  offsets: Ptr,
  E: number,
  N: number,
  K: number,
  xDtype: DTypeCode,
  wDtype: DTypeCode,
  outDtype: DTypeCode,
): void {
  for (const [e, { first, rows }] of groups(memory, offsets, E).entries()) {
    const outRows = out + first * N * elementBytes(outDtype);
    const xRows = x + first * K * elementBytes(xDtype);
    linearForward(memory, outRows, xRows, w + e * N * K * elementBytes(wDtype), 0, rows, N, K, xDtype, wDtype, outDtype);
  }
}

export function groupedLinearBackwardInput(
  memory: ReferenceMemory,
  dx: Ptr,
  dy: Ptr,
  w: Ptr,
  offsets: Ptr,
  E: number,
  N: number,
  K: number,
  dyDtype: DTypeCode,
  wDtype: DTypeCode,
  dxDtype: DTypeCode,
  accumulate: number,
): void {
  for (const [e, { first, rows }] of groups(memory, offsets, E).entries()) {
    const dxRows = dx + first * K * elementBytes(dxDtype);
    const dyRows = dy + first * N * elementBytes(dyDtype);
    linearBackwardInput(memory, dxRows, dyRows, w + e * N * K * elementBytes(wDtype), rows, N, K, dyDtype, wDtype, dxDtype, accumulate);
  }
}

export function groupedLinearBackwardWeight(
  memory: ReferenceMemory,
  dw: Ptr,
  dy: Ptr,
  x: Ptr,
  offsets: Ptr,
  E: number,
  N: number,
  K: number,
  dyDtype: DTypeCode,
  xDtype: DTypeCode,
  accumulate: number,
): void {
  for (const [e, { first, rows }] of groups(memory, offsets, E).entries()) {
    const dyRows = dy + first * N * elementBytes(dyDtype);
    const xRows = x + first * K * elementBytes(xDtype);
    linearBackwardWeight(memory, dw + e * N * K * 4, dyRows, xRows, rows, N, K, dyDtype, xDtype, accumulate);
  }
}

/**
 * Elementwise arithmetic, conversions, copies and reductions: the plain twin of native/elementwise.c.
 * `cast`, `copyRows`, `gatherRows`, `fillF32` and `allFinite` are exact; the rest is f64 rounded once.
 */
import type { DTypeCode, Ptr } from "../kernels.ts";
import { dtypeCodes } from "../kernels.ts";
import { elementBytes } from "./convert.ts";
import type { ReferenceMemory } from "./memory.ts";
import { at } from "./memory.ts";

export function add(memory: ReferenceMemory, out: Ptr, a: Ptr, b: Ptr, n: number, dtype: DTypeCode): void {
  const bs = memory.load(b, n, dtype);
  const sums = memory.load(a, n, dtype).map((value, i) => value + at(bs, i));
  memory.store(out, sums, dtype);
}

export function scale(memory: ReferenceMemory, out: Ptr, x: Ptr, n: number, s: number, dtype: DTypeCode): void {
  const scaled = memory.load(x, n, dtype).map((value) => value * s);
  memory.store(out, scaled, dtype);
}

export function accumulate(memory: ReferenceMemory, out: Ptr, x: Ptr, n: number, s: number, dtype: DTypeCode): void {
  const scaled = memory.load(x, n, dtype).map((value) => value * s);
  memory.storeOrAdd(out, scaled, dtypeCodes.f32, 1);
}

export function addBias(memory: ReferenceMemory, x: Ptr, bias: Ptr, M: number, N: number, dtype: DTypeCode): void {
  const biases = memory.loadF32(bias, N);
  const sums = memory.load(x, M * N, dtype).map((value, i) => value + at(biases, i % N));
  memory.store(x, sums, dtype);
}

export function cast(memory: ReferenceMemory, out: Ptr, x: Ptr, n: number, outDtype: DTypeCode, xDtype: DTypeCode): void {
  if (outDtype !== xDtype) return memory.store(out, memory.load(x, n, xDtype), outDtype);
  if (n === 0) return;
  const width = elementBytes(xDtype);
  memory.bytes(out, n * width, width).set(memory.bytes(x, n * width, width));
}

export function fillF32(memory: ReferenceMemory, out: Ptr, n: number, value: number): void {
  memory.storeF32(out, new Float64Array(n).fill(value));
}

export function copyRows(memory: ReferenceMemory, out: Ptr, x: Ptr, M: number, rowBytes: number, outStride: number, xStride: number): void {
  if (rowBytes === 0) return;
  for (let m = 0; m < M; m++) memory.bytes(out + m * outStride, rowBytes).set(memory.bytes(x + m * xStride, rowBytes));
}

export function gatherRows(memory: ReferenceMemory, out: Ptr, x: Ptr, index: Ptr, R: number, rowBytes: number): void {
  const sources = memory.loadI32(index, R);
  if (rowBytes === 0) return;
  for (let r = 0; r < R; r++) {
    const source = at(sources, r);
    const target = memory.bytes(out + r * rowBytes, rowBytes);
    if (source < 0) target.fill(0);
    else target.set(memory.bytes(x + source * rowBytes, rowBytes));
  }
}

export function sumSquares(memory: ReferenceMemory, out: Ptr, x: Ptr, n: number): void {
  const xs = memory.loadF32(x, n);
  let total = 0;
  for (let start = 0; start < n; start += 4096) total += xs.subarray(start, start + 4096).reduce((sum, value) => sum + value * value, 0);
  memory.storeF64(out, total);
}

export function allFinite(memory: ReferenceMemory, out: Ptr, x: Ptr, n: number): void {
  memory.storeI32(out, Int32Array.of(memory.loadF32(x, n).every(Number.isFinite) ? 1 : 0));
}

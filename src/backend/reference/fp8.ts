/**
 * FP8 (src/util/fp8.ts): conversions, and linear layers whose weights are E4M3 codes with scales, naively. Sums in f64, rounded once.
 *
 * A scale of a tensor or of an output multiplies the finished sum. One of a block of 128 x 128 multiplies each weight as it is read, and
 * that product is an f32, because the fast kernels' is.
 */
import { decodeFp8, encodeFp8, type Fp8Format } from "../../util/fp8.ts";
import type { DTypeCode, Fp8FormatCode, Fp8ScalingCode, Ptr } from "../kernels.ts";
import { fp8Block, fp8Scalings } from "../kernels.ts";
import { elementBytes } from "./convert.ts";
import { groups } from "./linear.ts";
import type { ReferenceMemory } from "./memory.ts";
import { at } from "./memory.ts";

function formatOf(code: Fp8FormatCode): Fp8Format {
  return code === 0 ? "e4m3" : "e5m2";
}

export function castToFp8(
  memory: ReferenceMemory,
  out: Ptr,
  x: Ptr,
  n: number,
  divisor: number,
  xDtype: DTypeCode,
  format: Fp8FormatCode,
): void {
  const values = memory.load(x, n, xDtype);
  const codes = Uint8Array.from(values, (value) => encodeFp8(formatOf(format), Math.fround(value / divisor)));
  if (n > 0) memory.bytes(out, n).set(codes);
}

export function castFromFp8(
  memory: ReferenceMemory,
  out: Ptr,
  x: Ptr,
  n: number,
  factor: number,
  outDtype: DTypeCode,
  format: Fp8FormatCode,
): void {
  if (n === 0) return;
  const values = Float64Array.from(memory.bytes(x, n), (code) => Math.fround(decodeFp8(formatOf(format), code) * factor));
  memory.store(out, values, outDtype);
}

export function roundRowsToFp8(memory: ReferenceMemory, out: Ptr, x: Ptr, M: number, K: number, group: number, xDtype: DTypeCode): void {
  const values = memory.load(x, M * K, xDtype);
  for (let row = 0; row < M; row++) {
    for (let k = 0; k < K; k += group) {
      const run = values.subarray(row * K + k, row * K + Math.min(K, k + group));
      const most = run.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
      const scale = most === 0 ? 1 : Math.max(Math.fround(most / 448), 2 ** -126);
      for (const [i, value] of run.entries())
        // Plus 0: zeros keep no sign.
        run[i] = Number.isFinite(most)
          ? Math.fround(decodeFp8("e4m3", encodeFp8("e4m3", Math.fround(value / scale))) * scale) + 0
          : Number.NaN;
    }
  }
  if (M * K > 0) memory.storeF32(out, values);
}

/** Number of scales of a matrix [N, K]. */
function numScales(N: number, K: number, scaling: Fp8ScalingCode): number {
  if (scaling === fp8Scalings.tensor) return 1;
  return scaling === fp8Scalings.channel ? N : Math.ceil(N / fp8Block) * Math.ceil(K / fp8Block);
}

export function linearFp8Forward(
  memory: ReferenceMemory,
  out: Ptr,
  x: Ptr,
  w: Ptr,
  scales: Ptr,
  bias: Ptr,
  M: number,
  N: number,
  K: number,
  xDtype: DTypeCode,
  scaling: Fp8ScalingCode,
  outDtype: DTypeCode,
): void {
  const xs = memory.load(x, M * K, xDtype);
  const codes = N * K === 0 ? new Uint8Array(0) : memory.bytes(w, N * K);
  const values = Float64Array.from(codes, (code) => decodeFp8("e4m3", code));
  const factors = memory.loadF32(scales, numScales(N, K, scaling));
  const biases = bias === 0 ? new Float64Array(N) : memory.loadF32(bias, N);
  const blocks = Math.ceil(K / fp8Block);
  if (scaling === fp8Scalings.block128) {
    for (let n = 0; n < N; n++) {
      for (let k = 0; k < K; k++) {
        const factor = at(factors, Math.floor(n / fp8Block) * blocks + Math.floor(k / fp8Block));
        values[n * K + k] = Math.fround(at(values, n * K + k) * factor);
      }
    }
  }
  const ys = new Float64Array(M * N);
  for (let m = 0; m < M; m++) {
    for (let n = 0; n < N; n++) {
      let sum = 0;
      for (let k = 0; k < K; k++) sum += at(xs, m * K + k) * at(values, n * K + k);
      const factor = scaling === fp8Scalings.block128 ? 1 : at(factors, scaling === fp8Scalings.channel ? n : 0);
      ys[m * N + n] = sum * factor + at(biases, n);
    }
  }
  memory.store(out, ys, outDtype);
}

export function linearFp8ForwardMany(
  memory: ReferenceMemory,
  out0: Ptr,
  out1: Ptr,
  out2: Ptr,
  x: Ptr,
  w0: Ptr,
  w1: Ptr,
  w2: Ptr,
  scales0: Ptr,
  scales1: Ptr,
  scales2: Ptr,
  bias0: Ptr,
  bias1: Ptr,
  bias2: Ptr,
  M: number,
  N0: number,
  N1: number,
  N2: number,
  K: number,
  xDtype: DTypeCode,
  scaling: Fp8ScalingCode,
  outDtype: DTypeCode,
): void {
  if (N0 > 0) linearFp8Forward(memory, out0, x, w0, scales0, bias0, M, N0, K, xDtype, scaling, outDtype);
  if (N1 > 0) linearFp8Forward(memory, out1, x, w1, scales1, bias1, M, N1, K, xDtype, scaling, outDtype);
  if (N2 > 0) linearFp8Forward(memory, out2, x, w2, scales2, bias2, M, N2, K, xDtype, scaling, outDtype);
}

export function groupedLinearFp8Forward(
  memory: ReferenceMemory,
  out: Ptr,
  x: Ptr,
  w: Ptr,
  scales: Ptr,
  offsets: Ptr,
  E: number,
  N: number,
  K: number,
  xDtype: DTypeCode,
  scaling: Fp8ScalingCode,
  outDtype: DTypeCode,
): void {
  for (const [e, { first, rows }] of groups(memory, offsets, E).entries()) {
    const outRows = out + first * N * elementBytes(outDtype);
    const xRows = x + first * K * elementBytes(xDtype);
    const scale = scales + e * numScales(N, K, scaling) * 4;
    linearFp8Forward(memory, outRows, xRows, w + e * N * K, scale, 0, rows, N, K, xDtype, scaling, outDtype);
  }
}

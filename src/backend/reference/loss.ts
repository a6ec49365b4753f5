/**
 * Cross-entropy from logits, and softmax and argmax of rows: the plain twin of native/loss.c. f32 operands, f64 sums; argmax is exact.
 */
import type { Ptr } from "../kernels.ts";
import { MoeError } from "../../util/errors.ts";
import type { ReferenceMemory } from "./memory.ts";
import { at } from "./memory.ts";

/** softmax of values, and the log of the sum of their exponentials. */
export function softmax(values: Float64Array): { probs: Float64Array; logSumExp: number } {
  const max = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const exponentials = values.map((value) => Math.exp(value - max));
  const sum = exponentials.reduce((a, b) => a + b, 0);
  return { probs: exponentials.map((e) => e / sum), logSumExp: max + Math.log(sum) };
}

export function crossEntropy(
  memory: ReferenceMemory,
  loss: Ptr,
  dLogits: Ptr,
  logits: Ptr,
  targets: Ptr,
  M: number,
  V: number,
  gradScale: number,
): void {
  const targetOf = memory.loadI32(targets, M);
  const losses = new Float64Array(M);
  for (let m = 0; m < M; m++) {
    const row = memory.loadF32(logits + m * V * 4, V);
    const target = at(targetOf, m);
    if (target >= V) throw new MoeError("internal", `reference crossEntropy: expected a target below ${V}, got ${target} in row ${m}`);
    const gradient = new Float64Array(V);
    if (target >= 0) {
      const { probs, logSumExp } = softmax(row);
      losses[m] = logSumExp - at(row, target);
      for (let v = 0; v < V; v++) gradient[v] = (at(probs, v) - (v === target ? 1 : 0)) * gradScale;
    }
    if (dLogits !== 0) memory.storeF32(dLogits + m * V * 4, gradient);
  }
  memory.storeF32(loss, losses);
}

export function softmaxRows(memory: ReferenceMemory, out: Ptr, x: Ptr, M: number, N: number): void {
  for (let m = 0; m < M; m++) memory.storeF32(out + m * N * 4, softmax(memory.loadF32(x + m * N * 4, N)).probs);
}

export function argmaxRows(memory: ReferenceMemory, out: Ptr, x: Ptr, M: number, N: number): void {
  const best = new Int32Array(M);
  for (let m = 0; m < M; m++) {
    const row = memory.loadF32(x + m * N * 4, N);
    for (let n = 1; n < N; n++) {
      if (at(row, n) > at(row, at(best, m))) best[m] = n;
    }
  }
  memory.storeI32(out, best);
}

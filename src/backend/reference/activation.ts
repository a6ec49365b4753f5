/**
 * SwiGLU (Shazeer, arXiv 2002.05202): the plain twin of native/activation.c. silu(z) = z sigmoid(z).
 */
import type { DTypeCode, Ptr } from "../kernels.ts";
import type { ReferenceMemory } from "./memory.ts";
import { at } from "./memory.ts";

function sigmoid(z: number): number {
  return 1 / (1 + Math.exp(-z));
}

export function swigluForward(memory: ReferenceMemory, out: Ptr, gate: Ptr, up: Ptr, n: number, dtype: DTypeCode): void {
  const gates = memory.load(gate, n, dtype);
  const ups = memory.load(up, n, dtype);
  memory.store(
    out,
    gates.map((g, i) => g * sigmoid(g) * at(ups, i)),
    dtype,
  );
}

/** dUp = dOut silu(gate); dGate = dOut up silu'(gate), where silu'(z) = s (1 + z (1 - s)) with s = sigmoid(z). */
export function swigluBackward(
  memory: ReferenceMemory,
  dGate: Ptr,
  dUp: Ptr,
  dOut: Ptr,
  gate: Ptr,
  up: Ptr,
  n: number,
  dtype: DTypeCode,
  accumulate: number,
): void {
  const dOuts = memory.load(dOut, n, dtype);
  const gates = memory.load(gate, n, dtype);
  const ups = memory.load(up, n, dtype);
  const dGates = new Float64Array(n);
  const dUps = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    const g = at(gates, i);
    const s = sigmoid(g);
    dGates[i] = at(dOuts, i) * at(ups, i) * s * (1 + g * (1 - s));
    dUps[i] = at(dOuts, i) * g * s;
  }
  memory.storeOrAdd(dGate, dGates, dtype, accumulate);
  memory.storeOrAdd(dUp, dUps, dtype, accumulate);
}

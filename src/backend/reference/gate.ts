/**
 * tanh, the sigmoid gate of a shared expert, and a router's noise: the plain twin of native/gate.c. The noise is exact: integers
 * and single f32 operations.
 */
import type { DTypeCode, Ptr } from "../kernels.ts";
import { elementBytes } from "./convert.ts";
import type { ReferenceMemory } from "./memory.ts";
import { at } from "./memory.ts";

function sigmoid(z: number): number {
  return 1 / (1 + Math.exp(-z));
}

export function tanhForward(memory: ReferenceMemory, out: Ptr, x: Ptr, n: number): void {
  memory.storeF32(out, memory.loadF32(x, n).map(Math.tanh));
}

export function tanhBackward(memory: ReferenceMemory, dx: Ptr, dOut: Ptr, out: Ptr, n: number): void {
  const outs = memory.loadF32(out, n);
  memory.storeF32(
    dx,
    memory.loadF32(dOut, n).map((d, i) => d * (1 - at(outs, i) ** 2)),
  );
}

export function sigmoidGateForward(
  memory: ReferenceMemory,
  out: Ptr,
  x: Ptr,
  gate: Ptr,
  T: number,
  H: number,
  scale: number,
  dtype: DTypeCode,
): void {
  const gates = memory.loadF32(gate, T);
  memory.store(
    out,
    memory.load(x, T * H, dtype).map((value, i) => scale * sigmoid(at(gates, Math.floor(i / H))) * value),
    dtype,
  );
}

export function sigmoidGateBackward(
  memory: ReferenceMemory,
  dx: Ptr,
  dGate: Ptr,
  dOut: Ptr,
  x: Ptr,
  gate: Ptr,
  T: number,
  H: number,
  scale: number,
  dtype: DTypeCode,
): void {
  const gates = memory.loadF32(gate, T);
  const dGates = new Float64Array(T);
  for (let t = 0; t < T; t++) {
    const offset = t * H * elementBytes(dtype);
    const d = memory.load(dOut + offset, H, dtype);
    const xs = memory.load(x + offset, H, dtype);
    const s = sigmoid(at(gates, t));
    const dot = d.reduce((sum, value, h) => sum + value * at(xs, h), 0);
    dGates[t] = scale * s * (1 - s) * dot;
    memory.store(
      dx + offset,
      d.map((value) => scale * s * value),
      dtype,
    );
  }
  memory.storeF32(dGate, dGates);
}

/** The finalizer of MurmurHash3. */
function mix(word: number): number {
  let h = Math.imul(word ^ (word >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return h ^ (h >>> 16);
}

export function jitter(
  memory: ReferenceMemory,
  out: Ptr,
  x: Ptr,
  T: number,
  H: number,
  firstRow: number,
  keyHigh: number,
  keyLow: number,
  epsilon: number,
): void {
  const xs = memory.loadF32(x, T * H);
  const noisy = xs.map((value, i) => {
    const row = mix(mix(mix(keyHigh) ^ keyLow) ^ (firstRow + Math.floor(i / H)));
    const word = mix((row + Math.imul(i % H, 0x9e3779b9)) | 0) >>> 8;
    return value * Math.fround(1 + Math.fround(epsilon * (word * 2 ** -23 - 1)));
  });
  memory.storeF32(out, noisy);
}

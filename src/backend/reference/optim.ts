/**
 * AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101): the plain twin of native/optim.c.
 * f64 within a step; the moments and the master weight are rounded once each, when stored.
 */
import type { DTypeCode, Ptr } from "../kernels.ts";
import type { ReferenceMemory } from "./memory.ts";
import { at } from "./memory.ts";

export function adamwStep(
  memory: ReferenceMemory,
  weight: Ptr,
  master: Ptr,
  m: Ptr,
  v: Ptr,
  grad: Ptr,
  n: number,
  learningRate: number,
  beta1: number,
  beta2: number,
  eps: number,
  weightDecay: number,
  biasCorrection1: number,
  biasCorrection2: number,
  gradScale: number,
  weightDtype: DTypeCode,
): void {
  const gradients = memory.loadF32(grad, n);
  const masters = memory.loadF32(master, n);
  const ms = memory.loadF32(m, n);
  const vs = memory.loadF32(v, n);
  for (let i = 0; i < n; i++) {
    const g = at(gradients, i) * gradScale;
    const mean = beta1 * at(ms, i) + (1 - beta1) * g;
    const square = beta2 * at(vs, i) + (1 - beta2) * g * g;
    const step = mean / biasCorrection1 / (Math.sqrt(square / biasCorrection2) + eps);
    ms[i] = mean;
    vs[i] = square;
    // Rounded here because the weight is a copy of the master as stored.
    masters[i] = Math.fround(at(masters, i) - learningRate * (weightDecay * at(masters, i) + step));
  }
  memory.storeF32(m, ms);
  memory.storeF32(v, vs);
  memory.storeF32(master, masters);
  if (weight !== 0) memory.store(weight, masters, weightDtype);
}

/**
 * The denominator of MFU on this machine: the fastest of a few matrix products of the engine itself, in the precision of the
 * run. It is what the hardware gave a moment ago through these kernels, not a number from a data sheet.
 */
import { dtypeCodes } from "../backend/kernels.ts";
import type { Engine } from "../tensor/index.ts";

/** Products from small to large; a slow engine stops at the first that takes long enough to be timed. */
const shapes = [
  [64, 128, 128],
  [256, 512, 512],
  [512, 1024, 1024],
] as const;
const longEnoughMs = 10;

/** FLOP/s of the best of five products (about 30 ms on one fast core). */
export function measurePeakFlops(engine: Engine, dtype: "f32" | "bf16" = "f32"): number {
  let best = 0;
  for (const [M, N, K] of shapes) {
    const { flops, ms } = engine.scope(() => bestProduct(engine, dtype, M, N, K));
    best = Math.max(best, flops);
    if (ms >= longEnoughMs) break;
  }
  return best;
}

function bestProduct(engine: Engine, dtype: "f32" | "bf16", M: number, N: number, K: number): { flops: number; ms: number } {
  const x = engine.zeros([M, K], dtype);
  const w = engine.zeros([N, K], dtype);
  const out = engine.empty([M, N], dtype);
  const code = dtypeCodes[dtype];
  let ms = Infinity;
  for (let i = 0; i < 5; i++) {
    const started = performance.now();
    engine.backend.kernels.linearForward(out.ptr, x.ptr, w.ptr, 0, M, N, K, code, code, code);
    ms = Math.min(ms, performance.now() - started);
  }
  return { flops: (2 * M * N * K) / (ms / 1000), ms };
}

/** What MFU means here, in a sentence. */
export function describeMfu(peakFlops: number): string {
  return (
    "MFU: model FLOPs a second (three times the forward pass's matrix products and causal attention, recomputation not counted) " +
    `over ${(peakFlops / 1e9).toFixed(0)} GFLOP/s, the best matrix product of this engine measured just now`
  );
}

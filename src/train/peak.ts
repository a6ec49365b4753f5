/**
 * The denominator of MFU on this machine: the fastest of a few matrix products of the engine itself, f32, 512 x 1024 x 1024.
 * It is what the hardware gave a moment ago through these kernels, not a number from a data sheet.
 */
import type { Engine } from "../tensor/index.ts";

/** FLOP/s of the best of five products (about 30 ms on one fast core). */
export function measurePeakFlops(engine: Engine): number {
  const [M, N, K] = [512, 1024, 1024];
  return engine.scope(() => {
    const x = engine.zeros([M, K], "f32");
    const w = engine.zeros([N, K], "f32");
    const out = engine.empty([M, N], "f32");
    let best = 0;
    for (let i = 0; i < 5; i++) {
      const started = performance.now();
      engine.backend.kernels.linearForward(out.ptr, x.ptr, w.ptr, 0, M, N, K, 0, 0, 0);
      best = Math.max(best, (2 * M * N * K) / ((performance.now() - started) / 1000));
    }
    return best;
  });
}

/**
 * Root mean square layer normalization (arXiv 1910.07467): y = x / sqrt(mean(x^2) + eps) * w. No mean is subtracted, no bias.
 */
import type { Tensor } from "../tensor.ts";
import { computeCode, expectTensor, shapeError } from "./check.ts";

/**
 * Normalizes groups of H = w.size consecutive elements of x and multiplies them by w[H] (f32). With x [T, H] that is the
 * usual norm; with x [T, heads * headDim] and w[headDim] it is the per-head norm of queries and keys. Shape and dtype of x.
 * Throws `shape`.
 */
export function rmsNorm(x: Tensor, w: Tensor, eps: number): Tensor {
  expectTensor("rmsNorm", "w", w, [null], ["f32"]);
  const H = w.size;
  if ((x.shape.at(-1) ?? 0) % H !== 0 || H === 0) throw shapeError("rmsNorm", "x", `[.., a multiple of ${H}] for w [${H}]`, x);
  const { engine } = x;
  const { kernels } = engine.backend;
  const code = computeCode("rmsNorm", "x", x);
  const M = x.size / H;
  const out = engine.empty(x.shape, x.dtype);
  const tape = x.requiresGrad || w.requiresGrad ? engine.tape : null;
  const rstd = tape === null ? null : engine.empty([M], "f32");
  kernels.rmsNormForward(out.ptr, rstd?.ptr ?? 0, x.ptr, w.ptr, M, H, eps, code);
  if (rstd === null) return out;
  tape?.record([x, w], out, [x, w, rstd], (dOut, [savedX, savedW, savedRstd]) => {
    const backward = (dx: number, dw: number, accumulate: 0 | 1): void => {
      kernels.rmsNormBackward(dx, dw, dOut.ptr, savedX.ptr, savedW.ptr, savedRstd.ptr, M, H, code, accumulate);
    };
    // One kernel writes both gradients. It needs somewhere to write dx even where nobody wants it.
    const withInput = (dw: number): void => {
      if (x.requiresGrad) {
        tape.writeGrad(x, { dtype: x.dtype }, (dx, accumulate) => {
          backward(dx, dw, accumulate);
        });
      } else backward(engine.empty(x.shape, x.dtype).ptr, dw, 0);
    };
    if (!w.requiresGrad) withInput(0);
    else {
      tape.writeGrad(w, { dtype: "f32", addOnly: true }, (dw) => {
        withInput(dw);
      });
    }
  });
  return out;
}

/**
 * Matrix products with a weight: `linear`, and `groupedLinear` over the experts of a MoE layer, where every run of rows has
 * its own matrix. Weights are [out features, in features], as in checkpoints: f32, bf16, or (no gradient then) fp8 with scales.
 *
 * Legend: M rows, K input features, N output features, E experts, R rows of all experts.
 */
import { dtypeCodes, type DType } from "../../backend/kernels.ts";
import type { Tensor } from "../tensor.ts";
import { computeCode, computeDtypes, expectTensor, shapeError, weightDtypes } from "./check.ts";
import { groupedLinearFp8, linearFp8, linearManyFp8 } from "./linear-fp8.ts";

/**
 * [M.., N] = x[M.., K] . w[N, K]^T + bias[N] (f32). Any number of leading dimensions. The output has x's dtype unless
 * `outDtype` says otherwise (router logits in f32). Throws `shape`.
 */
export function linear(x: Tensor, w: Tensor, bias: Tensor | null = null, { outDtype = x.dtype }: { outDtype?: DType } = {}): Tensor {
  expectTensor("linear", "w", w, [null, null], weightDtypes);
  const N = w.dim(0);
  const K = w.dim(1);
  if (x.shape.at(-1) !== K) throw shapeError("linear", "x", `[.., ${K}] for w [${N}, ${K}]`, x);
  if (bias !== null) expectTensor("linear", "bias", bias, [N], ["f32"]);
  if (w.dtype === "fp8") return linearFp8(x, w, bias, outDtype);
  const { engine } = x;
  const { kernels } = engine.backend;
  const outShape = [...x.shape.slice(0, -1), N];
  const M = outShape.slice(0, -1).reduce((n, size) => n * size, 1);
  const xCode = computeCode("linear", "x", x);
  const wCode = dtypeCodes[w.dtype];
  const out = engine.empty(outShape, outDtype);
  kernels.linearForward(out.ptr, x.ptr, w.ptr, bias?.ptr ?? 0, M, N, K, xCode, wCode, computeCode("linear", "outDtype", out));
  const { tape } = engine;
  const inputs = bias === null ? [x, w] : [x, w, bias];
  tape?.record(inputs, out, [w.requiresGrad ? x : null, x.requiresGrad ? w : null], (dOut, [savedX, savedW]) => {
    const dCode = dtypeCodes[dOut.dtype];
    if (savedW !== null) {
      tape.writeGrad(x, {}, (ptr, accumulate, dtype) => {
        kernels.linearBackwardInput(ptr, dOut.ptr, savedW.ptr, M, N, K, dCode, wCode, dtypeCodes[dtype], accumulate);
      });
    }
    if (savedX !== null) {
      tape.writeGrad(w, { dtype: "f32" }, (ptr, accumulate) => {
        kernels.linearBackwardWeight(ptr, dOut.ptr, savedX.ptr, M, N, K, dCode, xCode, accumulate);
      });
    }
    if (bias !== null) {
      tape.writeGrad(bias, { dtype: "f32" }, (ptr, accumulate) => {
        kernels.linearBackwardBias(ptr, dOut.ptr, M, N, dCode, accumulate);
      });
    }
  });
  return out;
}

/** A weight [N, K] and its bias (f32 [N]), or null. */
export interface LinearOperand {
  readonly weight_NK: Tensor;
  readonly bias_N: Tensor | null;
}

/**
 * Up to three `linear`s of one x [.., K], in x's dtype: the same values, in one kernel call where no tape records and the weights have one dtype
 * (which is what decoding a token at a time is made of). Throws `shape`.
 */
export function linearMany(x: Tensor, layers: readonly LinearOperand[]): Tensor[] {
  const { engine } = x;
  const [a, b, c] = layers;
  if (a === undefined || layers.length > 3) throw shapeError("linearMany", "layers", "1 to 3", String(layers.length));
  const K = a.weight_NK.dim(-1);
  if (x.shape.at(-1) !== K) throw shapeError("linearMany", "x", `[.., ${K}] for w [${a.weight_NK.dim(0)}, ${K}]`, x);
  const { dtype, scales } = a.weight_NK;
  // Some of them kept out of quantization, say: one by one then.
  const alike = layers.every(
    ({ weight_NK: w }) => w.dtype === dtype && w.scales?.scaling === scales?.scaling && w.scales?.activations === scales?.activations,
  );
  if (engine.tape !== null || !alike) return layers.map(({ weight_NK, bias_N }) => linear(x, weight_NK, bias_N));
  const xCode = computeCode("linearMany", "x", x);
  for (const { weight_NK, bias_N } of layers) {
    expectTensor("linearMany", "w", weight_NK, [null, K], [dtype]);
    if (bias_N !== null) expectTensor("linearMany", "bias", bias_N, [weight_NK.dim(0)], ["f32"]);
  }
  if (dtype === "fp8") return linearManyFp8(x, layers);
  const M = x.shape.slice(0, -1).reduce((n, size) => n * size, 1);
  const out = layers.map(({ weight_NK }) => engine.empty([...x.shape.slice(0, -1), weight_NK.dim(0)], x.dtype));
  engine.backend.kernels.linearForwardMany(
    out[0]?.ptr ?? 0,
    out[1]?.ptr ?? 0,
    out[2]?.ptr ?? 0,
    x.ptr,
    a.weight_NK.ptr,
    b?.weight_NK.ptr ?? 0,
    c?.weight_NK.ptr ?? 0,
    a.bias_N?.ptr ?? 0,
    b?.bias_N?.ptr ?? 0,
    c?.bias_N?.ptr ?? 0,
    M,
    a.weight_NK.dim(0),
    b?.weight_NK.dim(0) ?? 0,
    c?.weight_NK.dim(0) ?? 0,
    K,
    xCode,
    computeCode("linearMany", "w", a.weight_NK),
    xCode,
  );
  return out;
}

/**
 * [R, N]: rows offsets[e] to offsets[e+1]-1 of x[R, K] times w[e] of w[E, N, K]. offsets i32[E+1] ascends from 0 to R (as
 * `dispatch` makes it); experts may have no rows. Output in x's dtype. Throws `shape`.
 */
export function groupedLinear(x: Tensor, w: Tensor, offsets: Tensor): Tensor {
  expectTensor("groupedLinear", "w", w, [null, null, null], weightDtypes);
  const [E, N, K] = [w.dim(0), w.dim(1), w.dim(2)];
  expectTensor("groupedLinear", "x", x, [null, K], computeDtypes);
  expectTensor("groupedLinear", "offsets", offsets, [E + 1], ["i32"]);
  if (w.dtype === "fp8") return groupedLinearFp8(x, w, offsets);
  const { engine } = x;
  const { kernels } = engine.backend;
  const xCode = dtypeCodes[x.dtype];
  const wCode = dtypeCodes[w.dtype];
  const out = engine.empty([x.dim(0), N], x.dtype);
  kernels.groupedLinearForward(out.ptr, x.ptr, w.ptr, offsets.ptr, E, N, K, xCode, wCode, xCode);
  const { tape } = engine;
  tape?.record([x, w], out, [w.requiresGrad ? x : null, x.requiresGrad ? w : null, offsets], (dOut, [savedX, savedW, savedOffsets]) => {
    const dCode = dtypeCodes[dOut.dtype];
    if (savedW !== null) {
      tape.writeGrad(x, {}, (ptr, accumulate, dtype) => {
        kernels.groupedLinearBackwardInput(
          ptr,
          dOut.ptr,
          savedW.ptr,
          savedOffsets.ptr,
          E,
          N,
          K,
          dCode,
          wCode,
          dtypeCodes[dtype],
          accumulate,
        );
      });
    }
    if (savedX !== null) {
      tape.writeGrad(w, { dtype: "f32" }, (ptr, accumulate) => {
        kernels.groupedLinearBackwardWeight(ptr, dOut.ptr, savedX.ptr, savedOffsets.ptr, E, N, K, dCode, xCode, accumulate);
      });
    }
  });
  return out;
}

/**
 * The kernel contract: what every backend computes, in one table.
 *
 * Each kernel is one C function `moe_<snake_case_name>` compiled once per instruction set (native) and once for
 * WebAssembly, and one TypeScript function (reference backend, the oracle). All three take the same arguments in the
 * same order. This file is not an API for models: they use `src/tensor/ops`. The matrix products stand in `kernels-linear.ts`, what
 * mixtures of experts need in `kernels-moe.ts`, the numbers that operands are described by in `codes.ts`; the table here has them all.
 *
 * Conventions:
 * - A `Ptr` is a byte address in the backend's memory, as a plain number (user addresses are below 2^53). 0 is "absent".
 * - Matrices are row-major and dense. Sizes are element counts. Outputs come first, then inputs, then sizes, then flags.
 * - `DTypeCode` says how elements are stored; arithmetic and accumulation are always f32 (f64 where stated), results are
 *   rounded to nearest even.
 * - `accumulate` (0 or 1): overwrite the output, or add to what is there.
 * - Reduction order: every output of a forward kernel depends on its own row only. For all linear kernels an output is
 *   one chain of fused multiply-adds over the reduced index in ascending order, started at 0 (bias, then `accumulate`,
 *   are added afterwards), whatever M is, so GEMV, GEMM and grouped GEMM give the same bits.
 */
import type { DTypeCode, Fp8FormatCode, Ptr } from "./codes.ts";
import { linearSignatures, type LinearKernels } from "./kernels-linear.ts";
import { moeSignatures, type MoeKernels } from "./kernels-moe.ts";

export {
  activationScalings,
  dtypeBytes,
  dtypeCodes,
  fp8Block,
  fp8Formats,
  fp8Scalings,
  routerScorings,
  type ActivationScaling,
  type DType,
  type DTypeCode,
  type Fp8FormatCode,
  type Fp8Scaling,
  type Fp8ScalingCode,
  type Ptr,
} from "./codes.ts";

/**
 * Argument codes, one character an argument:
 * `p` pointer, `n` element count (C `ptrdiff_t`: 64-bit natively, 32-bit in WASM), `i` int32 flag or dtype code, `f` float32.
 */
export const kernelSignatures = {
  ...linearSignatures,
  // ---- norm, rope, activation, embedding
  rmsNormForward: "ppppnnfi",
  rmsNormBackward: "ppppppnnii",
  ropeTable: "ppnnf",
  ropeApply: "pppnnnnnii",
  swigluForward: "pppni",
  swigluBackward: "pppppnii",
  embeddingForward: "pppnnni",
  embeddingBackward: "pppnnni",
  // ---- attention
  attentionForward: "pppppppnnnnnnnnnfi",
  attentionPagedForward: "pppppppnnnnnnnnnnfi",
  attentionBackward: "pppppppppppnnnnnnnnnfii",
  // ---- loss
  crossEntropy: "ppppnnf",
  ...moeSignatures,
  // ---- elementwise, copies, reductions
  add: "pppni",
  scale: "ppnfi",
  accumulate: "ppnfi",
  addBias: "ppnni",
  cast: "ppnii",
  castToFp8: "ppnfii",
  castFromFp8: "ppnfii",
  roundRowsToFp8: "ppnnni",
  fillF32: "pnf",
  copyRows: "ppnnnn",
  gatherRows: "pppnn",
  sumSquares: "ppn",
  allFinite: "ppn",
  adamwStep: "pppppnffffffffi",
  argmaxRows: "ppnn",
  softmaxRows: "ppnn",
} as const satisfies Record<string, string>;

export type KernelName = keyof typeof kernelSignatures;

/** Kernels by name. Shapes are in square brackets; an element type in brackets means the code given by that argument. */
export interface Kernels extends LinearKernels, MoeKernels {
  /** out[M,H] = x * rstd * w; rstd[M] (f32, may be 0) = 1/sqrt(mean(x^2) + eps); w[H] f32. Also used per head for QK norm. (arXiv 1910.07467) */
  rmsNormForward(out: Ptr, rstd: Ptr, x: Ptr, w: Ptr, M: number, H: number, eps: number, dtype: DTypeCode): void;
  /** dx[M,H] (dtype) (+)= ..., dw[H] (f32) += ... (always accumulates; 0 for none). */
  rmsNormBackward(dx: Ptr, dw: Ptr, dy: Ptr, x: Ptr, w: Ptr, rstd: Ptr, M: number, H: number, dtype: DTypeCode, accumulate: number): void;
  /** table[P,half,2] (f32: cos, sin of position * invFreq) * attentionScale; invFreq[half] f32. Angle = float32(p) * invFreq in f32. */
  ropeTable(table: Ptr, invFreq: Ptr, P: number, half: number, attentionScale: number): void;
  /**
   * x (dtype, rows `rowStride` elements apart, in place) rotated: for each of M rows and `heads` heads of `headDim`, the pair
   * (j, j + half) for j < half by table[positions[row]] ("neox" pairing). positions i32[M]. inverse: 1 rotates back (the backward).
   */
  ropeApply(
    x: Ptr,
    table: Ptr,
    positions: Ptr,
    M: number,
    heads: number,
    headDim: number,
    rowStride: number,
    half: number,
    inverse: number,
    dtype: DTypeCode,
  ): void;
  /** out[n] = silu(gate) * up. */
  swigluForward(out: Ptr, gate: Ptr, up: Ptr, n: number, dtype: DTypeCode): void;
  /** dGate, dUp from dOut, gate, up; dGate may be gate and dUp may be up (in place) when accumulate is 0. */
  swigluBackward(dGate: Ptr, dUp: Ptr, dOut: Ptr, gate: Ptr, up: Ptr, n: number, dtype: DTypeCode, accumulate: number): void;
  /** out[M,H] = table[ids[M],H] (same dtype). An id outside 0..V-1 gives a row of zeros (callers validate). */
  embeddingForward(out: Ptr, table: Ptr, ids: Ptr, M: number, H: number, V: number, dtype: DTypeCode): void;
  /** dTable[V,H] (f32) += rows of dOut[M,H] (dtype), rows ascending. Deterministic for repeated ids. */
  embeddingBackward(dTable: Ptr, dOut: Ptr, ids: Ptr, M: number, H: number, V: number, dtype: DTypeCode): void;

  /**
   * Softmax attention with grouped query heads and online softmax (arXiv 2205.14135).
   * out[T,Hq,D], lse[Hq,T] (f32, may be 0: log of the sum of exp of the scaled scores), q[T,Hq,D] with row stride qStride,
   * k and v [S,Hkv,D] with row strides kStride, vStride. Query t sees keys lo..hi-1 where hi = keyEnd[t] and
   * lo = window > 0 ? max(keyBase[t], hi - window) : keyBase[t] (i32[T] each, row indices of k and v).
   * Both arrays are non-decreasing. Keys are taken in blocks of 64 counted from keyBase[t], so a row's bits do not depend on
   * how queries are chunked or where the keys lie. A query that sees nothing gives zeros (and lse -inf).
   */
  attentionForward(
    out: Ptr,
    lse: Ptr,
    q: Ptr,
    k: Ptr,
    v: Ptr,
    keyBase: Ptr,
    keyEnd: Ptr,
    T: number,
    S: number,
    Hq: number,
    Hkv: number,
    D: number,
    qStride: number,
    kStride: number,
    vStride: number,
    window: number,
    scale: number,
    dtype: DTypeCode,
  ): void;
  /**
   * attentionForward over keys in pages, with its bits: keyBase (multiples of 64) and keyEnd are rows of a space of S rows, whose block j of
   * 64 rows is rows blocks[j] * 64 and on of k and v [P,Hkv,D]. blocks i32[S / 64].
   */
  attentionPagedForward(
    out: Ptr,
    q: Ptr,
    k: Ptr,
    v: Ptr,
    keyBase: Ptr,
    keyEnd: Ptr,
    blocks: Ptr,
    T: number,
    S: number,
    P: number,
    Hq: number,
    Hkv: number,
    D: number,
    qStride: number,
    kStride: number,
    vStride: number,
    window: number,
    scale: number,
    dtype: DTypeCode,
  ): void;
  /**
   * dq[T,Hq,D], dk[S,Hkv,D], dv[S,Hkv,D] (dense, dtype) from dOut[T,Hq,D], and what the forward saw and made. dq, dk, dv are overwritten, or added to with accumulate.
   */
  attentionBackward(
    dq: Ptr,
    dk: Ptr,
    dv: Ptr,
    dOut: Ptr,
    q: Ptr,
    k: Ptr,
    v: Ptr,
    out: Ptr,
    lse: Ptr,
    keyBase: Ptr,
    keyEnd: Ptr,
    T: number,
    S: number,
    Hq: number,
    Hkv: number,
    D: number,
    qStride: number,
    kStride: number,
    vStride: number,
    window: number,
    scale: number,
    dtype: DTypeCode,
    accumulate: number,
  ): void;

  /**
   * loss[M] (f32) = logsumexp(logits) - logits[target]; a target below 0 gives loss 0 and gradient 0.
   * dLogits[M,V] (f32; 0 for none; may be logits itself) = (softmax - onehot) * gradScale. logits[M,V] f32, targets i32[M].
   */
  crossEntropy(loss: Ptr, dLogits: Ptr, logits: Ptr, targets: Ptr, M: number, V: number, gradScale: number): void;

  /** out = a + b, elementwise; out may be a or b. */
  add(out: Ptr, a: Ptr, b: Ptr, n: number, dtype: DTypeCode): void;
  /** out = x * s; out may be x. */
  scale(out: Ptr, x: Ptr, n: number, s: number, dtype: DTypeCode): void;
  /** out (f32) += x (dtype) * s. */
  accumulate(out: Ptr, x: Ptr, n: number, s: number, dtype: DTypeCode): void;
  /** x[M,N] (dtype) += bias[N] (f32), in place. */
  addBias(x: Ptr, bias: Ptr, M: number, N: number, dtype: DTypeCode): void;
  /** Converts between f32, bf16 and f16 (round to nearest even, NaN kept, overflow to infinity). */
  cast(out: Ptr, x: Ptr, n: number, outDtype: DTypeCode, xDtype: DTypeCode): void;
  /** out[n] (codes, one byte each) = x / divisor (f32) to nearest, ties to even, saturating, NaN kept. x f32 or bf16. */
  castToFp8(out: Ptr, x: Ptr, n: number, divisor: number, xDtype: DTypeCode, format: Fp8FormatCode): void;
  /** out[n] (f32 or bf16) = value of x (codes) * factor. */
  castFromFp8(out: Ptr, x: Ptr, n: number, factor: number, outDtype: DTypeCode, format: Fp8FormatCode): void;
  /**
   * out[M,K] (f32) = x (f32 or bf16) as E4M3 with dynamic scales holds it, scales applied: in each row every run of `group` values (from the
   * first on; the last may be shorter) has a scale of its own, largest magnitude / 448 (f32, at least 2^-126; 1 where all are 0). A value is divided
   * by it, rounded to nearest even and multiplied again, in f32; zeros keep no sign. A run that holds a NaN or an infinity becomes NaN.
   */
  roundRowsToFp8(out: Ptr, x: Ptr, M: number, K: number, group: number, xDtype: DTypeCode): void;
  fillF32(out: Ptr, n: number, value: number): void;
  /** Copies M rows of rowBytes bytes between buffers with byte strides. */
  copyRows(out: Ptr, x: Ptr, M: number, rowBytes: number, outStride: number, xStride: number): void;
  /** out[r] = x[index[r]] for R rows of rowBytes bytes; index i32[R], below 0 for a row of zero bytes. */
  gatherRows(out: Ptr, x: Ptr, index: Ptr, R: number, rowBytes: number): void;
  /** out (one f64) = sum of squares of x[n] f32: f64 sums of fixed 4096-element chunks, added in order. */
  sumSquares(out: Ptr, x: Ptr, n: number): void;
  /** out (one i32) = 1 if every f32 of x[n] is finite. */
  allFinite(out: Ptr, x: Ptr, n: number): void;
  /**
   * Decoupled AdamW (arXiv 1711.05101): g = grad * gradScale; m, v, master f32 updated in place; weight (weightDtype, pointer 0 for none) gets the
   * rounded master. Order: m = beta1 m + (1-beta1) g; v = beta2 v + (1-beta2) g^2; master -= lr (weightDecay master +
   * (m / biasCorrection1) / (sqrt(v / biasCorrection2) + eps)). biasCorrection1 = 1 - beta1^t, biasCorrection2 = 1 - beta2^t. master may be weight when weightDtype is f32.
   */
  adamwStep(
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
  ): void;
  /** out i32[M]: index of the largest of x[M,N] f32, ties to the lower. */
  argmaxRows(out: Ptr, x: Ptr, M: number, N: number): void;
  /** out[M,N] = softmax of rows of x[M,N], f32. */
  softmaxRows(out: Ptr, x: Ptr, M: number, N: number): void;
}

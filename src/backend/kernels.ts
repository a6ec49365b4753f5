/**
 * The kernel contract: what every backend computes, in one table.
 *
 * Each kernel is one C function `moe_<snake_case_name>` compiled once per instruction set (native) and once for
 * WebAssembly, and one TypeScript function (reference backend, the oracle). All three take the same arguments in the
 * same order. This file is not an API for models: they use `src/tensor/ops`.
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

export type Ptr = number;

/**
 * Storage types of tensor elements. `f16` is only for conversion (checkpoints), never for compute. `fp8` (E4M3 codes, src/util/fp8.ts) is only
 * for weights, which have scales beside them, and for kernels that say so.
 */
export const dtypeCodes = { f32: 0, bf16: 1, i32: 2, f16: 3, fp8: 4 } as const;
export type DType = keyof typeof dtypeCodes;
export type DTypeCode = (typeof dtypeCodes)[DType];
/** How a router turns logits into scores: an argument of `routerForward`. */
export const routerScorings = { softmax: 0, softmaxOfTopK: 1, sigmoid: 2 } as const;
/** Formats of `castToFp8` and `castFromFp8`. */
export const fp8Formats = { e4m3: 0, e5m2: 1 } as const;
export type Fp8FormatCode = (typeof fp8Formats)[keyof typeof fp8Formats];
/** What one scale of an FP8 matrix [N, K] belongs to: all of it, an output, or a block of 128 x 128 (the last ones may be cut). */
export const fp8Scalings = { tensor: 0, channel: 1, block128: 2 } as const;
export type Fp8Scaling = keyof typeof fp8Scalings;
export type Fp8ScalingCode = (typeof fp8Scalings)[Fp8Scaling];
/** Rows and columns of a scaled block. */
export const fp8Block = 128;
export const dtypeBytes: Readonly<Record<DType, number>> = { f32: 4, bf16: 2, i32: 4, f16: 2, fp8: 1 };

/**
 * Argument codes, one character an argument:
 * `p` pointer, `n` element count (C `ptrdiff_t`: 64-bit natively, 32-bit in WASM), `i` int32 flag or dtype code, `f` float32.
 */
export const kernelSignatures = {
  // ---- linear: legend M rows, K input features, N output features, E experts, R = offsets[E] rows of all experts
  linearForward: "ppppnnniii",
  linearForwardMany: "ppppppppppnnnnniii",
  linearBackwardInput: "pppnnniiii",
  linearBackwardWeight: "pppnnniii",
  linearBackwardBias: "ppnnii",
  groupedLinearForward: "ppppnnniii",
  groupedLinearBackwardInput: "ppppnnniiii",
  groupedLinearBackwardWeight: "ppppnnniii",
  linearFp8Forward: "pppppnnniii",
  linearFp8ForwardMany: "pppppppppppppnnnnniii",
  groupedLinearFp8Forward: "pppppnnniii",
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
  // ---- mixture of experts
  routerForward: "ppppppnnnnniiiiifff",
  routerBackward: "pppppppnnniiiifff",
  routerZLoss: "ppppnnf",
  routerStatistics: "ppnn",
  jitter: "ppnnniif",
  tanhForward: "ppn",
  tanhBackward: "pppn",
  sigmoidGateForward: "pppnnfi",
  sigmoidGateBackward: "pppppnnfi",
  dispatchPlan: "ppppppppnnnnii",
  permuteBackward: "pppnnnii",
  combineForward: "ppppnnni",
  combineBackward: "ppppppnnni",
  // ---- elementwise, copies, reductions
  add: "pppni",
  scale: "ppnfi",
  accumulate: "ppnfi",
  addBias: "ppnni",
  cast: "ppnii",
  castToFp8: "ppnfii",
  castFromFp8: "ppnfii",
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
export interface Kernels {
  /** out[M,N] (outDtype) = x[M,K] (xDtype) . w[N,K]^T (wDtype) + bias[N] (f32, or 0 for none). */
  linearForward(
    out: Ptr,
    x: Ptr,
    w: Ptr,
    bias: Ptr,
    M: number,
    N: number,
    K: number,
    xDtype: DTypeCode,
    wDtype: DTypeCode,
    outDtype: DTypeCode,
  ): void;
  /** Up to three linears of one x: out_i[M,N_i] = x[M,K] . w_i[N_i,K]^T + bias_i[N_i] (f32, or 0), each with the bits of linearForward. N_i 0: left out. */
  linearForwardMany(
    out0: Ptr,
    out1: Ptr,
    out2: Ptr,
    x: Ptr,
    w0: Ptr,
    w1: Ptr,
    w2: Ptr,
    bias0: Ptr,
    bias1: Ptr,
    bias2: Ptr,
    M: number,
    N0: number,
    N1: number,
    N2: number,
    K: number,
    xDtype: DTypeCode,
    wDtype: DTypeCode,
    outDtype: DTypeCode,
  ): void;
  /** dx[M,K] (dxDtype) (+)= dy[M,N] (dyDtype) . w[N,K] (wDtype). */
  linearBackwardInput(
    dx: Ptr,
    dy: Ptr,
    w: Ptr,
    M: number,
    N: number,
    K: number,
    dyDtype: DTypeCode,
    wDtype: DTypeCode,
    dxDtype: DTypeCode,
    accumulate: number,
  ): void;
  /** dw[N,K] (f32) (+)= dy[M,N]^T (dyDtype) . x[M,K] (xDtype). The chain runs over m ascending; with accumulate the sum is added at the end. */
  linearBackwardWeight(
    dw: Ptr,
    dy: Ptr,
    x: Ptr,
    M: number,
    N: number,
    K: number,
    dyDtype: DTypeCode,
    xDtype: DTypeCode,
    accumulate: number,
  ): void;
  /** db[N] (f32) (+)= sum over m of dy[M,N] (dyDtype), m ascending. */
  linearBackwardBias(db: Ptr, dy: Ptr, M: number, N: number, dyDtype: DTypeCode, accumulate: number): void;
  /** Rows offsets[e]..offsets[e+1] (i32[E+1], ascending from 0) of x[R,K] times w[e] of w[E,N,K], into out[R,N]. Any group may be empty. */
  groupedLinearForward(
    out: Ptr,
    x: Ptr,
    w: Ptr,
    offsets: Ptr,
    E: number,
    N: number,
    K: number,
    xDtype: DTypeCode,
    wDtype: DTypeCode,
    outDtype: DTypeCode,
  ): void;
  /** dx[R,K] (+)= dy[R,N] . w[e][N,K], by group. */
  groupedLinearBackwardInput(
    dx: Ptr,
    dy: Ptr,
    w: Ptr,
    offsets: Ptr,
    E: number,
    N: number,
    K: number,
    dyDtype: DTypeCode,
    wDtype: DTypeCode,
    dxDtype: DTypeCode,
    accumulate: number,
  ): void;
  /** dw[E,N,K] (f32) (+)= per group dy^T . x. An empty group writes zeros (or adds nothing). */
  groupedLinearBackwardWeight(
    dw: Ptr,
    dy: Ptr,
    x: Ptr,
    offsets: Ptr,
    E: number,
    N: number,
    K: number,
    dyDtype: DTypeCode,
    xDtype: DTypeCode,
    accumulate: number,
  ): void;

  /**
   * linearForward with w[N,K] of E4M3 codes, one byte each, and scales (f32) by `scaling` (fp8Scalings): tensor [1] and channel [N] multiply the finished
   * sum, before the bias; block128 [ceil(N/128),ceil(K/128)] multiplies each weight as it is widened (rounded to f32), so that one chain remains.
   */
  linearFp8Forward(
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
  ): void;
  /** linearForwardMany of FP8 weights, with scales of one kind: each with the bits of linearFp8Forward. */
  linearFp8ForwardMany(
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
  ): void;
  /** groupedLinearForward with w[E,N,K] of E4M3 codes and scales[E,..], as linearFp8Forward. */
  groupedLinearFp8Forward(
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
  ): void;

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

  /**
   * Router of T tokens over E experts, all f32. z = logits, or with normalize = 1 the normalized lambda * (logits - mean) /
   * sqrt(variance + eps) (variance over n, or n - 1 with unbiased) of Skywork-MoE (arXiv 2406.06563, section 4.1).
   * Scores by `scoring` (routerScorings): softmax(z); z; sigmoid(z). indices i32[T,k]: the k largest of scores + bias[E] (0: none)
   * in descending order, ties to the lower index, NaN after every number; with numGroups > 1 among the experts of the
   * topGroups groups (equal runs of experts) with the largest sum of their two (one where a group is one expert) largest scores
   * + bias, ties to the lower group. With forced = 1: indices[t,j] = (t k + j) mod E.
   * probs[T,E]: softmax: the scores. softmaxOfTopK: softmax of z over the chosen, 0 elsewhere. sigmoid: scores over their sum.
   * weights[T,k]: scores of the chosen (softmaxOfTopK: their probs), divided by their sum with renormalize (0 where it is 0),
   * times scale. A token with valid[t] (i32[T], 0: all valid) = 0 gets indices -1, weights 0, probs 0.
   */
  routerForward(
    probs: Ptr,
    weights: Ptr,
    indices: Ptr,
    logits: Ptr,
    bias: Ptr,
    valid: Ptr,
    T: number,
    E: number,
    k: number,
    numGroups: number,
    topGroups: number,
    scoring: number,
    normalize: number,
    unbiased: number,
    renormalize: number,
    forced: number,
    lambda: number,
    eps: number,
    scale: number,
  ): void;
  /**
   * dLogits[T,E] overwritten, from dWeights[T,k] and dProbs[T,E] (0 for none: gradient of probs from balance losses). The choice
   * is taken as given; where a sum that was divided by is 0, its quotients have no gradient. indices -1: a row of zeros.
   */
  routerBackward(
    dLogits: Ptr,
    dWeights: Ptr,
    dProbs: Ptr,
    probs: Ptr,
    weights: Ptr,
    indices: Ptr,
    logits: Ptr,
    T: number,
    E: number,
    k: number,
    scoring: number,
    normalize: number,
    unbiased: number,
    renormalize: number,
    lambda: number,
    eps: number,
    scale: number,
  ): void;
  /**
   * sum (one f64; 0 for none) = sum over tokens of logsumexp(logits[t])^2; dLogits[T,E] (f32; 0 for none) overwritten with gradScale
   * times its gradient. Tokens with valid[t] (i32[T], 0: all valid) = 0 add nothing. (arXiv 2202.08906, equation 5)
   */
  routerZLoss(sum: Ptr, dLogits: Ptr, logits: Ptr, valid: Ptr, T: number, E: number, gradScale: number): void;
  /**
   * out f64[3]: sums over the rows of probs[T,E] f32 of max1/max2, max2/max3 (a denominator below 1e-20, or missing, is 1e-20) and
   * the entropy -sum p log p (only of p > 0). max1 >= max2 >= max3 are a row's largest; below 0, or NaN, counts as 0.
   */
  routerStatistics(out: Ptr, probs: Ptr, T: number, E: number): void;
  /**
   * out[T,H] = x * u, f32, u = 1 + epsilon * v with v uniform in [-1, 1) in steps of 2^-23, a function of (keyHigh, keyLow, firstRow + t,
   * column) only: h = mix(mix(mix(keyHigh) ^ keyLow) ^ row), v = (mix(h + column * 0x9e3779b9) >> 8) * 2^-23 - 1, 32-bit words,
   * mix the finalizer of MurmurHash3. out may be x.
   */
  jitter(out: Ptr, x: Ptr, T: number, H: number, firstRow: number, keyHigh: number, keyLow: number, epsilon: number): void;
  /** out[n] = tanh(x), f32. */
  tanhForward(out: Ptr, x: Ptr, n: number): void;
  /** dx[n] = dOut * (1 - out^2), f32. */
  tanhBackward(dx: Ptr, dOut: Ptr, out: Ptr, n: number): void;
  /** out[T,H] (dtype) = scale * sigmoid(gate[t]) * x[t]; gate f32[T]. */
  sigmoidGateForward(out: Ptr, x: Ptr, gate: Ptr, T: number, H: number, scale: number, dtype: DTypeCode): void;
  /** dx[T,H] (dtype) and dGate[T] (f32) overwritten. */
  sigmoidGateBackward(dx: Ptr, dGate: Ptr, dOut: Ptr, x: Ptr, gate: Ptr, T: number, H: number, scale: number, dtype: DTypeCode): void;
  /**
   * Sorts T*k assignments by expert, then group, stable in (token, choice). groupOffsets i32[G+1] ascending from 0 to T.
   * offsets i32[E+1]; rowToken i32[R]: token of each row; slotRow i32[T,k]: row of each assignment, -1 where dropped or where its
   * index is below 0; counts i32[G,E]: assignments before dropping.
   * capacities i32[G] or 0 (dropless): an expert keeps at most capacities[g] of group g's assignments: by position (byProbability 0:
   * lowest token first) or the largest weights[T,k] (f32, NaN as infinity) first, ties to the lower token; kept rows stay in token order.
   * pad 1 (with capacities): every expert has exactly capacities[g] rows of group g, the last of them with rowToken -1 where it
   * keeps fewer.
   */
  dispatchPlan(
    offsets: Ptr,
    rowToken: Ptr,
    slotRow: Ptr,
    counts: Ptr,
    indices: Ptr,
    weights: Ptr,
    groupOffsets: Ptr,
    capacities: Ptr,
    T: number,
    k: number,
    E: number,
    G: number,
    byProbability: number,
    pad: number,
  ): void;
  /** Backward of gathering rows by rowToken: dx[T,H] (+)= sum over the k slots of dOut[slotRow[t,j]] (rows -1 skipped), j ascending. */
  permuteBackward(dx: Ptr, dOut: Ptr, slotRow: Ptr, T: number, k: number, H: number, dtype: DTypeCode, accumulate: number): void;
  /** out[T,H] = sum over j of weights[t,j] * y[slotRow[t,j],H], j ascending, -1 skipped. weights f32. */
  combineForward(out: Ptr, y: Ptr, slotRow: Ptr, weights: Ptr, T: number, k: number, H: number, dtype: DTypeCode): void;
  /** dy[R,H] = weight * dOut[token] (rows of no assignment are not written), dWeights[T,k] (f32) = dot(dOut[t], y[row]), 0 where dropped. */
  combineBackward(
    dy: Ptr,
    dWeights: Ptr,
    dOut: Ptr,
    y: Ptr,
    slotRow: Ptr,
    weights: Ptr,
    T: number,
    k: number,
    H: number,
    dtype: DTypeCode,
  ): void;

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

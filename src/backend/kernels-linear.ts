/**
 * The kernel contract's matrix products, plain, grouped by expert and of FP8 weights. Conventions, among them the one order of additions that
 * all of them share: `kernels.ts`, whose table these join.
 *
 * Legend: M rows, K input features, N output features, E experts, R = offsets[E] rows of all experts.
 */
import type { DTypeCode, Fp8ScalingCode, Ptr } from "./codes.ts";

export const linearSignatures = {
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
} as const satisfies Record<string, string>;

/** Shapes are in square brackets; an element type in brackets means the code given by that argument. */
export interface LinearKernels {
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
}

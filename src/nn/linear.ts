/**
 * A matrix product with a stored weight, and an optional bias.
 *
 * Legend: T tokens, N output features, K input features.
 */
import type { DType } from "../backend/kernels.ts";
import { linear, type Tensor } from "../tensor/index.ts";

export class Linear {
  /** [N, K], f32 or bf16. */
  readonly weight_NK: Tensor;
  /** f32 [N], or null. */
  readonly bias_N: Tensor | null;

  constructor(weight_NK: Tensor, bias_N: Tensor | null = null) {
    this.weight_NK = weight_NK;
    this.bias_N = bias_N;
  }

  /** [T, N] = x [T, K] . weight^T + bias, in x's dtype unless `outDtype` says otherwise. */
  forward(x_TK: Tensor, outDtype: DType = x_TK.dtype): Tensor {
    return linear(x_TK, this.weight_NK, this.bias_N, { outDtype });
  }
}

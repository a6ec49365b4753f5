/**
 * RMSNorm with its weight (arXiv 1910.07467). With a weight of `headDim` elements it normalizes every head by itself.
 *
 * Legend: T tokens, H features (any multiple of the weight's size).
 */
import { rmsNorm, type Tensor } from "../tensor/index.ts";

export class RmsNorm {
  /** f32, one factor a feature. */
  readonly weight: Tensor;
  readonly eps: number;

  constructor(weight: Tensor, eps: number) {
    this.weight = weight;
    this.eps = eps;
  }
  forward(x_TH: Tensor): Tensor {
    return rmsNorm(x_TH, this.weight, this.eps);
  }
}

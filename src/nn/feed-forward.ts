/**
 * The dense feed-forward network: down(silu(gate(x)) * up(x)) (SwiGLU, arXiv 2002.05202).
 *
 * Legend: T tokens, H hidden, F width of the network.
 */
import type { DType } from "../backend/kernels.ts";
import { activationDtype, type TensorGroup } from "../parallel/group.ts";
import { linearMany, nothingOf, swiglu, type Tensor } from "../tensor/index.ts";
import type { Linear } from "./linear.ts";

export class FeedForward {
  /** [F, H] */
  readonly gate: Linear;
  /** [F, H] */
  readonly up: Linear;
  /** [H, F] */
  readonly down: Linear;
  readonly #group: TensorGroup | null;

  /** Alone without a group; with one, F is the rank's columns (possibly none), and the ranks' outputs are added up. */
  constructor(gate: Linear, up: Linear, down: Linear, group: TensorGroup | null = null) {
    this.gate = gate;
    this.up = up;
    this.down = down;
    this.#group = group;
  }
  /** [T, H] from x [T, H]; with a group, under sequence parallelism, from and to the rank's own rows of `numTokens`. */
  forward(x_TH: Tensor, numTokens = x_TH.dim(0)): Tensor {
    const group = this.#group;
    if (group === null) return this.part(x_TH, x_TH.dtype);
    return group.leave(this.part(group.enter(x_TH, numTokens), "f32"), activationDtype(x_TH));
  }
  /** What these columns add to the output. */
  part(x_TH: Tensor, dtype: DType): Tensor {
    if (this.gate.weight_NK.dim(0) === 0) return nothingOf([x_TH], x_TH.shape, dtype);
    const [gate_TF, up_TF] = linearMany(x_TH, [this.gate, this.up]) as [Tensor, Tensor];
    return this.down.forward(swiglu(gate_TF, up_TF), dtype);
  }
}

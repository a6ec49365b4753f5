/**
 * The dense feed-forward network: down(silu(gate(x)) * up(x)) (SwiGLU, arXiv 2002.05202).
 *
 * Legend: T tokens, H hidden, F width of the network.
 */
import { linearMany, swiglu, type Tensor } from "../tensor/index.ts";
import type { Linear } from "./linear.ts";

export class FeedForward {
  /** [F, H] */
  readonly gate: Linear;
  /** [F, H] */
  readonly up: Linear;
  /** [H, F] */
  readonly down: Linear;

  constructor(gate: Linear, up: Linear, down: Linear) {
    this.gate = gate;
    this.up = up;
    this.down = down;
  }
  forward(x_TH: Tensor): Tensor {
    const [gate_TF, up_TF] = linearMany(x_TH, [this.gate, this.up]) as [Tensor, Tensor];
    return this.down.forward(swiglu(gate_TF, up_TF));
  }
}

/**
 * The shared expert: a SwiGLU network that every token passes, beside the routed ones. Its output is multiplied by a constant
 * and, where it has a gate, by the sigmoid of one logit a token (Qwen2-MoE, arXiv 2407.10671). The gate is f32, like the router.
 *
 * Legend: T tokens, H hidden.
 */
import type { DType } from "../../backend/kernels.ts";
import { scale, sigmoidGate, type Tensor } from "../../tensor/index.ts";
import type { FeedForward } from "../feed-forward.ts";
import type { Linear } from "../linear.ts";

export class SharedExpert {
  readonly network: FeedForward;
  /** [1, H], f32, or null. */
  readonly gate: Linear | null;
  /** Factor of the output. */
  readonly scale: number;

  constructor(network: FeedForward, gate: Linear | null, factor: number) {
    this.network = network;
    this.gate = gate;
    this.scale = factor;
  }

  /** [T, H] in `dtype` from x [T, H]; `f32_TH` is x in f32, for the gate. Of a rank that has some of the columns: its part of the sum. */
  forward(x_TH: Tensor, f32_TH: Tensor, dtype: DType = x_TH.dtype): Tensor {
    const y_TH = this.network.part(x_TH, dtype);
    if (this.gate !== null) return sigmoidGate(y_TH, this.gate.forward(f32_TH), this.scale);
    return this.scale === 1 ? y_TH : scale(y_TH, this.scale);
  }
}

/**
 * The experts of one layer: E SwiGLU networks whose matrices are stacked, run in one grouped product each over rows that are
 * sorted by expert.
 *
 * Legend: R rows of all experts, E experts, H hidden, F width of one expert.
 */
import { groupedLinear, swiglu, type Tensor } from "../../tensor/index.ts";

export class Experts {
  readonly gate_EFH: Tensor;
  readonly up_EFH: Tensor;
  readonly down_EHF: Tensor;

  constructor(gate_EFH: Tensor, up_EFH: Tensor, down_EHF: Tensor) {
    this.gate_EFH = gate_EFH;
    this.up_EFH = up_EFH;
    this.down_EHF = down_EHF;
  }
  get numExperts(): number {
    return this.gate_EFH.dim(0);
  }
  /** [R, H] from x [R, H]; expert e has rows offsets[e]..offsets[e+1]-1 (i32 [E+1]), possibly none. */
  forward(x_RH: Tensor, offsets: Tensor): Tensor {
    const gated_RF = swiglu(groupedLinear(x_RH, this.gate_EFH, offsets), groupedLinear(x_RH, this.up_EFH, offsets));
    return groupedLinear(gated_RF, this.down_EHF, offsets);
  }
}

/**
 * A mixture-of-experts layer: route, sort tokens by expert, run the experts, add up by weight.
 *
 * Without a capacity nothing is dropped, which is what evaluation and generation always do. With a capacity factor (training
 * only) an expert keeps ceil(factor * K * T / E) assignments; a dropped assignment adds nothing, and the weights of the kept
 * ones are not rescaled: their sum ran over the chosen K before dropping.
 *
 * What balance losses and metrics need comes back beside the output; nothing is collected anywhere else.
 *
 * Legend: T tokens, H hidden, E experts, K choices, R rows of all experts.
 */
import { combine, dispatch, scale, type Tensor } from "../../tensor/index.ts";
import type { Experts } from "./experts.ts";
import type { Router } from "./router.ts";

export interface CapacitySettings {
  /** Multiple of an expert's fair share K * T / E that it keeps. */
  readonly factor: number;
  /** Who is dropped where there are more: the smallest weights, or the last tokens. */
  readonly dropBy: "probability" | "position";
}

/** What a layer decided, for losses and metrics. Tensors belong to the scope in which the layer ran. */
export interface Routing {
  /** f32 [T, E], differentiable. */
  readonly probs_TE: Tensor;
  /** i32 [T, K]. */
  readonly indices_TK: Tensor;
  /** f32 [T, K]. */
  readonly weights_TK: Tensor;
  /** i32 [E]: assignments before dropping. */
  readonly counts_E: Tensor;
}

/** Assignments that an expert keeps: ceil(factor * topK * numTokens / numExperts). */
export function expertCapacity(factor: number, topK: number, numTokens: number, numExperts: number): number {
  return Math.ceil((factor * topK * numTokens) / numExperts);
}
/** Assignments beyond `capacity` (per expert), summed: what a layer with this capacity drops, or would drop. */
export function droppedAssignments(counts: Iterable<number>, capacity: number): number {
  let dropped = 0;
  for (const count of counts) dropped += Math.max(0, count - capacity);
  return dropped;
}

export class MoeBlock {
  readonly router: Router;
  readonly experts: Experts;
  /** Factor of the experts' input: 1, or K in models that multiply features by top-k. */
  readonly inputScale: number;

  constructor(router: Router, experts: Experts, inputScale = 1) {
    this.router = router;
    this.experts = experts;
    this.inputScale = inputScale;
  }

  /** [T, H] and the routing, from x [T, H]. `capacity` null: dropless. */
  forward(x_TH: Tensor, capacity: CapacitySettings | null = null): { y_TH: Tensor; routing: Routing } {
    const { probs: probs_TE, weights: weights_TK, indices: indices_TK } = this.router.forward(x_TH);
    const { numExperts } = this.experts;
    const { topK } = this.router.settings;
    const scaled_TH = this.inputScale === 1 ? x_TH : scale(x_TH, this.inputScale);
    const { rows, offsets, slotRow, counts } = dispatch(scaled_TH, indices_TK, weights_TK, {
      numExperts,
      capacity: capacity === null ? 0 : Math.max(1, expertCapacity(capacity.factor, topK, x_TH.dim(0), numExperts)),
      dropBy: capacity?.dropBy ?? "probability",
    });
    const y_TH = combine(this.experts.forward(rows, offsets), slotRow, weights_TK);
    return { y_TH, routing: { probs_TE, indices_TK, weights_TK, counts_E: counts } };
  }
}

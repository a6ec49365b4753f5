/**
 * A mixture-of-experts layer: route, sort tokens by expert, run the experts, add up by weight, and add the shared expert.
 *
 * Without a capacity nothing is dropped, which is what evaluation and generation always do. With a capacity factor (training
 * only) an expert keeps ceil(factor * K * T / E) assignments of each balance group; a dropped assignment adds nothing, and the
 * weights of the kept ones are not rescaled: their sum ran over the chosen K before dropping. A token that takes no part
 * (padding) reaches no routed expert.
 *
 * What balance losses and metrics need comes back beside the output; nothing is collected anywhere else.
 *
 * Legend: T tokens, H hidden, E experts, K choices, R rows of all experts, G balance groups.
 */
import { dtypeCodes } from "../../backend/kernels.ts";
import { activationDtype, type TensorGroup } from "../../parallel/group.ts";
import { add, castTo, combine, dispatch, scale, type Tensor } from "../../tensor/index.ts";
import { MoeError } from "../../util/errors.ts";
import type { Interval } from "../../util/partition.ts";
import { expertCapacity, validPerGroup, type RoutingContext } from "./context.ts";
import type { Experts } from "./experts.ts";
import type { Router } from "./router.ts";
import type { SharedExpert } from "./shared.ts";

/** What a layer decided, for losses and metrics. Tensors belong to the scope in which the layer ran. */
export interface Routing {
  /** f32 [T, E], differentiable: what balance losses see. Rows of tokens that take no part are 0. */
  readonly probs_TE: Tensor;
  /** f32 [T, E], differentiable: what the gate said (of its input with noise, where there is noise), before normalization. */
  readonly logits_TE: Tensor;
  /** i32 [T, K]: -1 for tokens that take no part. */
  readonly indices_TK: Tensor;
  /** f32 [T, K]. */
  readonly weights_TK: Tensor;
  /** i32 [G, E]: assignments of each group before dropping. */
  readonly counts_GE: Tensor;
}

export interface MoeBlockOptions {
  /** Factor of the experts' input: 1, or K in models that multiply features by top-k. */
  readonly inputScale?: number;
  readonly sharedExpert?: SharedExpert | null;
  /** What a rank has of the experts; absent or null: all of them. */
  readonly shard?: ExpertShard | null;
}
/** The experts of a rank: some of them, or some columns of each. The router is whole on every rank, and decides the same on all. */
export interface ExpertShard {
  readonly group: TensorGroup;
  /** Which experts the rank's matrices are, possibly none. */
  readonly experts: Interval;
  /** Experts of all ranks. */
  readonly numExperts: number;
}

export class MoeBlock {
  readonly router: Router;
  readonly experts: Experts;
  readonly inputScale: number;
  readonly sharedExpert: SharedExpert | null;
  readonly #shard: ExpertShard | null;

  constructor(router: Router, experts: Experts, { inputScale = 1, sharedExpert = null, shard = null }: MoeBlockOptions = {}) {
    this.#shard = shard;
    this.router = router;
    this.experts = experts;
    this.inputScale = inputScale;
    this.sharedExpert = sharedExpert;
  }

  /** [T, H] and the routing, from x [T, H]. `layer` is part of the key of the router's noise. */
  forward(x_TH: Tensor, context: RoutingContext = {}, layer = 0): { y_TH: Tensor; routing: Routing } {
    const f32_TH = castTo(x_TH, "f32");
    const { probs: probs_TE, weights: weights_TK, indices: indices_TK, logits: logits_TE } = this.router.forward(f32_TH, context, layer);
    const { numExperts } = this.experts;
    const scaled_TH = this.inputScale === 1 ? x_TH : scale(x_TH, this.inputScale);
    context.observe?.(layer, this.experts, scaled_TH);
    const groupOffsets = context.groupOffsets ?? [0, x_TH.dim(0)];
    if (this.#shard !== null) {
      if (context.capacity)
        throw new MoeError("unsupported", "experts of several ranks with a capacity: tensor parallelism is for inference");
      const part_TH = this.#part(this.#shard, scaled_TH, indices_TK, weights_TK);
      if (this.sharedExpert !== null) accumulate(part_TH, this.sharedExpert.forward(x_TH, f32_TH, "f32"));
      const counts_GE = countAssignments(indices_TK, groupOffsets, this.#shard.numExperts);
      const y_TH = this.#shard.group.sum(part_TH, activationDtype(x_TH));
      return { y_TH, routing: { probs_TE, logits_TE, indices_TK, weights_TK, counts_GE } };
    }
    const {
      rows,
      offsets,
      slotRow,
      padded,
      counts: counts_GE,
    } = dispatch(scaled_TH, indices_TK, weights_TK, {
      numExperts,
      groupOffsets,
      capacities: this.#capacities(groupOffsets, context),
      dropBy: context.capacity?.dropBy ?? "probability",
      pad: context.capacity?.pad ?? false,
      allValid: (context.valid ?? null) === null,
    });
    const routed_TH = combine(this.experts.forward(rows, offsets), slotRow, weights_TK, { padded });
    const y_TH = this.sharedExpert === null ? routed_TH : add(routed_TH, this.sharedExpert.forward(x_TH, f32_TH));
    return { y_TH, routing: { probs_TE, logits_TE, indices_TK, weights_TK, counts_GE } };
  }

  /** f32 [T, H]: what the experts of this rank add. Assignments to the others are nobody's here. */
  #part({ experts, numExperts }: ExpertShard, x_TH: Tensor, indices_TK: Tensor, weights_TK: Tensor): Tensor {
    const { engine } = x_TH;
    const [numLocal, columns] = [this.experts.gate_EFH.dim(0), this.experts.gate_EFH.dim(1)];
    if (numLocal === 0 || columns === 0) return engine.zeros(x_TH.shape, "f32");
    const all = numLocal === numExperts;
    const local_TK = all ? indices_TK : engine.from(localIndices(indices_TK.toInt32Array(), experts), indices_TK.shape, "i32");
    const { rows, offsets, slotRow, numRows } = dispatch(x_TH, local_TK, weights_TK, {
      numExperts: numLocal,
      capacities: null,
      dropBy: "probability",
    });
    if (numRows === 0) return engine.zeros(x_TH.shape, "f32");
    return combine(castTo(this.experts.forward(rows, offsets), "f32"), slotRow, weights_TK);
  }

  #capacities(groupOffsets: readonly number[], { capacity, valid }: RoutingContext): number[] | null {
    if (capacity === undefined || capacity === null) return null;
    const numValid = validPerGroup(groupOffsets, valid?.toInt32Array() ?? null);
    return numValid.map((numTokens) => expertCapacity(capacity.factor, this.router.settings.topK, numTokens, this.experts.numExperts));
  }
}

/** Numbers of experts counted from the first of `experts`, -1 for those outside. */
function localIndices(indices: Int32Array, { start, end }: Interval): Int32Array {
  return indices.map((e) => (e >= start && e < end ? e - start : -1));
}
/** i32 [G, E]: assignments of each group. */
function countAssignments(indices_TK: Tensor, groupOffsets: readonly number[], numExperts: number): Tensor {
  const [indices, K, G] = [indices_TK.toInt32Array(), indices_TK.dim(1), groupOffsets.length - 1];
  const counts = new Int32Array(G * numExperts);
  for (let g = 0; g < G; g++) {
    for (let slot = (groupOffsets[g] ?? 0) * K; slot < (groupOffsets[g + 1] ?? 0) * K; slot++) {
      const at = g * numExperts + (indices[slot] ?? -1);
      if ((indices[slot] ?? -1) >= 0) counts[at] = (counts[at] ?? 0) + 1;
    }
  }
  return indices_TK.engine.from(counts, [G, numExperts], "i32");
}
/** sum += x, both f32, in place. */
function accumulate(sum: Tensor, x: Tensor): void {
  sum.engine.backend.kernels.accumulate(sum.ptr, x.ptr, x.size, 1, dtypeCodes.f32);
  sum.storage.version++;
}

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
import { add, castTo, combine, dispatch, scale, type Tensor } from "../../tensor/index.ts";
import { capacitiesOf, type RoutingContext } from "./context.ts";
import type { Experts } from "./experts.ts";
import type { Router } from "./router.ts";
import { sharded, type ExpertShard } from "./sharded.ts";
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

export interface MoeOutput {
  /** [T, H] */
  readonly y_TH: Tensor;
  readonly routing: Routing;
}

export interface MoeBlockOptions {
  /** Factor of the experts' input: 1, or K in models that multiply features by top-k. */
  readonly inputScale?: number;
  readonly sharedExpert?: SharedExpert | null;
  /** What a rank has of the experts; absent or null: all of them. */
  readonly shard?: ExpertShard | null;
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

  /**
   * [T, H] and the routing, from x [T, H]. `layer` is part of the key of the router's noise. Of a rank under sequence parallelism: from and to its
   * own rows of `numTokens`, with the routing of all.
   */
  forward(x_TH: Tensor, context: RoutingContext = {}, layer = 0, numTokens = x_TH.dim(0)): MoeOutput {
    if (this.#shard === null) return this.#alone(x_TH, context, layer);
    const steps = this.steps(x_TH, context, layer, numTokens);
    for (;;) {
      const { done, value } = steps.next();
      if (done === true) return value;
    }
  }

  /** `forward` in steps: it yields wherever rows are under way between ranks, so that something else can be computed meanwhile. */
  *steps(x_TH: Tensor, context: RoutingContext, layer: number, numTokens: number): Generator<undefined, MoeOutput> {
    if (this.#shard === null) return this.#alone(x_TH, context, layer);
    return yield* sharded(this, this.#shard, { x_TH, context, layer, numTokens });
  }

  #alone(x_TH: Tensor, context: RoutingContext, layer: number): MoeOutput {
    const f32_TH = castTo(x_TH, "f32");
    const { probs: probs_TE, weights: weights_TK, indices: indices_TK, logits: logits_TE } = this.router.forward(f32_TH, context, layer);
    const { numExperts } = this.experts;
    const scaled_TH = this.inputScale === 1 ? x_TH : scale(x_TH, this.inputScale);
    context.observe?.(layer, this.experts, scaled_TH);
    const groupOffsets = context.groupOffsets ?? [0, x_TH.dim(0)];
    const {
      rows,
      offsets,
      slotRow,
      padded,
      counts: counts_GE,
    } = dispatch(scaled_TH, indices_TK, weights_TK, {
      numExperts,
      groupOffsets,
      capacities: capacitiesOf(groupOffsets, context, this.router.settings.topK, numExperts),
      dropBy: context.capacity?.dropBy ?? "probability",
      pad: context.capacity?.pad ?? false,
      allValid: (context.valid ?? null) === null,
    });
    const routed_TH = combine(this.experts.forward(rows, offsets), slotRow, weights_TK, { padded });
    const y_TH = this.sharedExpert === null ? routed_TH : add(routed_TH, this.sharedExpert.forward(x_TH, f32_TH));
    return { y_TH, routing: { probs_TE, logits_TE, indices_TK, weights_TK, counts_GE } };
  }
}

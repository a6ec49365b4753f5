/**
 * The router: a gate and a choice of K experts, in f32 whatever the model computes in, because a rounded logit sends a token to
 * another expert. The gate is one matrix, or two with a tanh between (`moe_2layer_gate` of Skywork-MoE). The choice, the
 * scores and gating logit normalization (arXiv 2406.06563, section 4.1) are those of `tensor/ops/router.ts`.
 *
 * Not here: sorting tokens by expert and capacity (`block.ts`), balance losses (`tensor/ops/balance.ts`).
 *
 * Legend: T tokens, H hidden, E experts, K choices.
 */
import { castTo, jitter, router, tanh, type ExpertGroups, type RouterOutput, type RouterScoring, type Tensor } from "../../tensor/index.ts";
import { Random } from "../../util/random.ts";
import type { Linear } from "../linear.ts";
import type { RoutingContext } from "./context.ts";

export interface RouterSettings {
  readonly topK: number;
  readonly normalization: {
    /** Standard deviation of the normalized logits. */
    readonly lambda: number;
    /** Added to the variance. */
    readonly eps: number;
    /** Variance over E - 1 rather than E. */
    readonly unbiased: boolean;
  } | null;
  /** From logits to scores: softmax over all experts, over the chosen ones, or a sigmoid each. */
  readonly scoring: RouterScoring;
  /** Weights are divided by their sum over the chosen. */
  readonly renormalize: boolean;
  /** Factor of the weights after that. */
  readonly routedScale: number;
  /** Choose among the experts of a few groups only, or null. */
  readonly groups: ExpertGroups | null;
}

export interface RouterModules {
  /** [E, H], f32; [E, 8E] behind a hidden layer. */
  readonly gate: Linear;
  /** [8E, H], f32: the first of two layers, or null. */
  readonly hidden: Linear | null;
  /** f32 [E], added to the scores for choosing only, or null. */
  readonly selectionBias: Tensor | null;
}

export class Router {
  readonly modules: RouterModules;
  readonly settings: RouterSettings;

  constructor(modules: RouterModules, settings: RouterSettings) {
    this.modules = modules;
    this.settings = settings;
  }

  /** Routes x [T, H]; `layer` is part of the key of the noise. Adds the raw logits f32 [T, E] to what the op gives. */
  forward(x_TH: Tensor, context: RoutingContext = {}, layer = 0): RouterOutput & { readonly logits: Tensor } {
    const logits = this.logits(x_TH, context, layer);
    return { ...this.choose(logits, context), logits };
  }

  /** f32 [T, E]: what the gate says of x [T, H]. */
  logits(x_TH: Tensor, context: RoutingContext = {}, layer = 0): Tensor {
    const { hidden, gate } = this.modules;
    const seen_TH = withJitter(castTo(x_TH, "f32"), context, layer);
    return gate.forward(hidden === null ? seen_TH : tanh(hidden.forward(seen_TH)));
  }

  /** The choice by logits f32 [T, E]. */
  choose(logits_TE: Tensor, context: RoutingContext = {}): RouterOutput {
    const { topK, normalization, scoring, renormalize, routedScale, groups } = this.settings;
    return router(logits_TE, {
      topK,
      normalization:
        normalization === null ? null : { lambda: normalization.lambda, epsilon: normalization.eps, unbiased: normalization.unbiased },
      scoring,
      renormalize,
      scale: routedScale,
      groups,
      bias: this.modules.selectionBias,
      valid: context.valid ?? null,
      forced: context.forcedBalance ?? false,
    });
  }
}
function withJitter(x_TH: Tensor, { jitter: settings, groupOffsets }: RoutingContext, layer: number): Tensor {
  if (settings === undefined || settings === null || settings.epsilon === 0) return x_TH;
  const { epsilon, seed, step, rowOffsets } = settings;
  const key = Random.keyed(seed, step, layer);
  return jitter(x_TH, { epsilon, key: [key.uint32(), key.uint32()], groupOffsets: groupOffsets ?? [0, x_TH.dim(0)], rowOffsets });
}

/**
 * The router: a linear gate and a top-k softmax, both in f32 whatever the model computes in, because a rounded logit sends a
 * token to another expert. Gating logit normalization is that of Skywork-MoE (arXiv 2406.06563, section 4.1):
 * z~ = lambda * (z - mean(z)) / std(z) before the softmax. Weights of the chosen experts are divided by their sum.
 *
 * Not here: sorting tokens by expert and capacity (`block.ts`), balance losses (`tensor/ops/balance.ts`).
 *
 * Legend: T tokens, H hidden, E experts, K choices.
 */
import { castTo, router, type RouterOutput, type Tensor } from "../../tensor/index.ts";
import type { Linear } from "../linear.ts";

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
}

export class Router {
  /** [E, H], f32. */
  readonly gate: Linear;
  readonly settings: RouterSettings;

  constructor(gate: Linear, settings: RouterSettings) {
    this.gate = gate;
    this.settings = settings;
  }

  /** Routes x [T, H]: probs f32 [T, E], weights f32 [T, K] in descending order (ties to the lower index), indices i32 [T, K]. */
  forward(x_TH: Tensor): RouterOutput {
    const { topK, normalization } = this.settings;
    const logits_TE = this.gate.forward(castTo(x_TH, "f32"));
    if (normalization === null) return router(logits_TE, { topK, normalization });
    const { lambda, eps, unbiased } = normalization;
    return router(logits_TE, { topK, normalization: { lambda, epsilon: eps, unbiased } });
  }
}

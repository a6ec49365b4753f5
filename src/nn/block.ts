/**
 * One layer of the decoder: x + attention(norm(x)), then that plus its feed-forward network or experts of its norm.
 *
 * Legend: T tokens, H hidden.
 */
import { add, type Tensor } from "../tensor/index.ts";
import type { Attention, AttentionInput, LayerCache } from "./attention.ts";
import { FeedForward } from "./feed-forward.ts";
import type { MoeBlock, Routing } from "./moe/block.ts";
import type { RoutingContext } from "./moe/context.ts";
import type { RmsNorm } from "./norm.ts";

export interface BlockModules {
  readonly attentionNorm: RmsNorm;
  readonly attention: Attention;
  readonly feedForwardNorm: RmsNorm;
  readonly feedForward: FeedForward | MoeBlock;
}

export interface BlockOutput {
  readonly y_TH: Tensor;
  /** Null where the layer has no experts. */
  readonly routing: Routing | null;
}

export class Block {
  readonly modules: BlockModules;

  constructor(modules: BlockModules) {
    this.modules = modules;
  }

  /**
   * [T, H] from x [T, H] (of a rank under sequence parallelism: its own rows), and the routing where the layer has experts (null otherwise). `layer` is this one's number, part of the
   * key of a router's noise.
   */
  forward(x_TH: Tensor, input: AttentionInput, cache: LayerCache | null, context: RoutingContext = {}, layer = 0): BlockOutput {
    const { attended_TH, normed_TH } = this.#attend(x_TH, input, cache);
    const { feedForward } = this.modules;
    const numTokens = input.positions.size;
    if (feedForward instanceof FeedForward) return { y_TH: add(attended_TH, feedForward.forward(normed_TH, numTokens)), routing: null };
    const { y_TH, routing } = feedForward.forward(normed_TH, context, layer, numTokens);
    return { y_TH: add(attended_TH, y_TH), routing };
  }

  /** `forward` without a cache, in steps: it yields wherever rows are under way between ranks. */
  *steps(x_TH: Tensor, input: AttentionInput, context: RoutingContext, layer: number): Generator<undefined, BlockOutput> {
    const { feedForward } = this.modules;
    if (feedForward instanceof FeedForward) return this.forward(x_TH, input, null, context, layer);
    const { attended_TH, normed_TH } = this.#attend(x_TH, input, null);
    const { y_TH, routing } = yield* feedForward.steps(normed_TH, context, layer, input.positions.size);
    return { y_TH: add(attended_TH, y_TH), routing };
  }

  #attend(x_TH: Tensor, input: AttentionInput, cache: LayerCache | null): { attended_TH: Tensor; normed_TH: Tensor } {
    const { attentionNorm, attention, feedForwardNorm } = this.modules;
    const attended_TH = add(x_TH, attention.forward(attentionNorm.forward(x_TH), input, cache));
    return { attended_TH, normed_TH: feedForwardNorm.forward(attended_TH) };
  }
}

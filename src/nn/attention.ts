/**
 * Self-attention with grouped key-value heads: projections, optional norms of queries and keys, rotation, softmax attention,
 * output projection. Causality, packed documents and cached keys are the intervals of `AttentionInput`; this file knows
 * neither documents nor how a cache is laid out.
 *
 * Legend: T tokens, H hidden, Q = query heads * headDim, C = key-value heads * headDim, S rows of keys and values.
 */
import { activationDtype, type TensorGroup } from "../parallel/group.ts";
import type { HeadSegment } from "../config/rank-share.ts";
import { attentionSegments, castTo, linearMany, nothingOf, ropeInPlace, type Tensor } from "../tensor/index.ts";
import type { Linear } from "./linear.ts";
import type { RmsNorm } from "./norm.ts";

/** Where keys and values of earlier tokens are: takes this call's rows and gives the buffers to attend over. */
export interface LayerCache {
  append(k_TC: Tensor, v_TC: Tensor): CachedKeys;
}

export interface CachedKeys {
  readonly k_SC: Tensor;
  readonly v_SC: Tensor;
  /** i32 [B]: which pages of 64 rows the keys are in, where they are in pages (see `AttentionOptions`). */
  readonly blocks?: Tensor | null;
}

export interface AttentionInput {
  /** i32 [T]: position of each token in its document. */
  readonly positions: Tensor;
  /** i32 [T], non-decreasing: a token sees rows keyBase..keyEnd-1 of the keys. */
  readonly keyBase: Tensor;
  readonly keyEnd: Tensor;
  /** f32 [P, headDim / 2, 2], P above every position. */
  readonly ropeTable: Tensor;
}

export interface AttentionModules {
  readonly query: Linear;
  readonly key: Linear;
  readonly value: Linear;
  readonly output: Linear;
  /** Norms of each head by itself (weights of headDim, Qwen3), of all heads together (of Q and C, OLMoE), or null. */
  readonly queryNorm: Pick<RmsNorm, "forward"> | null;
  readonly keyNorm: Pick<RmsNorm, "forward"> | null;
}
export interface AttentionSizes {
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  /** Keys seen at most, its own included; 0: all. */
  readonly window: number;
}
/** What a rank has of the heads: its own sizes are those of `AttentionSizes`. */
export interface AttentionShard {
  readonly group: TensorGroup;
  /** Its heads, possibly none. */
  readonly segments: readonly HeadSegment[];
}

export class Attention {
  readonly modules: AttentionModules;
  readonly sizes: AttentionSizes;
  readonly #shard: AttentionShard | null;

  /** Alone without a shard; with one, its ranks' outputs are added up. */
  constructor(modules: AttentionModules, sizes: AttentionSizes, shard: AttentionShard | null = null) {
    this.modules = modules;
    this.sizes = sizes;
    this.#shard = shard;
  }

  /**
   * [T, H] from x [T, H] (of a rank under sequence parallelism: from and to its own rows). With a cache, keyBase and keyEnd are rows of its
   * buffers; no gradient flows through them.
   */
  forward(x_TH: Tensor, { positions, keyBase, keyEnd, ropeTable }: AttentionInput, cache: LayerCache | null = null): Tensor {
    const { query, key, value, queryNorm, keyNorm } = this.modules;
    const { headDim } = this.sizes;
    const shard = this.#shard;
    const all_TH = shard === null ? x_TH : shard.group.enter(x_TH, positions.size);
    const [projected_TQ, projected_TC, v_TC] = this.#project(all_TH, [query, key, value]) as [Tensor, Tensor, Tensor];
    const q_TQ = queryNorm === null ? projected_TQ : queryNorm.forward(projected_TQ);
    const k_TC = keyNorm === null ? projected_TC : keyNorm.forward(projected_TC);
    // Nothing to do but to take part in the sum.
    if (shard !== null && shard.segments.length === 0)
      return shard.group.leave(nothingOf([all_TH, q_TQ, k_TC], all_TH.shape, "f32"), activationDtype(x_TH));
    ropeInPlace(q_TQ, ropeTable, positions, headDim);
    ropeInPlace(k_TC, ropeTable, positions, headDim);
    const segments = shard?.segments ?? [this.sizes];
    const options = { headDim, window: this.sizes.window, keyBase, keyEnd, scale: 1 / Math.sqrt(headDim) };
    if (cache === null) return this.#combine(attentionSegments(q_TQ, k_TC, v_TC, segments, options));
    const { k_SC, v_SC, blocks = null } = cache.append(k_TC, v_TC);
    // The cache may store another type than the model computes in: attention then runs in the cache's.
    const seen_TQ = attentionSegments(castTo(q_TQ, k_SC.dtype), k_SC, v_SC, segments, { ...options, blocks });
    return this.#combine(castTo(seen_TQ, x_TH.dtype));
  }
  /** A rank without heads gives its norms something of no width: they may look at all ranks' heads together. */
  #project(x_TH: Tensor, layers: readonly Linear[]): Tensor[] {
    if (this.sizes.numHeads > 0) return linearMany(x_TH, layers);
    return layers.map(() => nothingOf([x_TH], [x_TH.dim(0), 0], x_TH.dtype));
  }
  #combine(seen_TQ: Tensor): Tensor {
    const { output } = this.modules;
    if (this.#shard === null) return output.forward(seen_TQ);
    return this.#shard.group.leave(output.forward(seen_TQ, "f32"), activationDtype(seen_TQ));
  }
}

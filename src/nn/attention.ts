/**
 * Self-attention with grouped key-value heads: projections, optional norms of queries and keys, rotation, softmax attention,
 * output projection. Causality, packed documents and cached keys are the intervals of `AttentionInput`; this file knows
 * neither documents nor how a cache is laid out.
 *
 * Legend: T tokens, H hidden, Q = query heads * headDim, C = key-value heads * headDim, S rows of keys and values.
 */
import { attention, castTo, linearMany, ropeInPlace, type Tensor } from "../tensor/index.ts";
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
  readonly queryNorm: RmsNorm | null;
  readonly keyNorm: RmsNorm | null;
}
export interface AttentionSizes {
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  /** Keys seen at most, its own included; 0: all. */
  readonly window: number;
}

export class Attention {
  readonly modules: AttentionModules;
  readonly sizes: AttentionSizes;

  constructor(modules: AttentionModules, sizes: AttentionSizes) {
    this.modules = modules;
    this.sizes = sizes;
  }

  /** [T, H] from x [T, H]. With a cache, keyBase and keyEnd are rows of its buffers; no gradient flows through them. */
  forward(x_TH: Tensor, { positions, keyBase, keyEnd, ropeTable }: AttentionInput, cache: LayerCache | null = null): Tensor {
    const { query, key, value, output, queryNorm, keyNorm } = this.modules;
    const { headDim } = this.sizes;
    const [projected_TQ, projected_TC, v_TC] = linearMany(x_TH, [query, key, value]) as [Tensor, Tensor, Tensor];
    const q_TQ = queryNorm === null ? projected_TQ : queryNorm.forward(projected_TQ);
    const k_TC = keyNorm === null ? projected_TC : keyNorm.forward(projected_TC);
    ropeInPlace(q_TQ, ropeTable, positions, headDim);
    ropeInPlace(k_TC, ropeTable, positions, headDim);
    const options = { ...this.sizes, keyBase, keyEnd, scale: 1 / Math.sqrt(headDim) };
    if (cache === null) return output.forward(attention(q_TQ, k_TC, v_TC, options));
    const { k_SC, v_SC, blocks = null } = cache.append(k_TC, v_TC);
    // The cache may store another type than the model computes in: attention then runs in the cache's.
    const seen_TQ = attention(castTo(q_TQ, k_SC.dtype), k_SC, v_SC, { ...options, blocks });
    return output.forward(castTo(seen_TQ, x_TH.dtype));
  }
}

/**
 * Keys and values of earlier tokens, contiguous per sequence: slot s of a layer's buffers is rows s * capacity to
 * (s + 1) * capacity - 1. A forward pass appends its tokens' rows and attends over the buffers in place.
 *
 * The element type may differ from the model's (bf16 halves the memory; f32 keeps a bf16 model's keys as they were). A token's result does not
 * depend on how its sequence was cut into calls, nor on what else is in the batch. FP8 (E4M3 without scales) is a quarter of f32; see cache-rows.ts.
 *
 * Not here: pages, and who shares which beginning when (`src/generate`, `src/eval`).
 */
import { dtypeBytes } from "../backend/kernels.ts";
import type { ModelConfig } from "../config/model.ts";
import type { LayerCache } from "../nn/index.ts";
import type { Engine, Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { batchOfRuns, type Batch } from "./batch.ts";
import { storeRows, widenRows, type RowRun } from "./cache-rows.ts";

/** What keys and values may be stored in; fp8 is E4M3 without scales. */
export const cacheDtypes = ["f32", "bf16", "fp8"] as const;
export type CacheDType = (typeof cacheDtypes)[number];

export interface KvCacheOptions {
  readonly numSequences: number;
  /** Tokens that one sequence can hold. */
  readonly capacity: number;
  readonly dtype: CacheDType;
}

/** New tokens of the sequence in one slot. */
export interface CacheEntry {
  readonly slot: number;
  readonly ids: ArrayLike<number>;
}

export class KvCache implements Disposable {
  readonly options: KvCacheOptions;
  readonly #engine: Engine;
  readonly #vocabSize: number;
  readonly #layers: readonly { readonly k_SC: Tensor; readonly v_SC: Tensor }[];
  readonly #lengths: number[];
  #pending: readonly RowRun[] = [];
  /** Rows that the batch sees. */
  #seen: readonly RowRun[] = [];

  /** Allocates the buffers of all layers. The caller disposes the cache. */
  constructor(engine: Engine, config: ModelConfig, options: KvCacheOptions) {
    const { numSequences, capacity, dtype } = options;
    if (!(Number.isSafeInteger(numSequences) && numSequences > 0 && Number.isSafeInteger(capacity) && capacity > 0)) {
      throw new MoeError("configuration", `KV cache: numSequences ${numSequences} and capacity ${capacity} must be positive integers`);
    }
    this.options = options;
    this.#engine = engine;
    this.#vocabSize = config.vocabSize;
    this.#lengths = Array.from({ length: numSequences }, () => 0);
    const shape = [numSequences * capacity, config.numKvHeads * config.headDim];
    this.#layers = Array.from({ length: config.numLayers }, () => ({
      k_SC: engine.detached(shape, dtype),
      v_SC: engine.detached(shape, dtype),
    }));
  }

  /** Tokens held in a slot. */
  length(slot: number): number {
    const length = this.#lengths[slot];
    if (length === undefined) throw new MoeError("configuration", `KV cache: slot ${slot}, expected 0 to ${this.#lengths.length - 1}`);
    return length;
  }
  /** Forgets the tokens of a slot from `length` on (all by default). */
  truncate(slot: number, length = 0): void {
    if (!(length >= 0 && length <= this.length(slot))) {
      throw new MoeError("configuration", `KV cache: truncating slot ${slot} of ${this.length(slot)} tokens to ${length}`);
    }
    this.#lengths[slot] = length;
  }
  /**
   * Makes slot `to` begin as slot `from` does: its first `length` tokens, and no others. What a common beginning costs is then one copy
   * instead of a forward pass. Throws `configuration` where `from` holds fewer tokens.
   */
  fork(from: number, to: number, length: number): void {
    if (!(Number.isInteger(length) && length >= 0 && length <= this.length(from)))
      throw new MoeError("configuration", `KV cache: forking ${length} tokens of slot ${from}, which holds ${this.length(from)}`);
    this.truncate(to);
    const { capacity } = this.options;
    for (const { k_SC, v_SC } of this.#layers) {
      for (const buffer of [k_SC, v_SC]) {
        const rowBytes = buffer.dim(1) * dtypeBytes[buffer.dtype];
        const [out, source] = [buffer.ptr + to * capacity * rowBytes, buffer.ptr + from * capacity * rowBytes];
        if (from !== to && length > 0) this.#engine.backend.kernels.copyRows(out, source, length, rowBytes, rowBytes, rowBytes);
      }
    }
    this.#lengths[to] = length;
  }

  /**
   * The batch of new tokens, which the next forward pass with this cache must take: their rows are reserved from now on.
   * Slots must ascend. Throws `configuration` where a sequence would outgrow the capacity; nothing is changed then.
   */
  extend(entries: readonly CacheEntry[]): Batch {
    const { capacity } = this.options;
    for (const [i, { slot, ids }] of entries.entries()) {
      const before = entries[i - 1]?.slot ?? -1;
      if (slot <= before) throw new MoeError("configuration", `KV cache: slots must ascend, got ${slot} after ${before}`);
      if (this.length(slot) + ids.length > capacity) {
        throw new MoeError(
          "configuration",
          `KV cache: ${ids.length} tokens after ${this.length(slot)} in slot ${slot} exceed its capacity ${capacity}`,
        );
      }
    }
    const runs = entries.map(({ slot, ids }) => {
      const firstKey = slot * capacity;
      return { ids, firstPosition: this.length(slot), firstKey, firstRow: firstKey + this.length(slot) };
    });
    const batch = batchOfRuns(this.#engine, runs, this.#vocabSize);
    let fromRow = 0;
    this.#pending = runs.map(({ ids, firstRow }) => {
      const run = { fromRow, toRow: firstRow, numRows: ids.length };
      fromRow += ids.length;
      return run;
    });
    this.#seen = runs.map(({ ids, firstKey, firstRow }) => ({
      fromRow: firstKey,
      toRow: firstKey,
      numRows: firstRow + ids.length - firstKey,
    }));
    for (const { slot, ids } of entries) this.#lengths[slot] = this.length(slot) + ids.length;
    return batch;
  }

  /** What a layer's attention appends to. */
  layer(index: number): LayerCache {
    const buffers = this.#layers[index];
    if (buffers === undefined) throw new MoeError("internal", `KV cache: layer ${index} of ${this.#layers.length}`);
    return {
      append: (k_TC, v_TC) => {
        this.#store(buffers.k_SC, k_TC);
        this.#store(buffers.v_SC, v_TC);
        if (buffers.k_SC.dtype !== "fp8") return buffers;
        const widen = (buffer: Tensor): Tensor => widenRows(this.#engine, buffer, buffer.dim(0), this.#seen, k_TC.dtype);
        return { k_SC: widen(buffers.k_SC), v_SC: widen(buffers.v_SC) };
      },
    };
  }
  #store(buffer: Tensor, rows: Tensor): void {
    const numRows = this.#pending.reduce((n, run) => n + run.numRows, 0);
    if (rows.dim(0) !== numRows)
      throw new MoeError(
        "internal",
        `KV cache: ${rows.dim(0)} rows for a batch of ${numRows} tokens: the batch is not the last one of extend()`,
      );
    storeRows(buffer, rows, this.#pending);
  }

  [Symbol.dispose](): void {
    for (const { k_SC, v_SC } of this.#layers) {
      k_SC.dispose();
      v_SC.dispose();
    }
  }
}

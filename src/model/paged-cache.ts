/**
 * Keys and values in blocks of 64 tokens, for many sequences that come, share beginnings and go (PagedAttention, arXiv
 * 2309.06180). Attention reads the blocks in place through a table: 64 is the kernel's own block of keys, counted from a
 * sequence's first, so the bits are those of the contiguous `KvCache`.
 *
 * Sequences share full blocks that hold the same tokens after the same beginning (`begin` finds them, `publish` offers them), and
 * a fork shares all blocks of its original. Shared blocks are never written: who wants to append gets a copy first.
 *
 * Not here: which sequence runs when, and who gives way when blocks run out (`src/serve`).
 * Legend: S rows of all blocks, C = key-value heads * headDim.
 */
import { dtypeBytes } from "../backend/kernels.ts";
import type { ModelConfig } from "../config/model.ts";
import type { LayerCache } from "../nn/index.ts";
import type { Engine, Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { batchOfRuns, type Batch } from "./batch.ts";
import { BlockPool, emptyChain } from "./block-pool.ts";
import { storeRows, widenRows, type RowRun } from "./cache-rows.ts";
import type { KvCacheOptions } from "./kv-cache.ts";

/** Tokens of one block: the attention kernel's block of keys. */
export const blockTokens = 64;

export interface PagedCacheOptions {
  readonly numBlocks: number;
  readonly dtype: KvCacheOptions["dtype"];
}

/** A sequence's part of the cache. Made by `begin` and `fork`, ended by `release`. */
export interface PagedSequence {
  /** Blocks of its tokens, in order, and of tokens that were reserved. */
  readonly blocks: readonly number[];
  /** Tokens held. */
  readonly length: number;
}

class Sequence implements PagedSequence {
  blocks: number[] = [];
  length = 0;
  /** Its first blocks that are published, and the chain that they make. */
  numPublished = 0;
  chain = emptyChain;
  released = false;
}

/** New tokens of a sequence. */
export interface PagedEntry {
  readonly sequence: PagedSequence;
  readonly ids: ArrayLike<number>;
}

export class PagedCache implements Disposable {
  readonly options: PagedCacheOptions;
  readonly #engine: Engine;
  readonly #vocabSize: number;
  readonly #pool: BlockPool;
  readonly #layers: readonly { readonly k_SC: Tensor; readonly v_SC: Tensor }[];
  #pending: {
    readonly runs: readonly RowRun[];
    readonly table: readonly number[];
    readonly blocks: Tensor;
    readonly numRows: number;
  } | null = null;

  /** Allocates the buffers of all layers. The caller disposes the cache. */
  constructor(engine: Engine, config: ModelConfig, options: PagedCacheOptions) {
    this.options = options;
    this.#engine = engine;
    this.#vocabSize = config.vocabSize;
    this.#pool = new BlockPool(options.numBlocks);
    const shape = [options.numBlocks * blockTokens, config.numKvHeads * config.headDim];
    this.#layers = Array.from({ length: config.numLayers }, () => ({
      k_SC: engine.detached(shape, options.dtype),
      v_SC: engine.detached(shape, options.dtype),
    }));
  }

  /** Bytes of one block in all layers. */
  static blockBytes(config: ModelConfig, dtype: KvCacheOptions["dtype"]): number {
    return blockTokens * config.numLayers * 2 * config.numKvHeads * config.headDim * dtypeBytes[dtype];
  }
  /** Blocks that are free or hold only what nobody uses at the moment. */
  get numFreeBlocks(): number {
    return this.#pool.numFree;
  }
  /** Blocks that nobody uses and that are kept for who may begin the same way. */
  get numIdleBlocks(): number {
    return this.#pool.numIdle;
  }

  /**
   * A sequence that begins with as many whole blocks of these ids as some sequence published, but never with all of them: the last token's
   * hidden state is not kept, so one token at least is left to compute.
   */
  begin(ids: ArrayLike<number>): PagedSequence {
    const sequence = new Sequence();
    while (sequence.length + blockTokens < ids.length) {
      const found = this.#pool.find(sequence.chain, blockIds(ids, sequence.length));
      if (found === null) break;
      this.#pool.retain(found.block);
      sequence.blocks.push(found.block);
      sequence.chain = found.chain;
      sequence.numPublished++;
      sequence.length += blockTokens;
    }
    return sequence;
  }
  /** A sequence that shares the first `length` tokens of another. */
  fork(from: PagedSequence, length: number): PagedSequence {
    const source = own(from);
    if (!(Number.isInteger(length) && length >= 0 && length <= source.length))
      throw new MoeError("configuration", `paged cache: forking ${length} tokens of a sequence that holds ${source.length}`);
    const sequence = new Sequence();
    sequence.blocks = source.blocks.slice(0, Math.ceil(length / blockTokens));
    for (const block of sequence.blocks) this.#pool.retain(block);
    sequence.length = length;
    if (source.numPublished * blockTokens <= length) {
      sequence.numPublished = source.numPublished;
      sequence.chain = source.chain;
    }
    return sequence;
  }
  /** Ends a sequence. Its published blocks stay findable until their memory is needed. */
  release(sequence: PagedSequence): void {
    const state = own(sequence);
    for (const block of state.blocks.toReversed()) this.#pool.release(block);
    state.blocks = [];
    state.length = 0;
    state.released = true;
  }
  /** Forgets the tokens from `length` on, which must not have been published, and blocks that are then not needed. */
  truncate(sequence: PagedSequence, length: number): void {
    const state = own(sequence);
    if (!(length >= state.numPublished * blockTokens && length <= state.length)) {
      throw new MoeError(
        "configuration",
        `paged cache: truncating ${state.length} tokens to ${length}, of which ${state.numPublished * blockTokens} are published`,
      );
    }
    state.length = length;
    const needed = Math.ceil(length / blockTokens);
    while (state.blocks.length > needed) this.#pool.release(state.blocks.pop() ?? -1);
  }
  /**
   * Offers the full blocks of a sequence to others. `ids` are its tokens, as many as it holds at least. Publishing more than once costs
   * nothing.
   */
  publish(sequence: PagedSequence, ids: ArrayLike<number>): void {
    const state = own(sequence);
    if (ids.length < state.length)
      throw new MoeError("internal", `paged cache: ${ids.length} ids for a sequence of ${state.length} tokens`);
    while ((state.numPublished + 1) * blockTokens <= state.length) {
      const n = state.numPublished;
      const published = this.#pool.publish(state.blocks[n] ?? -1, state.chain, blockIds(ids, n * blockTokens));
      state.blocks[n] = published.block;
      state.chain = published.chain;
      state.numPublished++;
    }
  }
  /** Forgets published blocks that nobody uses. */
  clearPublished(): void {
    this.#pool.clear();
  }

  /** Blocks that `reserve` would take. */
  blocksFor(sequence: PagedSequence, count: number): number {
    const last = this.#sharedLast(own(sequence)) ? 1 : 0;
    return Math.max(0, Math.ceil((sequence.length + count) / blockTokens) - sequence.blocks.length) + last;
  }
  /** Makes room for `count` more tokens. False, and nothing is changed, where there are not enough blocks. */
  reserve(sequence: PagedSequence, count: number): boolean {
    const state = own(sequence);
    if (count <= 0 || this.blocksFor(state, count) > this.#pool.numFree) return count <= 0;
    if (this.#sharedLast(state)) this.#copyLast(state);
    while (state.blocks.length * blockTokens < state.length + count) state.blocks.push(this.#allocate());
    return true;
  }
  /** Whether the next token goes into a block that others may read. */
  #sharedLast({ blocks, length }: Sequence): boolean {
    const block = length % blockTokens === 0 ? undefined : blocks[Math.floor(length / blockTokens)];
    return block !== undefined && !this.#pool.isPrivate(block);
  }
  #copyLast(state: Sequence): void {
    const index = Math.floor(state.length / blockTokens);
    const from = state.blocks[index] ?? -1;
    const to = this.#allocate();
    for (const { k_SC, v_SC } of this.#layers) {
      for (const buffer of [k_SC, v_SC]) {
        const rowBytes = buffer.dim(1) * dtypeBytes[buffer.dtype];
        const at = (block: number): number => buffer.ptr + block * blockTokens * rowBytes;
        this.#engine.backend.kernels.copyRows(at(to), at(from), state.length % blockTokens, rowBytes, rowBytes, rowBytes);
      }
    }
    state.blocks[index] = to;
    this.#pool.release(from);
  }
  #allocate(): number {
    const block = this.#pool.allocate();
    if (block === null) throw new MoeError("internal", "paged cache: no block left after the count said there was one");
    return block;
  }

  /**
   * The batch of new tokens, which the next forward pass with this cache must take. Each sequence at most once, with room reserved. Throws
   * `internal` where there is none, `configuration` for ids outside the vocabulary; nothing is changed then.
   */
  extend(entries: readonly PagedEntry[]): Batch {
    for (const { sequence, ids } of entries) {
      if (this.#sharedLast(own(sequence)) || sequence.blocks.length * blockTokens < sequence.length + ids.length)
        throw new MoeError("internal", `paged cache: ${ids.length} tokens after ${sequence.length} were not reserved`);
    }
    let firstKey = 0;
    const runs = entries.map(({ sequence, ids }) => {
      // Rows of the table's space: sequences one after another, block after block.
      const run = { ids, firstPosition: sequence.length, firstKey, firstRow: firstKey + sequence.length };
      firstKey += Math.ceil((sequence.length + ids.length) / blockTokens) * blockTokens;
      return run;
    });
    const batch = batchOfRuns(this.#engine, runs, this.#vocabSize);
    const table = entries.flatMap(({ sequence, ids }) => sequence.blocks.slice(0, Math.ceil((sequence.length + ids.length) / blockTokens)));
    this.#pending = {
      runs: copyRuns(entries),
      table,
      blocks: this.#engine.from(table, [table.length], "i32"),
      numRows: batch.ids.size,
    };
    for (const { sequence, ids } of entries) own(sequence).length += ids.length;
    return batch;
  }

  /** What a layer's attention appends to. */
  layer(index: number): LayerCache {
    const buffers = this.#layers[index];
    if (buffers === undefined) throw new MoeError("internal", `paged cache: layer ${index} of ${this.#layers.length}`);
    return {
      append: (k_TC, v_TC) => {
        if (this.#pending === null || k_TC.dim(0) !== this.#pending.numRows)
          throw new MoeError("internal", `paged cache: ${k_TC.dim(0)} rows: the batch is not the last one of extend()`);
        const { runs, table, blocks } = this.#pending;
        storeRows(buffers.k_SC, k_TC, runs);
        storeRows(buffers.v_SC, v_TC, runs);
        if (this.options.dtype !== "fp8") return { ...buffers, blocks };
        // Widened one after another, the blocks lie in a row as the table has them.
        const pages = table.map((block, i) => ({ fromRow: block * blockTokens, toRow: i * blockTokens, numRows: blockTokens }));
        const widen = (buffer: Tensor): Tensor => widenRows(this.#engine, buffer, table.length * blockTokens, pages, k_TC.dtype);
        return { k_SC: widen(buffers.k_SC), v_SC: widen(buffers.v_SC) };
      },
    };
  }
  [Symbol.dispose](): void {
    for (const { k_SC, v_SC } of this.#layers) {
      k_SC.dispose();
      v_SC.dispose();
    }
  }
}

function own(sequence: PagedSequence): Sequence {
  if (!(sequence instanceof Sequence) || sequence.released)
    throw new MoeError("internal", "paged cache: a sequence that was released, or not made by a paged cache");
  return sequence;
}

function blockIds(ids: ArrayLike<number>, from: number): number[] {
  return Array.from({ length: blockTokens }, (_, i) => ids[from + i] ?? -1);
}

/** Rows of a batch that go to rows of the buffers: one run a block that is touched. */
function copyRuns(entries: readonly PagedEntry[]): RowRun[] {
  const runs: RowRun[] = [];
  let fromRow = 0;
  for (const { sequence, ids } of entries) {
    for (let done = 0; done < ids.length;) {
      const at = sequence.length + done;
      const numRows = Math.min(ids.length - done, blockTokens - (at % blockTokens));
      const block = sequence.blocks[Math.floor(at / blockTokens)] ?? 0;
      runs.push({ fromRow, toRow: block * blockTokens + (at % blockTokens), numRows });
      fromRow += numRows;
      done += numRows;
    }
  }
  return runs;
}

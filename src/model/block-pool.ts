/**
 * Which blocks of a paged KV cache are whose: reference counts, the index of finished blocks by content, and which block to
 * give up next. Bookkeeping only; no tensor is touched here (`paged-cache.ts` does).
 *
 * A block holds `blockTokens` consecutive tokens of a sequence. Once full it can be *published* under a key: the identity of
 * the chain of blocks before it and its own ids. Chains are numbered, so a key is exact where the hashes of other servers are
 * only improbable to collide (PagedAttention, arXiv 2309.06180, section 4.4): a request never sees another's keys.
 *
 * A block without users stays in the index until its memory is needed: least recently released first, and of one sequence the
 * last block first, so that a block never outlives the beginning that makes it findable.
 */
import { MoeError } from "../util/errors.ts";

interface Block {
  references: number;
  /** Key in the index, or null. */
  key: string | null;
  /** Number of the chain that ends with this block; set while it is in the index. */
  chain: number;
}

/** A block and the chain that it ends. */
export interface PublishedBlock {
  readonly block: number;
  readonly chain: number;
}

/** The chain of no blocks. */
export const emptyChain = 0;

export class BlockPool {
  readonly numBlocks: number;
  readonly #blocks: readonly Block[];
  /** Blocks that nobody uses and that hold nothing. */
  readonly #empty: number[];
  /** Blocks that nobody uses and that are in the index; the first was released longest ago. */
  readonly #idle = new Set<number>();
  readonly #index = new Map<string, number>();
  #lastChain = emptyChain;

  constructor(numBlocks: number) {
    if (!(Number.isSafeInteger(numBlocks) && numBlocks > 0))
      throw new MoeError("configuration", `block pool: expected a positive number of blocks, got ${numBlocks}`);
    this.numBlocks = numBlocks;
    this.#blocks = Array.from({ length: numBlocks }, () => ({ references: 0, key: null, chain: emptyChain }));
    this.#empty = Array.from({ length: numBlocks }, (_, i) => numBlocks - 1 - i);
  }

  /** Blocks that can be had without taking one from a user. */
  get numFree(): number {
    return this.#empty.length + this.#idle.size;
  }
  /** Blocks without users that are kept for what they hold. */
  get numIdle(): number {
    return this.#idle.size;
  }
  references(block: number): number {
    return this.#at(block).references;
  }

  /** Whether its only user may write to it: nobody else reads it, and nobody may find it later. */
  isPrivate(block: number): boolean {
    const { references, key } = this.#at(block);
    return references === 1 && key === null;
  }

  /** A block with one user and undefined contents; null where all are in use. */
  allocate(): number | null {
    const block = this.#empty.pop() ?? this.#evict();
    if (block === null) return null;
    this.#at(block).references = 1;
    return block;
  }
  #evict(): number | null {
    const [oldest] = this.#idle;
    if (oldest === undefined) return null;
    this.#idle.delete(oldest);
    this.#unpublish(oldest);
    return oldest;
  }
  #unpublish(block: number): void {
    const state = this.#at(block);
    if (state.key !== null) this.#index.delete(state.key);
    state.key = null;
  }

  /** One more user. */
  retain(block: number): void {
    if (this.#at(block).references++ === 0) this.#idle.delete(block);
  }
  /** One user fewer. Release the blocks of a sequence from its last to its first. */
  release(block: number): void {
    const state = this.#at(block);
    if (state.references === 0) throw new MoeError("internal", `block pool: block ${block} released more often than retained`);
    if (--state.references > 0) return;
    if (state.key === null) this.#empty.push(block);
    else this.#idle.add(block);
  }

  /** The published block with these tokens after the blocks of `chain`. It is not retained. */
  find(chain: number, ids: ArrayLike<number>): PublishedBlock | null {
    const block = this.#index.get(keyOf(chain, ids));
    return block === undefined ? null : { block, chain: this.#at(block).chain };
  }
  /**
   * Puts a full block of the caller's into the index. Where its content is there already, the caller's reference moves to the block that
   * holds it, and the caller's own is released: their bits are equal.
   */
  publish(block: number, chain: number, ids: ArrayLike<number>): PublishedBlock {
    const key = keyOf(chain, ids);
    const other = this.#index.get(key);
    if (other !== undefined) {
      if (other !== block) {
        this.retain(other);
        this.release(block);
      }
      return { block: other, chain: this.#at(other).chain };
    }
    const state = this.#at(block);
    state.key = key;
    state.chain = ++this.#lastChain;
    this.#index.set(key, block);
    return { block, chain: state.chain };
  }
  /** Forgets what idle blocks hold. */
  clear(): void {
    for (const block of this.#idle) {
      this.#unpublish(block);
      this.#empty.push(block);
    }
    this.#idle.clear();
  }

  #at(block: number): Block {
    const state = this.#blocks[block];
    if (state === undefined) throw new MoeError("internal", `block pool: block ${block} of ${this.numBlocks}`);
    return state;
  }
}

function keyOf(chain: number, ids: ArrayLike<number>): string {
  return `${chain}:${Array.prototype.join.call(ids, ",")}`;
}

/**
 * The merge loop of byte-pair encoding (Sennrich, Haddow, Birch: "Neural Machine Translation of Rare Words with Subword
 * Units", arXiv 1508.07909): while any adjacent pair is in the table, replace the pair of the lowest rank, the leftmost
 * of them first. The same loop serves merges that a file lists (rank = line number, as in tokenizer.json) and
 * SentencePiece's scores (rank = order of the merged piece's score, pieces of equal score share a rank).
 *
 * It knows ids only: splitting text into words and characters is done before, unknown characters after. Negative ids
 * are symbols that can never merge. Short words scan for the best pair; long ones use a heap, so that a text without
 * any word boundary is O(n log n), not O(n^2). Both do the same merges.
 */

import { MoeError } from "../util/errors.ts";
import { PairMap } from "./pair-map.ts";

/** Longest word for which scanning beats the heap. */
const scanLimit = 32;
/** Heap keys are rank * 2^26 + position in a double, exact for both below these. */
const maxSymbols = 2 ** 26;
const maxRank = 2 ** 26;

export interface Merge {
  readonly left: number;
  readonly right: number;
  readonly result: number;
  readonly rank: number;
}

export class MergeTable {
  readonly #index: PairMap;
  readonly #ranks: Int32Array;
  readonly #results: Int32Array;
  #ranksOfPairs = new Int32Array(scanLimit);

  /** `merges` in file order. Of a pair listed twice, the last one counts, or the first with `firstWins`. */
  constructor(merges: readonly Merge[], firstWins = false) {
    this.#index = new PairMap(merges.length);
    this.#ranks = new Int32Array(merges.length);
    this.#results = new Int32Array(merges.length);
    merges.forEach((merge, i) => {
      if (merge.rank >= maxRank) throw new MoeError("unsupported", `BPE merges: at most ${maxRank} ranks, got ${merge.rank}`);
      this.#ranks[i] = merge.rank;
      this.#results[i] = merge.result;
      if (!firstWins || this.#index.get(merge.left, merge.right) < 0) this.#index.set(merge.left, merge.right, i);
    });
  }

  /**
   * Merges `symbols[0..count)` in place and returns the new count. `onMerge` hears of each merge (SentencePiece needs
   * it to undo the ones that end in an unused piece).
   */
  apply(symbols: Int32Array, count: number, onMerge?: (left: number, right: number, result: number) => void): number {
    if (count < 2) return count;
    if (count > maxSymbols) {
      throw new MoeError("unsupported", `BPE: a word of at most ${maxSymbols} characters, got ${count}; encode the text in parts`);
    }
    return count <= scanLimit ? this.#scan(symbols, count, onMerge) : this.#heap(symbols, count, onMerge);
  }

  #find(left: number, right: number): number {
    return left < 0 || right < 0 ? -1 : this.#index.get(left, right);
  }

  #scan(symbols: Int32Array, count: number, onMerge?: (left: number, right: number, result: number) => void): number {
    const entries = this.#ranksOfPairs;
    for (let i = 0; i + 1 < count; i++) entries[i] = this.#find(symbols[i] as number, symbols[i + 1] as number);
    let length = count;
    for (;;) {
      let best = -1;
      let bestRank = maxRank;
      for (let i = 0; i + 1 < length; i++) {
        const entry = entries[i] as number;
        if (entry >= 0 && (this.#ranks[entry] as number) < bestRank) {
          best = i;
          bestRank = this.#ranks[entry] as number;
        }
      }
      if (best < 0) return length;
      const result = this.#results[entries[best] as number] as number;
      onMerge?.(symbols[best] as number, symbols[best + 1] as number, result);
      symbols[best] = result;
      symbols.copyWithin(best + 1, best + 2, length);
      entries.copyWithin(best, best + 1, length - 1);
      length--;
      if (best > 0) entries[best - 1] = this.#find(symbols[best - 1] as number, result);
      if (best + 1 < length) entries[best] = this.#find(result, symbols[best + 1] as number);
    }
  }

  #heap(symbols: Int32Array, count: number, onMerge?: (left: number, right: number, result: number) => void): number {
    const next = new Int32Array(count);
    const previous = new Int32Array(count);
    const heap = new KeyHeap(count * 3);
    const offer = (at: number, after: number): void => {
      const entry = this.#find(symbols[at] as number, symbols[after] as number);
      if (entry >= 0) heap.push((this.#ranks[entry] as number) * maxSymbols + at);
    };
    for (let i = 0; i < count; i++) {
      next[i] = i + 1 < count ? i + 1 : -1;
      previous[i] = i - 1;
      if (i + 1 < count) offer(i, i + 1);
    }
    const alive = new Uint8Array(count).fill(1);
    while (heap.size > 0) {
      const key = heap.pop();
      const at = key % maxSymbols;
      const after = next[at] as number;
      if (alive[at] === 0 || after < 0) continue;
      const entry = this.#find(symbols[at] as number, symbols[after] as number);
      // A stale offer: the pair that stood here has been merged away meanwhile.
      if (entry < 0 || this.#ranks[entry] !== Math.floor(key / maxSymbols)) continue;
      const result = this.#results[entry] as number;
      onMerge?.(symbols[at] as number, symbols[after] as number, result);
      symbols[at] = result;
      alive[after] = 0;
      const beyond = next[after] as number;
      next[at] = beyond;
      if (beyond >= 0) {
        previous[beyond] = at;
        offer(at, beyond);
      }
      const before = previous[at] as number;
      if (before >= 0) offer(before, at);
    }
    let length = 0;
    for (let i = 0; i >= 0; i = next[i] as number) symbols[length++] = symbols[i] as number;
    return length;
  }
}

/** A binary min-heap of doubles with a fixed capacity. */
class KeyHeap {
  readonly #keys: Float64Array;
  size = 0;

  constructor(capacity: number) {
    this.#keys = new Float64Array(capacity);
  }

  push(key: number): void {
    const keys = this.#keys;
    let i = this.size++;
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if ((keys[parent] as number) <= key) break;
      keys[i] = keys[parent] as number;
      i = parent;
    }
    keys[i] = key;
  }

  pop(): number {
    const keys = this.#keys;
    const top = keys[0] as number;
    const key = keys[--this.size] as number;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= this.size) break;
      if (child + 1 < this.size && (keys[child + 1] as number) < (keys[child] as number)) child++;
      if ((keys[child] as number) >= key) break;
      keys[i] = keys[child] as number;
      i = child;
    }
    keys[i] = key;
    return top;
  }
}

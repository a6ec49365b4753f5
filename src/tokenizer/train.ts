/**
 * Training a byte-level BPE vocabulary (Sennrich et al., arXiv 1508.07909; bytes as in GPT-2). Texts are cut into words
 * by GPT-2's pattern, equal words are counted once, and the most frequent adjacent pair of symbols becomes a new piece
 * until the vocabulary is full. Counts are kept up to date from the words that a merge touches, never recounted.
 *
 * Deterministic: of pairs that are equally frequent, the one with the smaller left id wins, then the smaller right id.
 * This is the rule, and the order of ids (special tokens, the 256 bytes in the order of their alphabet, merges), of
 * tokenizers' `BpeTrainer`; a test compares the two.
 */

import { MoeError } from "../util/errors.ts";
import { byteAlphabet } from "./bytes.ts";
import { PairMap } from "./pair-map.ts";
import { gpt2Pattern } from "./pattern.ts";

export interface TrainOptions {
  /** Pieces in all: special tokens, 256 bytes and merges. Fewer come out when the text has no more pairs. */
  readonly vocabSize: number;
  /** Control tokens, with ids from 0 in this order. */
  readonly specialTokens: readonly string[];
  /** Which of them ends a text; becomes the eos token. */
  readonly eosToken?: string;
  /** Which of them begins a text; becomes the bos token and is put before every encoded text. */
  readonly bosToken?: string;
  readonly padToken?: string;
  /** Pairs seen less often are not merged. Default 1. */
  readonly minFrequency?: number;
}

/** The values of `tokenizer.json` and `tokenizer_config.json`; `buildHuggingFaceTokenizer` takes them as they are. */
export interface TrainedTokenizer {
  readonly tokenizerJson: Readonly<Record<string, unknown>>;
  readonly tokenizerConfig: Readonly<Record<string, unknown>>;
}

/**
 * A byte-level BPE tokenizer of `texts`.
 *
 * @example
 * const files = trainByteBpe(["to be or not to be"], { vocabSize: 300, specialTokens: ["<|end|>"], eosToken: "<|end|>" });
 * const tokenizer = buildHuggingFaceTokenizer(files);
 *
 * @throws MoeError of kind `configuration` for a vocabulary too small to hold the bytes or a token that is not listed.
 */
export function trainByteBpe(texts: Iterable<string>, options: TrainOptions): TrainedTokenizer {
  const { vocabSize, specialTokens } = options;
  const base = specialTokens.length + 256;
  if (!Number.isInteger(vocabSize) || vocabSize < base || vocabSize > 2 ** 20) {
    throw new MoeError(
      "configuration",
      `trainByteBpe: vocabSize must hold ${specialTokens.length} special tokens and 256 bytes, so ${base} to ${2 ** 20}; got ${vocabSize}`,
    );
  }
  if (new Set(specialTokens).size !== specialTokens.length || specialTokens.includes("")) {
    throw new MoeError(
      "configuration",
      `trainByteBpe: specialTokens must be different and not empty, got ${JSON.stringify(specialTokens)}`,
    );
  }
  for (const token of [options.eosToken, options.bosToken, options.padToken]) {
    if (token !== undefined && !specialTokens.includes(token)) {
      throw new MoeError(
        "configuration",
        `trainByteBpe: ${JSON.stringify(token)} must be one of specialTokens ${JSON.stringify(specialTokens)}`,
      );
    }
  }
  const alphabet = byteAlphabet();
  const sorted = Uint16Array.from(alphabet).sort();
  const pieces = [...specialTokens, ...Array.from(sorted, (codePoint) => String.fromCharCode(codePoint))];
  const idOfByte = Int32Array.from(alphabet, (codePoint) => specialTokens.length + sorted.indexOf(codePoint));
  const words = new Words(countWords(texts), idOfByte);
  const merges = learnMerges(words, pieces, vocabSize, Math.max(1, options.minFrequency ?? 1));
  return { tokenizerJson: tokenizerJson(pieces, merges, options), tokenizerConfig: tokenizerConfig(options) };
}

function countWords(texts: Iterable<string>): Map<string, number> {
  const counts = new Map<string, number>();
  const pattern = gpt2Pattern();
  for (const text of texts) {
    for (const word of text.toWellFormed().match(pattern) ?? []) {
      const count = counts.get(word);
      if (count !== undefined) counts.set(word, count + 1);
      // A long slice would keep the whole text alive.
      else counts.set(word.length < 13 ? word : ` ${word}`.slice(1), 1);
    }
  }
  return counts;
}

/** The distinct words as rows of symbols that shrink in place. */
class Words {
  readonly symbols: Int32Array;
  readonly starts: Int32Array;
  readonly lengths: Int32Array;
  readonly counts: Float64Array;

  constructor(words: ReadonlyMap<string, number>, idOfByte: Int32Array) {
    const encoder = new TextEncoder();
    this.starts = new Int32Array(words.size);
    this.lengths = new Int32Array(words.size);
    this.counts = Float64Array.from(words.values());
    let total = 0;
    const rows = Array.from(words.keys(), (word, i) => {
      const row = encoder.encode(word);
      this.starts[i] = total;
      this.lengths[i] = row.length;
      total += row.length;
      return row;
    });
    this.symbols = new Int32Array(total);
    rows.forEach((row, i) =>
      this.symbols.set(
        Int32Array.from(row, (byte) => idOfByte[byte] as number),
        this.starts[i],
      ),
    );
  }
}

interface Pair {
  readonly left: number;
  readonly right: number;
  count: number;
  /** Words that may hold the pair; may name a word twice or one that no longer does. */
  words: number[];
}

/** All pairs met so far, by their two symbols. */
class Pairs {
  readonly all: Pair[] = [];
  readonly #index = new PairMap(1 << 16);

  /** Adds `delta` to the count of (left, right), which `word` holds from now on if `delta` is positive. */
  add(left: number, right: number, delta: number, word: number): number {
    let at = this.#index.get(left, right);
    if (at < 0) {
      at = this.all.length;
      this.#index.set(left, right, at);
      this.all.push({ left, right, count: 0, words: [] });
    }
    const pair = this.all[at] as Pair;
    pair.count += delta;
    if (delta > 0 && pair.words.at(-1) !== word) pair.words.push(word);
    return at;
  }
}

/** Appends the new pieces to `pieces` and returns the merges in order. */
function learnMerges(words: Words, pieces: string[], vocabSize: number, minFrequency: number): [string, string][] {
  const pairs = new Pairs();
  for (let word = 0; word < words.starts.length; word++) {
    const start = words.starts[word] as number;
    const end = start + (words.lengths[word] as number);
    for (let i = start; i + 1 < end; i++)
      pairs.add(words.symbols[i] as number, words.symbols[i + 1] as number, words.counts[word] as number, word);
  }
  const queue = new PairQueue();
  for (const pair of pairs.all) queue.push(pair);
  const idOf = new Map(pieces.map((piece, id) => [piece, id]));
  const merges: [string, string][] = [];
  while (pieces.length < vocabSize) {
    const best = queue.pop();
    if (best === undefined || best.count < minFrequency) break;
    const left = pieces[best.left] as string;
    const right = pieces[best.right] as string;
    let id = idOf.get(left + right);
    if (id === undefined) {
      id = pieces.length;
      pieces.push(left + right);
      idOf.set(left + right, id);
    }
    merges.push([left, right]);
    const changed = new Set<number>();
    const touched = new Set(best.words);
    best.words = [];
    for (const word of touched) mergeInWord(words, word, best, id, pairs, changed);
    for (const at of changed) {
      const pair = pairs.all[at] as Pair;
      if (pair.count > 0) queue.push(pair);
    }
  }
  return merges;
}

/** Replaces `pair` by `id` in one word and corrects the counts of the neighbours; `changed` collects pairs that grew. */
function mergeInWord(words: Words, word: number, pair: Pair, id: number, pairs: Pairs, changed: Set<number>): void {
  const { symbols } = words;
  const start = words.starts[word] as number;
  const end = start + (words.lengths[word] as number);
  const count = words.counts[word] as number;
  let to = start;
  for (let i = start; i < end; i++) {
    if (symbols[i] !== pair.left || i + 1 >= end || symbols[i + 1] !== pair.right) {
      symbols[to++] = symbols[i] as number;
      continue;
    }
    if (to > start) {
      pairs.add(symbols[to - 1] as number, pair.left, -count, word);
      changed.add(pairs.add(symbols[to - 1] as number, id, count, word));
    }
    if (i + 2 < end) {
      pairs.add(pair.right, symbols[i + 2] as number, -count, word);
      changed.add(pairs.add(id, symbols[i + 2] as number, count, word));
    }
    symbols[to++] = id;
    i++;
  }
  words.lengths[word] = to - start;
}

/** Most frequent pair first. An entry remembers the count it was filed under; a pair that lost some is filed again. */
class PairQueue {
  readonly #heap: { readonly pair: Pair; readonly count: number }[] = [];

  push(pair: Pair): void {
    const heap = this.#heap;
    const entry = { pair, count: pair.count };
    let i = heap.length;
    heap.push(entry);
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (!before(entry, heap[parent] as typeof entry)) break;
      heap[i] = heap[parent] as typeof entry;
      i = parent;
    }
    heap[i] = entry;
  }

  /** The best pair with its true count, or undefined when none is left. */
  pop(): Pair | undefined {
    for (;;) {
      const top = this.#take();
      if (top === undefined) return undefined;
      if (top.count === top.pair.count) return top.pair;
      if (top.pair.count > 0) this.push(top.pair);
    }
  }

  #take(): { readonly pair: Pair; readonly count: number } | undefined {
    const heap = this.#heap;
    const top = heap[0];
    const entry = heap.pop();
    if (top === undefined || entry === undefined || heap.length === 0) return top;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && before(heap[child + 1] as typeof entry, heap[child] as typeof entry)) child++;
      if (!before(heap[child] as typeof entry, entry)) break;
      heap[i] = heap[child] as typeof entry;
      i = child;
    }
    heap[i] = entry;
    return top;
  }
}

type Entry = { readonly pair: Pair; readonly count: number };

function before(a: Entry, b: Entry): boolean {
  if (a.count !== b.count) return a.count > b.count;
  if (a.pair.left !== b.pair.left) return a.pair.left < b.pair.left;
  return a.pair.right < b.pair.right;
}

function tokenizerJson(pieces: readonly string[], merges: readonly [string, string][], options: TrainOptions): Record<string, unknown> {
  const { specialTokens, bosToken } = options;
  const bos = { SpecialToken: { id: bosToken, type_id: 0 } };
  const text = { Sequence: { id: "A", type_id: 0 } };
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: specialTokens.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor:
      bosToken === undefined
        ? null
        : {
            type: "TemplateProcessing",
            single: [bos, text],
            pair: [bos, text, { Sequence: { id: "B", type_id: 1 } }],
            special_tokens: { [bosToken]: { id: bosToken, ids: [specialTokens.indexOf(bosToken)], tokens: [bosToken] } },
          },
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(pieces.map((piece, id) => [piece, id])),
      merges,
    },
  };
}

function tokenizerConfig(options: TrainOptions): Record<string, unknown> {
  return {
    tokenizer_class: "PreTrainedTokenizerFast",
    clean_up_tokenization_spaces: false,
    ...(options.bosToken === undefined ? {} : { bos_token: options.bosToken }),
    ...(options.eosToken === undefined ? {} : { eos_token: options.eosToken }),
    ...(options.padToken === undefined ? {} : { pad_token: options.padToken }),
  };
}

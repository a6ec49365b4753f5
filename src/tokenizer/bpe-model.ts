/**
 * From a word to ids by byte-pair encoding, in the two kinds there are.
 *
 * - `ByteLevelBpe` (GPT-2, Llama 3, Qwen, SmolLM): the symbols are the UTF-8 bytes of the word.
 * - `CharacterBpe` (Llama 2, Mistral, Gemma, SentencePiece's BPE): the symbols are the characters; one that is not in
 *   the vocabulary becomes its bytes (byte fallback) or the unknown token.
 *
 * Both remember the words they have seen. Splitting text into words is not done here (pretokenize.ts), except that
 * `CharacterBpe` cuts before a U+2581 that follows another character, when no piece of the vocabulary crosses such a
 * place: merges then never cross it either, so the ids are the same and words can be remembered.
 */

import { byteAlphabet, toByteLevel } from "./bytes.ts";
import type { MergeTable } from "./bpe.ts";
import type { IdBuffer } from "./id-buffer.ts";
import { WordCache } from "./word-cache.ts";

/** What every model is to the pipeline: one pre-tokenized word to ids. */
export interface WordModel {
  encodeWord(word: string, out: IdBuffer): void;
}

export interface ByteLevelBpeOptions {
  readonly merges: MergeTable;
  readonly pieceToId: ReadonlyMap<string, number>;
  /** A word that is a piece is that piece, whatever the merges say (Llama 3). */
  readonly ignoreMerges: boolean;
  /** Id for a byte that the vocabulary lacks; without one such bytes are left out. */
  readonly unkId: number | undefined;
}

export class ByteLevelBpe implements WordModel {
  readonly #options: ByteLevelBpeOptions;
  readonly #alphabet = byteAlphabet();
  readonly #byteIds: Int32Array;
  readonly #cache = new WordCache();
  readonly #encoder = new TextEncoder();
  #bytes = new Uint8Array(256);
  #symbols = new Int32Array(256);

  constructor(options: ByteLevelBpeOptions) {
    this.#options = options;
    this.#byteIds = Int32Array.from(this.#alphabet, (codePoint) => options.pieceToId.get(String.fromCharCode(codePoint)) ?? -1);
  }

  encodeWord(word: string, out: IdBuffer): void {
    const known = this.#cache.get(word);
    if (known !== undefined) {
      out.pushAll(known);
      return;
    }
    const ids = this.#encode(word);
    this.#cache.set(word, ids);
    out.pushAll(ids);
  }

  #encode(word: string): Int32Array {
    if (this.#options.ignoreMerges && word.length <= 512) {
      const id = this.#options.pieceToId.get(toByteLevel(word, this.#alphabet));
      if (id !== undefined) return Int32Array.of(id);
    }
    if (this.#bytes.length < word.length * 3) {
      this.#bytes = new Uint8Array(word.length * 3);
      this.#symbols = new Int32Array(word.length * 3);
    }
    const { written } = this.#encoder.encodeInto(word, this.#bytes);
    let count = 0;
    for (let i = 0; i < written; i++) {
      const id = this.#byteIds[this.#bytes[i] as number] as number;
      if (id >= 0) this.#symbols[count++] = id;
      else if (this.#options.unkId !== undefined) this.#symbols[count++] = this.#options.unkId;
    }
    count = this.#options.merges.apply(this.#symbols, count);
    return this.#symbols.slice(0, count);
  }
}

export interface CharacterBpeOptions {
  readonly merges: MergeTable;
  /** Id of each single character that merges know; ids from `vocabSize` up are characters without a piece of their own. */
  readonly characterIds: ReadonlyMap<string, number>;
  readonly vocabSize: number;
  readonly pieceToId: ReadonlyMap<string, number>;
  readonly ignoreMerges: boolean;
  /** Ids of the 256 byte tokens, when the model falls back to bytes. */
  readonly byteIds: Int32Array | undefined;
  readonly unkId: number | undefined;
  /** One unknown id for a run of unknown characters. */
  readonly fuseUnk: boolean;
  /** Pieces that may be merged through but not be produced: they are taken apart again. */
  readonly unused: ReadonlySet<number>;
  /** No piece holds U+2581 after another character, see the header. */
  readonly splitsAtSpaces: boolean;
}

export class CharacterBpe implements WordModel {
  readonly #options: CharacterBpeOptions;
  readonly #cache = new WordCache();
  readonly #encoder = new TextEncoder();

  constructor(options: CharacterBpeOptions) {
    this.#options = options;
  }

  encodeWord(word: string, out: IdBuffer): void {
    if (!this.#options.splitsAtSpaces) {
      this.#encodePart(word, out);
      return;
    }
    let start = 0;
    for (let at = word.indexOf("▁", 1); at > 0; at = word.indexOf("▁", at + 1)) {
      if (word.charCodeAt(at - 1) === 0x2581) continue;
      this.#encodePart(word.slice(start, at), out);
      start = at;
    }
    this.#encodePart(start === 0 ? word : word.slice(start), out);
  }

  #encodePart(part: string, out: IdBuffer): void {
    const known = this.#cache.get(part);
    if (known !== undefined) {
      out.pushAll(known);
      return;
    }
    const ids = this.#encode(part);
    this.#cache.set(part, ids);
    out.pushAll(ids);
  }

  #encode(part: string): Int32Array {
    const { merges, characterIds, unused } = this.#options;
    if (this.#options.ignoreMerges) {
      const id = this.#options.pieceToId.get(part);
      if (id !== undefined) return Int32Array.of(id);
    }
    const symbols = new Int32Array(part.length);
    // A character that no merge knows is stored as the complement of its code point: negative, so it never merges.
    const ghosts: string[] = [];
    let count = 0;
    for (const character of part) {
      const id = characterIds.get(character);
      if (id === undefined) {
        symbols[count++] = ~ghosts.length;
        ghosts.push(character);
      } else symbols[count++] = id;
    }
    const halves = new Map<number, readonly [number, number]>();
    const onMerge =
      unused.size === 0
        ? undefined
        : (left: number, right: number, result: number): void => {
            if (unused.has(result)) halves.set(result, [left, right]);
          };
    count = merges.apply(symbols, count, onMerge);
    const ids: number[] = [];
    let afterUnknown = false;
    for (let i = 0; i < count; i++) afterUnknown = this.#emit(symbols[i] as number, ghosts, halves, ids, afterUnknown);
    return Int32Array.from(ids);
  }

  /** Writes one merged symbol; returns whether it was unknown. */
  #emit(
    symbol: number,
    ghosts: readonly string[],
    halves: ReadonlyMap<number, readonly [number, number]>,
    ids: number[],
    afterUnknown: boolean,
  ): boolean {
    const { vocabSize, byteIds, unkId, fuseUnk } = this.#options;
    if (symbol >= 0 && symbol < vocabSize) {
      const split = halves.get(symbol);
      if (split === undefined) {
        ids.push(symbol);
        return false;
      }
      const unknown = this.#emit(split[0], ghosts, halves, ids, afterUnknown);
      return this.#emit(split[1], ghosts, halves, ids, unknown);
    }
    const character = symbol < 0 ? (ghosts[~symbol] as string) : this.#ghostCharacter(symbol);
    if (byteIds !== undefined) {
      for (const byte of this.#encoder.encode(character)) ids.push(byteIds[byte] as number);
      return false;
    }
    if (unkId !== undefined && !(fuseUnk && afterUnknown)) ids.push(unkId);
    return true;
  }

  #ghostCharacter(id: number): string {
    for (const [character, candidate] of this.#options.characterIds) if (candidate === id) return character;
    return "\ufffd";
  }
}

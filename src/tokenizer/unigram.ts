/**
 * The unigram language model of SentencePiece (Kudo: "Subword Regularization", arXiv 1804.10959): every piece has a
 * log probability, and a text becomes the pieces whose sum is largest, found by Viterbi's algorithm from left to right.
 * A character that no piece covers costs ten less than the worst piece and is unknown.
 *
 * Ties and rounding decide between segmentations of nearly equal score, so the arithmetic is part of the format:
 * sentencepiece keeps the best score so far in single precision over the whole text, tokenizers in double.
 */

import type { WordModel } from "./bpe-model.ts";
import type { IdBuffer } from "./id-buffer.ts";
import { Trie } from "./trie.ts";

export interface UnigramOptions {
  readonly pieces: readonly string[];
  readonly scores: ArrayLike<number>;
  /** Ids that take part; the others (control, byte, unused) never match. */
  readonly matchable: (id: number) => boolean;
  /** Score of a user-defined piece from its UTF-8 length, undefined for other pieces. */
  readonly bonus: (id: number, numBytes: number) => number | undefined;
  /** Score of an unknown character. */
  readonly unkScore: number;
  readonly unkId: number | undefined;
  readonly byteIds: Int32Array | undefined;
  readonly fuseUnk: boolean;
  readonly singlePrecision: boolean;
}

export class Unigram implements WordModel {
  readonly #options: UnigramOptions;
  readonly #trie: Trie;
  readonly #scores: Float64Array;
  readonly #encoder = new TextEncoder();
  #best = new Float64Array(0);
  #from = new Int32Array(0);
  #ids = new Int32Array(0);

  constructor(options: UnigramOptions) {
    this.#options = options;
    this.#trie = new Trie(options.pieces.length * 3);
    this.#scores = Float64Array.from(options.scores);
    options.pieces.forEach((piece, id) => {
      if (!options.matchable(id)) return;
      this.#trie.add(piece, id);
      const bonus = options.bonus(id, this.#encoder.encode(piece).length);
      if (bonus !== undefined) this.#scores[id] = bonus;
    });
  }

  encodeWord(word: string, out: IdBuffer): void {
    if (word.length === 0) return;
    this.#viterbi(word);
    // Walk back from the end, turning the links round.
    let at = word.length;
    let following = -1;
    while (at >= 0) {
      const start = at === 0 ? -1 : (this.#from[at] as number);
      this.#from[at] = following;
      following = at;
      at = start;
    }
    let afterUnknown = false;
    for (let start = 0; start < word.length;) {
      const end = this.#from[start] as number;
      const id = this.#ids[end] as number;
      if (id >= 0) {
        out.push(id);
        afterUnknown = false;
      } else afterUnknown = this.#emitUnknown(word.slice(start, end), out, afterUnknown);
      start = end;
    }
  }

  #emitUnknown(character: string, out: IdBuffer, afterUnknown: boolean): boolean {
    const { byteIds, unkId, fuseUnk } = this.#options;
    if (byteIds !== undefined) {
      for (const byte of this.#encoder.encode(character)) out.push(byteIds[byte] as number);
      return false;
    }
    if (unkId !== undefined && !(fuseUnk && afterUnknown)) out.push(unkId);
    return true;
  }

  /** Fills `#from` and `#ids`: the best last piece of each prefix of `text`, id -1 for an unknown character. */
  #viterbi(text: string): void {
    const length = text.length;
    if (this.#best.length <= length) {
      this.#best = new Float64Array(length + 1);
      this.#from = new Int32Array(length + 1);
      this.#ids = new Int32Array(length + 1);
    }
    const best = this.#best;
    this.#from.fill(-1, 0, length + 1);
    const { singlePrecision, unkScore } = this.#options;
    best[0] = 0;
    for (let start = 0; start < length;) {
      const width = (text.codePointAt(start) as number) > 0xffff ? 2 : 1;
      const scoreHere = best[start] as number;
      let coversCharacter = false;
      let node = this.#trie.root;
      for (let end = start + 1; end <= length; end++) {
        node = this.#trie.step(node, text.charCodeAt(end - 1));
        if (node < 0) break;
        const id = this.#trie.idAt(node);
        if (id < 0) continue;
        if (end - start === width) coversCharacter = true;
        this.#offer(start, end, (this.#scores[id] as number) + scoreHere, id, singlePrecision);
      }
      if (!coversCharacter) this.#offer(start, start + width, unkScore + scoreHere, -1, singlePrecision);
      start += width;
    }
  }

  #offer(start: number, end: number, score: number, id: number, singlePrecision: boolean): void {
    if (this.#from[end] === -1 || score > (this.#best[end] as number)) {
      this.#best[end] = singlePrecision ? Math.fround(score) : score;
      this.#from[end] = start;
      this.#ids[end] = id;
    }
  }
}

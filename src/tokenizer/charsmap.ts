/**
 * The precompiled character map of SentencePiece: longest-match replacement rules (usually NFKC with a few changes for
 * web text, `nmt_nfkc`), stored as a double-array trie over UTF-8 bytes (Aoe 1989; the layout is that of Darts-clone)
 * followed by the replacement strings, each ended by a zero byte.
 *
 * Layout, little endian: u32 byte length of the trie; the trie as u32 units; the strings. In a unit, bits 0..7 are the
 * label, bit 8 says that a leaf follows, bits 10..30 with the shift in bit 9 are the offset; a leaf has bit 31 set and
 * its value in bits 0..30. Two readers of the same table differ: sentencepiece takes the longest rule at each place;
 * tokenizers' `Precompiled` looks at grapheme clusters of under six bytes first and takes the shortest rule.
 */

import { MoeError } from "../util/errors.ts";

interface Rule {
  readonly length: number;
  readonly value: number;
}

export class CharsMap {
  readonly #units: Uint32Array;
  readonly #strings: Uint8Array;
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  readonly #encoder = new TextEncoder();

  /** `blob` as in the model file. Throws a `file` error when its lengths do not fit. */
  constructor(blob: Uint8Array, origin: string) {
    const view = new DataView(blob.buffer, blob.byteOffset, blob.byteLength);
    const trieBytes = blob.length >= 4 ? view.getUint32(0, true) : -1;
    if (trieBytes < 4 || trieBytes % 4 !== 0 || trieBytes > blob.length - 4) {
      throw new MoeError(
        "file",
        `${origin}: precompiled_charsmap: expected a trie that fits in ${blob.length} bytes, got length ${trieBytes}`,
      );
    }
    this.#units = Uint32Array.from({ length: trieBytes / 4 }, (_, i) => view.getUint32(4 + 4 * i, true));
    this.#strings = blob.slice(4 + trieBytes);
  }

  /** The rules that match at `start` of `bytes`, shortest first; `visit` returns false to stop. */
  #match(bytes: Uint8Array, start: number, visit: (rule: Rule) => boolean): void {
    const units = this.#units;
    let position = offsetOf(units[0] as number);
    for (let i = start; i < bytes.length; i++) {
      const byte = bytes[i] as number;
      position = (position ^ byte) >>> 0;
      const unit = units[position];
      if (unit === undefined || (unit & 0x800000ff) >>> 0 !== byte) return;
      position = (position ^ offsetOf(unit)) >>> 0;
      if (((unit >>> 8) & 1) === 1) {
        const leaf = units[position];
        if (leaf === undefined) return;
        if (!visit({ length: i + 1 - start, value: leaf & 0x7fffffff })) return;
      }
    }
  }

  #string(value: number): string {
    if (value > this.#strings.length) return "";
    const end = this.#strings.indexOf(0, value);
    return this.#decoder.decode(this.#strings.subarray(value, end < 0 ? this.#strings.length : end));
  }

  /** sentencepiece's reading: the longest rule at `start`, as [replacement, bytes consumed]; undefined when none. */
  longestAt(bytes: Uint8Array, start: number): readonly [string, number] | undefined {
    const rules: Rule[] = [];
    this.#match(bytes, start, (rule) => {
      rules.push(rule);
      return true;
    });
    const found = rules.at(-1);
    return found === undefined ? undefined : [this.#string(found.value), found.length];
  }

  /** tokenizers' reading of a whole chunk: the shortest rule that matches its beginning replaces all of it. */
  #transform(chunk: string): string | undefined {
    const rules: Rule[] = [];
    this.#match(this.#encoder.encode(chunk), 0, (rule) => {
      rules.push(rule);
      return false;
    });
    const [found] = rules;
    return found === undefined ? undefined : this.#string(found.value);
  }

  /** The `Precompiled` normalizer of tokenizers. */
  normalizeByGrapheme(text: string): string {
    const seen = new Map<string, string>();
    const segmenter = new Intl.Segmenter("en", { granularity: "grapheme" });
    const normalize = (cluster: string): string => {
      if (this.#encoder.encode(cluster).length < 6) {
        const whole = this.#transform(cluster);
        if (whole !== undefined) return whole;
      }
      let parts = "";
      for (const character of cluster) parts += this.#transform(character) ?? character;
      return parts;
    };
    const out: string[] = [];
    for (const { segment } of segmenter.segment(text)) {
      let replacement = seen.get(segment);
      if (replacement === undefined) {
        replacement = normalize(segment);
        seen.set(segment, replacement);
      }
      out.push(replacement);
    }
    return out.join("");
  }
}

function offsetOf(unit: number): number {
  return (unit >>> 10) << ((unit & 0x200) >>> 6);
}

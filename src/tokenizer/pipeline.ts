/**
 * The one implementation of `Tokenizer`: a text is cut at added tokens, each part is normalized, split into words, and
 * each word given to the model; then the ids that belong around a text are added. The loaders decide what each step is;
 * this file only runs them, in that order.
 *
 * Decoding is either by bytes (byte-level models: the text is the UTF-8 of the concatenated bytes) or by a chain of
 * functions on pieces. Streams of the first kind keep the bytes of an incomplete character; those of the second decode
 * a short window twice, with and without the new id, and emit the difference.
 */

import { MoeError } from "../util/errors.ts";
import type { FindAdded } from "./added-tokens.ts";
import type { WordModel } from "./bpe-model.ts";
import { checkId, type DecodeChain, pieceOf } from "./decoder.ts";
import { IdBuffer } from "./id-buffer.ts";
import type { PreTokenize } from "./pretokenize.ts";
import type { TokenizerSource } from "./source.ts";
import type { AddedToken, DecodeOptions, DecodeStream, EncodeOptions, SpecialIds, Tokenizer } from "./tokenizer.ts";

export interface PipelineParts {
  /** Id to piece; a hole is an id without one. */
  readonly pieces: readonly (string | undefined)[];
  readonly specialIds: SpecialIds;
  readonly endIds: ReadonlySet<number>;
  readonly addedTokens: readonly AddedToken[];
  readonly chatTemplate: string | undefined;
  /** Added tokens in the raw text, with control tokens and without. */
  readonly find: FindAdded;
  readonly findOrdinary: FindAdded;
  /** Added tokens in the normalized text. */
  readonly findNormalized: FindAdded;
  /** `afterSpecial`: nothing or an added token stands before; `atStart`: it begins the input. */
  readonly normalize: (text: string, afterSpecial: boolean, atStart: boolean) => string;
  readonly split: PreTokenize;
  readonly model: WordModel;
  readonly prefixIds: readonly number[];
  readonly suffixIds: readonly number[];
  readonly decode: DecodeChain | "bytes";
  /** Bytes of a piece, by id. */
  readonly bytesOf: (id: number) => Uint8Array;
  readonly source: TokenizerSource;
}

export class PipelineTokenizer implements Tokenizer {
  readonly #parts: PipelineParts;
  readonly #pieceToId: Map<string, number>;
  readonly #specialIdSet: ReadonlySet<number>;
  /** Bytes of ids asked for so far. */
  readonly #bytes: (Uint8Array | undefined)[] = [];
  readonly specialTokens: ReadonlyMap<string, number>;

  constructor(parts: PipelineParts) {
    this.#parts = parts;
    this.#pieceToId = new Map();
    parts.pieces.forEach((piece, id) => {
      if (piece !== undefined && !this.#pieceToId.has(piece)) this.#pieceToId.set(piece, id);
    });
    const special = parts.addedTokens.filter((token) => token.special);
    this.specialTokens = new Map(special.map((token) => [token.content, token.id]));
    this.#specialIdSet = new Set(special.map((token) => token.id));
  }

  get vocabSize(): number {
    return this.#parts.pieces.length;
  }
  get bosId(): number | undefined {
    return this.#parts.specialIds.bosId;
  }
  get eosId(): number | undefined {
    return this.#parts.specialIds.eosId;
  }
  get padId(): number | undefined {
    return this.#parts.specialIds.padId;
  }
  get unkId(): number | undefined {
    return this.#parts.specialIds.unkId;
  }
  get endIds(): ReadonlySet<number> {
    return this.#parts.endIds;
  }
  get addedTokens(): readonly AddedToken[] {
    return this.#parts.addedTokens;
  }
  get chatTemplate(): string | undefined {
    return this.#parts.chatTemplate;
  }
  /** What it was built from; save.ts and export-gguf.ts read it. */
  get source(): TokenizerSource {
    return this.#parts.source;
  }

  encode(text: string, options: EncodeOptions = {}): Int32Array {
    const { find, findOrdinary, findNormalized, normalize, split, model, prefixIds, suffixIds } = this.#parts;
    const out = new IdBuffer(Math.min(1 << 24, 16 + (text.length >> 1)));
    const addSpecialTokens = options.addSpecialTokens ?? true;
    if (addSpecialTokens) for (const id of prefixIds) out.push(id);
    let afterSpecial = true;
    for (const section of (options.parseSpecial === false ? findOrdinary : find)(text.toWellFormed())) {
      if ("id" in section) {
        out.push(section.id);
        afterSpecial = true;
        continue;
      }
      const atStart = section.start === 0;
      for (const part of findNormalized(normalize(section.text, afterSpecial, atStart))) {
        if ("id" in part) out.push(part.id);
        else {
          const words = split(part.text, atStart && part.start === 0);
          for (let i = 0; i < words.length; i++) model.encodeWord(words[i] as string, out);
        }
      }
      afterSpecial = false;
    }
    if (addSpecialTokens) for (const id of suffixIds) out.push(id);
    return out.toArray();
  }

  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    const kept = this.#kept(ids, options.skipSpecialTokens ?? true);
    const { decode } = this.#parts;
    if (decode !== "bytes") return decode(kept.map((id) => pieceOf(this.#parts.pieces, id, "decode"))).join("");
    const chunks = kept.map((id) => this.#bytesOf(id));
    const bytes = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
    let at = 0;
    for (const chunk of chunks) {
      bytes.set(chunk, at);
      at += chunk.length;
    }
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
  }

  #kept(ids: ArrayLike<number>, skipSpecialTokens: boolean): number[] {
    const kept: number[] = [];
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i] as number;
      checkId(id, this.vocabSize, "decode");
      if (!(skipSpecialTokens && this.#specialIdSet.has(id))) kept.push(id);
    }
    return kept;
  }

  createDecodeStream(options: DecodeOptions = {}): DecodeStream {
    if (this.#parts.decode !== "bytes") return new WindowStream((ids) => this.decode(ids, options));
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const skipSpecialTokens = options.skipSpecialTokens ?? true;
    return {
      push: (id) => {
        const [kept] = this.#kept([id], skipSpecialTokens);
        return kept === undefined ? "" : decoder.decode(this.#bytesOf(kept), { stream: true });
      },
      end: () => decoder.decode(),
    };
  }

  idToPiece(id: number): string {
    return pieceOf(this.#parts.pieces, id, "idToPiece");
  }

  idToBytes(id: number): Uint8Array {
    checkId(id, this.vocabSize, "idToBytes");
    return this.#bytesOf(id).slice();
  }

  #bytesOf(id: number): Uint8Array {
    return (this.#bytes[id] ??= this.#parts.bytesOf(id));
  }

  pieceToId(piece: string): number | undefined {
    return this.#pieceToId.get(piece);
  }
}

/** Longest run of ids that may wait for the rest of a character. */
const maxPending = 16;

class WindowStream implements DecodeStream {
  readonly #decode: (ids: readonly number[]) => string;
  /** Ids already emitted that give the new ones their context, then the pending ones. */
  #window: number[] = [];
  #emitted = 0;
  /** What the emitted ids of the window decode to. */
  #context = "";

  constructor(decode: (ids: readonly number[]) => string) {
    this.#decode = decode;
  }

  push(id: number): string {
    this.#window.push(id);
    const text = this.#decode(this.#window);
    const pending = this.#window.length - this.#emitted;
    if (text.endsWith("\ufffd") && pending < maxPending) return "";
    return this.#emit(text);
  }

  end(): string {
    return this.#window.length > this.#emitted ? this.#emit(this.#decode(this.#window)) : "";
  }

  #emit(text: string): string {
    const fresh = text.slice(this.#context.length);
    // An id without text (a control token) must not become the only context: a leading space would be dropped after it.
    if (fresh === "" && this.#window.length < 64) {
      this.#emitted = this.#window.length;
      return "";
    }
    this.#window = this.#window.slice(this.#emitted);
    this.#emitted = this.#window.length;
    this.#context = this.#decode(this.#window);
    return fresh;
  }
}

/** The tokenizer as the pipeline it is; throws `usage` for another implementation of the interface. */
export function asPipeline(tokenizer: Tokenizer, operation: string): PipelineTokenizer {
  if (tokenizer instanceof PipelineTokenizer) return tokenizer;
  throw new MoeError("usage", `${operation}: expected a tokenizer that this package loaded or trained`);
}

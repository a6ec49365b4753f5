/** What a tokenizer was built from, kept so that it can be saved: the JSON of Hugging Face, or a SentencePiece model
 * (which a GGUF file of `tokenizer.ggml.model = llama` also is, key by key). Data only. */

import type { JsonObject } from "./json.ts";

export type TokenizerSource =
  | { readonly format: "huggingface"; readonly tokenizerJson: JsonObject; readonly tokenizerConfig: JsonObject }
  | { readonly format: "sentencepiece"; readonly model: SentencePieceModel };

/** Kinds of pieces, with the numbers of sentencepiece_model.proto and of `tokenizer.ggml.token_type`. */
export const pieceType = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

export interface SentencePieceModel {
  readonly algorithm: "bpe" | "unigram";
  readonly pieces: readonly string[];
  readonly scores: Float32Array;
  /** A `pieceType` for each piece. */
  readonly types: Uint8Array;
  readonly byteFallback: boolean;
  readonly unkId: number;
  readonly bosId: number | undefined;
  readonly eosId: number | undefined;
  readonly padId: number | undefined;
  /** What an unknown id decodes to. */
  readonly unkSurface: string;
  /** Empty for the identity. */
  readonly charsMap: Uint8Array;
  readonly addDummyPrefix: boolean;
  readonly removeExtraWhitespaces: boolean;
  readonly escapeWhitespaces: boolean;
  readonly whitespaceAsSuffix: boolean;
  readonly addBos: boolean;
  readonly addEos: boolean;
  /** Which program's reading of the model to follow where they differ. */
  readonly dialect: "sentencepiece" | "llama.cpp";
  readonly chatTemplate: string | undefined;
}

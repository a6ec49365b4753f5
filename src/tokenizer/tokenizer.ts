/**
 * What a tokenizer is to the rest of the project: text in, ids out, and back. It is an interface and a few plain types;
 * the one implementation is `PipelineTokenizer` (pipeline.ts), built by three loaders:
 *
 * - `loadHuggingFaceTokenizer` (huggingface.ts): `tokenizer.json` and its companions,
 * - `loadGgufTokenizer` (gguf.ts): the `tokenizer.ggml.*` keys of a GGUF file,
 * - `loadSentencePieceTokenizer` (sentencepiece.ts): a `tokenizer.model` protobuf,
 *
 * and by `trainByteBpe` (train.ts). A tokenizer is not a chat format (chat.ts) and knows nothing of tensors.
 *
 * Ids are 32-bit integers in [0, vocabSize). Text is a JavaScript string; a lone surrogate, which no UTF-8 text can
 * hold, is read as U+FFFD.
 */

export interface EncodeOptions {
  /** Add what the model expects around a text (usually a bos). Default true. */
  readonly addSpecialTokens?: boolean;
  /**
   * Read the text of control tokens (`<|im_end|>`) as those tokens. Default true. Pass false for text that a user may
   * have written: then it is ordinary characters.
   */
  readonly parseSpecial?: boolean;
}

export interface DecodeOptions {
  /** Leave control tokens (bos, eos, chat marks) out of the text. Default true. */
  readonly skipSpecialTokens?: boolean;
}

/** Turns ids into text as they arrive, never cutting a character in half. */
export interface DecodeStream {
  /** Text that became certain with this id; empty while a character is incomplete. */
  push(id: number): string;
  /** What is left at the end, incomplete bytes as U+FFFD. */
  end(): string;
}

/** A token that is recognised as a whole in the text, before any splitting. */
export interface AddedToken {
  readonly id: number;
  readonly content: string;
  /** A control token: left out when decoding with `skipSpecialTokens`, not read with `parseSpecial: false`. */
  readonly special: boolean;
  /** Swallow white space on the left. */
  readonly lstrip: boolean;
  /** Swallow white space on the right. */
  readonly rstrip: boolean;
  /** Match in the normalized text rather than the raw one. */
  readonly normalized: boolean;
  /** Only where no word character touches it. */
  readonly singleWord: boolean;
}

export interface SpecialIds {
  readonly bosId: number | undefined;
  readonly eosId: number | undefined;
  readonly padId: number | undefined;
  readonly unkId: number | undefined;
}

export interface Tokenizer extends SpecialIds {
  /** One more than the largest id. */
  readonly vocabSize: number;
  /** Every id that ends a generation: eos and, for chat models, the end of a turn. */
  readonly endIds: ReadonlySet<number>;
  readonly addedTokens: readonly AddedToken[];
  /** Content to id of the control tokens. */
  readonly specialTokens: ReadonlyMap<string, number>;
  /** Jinja source of the chat template that came with the tokenizer, if any. */
  readonly chatTemplate: string | undefined;
  /** Ids of `text`. */
  encode(text: string, options?: EncodeOptions): Int32Array;
  /** Text of `ids`. Throws `usage` for an id outside the vocabulary. */
  decode(ids: ArrayLike<number>, options?: DecodeOptions): string;
  createDecodeStream(options?: DecodeOptions): DecodeStream;
  /** The piece as the vocabulary spells it (byte-level alphabet or U+2581 for a space). */
  idToPiece(id: number): string;
  /** The bytes that the id stands for in a text. */
  idToBytes(id: number): Uint8Array;
  pieceToId(piece: string): number | undefined;
}

/**
 * The classes of `@huggingface/tokenizers` that are used here, with the types of exactly what is used. Its own
 * declarations re-export from paths without an extension, which Node's module resolution does not find, so the compiler
 * sees an empty module.
 */

import * as library from "@huggingface/tokenizers";

interface PieceEncoder {
  encode(words: string[]): string[];
}

interface PieceDecoder {
  decode_chain(pieces: string[]): string[];
}

type Make<T> = new (config: Readonly<Record<string, unknown>>) => T;

interface Library {
  readonly BPE: Make<PieceEncoder>;
  readonly WordPiece: Make<PieceEncoder>;
  readonly BPEDecoder: Make<PieceDecoder>;
  readonly CTCDecoder: Make<PieceDecoder>;
  readonly WordPieceDecoder: Make<PieceDecoder>;
  readonly BertNormalizer: Make<{ normalize(text: string): string }>;
  readonly SplitPreTokenizer: Make<{ readonly pattern: RegExp | null }>;
}

export const { BPE, WordPiece, BPEDecoder, CTCDecoder, WordPieceDecoder, BertNormalizer, SplitPreTokenizer } =
  library as unknown as Library;

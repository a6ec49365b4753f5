/**
 * A tokenizer in Hugging Face's form, whatever it was loaded from, as the values of `tokenizer.json` and `tokenizer_config.json`.
 *
 * What came from there (and what a byte-level GGUF was turned into) is written as it was. A SentencePiece model is
 * converted the way transformers converts Llama's: BPE scores become a list of merges, best piece first; the
 * normalizer becomes a sequence of tokenizers' normalizers; unigram stays unigram. The conversion keeps the ids of
 * ordinary text; where it cannot: a merge list cannot express that two pairs of equal score go by position.
 */

import { asPipeline } from "./pipeline.ts";
import { pieceType, type SentencePieceModel } from "./source.ts";
import type { Tokenizer } from "./tokenizer.ts";

export interface HuggingFaceTokenizerFiles {
  readonly tokenizerJson: Readonly<Record<string, unknown>>;
  readonly tokenizerConfig: Readonly<Record<string, unknown>>;
}

/** The values of the two files. Throws `usage` for a tokenizer of another package. */
export function toHuggingFaceFiles(tokenizer: Tokenizer): HuggingFaceTokenizerFiles {
  const { source, chatTemplate } = asPipeline(tokenizer, "toHuggingFaceFiles");
  const template = chatTemplate === undefined ? {} : { chat_template: chatTemplate };
  if (source.format === "huggingface") {
    return { tokenizerJson: source.tokenizerJson, tokenizerConfig: { ...source.tokenizerConfig, ...named(tokenizer), ...template } };
  }
  const { model } = source;
  return {
    tokenizerJson: sentencePieceJson(model),
    tokenizerConfig: { tokenizer_class: "PreTrainedTokenizerFast", clean_up_tokenization_spaces: false, ...named(tokenizer), ...template },
  };
}

function named(tokenizer: Tokenizer): Record<string, string> {
  const entries = { bos_token: tokenizer.bosId, eos_token: tokenizer.eosId, pad_token: tokenizer.padId, unk_token: tokenizer.unkId };
  return Object.fromEntries(Object.entries(entries).flatMap(([key, id]) => (id === undefined ? [] : [[key, tokenizer.idToPiece(id)]])));
}

function sentencePieceJson(model: SentencePieceModel): Record<string, unknown> {
  const stripsSpace = model.addDummyPrefix && !model.whitespaceAsSuffix;
  const decoders: unknown[] = [{ type: "Replace", pattern: { String: "▁" }, content: " " }, { type: "ByteFallback" }, { type: "Fuse" }];
  if (stripsSpace) decoders.push({ type: "Strip", content: " ", start: 1, stop: 0 });
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: model.pieces.flatMap((content, id) => {
      const type = model.types[id];
      if (type !== pieceType.control && type !== pieceType.unknown && type !== pieceType.userDefined) return [];
      return [
        { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: type !== pieceType.userDefined },
      ];
    }),
    normalizer: { type: "Sequence", normalizers: normalizers(model) },
    pre_tokenizer: null,
    post_processor: postProcessor(model),
    decoder: { type: "Sequence", decoders },
    model: model.algorithm === "bpe" ? bpeJson(model) : unigramJson(model),
  };
}

function normalizers(model: SentencePieceModel): unknown[] {
  const steps: unknown[] = [];
  if (model.charsMap.length > 0) steps.push({ type: "Precompiled", precompiled_charsmap: Buffer.from(model.charsMap).toString("base64") });
  if (model.removeExtraWhitespaces) {
    steps.push({ type: "Replace", pattern: { Regex: "^ +| +$" }, content: "" });
    steps.push({ type: "Replace", pattern: { Regex: " {2,}" }, content: " " });
  }
  const mark = model.escapeWhitespaces ? "▁" : " ";
  if (model.addDummyPrefix && !model.whitespaceAsSuffix) steps.push({ type: "Prepend", prepend: mark });
  if (model.escapeWhitespaces) steps.push({ type: "Replace", pattern: { String: " " }, content: "▁" });
  return steps;
}

function postProcessor(model: SentencePieceModel): unknown {
  const ids = [model.addBos ? model.bosId : undefined, model.addEos ? model.eosId : undefined];
  const tokens = ids.map((id) => (id === undefined ? [] : [{ SpecialToken: { id: model.pieces[id], type_id: 0 } }]));
  if (tokens.every((token) => token.length === 0)) return null;
  const single = [...(tokens[0] ?? []), { Sequence: { id: "A", type_id: 0 } }, ...(tokens[1] ?? [])];
  return {
    type: "TemplateProcessing",
    single,
    pair: [...single, { Sequence: { id: "B", type_id: 1 } }],
    special_tokens: Object.fromEntries(
      ids.flatMap((id) => (id === undefined ? [] : [[model.pieces[id], { id: model.pieces[id], ids: [id], tokens: [model.pieces[id]] }]])),
    ),
  };
}

function bpeJson(model: SentencePieceModel): Record<string, unknown> {
  const vocab = new Map(model.pieces.map((piece, id) => [piece, id]));
  const merges: { readonly pair: [string, string]; readonly score: number }[] = [];
  const idOf = (part: string): number => vocab.get(part) ?? 0;
  model.pieces.forEach((piece, id) => {
    const type = model.types[id];
    if (type !== pieceType.normal && type !== pieceType.userDefined) return;
    const pairs: [string, string][] = [];
    for (let cut = 1; cut < piece.length; cut++) {
      if (vocab.has(piece.slice(0, cut)) && vocab.has(piece.slice(cut))) pairs.push([piece.slice(0, cut), piece.slice(cut)]);
    }
    pairs.sort((a, b) => idOf(a[0]) - idOf(b[0]) || idOf(a[1]) - idOf(b[1]));
    for (const pair of pairs) merges.push({ pair, score: model.scores[id] as number });
  });
  merges.sort((a, b) => b.score - a.score);
  return {
    type: "BPE",
    dropout: null,
    unk_token: model.pieces[model.unkId],
    continuing_subword_prefix: null,
    end_of_word_suffix: null,
    fuse_unk: true,
    byte_fallback: model.byteFallback,
    ignore_merges: false,
    vocab: Object.fromEntries(vocab),
    merges: merges.map(({ pair }) => pair),
  };
}

function unigramJson(model: SentencePieceModel): Record<string, unknown> {
  return {
    type: "Unigram",
    unk_id: model.unkId,
    byte_fallback: model.byteFallback,
    vocab: model.pieces.map((piece, id) => [piece, model.scores[id]]),
  };
}

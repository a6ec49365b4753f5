/**
 * From a SentencePiece model (however it was stored) to a tokenizer, in the dialect of the program that it is meant
 * for. sentencepiece and llama.cpp differ in four places: which pieces may be merged (llama.cpp: all of them), control
 * tokens in the text (llama.cpp reads them), the space before the text (llama.cpp: also after each control token), and
 * user-defined symbols (llama.cpp cuts them out first and knows no character map).
 */

import { findLongestFirst, type Section } from "./added-tokens.ts";
import { type Merge, MergeTable } from "./bpe.ts";
import { CharacterBpe, type WordModel } from "./bpe-model.ts";
import { byteOfToken } from "./bytes.ts";
import type { DecodeChain } from "./decoder.ts";
import { byteIdsOf, splitsAtSpaces } from "./huggingface.ts";
import { PipelineTokenizer } from "./pipeline.ts";
import { sentencePieceNormalizer } from "./sentencepiece-normalize.ts";
import { pieceType, type SentencePieceModel } from "./source.ts";
import { fileError } from "../util/errors.ts";
import type { AddedToken } from "./tokenizer.ts";
import { Trie } from "./trie.ts";
import { Unigram } from "./unigram.ts";

function none(text: string): Section[] {
  return text === "" ? [] : [{ text, start: 0 }];
}

export function buildSentencePieceTokenizer(model: SentencePieceModel, origin: string, endIds?: ReadonlySet<number>): PipelineTokenizer {
  const { pieces, types, bosId, eosId } = model;
  const llama = model.dialect === "llama.cpp";
  const added = addedTokensOf(model);
  const userDefined = new Trie();
  pieces.forEach((piece, id) => {
    if (types[id] === pieceType.userDefined) userDefined.add(piece, id);
  });
  const normalize = sentencePieceNormalizer(model, userDefined, origin);
  const ordinary = added.filter((token) => types[token.id] === pieceType.userDefined);
  const wordModel = model.algorithm === "bpe" ? bpeModel(model, origin) : unigramModel(model);
  const encoder = new TextEncoder();
  return new PipelineTokenizer({
    pieces,
    specialIds: { bosId, eosId, padId: model.padId, unkId: model.unkId },
    endIds: endIds ?? new Set(eosId === undefined ? [] : [eosId]),
    addedTokens: added,
    chatTemplate: model.chatTemplate,
    find: llama ? findLongestFirst(added) : findLongestFirst(added.filter((token) => types[token.id] !== pieceType.userDefined)),
    findOrdinary: llama ? findLongestFirst(ordinary) : none,
    findNormalized: none,
    normalize: llama ? (text, afterSpecial) => ((model.addDummyPrefix && afterSpecial ? " " : "") + text).replaceAll(" ", "▁") : normalize,
    split: llama || model.algorithm === "unigram" ? (text) => [text] : frozenSplit(userDefined),
    model: wordModel,
    prefixIds: model.addBos && bosId !== undefined ? [bosId] : [],
    suffixIds: model.addEos && eosId !== undefined ? [eosId] : [],
    decode: decoderOf(model),
    bytesOf: (id) => {
      const piece = pieces[id] as string;
      return types[id] === pieceType.byte ? Uint8Array.of(byteOfToken(piece)) : encoder.encode(piece.replaceAll("▁", " "));
    },
    source: { format: "sentencepiece", model },
  });
}

function addedTokensOf(model: SentencePieceModel): AddedToken[] {
  return model.pieces.flatMap((content, id) => {
    const type = model.types[id];
    if (type !== pieceType.control && type !== pieceType.unknown && type !== pieceType.userDefined) return [];
    return [{ id, content, special: type === pieceType.control, lstrip: false, rstrip: false, normalized: false, singleWord: false }];
  });
}

/** Cuts user-defined symbols out, so that nothing merges with them; their own characters merge to the symbol. */
function frozenSplit(symbols: Trie): (text: string) => string[] {
  return (text) => {
    const words: string[] = [];
    let from = 0;
    for (let i = 0; i < text.length;) {
      const length = symbols.longestAt(text, i);
      if (length === 0) {
        i++;
        continue;
      }
      if (i > from) words.push(text.slice(from, i));
      words.push(text.slice(i, i + length));
      i += length;
      from = i;
    }
    if (from < text.length) words.push(text.slice(from));
    return words;
  };
}

/** Id of every piece that can stand for text, and of every single character, from `vocabSize` up when it is no piece. */
function symbolIds(model: SentencePieceModel): Map<string, number> {
  const ids = new Map<string, number>();
  const { normal, userDefined, unused } = pieceType;
  model.pieces.forEach((piece, id) => {
    const type = model.types[id];
    const takesPart = model.dialect === "llama.cpp" || type === normal || type === userDefined || type === unused;
    if (takesPart && piece !== "" && !ids.has(piece)) ids.set(piece, id);
  });
  let ghost = model.pieces.length;
  const known = Array.from(ids.keys());
  for (const piece of known) for (const character of piece) if (!ids.has(character)) ids.set(character, ghost++);
  return ids;
}

/** All ways to put a piece together from two symbols; the rank of a merge is the place of its piece's score. */
export function mergesOfScores(model: SentencePieceModel, ids: ReadonlyMap<string, number>): Merge[] {
  const order = Float32Array.from(new Set(model.scores)).sort().toReversed();
  const rankOfScore = new Map([...order].map((score, rank) => [score, rank]));
  const merges: Merge[] = [];
  for (const [piece, result] of ids) {
    if (result >= model.pieces.length) continue;
    const rank = rankOfScore.get(model.scores[result] as number) ?? order.length;
    let cut = 0;
    for (const character of piece) {
      cut += character.length;
      if (cut === piece.length) break;
      const left = ids.get(piece.slice(0, cut));
      const right = ids.get(piece.slice(cut));
      if (left !== undefined && right !== undefined) merges.push({ left, right, result, rank });
    }
  }
  return merges;
}

function byteIds(model: SentencePieceModel, origin: string): Int32Array | undefined {
  if (!model.byteFallback) return undefined;
  const bytes = new Map<string, number>();
  model.pieces.forEach((piece, id) => {
    if (model.types[id] === pieceType.byte) bytes.set(piece, id);
  });
  const ids = byteIdsOf(bytes);
  if (ids === undefined) throw fileError(origin, "the 256 byte pieces <0x00> to <0xFF> for byte fallback", `${bytes.size} byte pieces`);
  return ids;
}

function bpeModel(model: SentencePieceModel, origin: string): WordModel {
  const ids = symbolIds(model);
  const symbols = new Set(model.pieces.filter((_, id) => model.types[id] === pieceType.userDefined));
  const bpe = new CharacterBpe({
    merges: new MergeTable(mergesOfScores(model, ids)),
    characterIds: new Map([...ids].filter(([piece]) => Array.from(piece).length === 1)),
    vocabSize: model.pieces.length,
    pieceToId: ids,
    ignoreMerges: false,
    byteIds: byteIds(model, origin),
    unkId: model.unkId,
    fuseUnk: model.dialect === "sentencepiece",
    unused: new Set(model.dialect === "llama.cpp" ? [] : model.types.keys().filter((id) => model.types[id] === pieceType.unused)),
    splitsAtSpaces: splitsAtSpaces(ids),
  });
  if (symbols.size === 0 || model.dialect === "llama.cpp") return bpe;
  return {
    encodeWord(word, out) {
      if (symbols.has(word)) out.push(ids.get(word) as number);
      else bpe.encodeWord(word, out);
    },
  };
}

function unigramModel(model: SentencePieceModel): WordModel {
  const { types, scores } = model;
  let least = Number.POSITIVE_INFINITY;
  let greatest = Number.NEGATIVE_INFINITY;
  scores.forEach((score, id) => {
    if (types[id] !== pieceType.normal) return;
    least = Math.min(least, score);
    greatest = Math.max(greatest, score);
  });
  return new Unigram({
    pieces: model.pieces,
    scores,
    matchable: (id) => types[id] === pieceType.normal || types[id] === pieceType.userDefined,
    bonus: (id, numBytes) => (types[id] === pieceType.userDefined ? numBytes * greatest - 0.1 : undefined),
    unkScore: Math.fround(least - 10),
    unkId: model.unkId,
    byteIds: byteIds(model, "unigram model"),
    fuseUnk: true,
    singlePrecision: true,
  });
}

/** sentencepiece's `decode`: control pieces are silent, unknown ones have a surface, broken bytes are U+FFFD each. */
function decoderOf(model: SentencePieceModel): DecodeChain {
  const types = new Map(model.pieces.map((piece, id) => [piece, model.types[id]]));
  const drops = (model.addDummyPrefix || model.removeExtraWhitespaces) && !model.whitespaceAsSuffix;
  return (pieces) => {
    const out: string[] = [];
    let bytes: number[] = [];
    let atStart = true;
    const flush = (): void => {
      if (bytes.length > 0) out.push(decodeBytewise(Uint8Array.from(bytes)));
      bytes = [];
    };
    for (const piece of pieces) {
      const type = types.get(piece);
      if (type === pieceType.byte) {
        bytes.push(byteOfToken(piece));
        atStart = false;
        continue;
      }
      flush();
      // Only a caller that asked for control tokens gets here with one: skipped ones are gone before.
      let text = type === pieceType.control ? piece : type === pieceType.unknown ? model.unkSurface : piece.replaceAll("▁", " ");
      const isText = type !== pieceType.control && type !== pieceType.unknown;
      if (atStart && drops && isText && text.startsWith(" ")) text = text.slice(1);
      if (type !== pieceType.control) atStart = atStart && model.removeExtraWhitespaces && text === "";
      out.push(text);
    }
    flush();
    return out;
  };
}

/** UTF-8 with one U+FFFD for each byte that begins no character. */
function decodeBytewise(bytes: Uint8Array): string {
  const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  let text = "";
  for (let at = 0; at < bytes.length;) {
    const first = bytes[at] as number;
    const length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    try {
      text += strict.decode(bytes.subarray(at, at + length));
      at += length;
    } catch {
      text += "\ufffd";
      at++;
    }
  }
  return text;
}

/**
 * Loading the tokenizer of a Hugging Face repository: `tokenizer.json` (the pipeline, made for the Rust library
 * `tokenizers`) with `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json` and
 * `chat_template.jinja` beside it.
 *
 * The package `@huggingface/tokenizers` reads the same file, and what it does well is used: patterns (pattern.ts),
 * WordPiece, Bert's normalizer, rare decoders. The rest is ours, for two reasons. It is not equal to the original in
 * places that the files here use (see normalize.ts, pretokenize.ts, decoder.ts). And its BPE keys a map by JSON text
 * and keeps objects in a heap: several times slower on English text.
 */

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { BPE, WordPiece } from "./hf-library.ts";
import { fileError, MoeError } from "../util/errors.ts";
import { findLeftmostLongest, findLongestFirst } from "./added-tokens.ts";
import { type Merge, MergeTable } from "./bpe.ts";
import { ByteLevelBpe, CharacterBpe, type WordModel } from "./bpe-model.ts";
import { byteAlphabetInverse, byteOfToken, byteToken, fromByteLevel } from "./bytes.ts";
import { buildDecoder, checkVocabSize, maxVocabSize } from "./decoder.ts";
import { asArray, asFinite, asIndex, asObject, asString, describe, flag, type JsonObject, optional, parseJson } from "./json.ts";
import { buildNormalizer } from "./normalize.ts";
import { PipelineTokenizer } from "./pipeline.ts";
import { readAround, readEndIds, readSpecialIds } from "./huggingface-special.ts";
import { buildPreTokenizer } from "./pretokenize.ts";
import type { AddedToken } from "./tokenizer.ts";
import { Unigram } from "./unigram.ts";

/** The parsed files; only `tokenizerJson` is required. */
export interface HuggingFaceFiles {
  readonly tokenizerJson: unknown;
  readonly tokenizerConfig?: unknown;
  readonly specialTokensMap?: unknown;
  readonly generationConfig?: unknown;
  /** Contents of chat_template.jinja; wins over `tokenizerConfig.chat_template`. */
  readonly chatTemplate?: string | undefined;
  /** Where they came from, for messages. Default `tokenizer.json`. */
  readonly origin?: string;
}

/** Where llama.cpp reads the same vocabulary and merges in its own way. */
export interface Dialect {
  readonly addedTokens: "leftmost-longest" | "longest-first";
  readonly firstMergeWins: boolean;
}

const tokenizersDialect: Dialect = { addedTokens: "leftmost-longest", firstMergeWins: false };

/**
 * The tokenizer of the files in `folder`.
 * @throws MoeError of kind `file` when tokenizer.json is missing or any file is not what it should be, `unsupported`
 *   for components that this program does not have.
 */
export async function loadHuggingFaceTokenizer(folder: string): Promise<PipelineTokenizer> {
  const read = async (name: string): Promise<unknown> => {
    const text = await readText(join(folder, name));
    return text === undefined ? undefined : parseJson(text, join(folder, name));
  };
  const origin = join(folder, "tokenizer.json");
  const tokenizerJson = await read("tokenizer.json");
  if (tokenizerJson === undefined) throw fileError(origin, "a tokenizer", "no such file");
  return buildHuggingFaceTokenizer({
    tokenizerJson,
    tokenizerConfig: await read("tokenizer_config.json"),
    specialTokensMap: await read("special_tokens_map.json"),
    generationConfig: await read("generation_config.json"),
    chatTemplate: await readText(join(folder, "chat_template.jinja")),
    origin,
  });
}

async function readText(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (cause) {
    if (cause instanceof Error && "code" in cause && cause.code === "ENOENT") return undefined;
    throw fileError(path, "a readable file", cause instanceof Error ? cause.message : String(cause), cause);
  }
}

/** The tokenizer of parsed files; see `loadHuggingFaceTokenizer` for the errors. */
export function buildHuggingFaceTokenizer(files: HuggingFaceFiles, dialect: Dialect = tokenizersDialect): PipelineTokenizer {
  const origin = files.origin ?? "tokenizer.json";
  const json = asObject(files.tokenizerJson, origin);
  const config = optional(files.tokenizerConfig, asObject, `${origin}: tokenizer_config.json`) ?? {};
  const model = asObject(json["model"], `${origin}: model`);
  const added = readAddedTokens(json["added_tokens"], origin);
  const vocabulary = readVocabulary(model, added, origin);
  const normalize = buildNormalizer(json["normalizer"], `${origin}: normalizer`);
  const preTokenizer = buildPreTokenizer(json["pre_tokenizer"], `${origin}: pre_tokenizer`);
  const specialIds = readSpecialIds(config, files.specialTokensMap, model, (content) => vocabulary.idOf(content), origin);
  const decode = buildDecoder(json["decoder"], `${origin}: decoder`);
  const raw = added.filter((token) => !token.normalized);
  const cooked = added.filter((token) => token.normalized);
  const find =
    dialect.addedTokens === "longest-first"
      ? findLongestFirst
      : (tokens: readonly AddedToken[]) =>
          findLeftmostLongest(
            tokens,
            tokens.map((token) => token.content),
          );
  const inverse = byteAlphabetInverse();
  const encoder = new TextEncoder();
  return new PipelineTokenizer({
    pieces: vocabulary.pieces,
    specialIds,
    endIds: readEndIds(specialIds, files.generationConfig, vocabulary.pieces.length, origin),
    addedTokens: added,
    chatTemplate: files.chatTemplate ?? readChatTemplate(config["chat_template"], origin),
    find: find(raw),
    findOrdinary: find(raw.filter((token) => !token.special)),
    findNormalized: findLeftmostLongest(
      cooked,
      cooked.map((token) => normalize(token.content)),
    ),
    normalize,
    split: preTokenizer.split,
    model: buildModel(model, vocabulary, preTokenizer.byteLevel, dialect, origin),
    ...readAround(json["post_processor"], vocabulary.pieces.length, origin),
    decode,
    bytesOf: (id) => {
      const piece = vocabulary.pieces[id] ?? "";
      if (decode === "bytes") return fromByteLevel(piece, inverse) ?? encoder.encode(piece);
      const byte = byteOfToken(piece);
      return byte >= 0 ? Uint8Array.of(byte) : encoder.encode(piece.replaceAll("▁", " "));
    },
    source: { format: "huggingface", tokenizerJson: json, tokenizerConfig: config },
  });
}

/** A template, or a list of named ones of which `default` is meant. */
function readChatTemplate(value: unknown, origin: string): string | undefined {
  if (value === undefined || value === null || typeof value === "string") return value ?? undefined;
  const at = `${origin}: tokenizer_config.json: chat_template`;
  const named = asArray(value, at).map((entry, i) => asObject(entry, `${at}[${i}]`));
  const chosen = named.find((entry) => entry["name"] === "default") ?? named[0];
  return chosen === undefined ? undefined : asString(chosen["template"], `${at}.template`);
}

function readAddedTokens(value: unknown, origin: string): AddedToken[] {
  const at = `${origin}: added_tokens`;
  return (optional(value, asArray, at) ?? []).map((entry, i) => {
    const token = asObject(entry, `${at}[${i}]`);
    const special = flag(token, "special", false, `${at}[${i}]`);
    return {
      id: asIndex(token["id"], maxVocabSize, `${at}[${i}].id`),
      content: asString(token["content"], `${at}[${i}].content`).toWellFormed(),
      special,
      lstrip: flag(token, "lstrip", false, `${at}[${i}]`),
      rstrip: flag(token, "rstrip", false, `${at}[${i}]`),
      normalized: flag(token, "normalized", !special, `${at}[${i}]`),
      singleWord: flag(token, "single_word", false, `${at}[${i}]`),
    };
  });
}

interface Vocabulary {
  readonly pieces: readonly (string | undefined)[];
  /** Pieces of the model, without those that only added_tokens has. */
  readonly pieceToId: ReadonlyMap<string, number>;
  /** Id of a piece or of an added token. */
  readonly idOf: (content: string) => number | undefined;
}

function readVocabulary(model: JsonObject, added: readonly AddedToken[], origin: string): Vocabulary {
  const at = `${origin}: model.vocab`;
  const pieces: (string | undefined)[] = [];
  const pieceToId = new Map<string, number>();
  const put = (piece: string, id: number): void => {
    while (pieces.length < id) pieces.push(undefined);
    pieces[id] = piece;
  };
  if (Array.isArray(model["vocab"])) {
    checkVocabSize(model["vocab"].length, at);
    model["vocab"].forEach((entry: unknown, id) => {
      const piece = asString(asArray(entry, `${at}[${id}]`)[0], `${at}[${id}][0]`);
      pieceToId.set(piece, id);
      put(piece, id);
    });
  } else {
    for (const [piece, value] of Object.entries(asObject(model["vocab"], at))) {
      const id = asIndex(value, maxVocabSize, `${at}[${describe(piece)}]`);
      if (pieces[id] !== undefined)
        throw fileError(at, "a different id for each piece", `${id} for ${describe(pieces[id])} and ${describe(piece)}`);
      pieceToId.set(piece, id);
      put(piece, id);
    }
  }
  for (const token of added) put(token.content, token.id);
  if (pieces.length === 0) throw fileError(at, "at least one piece", "none");
  const addedIds = new Map(added.map((token) => [token.content, token.id]));
  return { pieces, pieceToId, idOf: (content) => addedIds.get(content) ?? pieceToId.get(content) };
}

function buildModel(model: JsonObject, vocabulary: Vocabulary, byteLevel: boolean, dialect: Dialect, origin: string): WordModel {
  const at = `${origin}: model`;
  const type =
    optional(model["type"], asString, `${at}.type`) ??
    (Array.isArray(model["vocab"]) ? "Unigram" : model["merges"] === undefined ? "WordPiece" : "BPE");
  if (type === "Unigram") return buildUnigram(model, vocabulary, at);
  if (type === "WordPiece") return packageModel(new WordPiece(wordPieceConfig(model, at)), vocabulary, at);
  if (type !== "BPE") throw new MoeError("unsupported", `${at}.type: ${describe(type)} is not supported`);
  if (optional(model["dropout"], asFinite, `${at}.dropout`))
    throw new MoeError("unsupported", `${at}.dropout: a tokenizer must be deterministic`);
  const unkId = unknownId(model, vocabulary.pieceToId, at);
  const suffix = optional(model["end_of_word_suffix"], asString, `${at}.end_of_word_suffix`);
  const prefix = optional(model["continuing_subword_prefix"], asString, `${at}.continuing_subword_prefix`);
  if (suffix || prefix) {
    // Only old models (CLIP, GPT-1) mark word ends in the pieces; the package knows how.
    if (byteLevel) throw new MoeError("unsupported", `${at}: end_of_word_suffix with ByteLevel is not supported`);
    readMerges(
      model["merges"],
      vocabulary.pieceToId,
      at,
      (left, right) => left + (prefix && right.startsWith(prefix) ? right.slice(prefix.length) : right),
    );
    return packageModel(new BPE(model), vocabulary, at);
  }
  const merges = new MergeTable(
    readMerges(model["merges"], vocabulary.pieceToId, at, (left, right) => left + right),
    dialect.firstMergeWins,
  );
  const ignoreMerges = flag(model, "ignore_merges", false, at);
  if (byteLevel) return new ByteLevelBpe({ merges, pieceToId: vocabulary.pieceToId, ignoreMerges, unkId });
  return new CharacterBpe({
    merges,
    characterIds: new Map([...vocabulary.pieceToId].filter(([piece]) => Array.from(piece).length === 1)),
    vocabSize: vocabulary.pieces.length,
    pieceToId: vocabulary.pieceToId,
    ignoreMerges,
    byteIds: flag(model, "byte_fallback", false, at) ? byteIdsOf(vocabulary.pieceToId) : undefined,
    unkId,
    fuseUnk: flag(model, "fuse_unk", false, at),
    unused: new Set(),
    splitsAtSpaces: !ignoreMerges && splitsAtSpaces(vocabulary.pieceToId),
  });
}

/** No piece crosses the place before a U+2581, and U+2581 itself is a piece (or runs of unknowns could cross it). */
export function splitsAtSpaces(pieceToId: ReadonlyMap<string, number>): boolean {
  if (!pieceToId.has("▁")) return false;
  for (const piece of pieceToId.keys()) if (/[^▁]▁/.test(piece)) return false;
  return true;
}

/** Ids of `<0x00>`..`<0xFF>`, or undefined when the vocabulary lacks one of them. */
export function byteIdsOf(pieceToId: ReadonlyMap<string, number>): Int32Array | undefined {
  const ids = Int32Array.from({ length: 256 }, (_, byte) => pieceToId.get(byteToken(byte)) ?? -1);
  return ids.includes(-1) ? undefined : ids;
}

function unknownId(model: JsonObject, pieceToId: ReadonlyMap<string, number>, at: string): number | undefined {
  const unk = optional(model["unk_token"], asString, `${at}.unk_token`);
  if (unk === undefined) return undefined;
  const id = pieceToId.get(unk);
  if (id === undefined) throw fileError(`${at}.unk_token`, "a piece of the vocabulary", describe(unk));
  return id;
}

/** Merges are "a b" or ["a", "b"]; both parts and the result must be pieces. */
function readMerges(
  value: unknown,
  pieceToId: ReadonlyMap<string, number>,
  at: string,
  result: (left: string, right: string) => string,
): Merge[] {
  return asArray(value, `${at}.merges`).map((entry, rank) => {
    const where = `${at}.merges[${rank}]`;
    const pair = typeof entry === "string" ? entry.split(" ") : asArray(entry, where);
    const left = asString(pair[0], where);
    const right = asString(pair[1], where);
    if (pair.length !== 2) throw fileError(where, "two pieces", describe(entry));
    const id = (piece: string): number => {
      const found = pieceToId.get(piece);
      if (found === undefined) throw fileError(where, "pieces of the vocabulary", describe(piece));
      return found;
    };
    return { left: id(left), right: id(right), result: id(result(left, right)), rank };
  });
}

function buildUnigram(model: JsonObject, vocabulary: Vocabulary, at: string): WordModel {
  const entries = asArray(model["vocab"], `${at}.vocab`);
  const scores = Float64Array.from(entries, (entry, i) => asFinite(asArray(entry, `${at}.vocab[${i}]`)[1], `${at}.vocab[${i}][1]`));
  const unkId = optional(model["unk_id"], (id, where) => asIndex(id, entries.length, where), `${at}.unk_id`);
  const byteFallback = flag(model, "byte_fallback", false, at);
  return new Unigram({
    pieces: vocabulary.pieces.slice(0, entries.length).map((piece) => piece ?? ""),
    scores,
    matchable: () => true,
    bonus: () => undefined,
    unkScore: scores.reduce((least, score) => Math.min(least, score), Number.POSITIVE_INFINITY) - 10,
    unkId,
    byteIds: byteFallback ? byteIdsOf(vocabulary.pieceToId) : undefined,
    fuseUnk: true,
    singlePrecision: false,
  });
}

function wordPieceConfig(model: JsonObject, at: string): JsonObject {
  return {
    type: "WordPiece",
    vocab: asObject(model["vocab"], `${at}.vocab`),
    unk_token: asString(model["unk_token"], `${at}.unk_token`),
    continuing_subword_prefix: optional(model["continuing_subword_prefix"], asString, at) ?? "##",
    max_input_chars_per_word: optional(model["max_input_chars_per_word"], asFinite, at) ?? 100,
  };
}

/** A model of the package, which speaks pieces, as one that speaks ids. */
function packageModel(model: { encode(words: string[]): string[] }, vocabulary: Vocabulary, at: string): WordModel {
  return {
    encodeWord(word, out) {
      for (const piece of model.encode([word])) {
        const id = vocabulary.pieceToId.get(piece);
        if (id === undefined)
          throw new MoeError("file", `${at}: expected every character or the unknown token in the vocabulary, got ${describe(piece)}`);
        out.push(id);
      }
    },
  };
}

/**
 * The `tokenizer.ggml.*` keys of a tokenizer, for a GGUF file that llama.cpp is to read. Values carry their GGUF type,
 * in the shape that the GGUF writer takes. Byte-level BPE becomes `gpt2` and needs a pre-tokenizer that the format has a
 * name for; BPE over characters becomes `llama`, with scores (its own, or minus the rank of the merge that makes a
 * piece). Unigram, WordPiece and other pipelines are refused: no key of the format says how they split.
 */

import { MoeError } from "../util/errors.ts";
import { byteOfToken } from "./bytes.ts";
import { nameOfPatterns, patternsOfJson } from "./gguf-pretokenizers.ts";
import type { JsonObject } from "./json.ts";
import { asPipeline, type PipelineTokenizer } from "./pipeline.ts";
import { pieceType, type SentencePieceModel } from "./source.ts";
import type { Tokenizer } from "./tokenizer.ts";

export type GgufTokenizerValue =
  | { readonly type: "string"; readonly value: string }
  | { readonly type: "bool"; readonly value: boolean }
  | { readonly type: "uint32"; readonly value: number }
  | { readonly type: "array"; readonly elementType: "string"; readonly values: readonly string[] }
  | { readonly type: "array"; readonly elementType: "float32" | "int32"; readonly values: ArrayLike<number> };

/** Keys to typed values. Throws `unsupported` for a tokenizer that the format cannot express. */
export function toGgufMetadata(tokenizer: Tokenizer): Map<string, GgufTokenizerValue> {
  const pipeline = asPipeline(tokenizer, "toGgufMetadata");
  const { source } = pipeline;
  const keys = new Map<string, GgufTokenizerValue>();
  const put = (key: string, value: GgufTokenizerValue): void => void keys.set(`tokenizer.ggml.${key}`, value);
  if (source.format === "sentencepiece") putScored(put, source.model);
  else putFromJson(put, pipeline, source.tokenizerJson);
  const added = addedAround(tokenizer);
  const ids = {
    bos: added.before ?? tokenizer.bosId,
    eos: added.after ?? tokenizer.eosId,
    unknown: tokenizer.unkId,
    padding: tokenizer.padId,
  };
  for (const [name, value] of Object.entries(ids)) if (value !== undefined) put(`${name}_token_id`, { type: "uint32", value });
  put("add_bos_token", { type: "bool", value: added.before !== undefined });
  put("add_eos_token", { type: "bool", value: added.after !== undefined });
  if (tokenizer.chatTemplate !== undefined) keys.set("tokenizer.chat_template", { type: "string", value: tokenizer.chatTemplate });
  return keys;
}

/**
 * The tokens that encoding puts before and after a text. A `tokenizer.json` says so by itself, also where nothing else names
 * its bos; llama.cpp can add one on each side.
 */
function addedAround(tokenizer: Tokenizer): { before: number | undefined; after: number | undefined } {
  const bare = tokenizer.encode("a", { addSpecialTokens: false });
  const full = tokenizer.encode("a");
  const at = full.findIndex((_, i) => bare.every((id, j) => full[i + j] === id));
  const numAfter = full.length - bare.length - at;
  if (at < 0 || at > 1 || numAfter > 1) throw unsupported("more than one token put before or after a text");
  return { before: at === 1 ? full[0] : undefined, after: numAfter === 1 ? full.at(-1) : undefined };
}

type Put = (key: string, value: GgufTokenizerValue) => void;

function unsupported(what: string): MoeError {
  return new MoeError("unsupported", `toGgufMetadata: ${what}; GGUF files hold byte-level BPE and SentencePiece BPE tokenizers here`);
}

function putPieces(put: Put, pieces: readonly string[], types: ArrayLike<number>): void {
  put("tokens", { type: "array", elementType: "string", values: pieces });
  put("token_type", { type: "array", elementType: "int32", values: types });
}

function putScored(put: Put, model: SentencePieceModel): void {
  if (model.algorithm !== "bpe") throw unsupported("a unigram model");
  if (model.charsMap.length > 0 || model.removeExtraWhitespaces) throw unsupported("a normalizer that changes the text");
  put("model", { type: "string", value: "llama" });
  put("pre", { type: "string", value: "default" });
  putPieces(put, model.pieces, model.types);
  put("scores", { type: "array", elementType: "float32", values: model.scores });
  put("add_space_prefix", { type: "bool", value: model.addDummyPrefix });
}

function putFromJson(put: Put, tokenizer: PipelineTokenizer, json: JsonObject): void {
  const model = json["model"] as JsonObject;
  const merges = model["merges"];
  if (!Array.isArray(merges)) throw unsupported(`a model of type ${String(model["type"])}`);
  const { pieces, types } = piecesAndTypes(tokenizer, model);
  const pairs = merges.map((merge: unknown) => (typeof merge === "string" ? merge.split(" ") : (merge as string[])));
  const isByteLevel = typeof json["decoder"] === "object" && JSON.stringify(json["decoder"]).includes('"ByteLevel"');
  if (isByteLevel) {
    const patterns = patternsOfJson(json["pre_tokenizer"]);
    const name = patterns === undefined ? undefined : nameOfPatterns(patterns, model["ignore_merges"] === true);
    if (name === undefined) throw unsupported("a pre-tokenizer that GGUF has no name for");
    put("model", { type: "string", value: "gpt2" });
    put("pre", { type: "string", value: name });
    putPieces(put, pieces, types);
    put("merges", { type: "array", elementType: "string", values: pairs.map((pair) => pair.join(" ")) });
    return;
  }
  put("model", { type: "string", value: "llama" });
  put("pre", { type: "string", value: "default" });
  putPieces(put, pieces, types);
  const scores = new Float32Array(pieces.length).fill(-1e6);
  pieces.forEach((_, id) => {
    if (types[id] !== pieceType.normal) scores[id] = 0;
  });
  // Best merge last, so that a piece made in two ways keeps its earlier rank.
  pairs.toReversed().forEach((pair, i) => {
    scores[tokenizer.pieceToId(pair.join("")) ?? 0] = -(pairs.length - 1 - i);
  });
  put("scores", { type: "array", elementType: "float32", values: scores });
  put("add_space_prefix", {
    type: "bool",
    value: /"Prepend"|"prepend_scheme":"(?:first|always)"/.test(JSON.stringify([json["normalizer"], json["pre_tokenizer"]])),
  });
}

function piecesAndTypes(tokenizer: PipelineTokenizer, model: JsonObject): { pieces: string[]; types: Int32Array } {
  const added = new Map(tokenizer.addedTokens.map((token) => [token.id, token]));
  const types = new Int32Array(tokenizer.vocabSize);
  const pieces = Array.from(types, (_, id) => {
    const piece = tokenizer.idToPiece(id);
    const token = added.get(id);
    if (piece === "") types[id] = pieceType.unused;
    else if (piece === model["unk_token"]) types[id] = pieceType.unknown;
    else if (token !== undefined) types[id] = token.special ? pieceType.control : pieceType.userDefined;
    else types[id] = model["byte_fallback"] === true && byteOfToken(piece) >= 0 ? pieceType.byte : pieceType.normal;
    // A hole still needs a name of its own.
    return piece === "" ? `[PAD${id}]` : piece;
  });
  return { pieces, types };
}

/**
 * The tokenizer inside a GGUF file: the `tokenizer.ggml.*` keys, given as a plain object (reading the file is the
 * checkpoint layer's work). Two kinds are supported, as llama.cpp reads them:
 *
 * - `gpt2`: byte-level BPE with merges and a named pre-tokenizer. It is turned into the value of a tokenizer.json and
 *   built from that, so saving it for Hugging Face is saving what is already there.
 * - `llama`: SentencePiece BPE, pieces with scores and byte fallback.
 *
 * The ids are llama.cpp's, with two tolerated differences: merges whose parts or result are not pieces are left out,
 * and Unicode categories are those of the JavaScript engine, which may know newer characters.
 */

import { fileError, MoeError } from "../util/errors.ts";
import { byteIdsOf, buildHuggingFaceTokenizer } from "./huggingface.ts";
import { checkVocabSize } from "./decoder.ts";
import { namedPreTokenizer, preTokenizerJson } from "./gguf-pretokenizers.ts";
import { describe } from "./json.ts";
import type { PipelineTokenizer } from "./pipeline.ts";
import { buildSentencePieceTokenizer } from "./sentencepiece-pipeline.ts";
import { pieceType } from "./source.ts";

/**
 * Keys to values. Arrays may be plain or typed, integers may be bigint, and a value may be wrapped with its type as
 * `{type, value}` or `{type, elementType, values}`, as the GGUF reader and `toGgufMetadata` give them.
 */
export type GgufMetadata = Readonly<Record<string, unknown>> | ReadonlyMap<string, unknown>;

/** Texts that end a turn in the chat formats of known models; such a piece ends a generation. */
const turnEnds = [
  "<|eot_id|>",
  "<|im_end|>",
  "<|end|>",
  "<end_of_turn>",
  "<|endoftext|>",
  "<|end_of_text|>",
  "<|eom_id|>",
  "<EOT>",
  "<｜end▁of▁sentence｜>",
];

/**
 * The tokenizer of a GGUF file's metadata; `origin` names the file in errors.
 * @throws MoeError of kind `file` for missing or contradictory keys, `unsupported` for other tokenizer models.
 */
export function loadGgufTokenizer(metadata: GgufMetadata, origin = "GGUF"): PipelineTokenizer {
  const read = new Reader(metadata, origin);
  const model = read.text("tokenizer.ggml.model");
  const pieces = read.pieces();
  const types = read.types(pieces.length);
  if (model === "gpt2") return byteLevel(read, pieces, types, origin);
  if (model === "llama") return scored(read, pieces, types, origin);
  throw new MoeError("unsupported", `${origin}: tokenizer.ggml.model ${describe(model)} is not supported; gpt2 and llama are`);
}

function unwrap(value: unknown): unknown {
  if (typeof value !== "object" || value === null || !("type" in value)) return value;
  return "values" in value ? value.values : "value" in value ? value.value : value;
}

/** Typed access to the keys. */
class Reader {
  readonly #metadata: Readonly<Record<string, unknown>>;
  readonly #origin: string;

  constructor(metadata: GgufMetadata, origin: string) {
    const entries = metadata instanceof Map ? [...metadata] : Object.entries(metadata);
    this.#metadata = Object.fromEntries(entries.map(([key, value]) => [key, unwrap(value)]));
    this.#origin = origin;
  }

  #fail(key: string, expected: string, value: unknown): MoeError {
    return fileError(`${this.#origin}: ${key}`, expected, value === undefined ? "nothing" : describe(value));
  }

  text(key: string, missing?: string): string {
    const value = this.#metadata[key] ?? missing;
    if (typeof value !== "string") throw this.#fail(key, "a string", value);
    return value;
  }

  optionalText(key: string): string | undefined {
    return this.#metadata[key] === undefined ? undefined : this.text(key);
  }

  flag(key: string, missing: boolean): boolean {
    const value = this.#metadata[key] ?? missing;
    if (typeof value !== "boolean") throw this.#fail(key, "true or false", value);
    return value;
  }

  /** An id; llama.cpp ignores those outside the vocabulary, so they are undefined here. */
  id(key: string, vocabSize: number, missing?: number): number | undefined {
    const value = this.#metadata[key] ?? missing;
    if (value === undefined) return undefined;
    const id = Number(value);
    if ((typeof value !== "number" && typeof value !== "bigint") || !Number.isInteger(id)) throw this.#fail(key, "an integer", value);
    return id >= 0 && id < vocabSize ? id : missing !== undefined && missing < vocabSize ? missing : undefined;
  }

  strings(key: string): string[] {
    const value = this.#metadata[key];
    if (!Array.isArray(value)) throw this.#fail(key, "an array of strings", value);
    const wrong = value.findIndex((entry) => typeof entry !== "string");
    if (wrong >= 0) throw this.#fail(`${key}[${wrong}]`, "a string", value[wrong]);
    return value;
  }

  numbers(key: string, length: number): number[] | undefined {
    const value = this.#metadata[key];
    if (value === undefined) return undefined;
    const numbers = Array.isArray(value) || ArrayBuffer.isView(value) ? Array.from(value as ArrayLike<unknown>, Number) : undefined;
    if (numbers === undefined || numbers.length < length || numbers.some(Number.isNaN)) throw this.#fail(key, `${length} numbers`, value);
    return numbers.slice(0, length);
  }

  pieces(): string[] {
    const key = "tokenizer.ggml.tokens";
    const pieces = this.strings(key).map((piece, id) => (piece === "" ? `[EMPTY_${id}]` : piece));
    checkVocabSize(pieces.length, `${this.#origin}: ${key}`);
    if (pieces.length === 0) throw this.#fail(key, "at least one token", pieces);
    const seen = new Map<string, number>();
    pieces.forEach((piece, id) => {
      const other = seen.get(piece);
      if (other !== undefined) throw this.#fail(key, "each token once", `${piece} as ${other} and ${id}`);
      seen.set(piece, id);
    });
    return pieces;
  }

  types(vocabSize: number): Uint8Array {
    const types = this.numbers("tokenizer.ggml.token_type", vocabSize) ?? new Uint8Array(vocabSize).fill(pieceType.normal);
    return Uint8Array.from(types, (type) => (type >= 1 && type <= 6 ? type : 0));
  }
}

function byteLevel(read: Reader, pieces: readonly string[], types: Uint8Array, origin: string): PipelineTokenizer {
  const named = namedPreTokenizer(read.text("tokenizer.ggml.pre", "default"), origin);
  const vocab = new Map(pieces.map((piece, id) => [piece, id]));
  const merges = read.strings("tokenizer.ggml.merges").flatMap((merge) => {
    // The first character may itself be a space.
    const cut = merge.indexOf(" ", 1);
    const pair = [merge.slice(0, cut), merge.slice(cut + 1)];
    return cut > 0 && pair.every((part) => vocab.has(part)) && vocab.has(pair.join("")) ? [pair] : [];
  });
  const token = (key: string, missing?: number): string | undefined => {
    const id = read.id(`tokenizer.ggml.${key}_token_id`, pieces.length, missing);
    return id === undefined ? undefined : pieces[id];
  };
  const specials = { bos: token("bos", 11), eos: token("eos", 11), pad: token("padding"), unk: token("unknown") };
  const around = (key: "bos" | "eos", adds: boolean): unknown[] =>
    adds && specials[key] !== undefined ? [{ SpecialToken: { id: specials[key], type_id: 0 } }] : [];
  const single = [
    ...around("bos", read.flag("tokenizer.ggml.add_bos_token", named.addBos)),
    { Sequence: { id: "A", type_id: 0 } },
    ...around("eos", read.flag("tokenizer.ggml.add_eos_token", false)),
  ];
  const templateTokens = Object.fromEntries(
    [specials.bos, specials.eos].flatMap((name) =>
      name === undefined ? [] : [[name, { id: name, ids: [vocab.get(name)], tokens: [name] }]],
    ),
  );
  const tokenizerJson = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: pieces.flatMap((content, id) => {
      const type = types[id];
      if (type !== pieceType.control && type !== pieceType.userDefined && type !== pieceType.unknown) return [];
      return [
        { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: type !== pieceType.userDefined },
      ];
    }),
    normalizer: null,
    pre_tokenizer: preTokenizerJson(named.patterns),
    post_processor:
      single.length === 1
        ? null
        : { type: "TemplateProcessing", single, pair: [...single, { Sequence: { id: "B", type_id: 1 } }], special_tokens: templateTokens },
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: named.ignoreMerges,
      vocab: Object.fromEntries(vocab),
      merges,
    },
  };
  const chatTemplate = read.optionalText("tokenizer.chat_template");
  const tokenizerConfig = {
    tokenizer_class: "PreTrainedTokenizerFast",
    clean_up_tokenization_spaces: false,
    ...Object.fromEntries(Object.entries(specials).flatMap(([key, content]) => (content === undefined ? [] : [[`${key}_token`, content]]))),
    ...(chatTemplate === undefined ? {} : { chat_template: chatTemplate }),
  };
  const ends = endIds(read, pieces, types, vocab.get(specials.eos ?? ""));
  return buildHuggingFaceTokenizer(
    { tokenizerJson, tokenizerConfig, generationConfig: { eos_token_id: [...ends] }, origin },
    { addedTokens: "longest-first", firstMergeWins: true },
  );
}

function endIds(read: Reader, pieces: readonly string[], types: Uint8Array, eosId: number | undefined): Set<number> {
  const ends = new Set<number>(eosId === undefined ? [] : [eosId]);
  for (const key of ["eot", "eom"]) {
    const id = read.id(`tokenizer.ggml.${key}_token_id`, pieces.length);
    if (id !== undefined) ends.add(id);
  }
  for (const content of turnEnds) {
    const id = pieces.indexOf(content);
    if (id >= 0 && types[id] !== pieceType.normal) ends.add(id);
  }
  return ends;
}

function scored(read: Reader, pieces: readonly string[], types: Uint8Array, origin: string): PipelineTokenizer {
  const scores = Float32Array.from(read.numbers("tokenizer.ggml.scores", pieces.length) ?? new Float32Array(pieces.length));
  const id = (key: string, missing?: number): number | undefined => read.id(`tokenizer.ggml.${key}_token_id`, pieces.length, missing);
  const bytes = new Map(pieces.map((piece, index) => [piece, index] as const).filter(([, index]) => types[index] === pieceType.byte));
  const eosId = id("eos", 2);
  const model = {
    algorithm: "bpe",
    pieces,
    scores,
    types,
    byteFallback: byteIdsOf(bytes) !== undefined,
    unkId: id("unknown", 0) ?? 0,
    bosId: id("bos", 1),
    eosId,
    padId: id("padding"),
    unkSurface: "\u2585",
    charsMap: new Uint8Array(0),
    addDummyPrefix: read.flag("tokenizer.ggml.add_space_prefix", true),
    removeExtraWhitespaces: false,
    escapeWhitespaces: true,
    whitespaceAsSuffix: false,
    addBos: read.flag("tokenizer.ggml.add_bos_token", true),
    addEos: read.flag("tokenizer.ggml.add_eos_token", false),
    dialect: "llama.cpp",
    chatTemplate: read.optionalText("tokenizer.chat_template"),
  } as const;
  return buildSentencePieceTokenizer(model, origin, endIds(read, pieces, types, eosId));
}

/**
 * Loading a SentencePiece model (Kudo and Richardson: "SentencePiece", arXiv 1808.06226): the `tokenizer.model` of
 * Llama, Mistral, Skywork, T5 and many others. The file is the protobuf `ModelProto` of sentencepiece_model.proto:
 * pieces with scores and kinds, a trainer spec (field 2) of which only what encoding needs is read, and a normalizer
 * spec (field 3). Both algorithms are supported: BPE, with merges in the order of scores, and unigram.
 *
 * The ids are those of `SentencePieceProcessor.encode`: control symbols in the text are ordinary characters there, so
 * `parseSpecial` defaults to what the caller says but finds only what is in `addedTokens`; nothing is added around
 * the text unless the caller asks (`addSpecialTokens` adds what `SentencePieceOptions` names, by default a bos).
 */

import { readFile } from "node:fs/promises";
import { fileError, MoeError } from "../util/errors.ts";
import { checkVocabSize, maxVocabSize } from "./decoder.ts";
import type { PipelineTokenizer } from "./pipeline.ts";
import { bytesField, type Field, floatOfBits, int32Field, numberField, readFields, stringField } from "./protobuf.ts";
import { buildSentencePieceTokenizer } from "./sentencepiece-pipeline.ts";
import { pieceType, type SentencePieceModel } from "./source.ts";

export interface SentencePieceOptions {
  /** Put a bos before and an eos after a text with `addSpecialTokens`; the model file does not say. Llama: true, false. */
  readonly addBos?: boolean;
  readonly addEos?: boolean;
  readonly chatTemplate?: string;
}

/**
 * The tokenizer of a `tokenizer.model` file.
 * @throws MoeError of kind `file` when it is missing, truncated or inconsistent; `unsupported` for word and character
 *   models.
 */
export async function loadSentencePieceTokenizer(path: string, options: SentencePieceOptions = {}): Promise<PipelineTokenizer> {
  let bytes: Uint8Array;
  try {
    bytes = await readFile(path);
  } catch (cause) {
    throw fileError(path, "a readable SentencePiece model", cause instanceof Error ? cause.message : String(cause), cause);
  }
  return buildSentencePieceTokenizer(parseSentencePieceModel(bytes, path, options), path);
}

/** The model in the bytes of a `tokenizer.model` file; errors as `loadSentencePieceTokenizer`. */
export function parseSentencePieceModel(bytes: Uint8Array, path: string, options: SentencePieceOptions = {}): SentencePieceModel {
  const fields = readFields(bytes, path);
  const pieceFields = fields.filter((field) => field.number === 1);
  checkVocabSize(pieceFields.length, path);
  if (pieceFields.length === 0) throw fileError(path, "pieces", "none");
  const pieces: string[] = [];
  const scores = new Float32Array(pieceFields.length);
  const types = new Uint8Array(pieceFields.length);
  pieceFields.forEach((field, id) => {
    const at = `${path}: piece ${id}`;
    const piece = readFields(messageOf(field, at), at);
    pieces.push(stringField(piece, 1, "", at));
    scores[id] = floatOfBits(numberField(piece, 2, 0, at));
    types[id] = readType(numberField(piece, 3, pieceType.normal, at), at);
  });
  const trainer = readFields(bytesField(fields, 2, path), `${path}: trainer_spec`);
  const normalizer = readFields(bytesField(fields, 3, path), `${path}: normalizer_spec`);
  return {
    ...readTrainer(trainer, pieces, types, path),
    ...readNormalizer(normalizer, path),
    pieces,
    scores,
    types,
    addBos: options.addBos ?? true,
    addEos: options.addEos ?? false,
    dialect: "sentencepiece",
    chatTemplate: options.chatTemplate,
  };
}

function messageOf(field: Field, at: string): Uint8Array {
  if (typeof field.value === "number") throw fileError(at, "a message", `the number ${field.value}`);
  return field.value;
}

function readType(value: number, at: string): number {
  if (value < pieceType.normal || value > pieceType.byte) throw fileError(at, "a type from 1 to 6", `${value}`);
  return value;
}

type TrainerPart = Pick<
  SentencePieceModel,
  "algorithm" | "byteFallback" | "whitespaceAsSuffix" | "unkId" | "bosId" | "eosId" | "padId" | "unkSurface"
>;

function readTrainer(fields: readonly Field[], pieces: readonly string[], types: Uint8Array, path: string): TrainerPart {
  const at = `${path}: trainer_spec`;
  const modelType = numberField(fields, 3, 1, at);
  if (modelType !== 1 && modelType !== 2)
    throw new MoeError("unsupported", `${at}: model_type 1 (unigram) or 2 (BPE) is supported, got ${modelType}`);
  // The processor ignores the ids of the trainer and finds the pieces by name.
  const named = (number: number, missing: string): number | undefined => {
    const id = pieces.indexOf(stringField(fields, number, missing, at));
    return id < 0 || types[id] !== pieceType.control ? undefined : id;
  };
  const unkId = types.indexOf(pieceType.unknown);
  if (unkId < 0) throw fileError(path, "an unknown piece", "none");
  const numbered = (number: number, missing: number, name: number, missingName: string): number | undefined =>
    int32Field(fields, number, missing, at) >= maxVocabSize ? undefined : named(name, missingName);
  return {
    algorithm: modelType === 1 ? "unigram" : "bpe",
    byteFallback: numberField(fields, 35, 0, at) !== 0,
    whitespaceAsSuffix: numberField(fields, 24, 0, at) !== 0,
    unkId,
    bosId: numbered(41, 1, 46, "<s>"),
    eosId: numbered(42, 2, 47, "</s>"),
    padId: numbered(43, -1, 48, "<pad>"),
    unkSurface: stringField(fields, 44, " \u2047 ", at),
  };
}

type NormalizerPart = Pick<SentencePieceModel, "charsMap" | "addDummyPrefix" | "removeExtraWhitespaces" | "escapeWhitespaces">;

function readNormalizer(fields: readonly Field[], path: string): NormalizerPart {
  const at = `${path}: normalizer_spec`;
  return {
    charsMap: bytesField(fields, 2, at).slice(),
    addDummyPrefix: numberField(fields, 3, 1, at) !== 0,
    removeExtraWhitespaces: numberField(fields, 4, 1, at) !== 0,
    escapeWhitespaces: numberField(fields, 5, 1, at) !== 0,
  };
}

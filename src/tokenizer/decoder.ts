/**
 * The decoders of tokenizer.json: pieces to text, as a chain of functions on lists of pieces whose results are joined.
 * `ByteLevel`, by far the most frequent, is not a function here but the answer "bytes": the pipeline then concatenates
 * the bytes of the ids, which also streams. `WordPiece`, `BPEDecoder` and `CTC` are those of `@huggingface/tokenizers`;
 * its `ByteFallback` gives another number of U+FFFD for broken bytes than the Rust original, and its `Metaspace`
 * removes only one space, so these are ours.
 */

import { BPEDecoder, CTCDecoder, WordPieceDecoder } from "./hf-library.ts";
import { fileError, MoeError } from "../util/errors.ts";
import { byteOfToken } from "./bytes.ts";
import { asArray, asIndex, asObject, asString, describe, flag, type JsonObject, optional } from "./json.ts";
import { patternOf } from "./pattern.ts";

export type DecodeChain = (pieces: readonly string[]) => readonly string[];

/** The chain of a `decoder` value; "bytes" for byte-level models; pieces joined by spaces for `null`. */
export function buildDecoder(value: unknown, at: string): DecodeChain | "bytes" {
  if (value === null || value === undefined) return (pieces) => [pieces.join(" ")];
  const json = asObject(value, at);
  if (json["type"] === "ByteLevel") return "bytes";
  if (json["type"] !== "Sequence") return step(json, at);
  const parts = asArray(json["decoders"], `${at}.decoders`);
  if (parts.length === 1) return buildDecoder(parts[0], `${at}.decoders[0]`);
  const steps = parts.map((part, i) => step(asObject(part, `${at}.decoders[${i}]`), `${at}.decoders[${i}]`));
  return (pieces) => steps.reduce((result, decode) => decode(result), pieces);
}

function step(json: JsonObject, at: string): DecodeChain {
  const type = asString(json["type"], `${at}.type`);
  switch (type) {
    case "Replace": {
      const pattern = patternOf(json["pattern"], `${at}.pattern`);
      const content = asString(json["content"], `${at}.content`);
      return (pieces) => pieces.map((piece) => piece.replaceAll(pattern, () => content));
    }
    case "Fuse":
      return (pieces) => [pieces.join("")];
    case "Strip": {
      const content = asString(json["content"], `${at}.content`);
      const start = asIndex(json["start"], 2 ** 31, `${at}.start`);
      const stop = asIndex(json["stop"], 2 ** 31, `${at}.stop`);
      return (pieces) => pieces.map((piece) => strip(piece, content, start, stop));
    }
    case "ByteFallback":
      return byteFallback;
    case "Metaspace": {
      const replacement = optional(json["replacement"], asString, `${at}.replacement`) ?? "▁";
      const drops = json["prepend_scheme"] === undefined ? flag(json, "add_prefix_space", true, at) : json["prepend_scheme"] !== "never";
      return (pieces) => pieces.map((piece, i) => piece.replaceAll(replacement, () => (i === 0 && drops ? "" : " ")));
    }
    case "WordPiece": {
      const prefix = optional(json["prefix"], asString, `${at}.prefix`) ?? "##";
      const decoder = new WordPieceDecoder({ type: "WordPiece", prefix, cleanup: flag(json, "cleanup", true, at) });
      return (pieces) => decoder.decode_chain([...pieces]);
    }
    case "BPEDecoder": {
      const decoder = new BPEDecoder({ type: "BPEDecoder", suffix: optional(json["suffix"], asString, `${at}.suffix`) ?? "</w>" });
      return (pieces) => decoder.decode_chain([...pieces]);
    }
    case "CTC": {
      const decoder = new CTCDecoder({
        type: "CTC",
        pad_token: asString(json["pad_token"], `${at}.pad_token`),
        word_delimiter_token: asString(json["word_delimiter_token"], `${at}.word_delimiter_token`),
        cleanup: flag(json, "cleanup", true, at),
      });
      return (pieces) => decoder.decode_chain([...pieces]);
    }
    case "ByteLevel":
      throw new MoeError("unsupported", `${at}: a ByteLevel decoder must stand alone`);
    default:
      throw new MoeError("unsupported", `${at}: decoder ${describe(type)} is not supported`);
  }
}

function strip(piece: string, content: string, start: number, stop: number): string {
  const characters = Array.from(piece);
  let from = 0;
  while (from < start && from < characters.length && characters[from] === content) from++;
  let to = characters.length;
  while (characters.length - to < stop && to > from && characters[to - 1] === content) to--;
  return characters.slice(from, to).join("");
}

/** A run of byte tokens is their text if that is UTF-8, otherwise one U+FFFD for each byte. */
function byteFallback(pieces: readonly string[]): string[] {
  const out: string[] = [];
  let run: number[] = [];
  const flush = (): void => {
    if (run.length === 0) return;
    try {
      out.push(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Uint8Array.from(run)));
    } catch {
      for (let i = 0; i < run.length; i++) out.push("\ufffd");
    }
    run = [];
  };
  for (const piece of pieces) {
    const byte = byteOfToken(piece);
    if (byte >= 0) run.push(byte);
    else {
      flush();
      out.push(piece);
    }
  }
  flush();
  return out;
}

/** Reads the id or throws: shared check of the functions that take an id. */
export function checkId(id: number, vocabSize: number, operation: string): void {
  if (!Number.isInteger(id) || id < 0 || id >= vocabSize) {
    throw new MoeError("usage", `${operation}: expected an id from 0 to ${vocabSize - 1}, got ${id}`);
  }
}

/** `piece` must exist; ids that no piece has are holes of the vocabulary. */
export function pieceOf(pieces: readonly (string | undefined)[], id: number, operation: string): string {
  checkId(id, pieces.length, operation);
  return pieces[id] ?? "";
}

/** Vocabularies are bounded so that a corrupt id cannot ask for gigabytes. */
export const maxVocabSize = 2 ** 23;

/** Throws when a vocabulary is larger than anything real. */
export function checkVocabSize(size: number, at: string): void {
  if (size > maxVocabSize) throw fileError(at, `at most ${maxVocabSize} pieces`, `${size}`);
}

/**
 * Makes a token file from text sources, once: the file's fingerprint covers the bytes of the sources, how they are read
 * and the tokenizer, and a current file is opened as it is.
 */
import { createHash } from "node:crypto";
import { createReadStream, existsSync, mkdirSync } from "node:fs";
import { dirname } from "node:path";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { fileError, MoeError } from "../util/errors.ts";
import { systemError } from "../util/files.ts";
import { readDocuments, type ChatMessage, type DocumentSource } from "./documents.ts";
import { TokenFile, TokenFileWriter } from "./token-file.ts";

/** Ids of a conversation, and for each whether it bears loss (1: written by the assistant). */
export interface EncodedConversation {
  readonly ids: ArrayLike<number>;
  readonly mask: Uint8Array;
}

export interface TokenizeOptions {
  readonly tokenizer: Tokenizer;
  /** Identifies the tokenizer in the fingerprint (a hash of its files). */
  readonly tokenizerFingerprint: string;
  /** Encodes a conversation; required when a source holds conversations. */
  readonly encodeChat?: (messages: readonly ChatMessage[]) => EncodedConversation;
  /** Called as documents are done. */
  readonly onProgress?: (progress: { documents: number; tokens: number }) => void;
}

/**
 * Opens the token file at `path`, making it first where it is missing or stale. Each text document gets the tokenizer's
 * special tokens and ends with its end-of-text token, if it has one.
 * Throws `file` for input that is missing, malformed, or has no tokens.
 */
export async function prepareTokens(path: string, sources: readonly DocumentSource[], options: TokenizeOptions): Promise<TokenFile> {
  const fingerprint = await fingerprintOf(sources, options.tokenizerFingerprint);
  if (existsSync(path)) {
    const file = openOrNull(path);
    if (file?.header.fingerprint === fingerprint) return file;
    file?.[Symbol.dispose]();
  }
  try {
    mkdirSync(dirname(path), { recursive: true });
    await writeTokens(path, sources, options, fingerprint);
  } catch (error) {
    throw systemError(path, "a token file that can be written", error);
  }
  return new TokenFile(path);
}

/** A token file that does not open is made again; anything else that fails is the caller's to see. */
function openOrNull(path: string): TokenFile | null {
  try {
    return new TokenFile(path);
  } catch (error) {
    if (error instanceof MoeError && error.kind === "file") return null;
    throw error;
  }
}

async function writeTokens(path: string, sources: readonly DocumentSource[], options: TokenizeOptions, fingerprint: string): Promise<void> {
  const { tokenizer, encodeChat, onProgress } = options;
  const hasMask = encodeChat !== undefined;
  const writer = new TokenFileWriter(path, { vocabSize: tokenizer.vocabSize, hasMask });
  let documents = 0;
  let tokens = 0;
  try {
    for (const source of sources) {
      for await (const document of readDocuments(source)) {
        if ("messages" in document) {
          if (encodeChat === undefined) throw fileError(source.path, "a tokenizer with a chat template for conversations", "one without");
          const { ids, mask } = encodeChat(document.messages);
          writer.append(ids, mask);
          tokens += ids.length;
        } else {
          const ids = encodeText(tokenizer, document.text);
          writer.append(ids, hasMask ? new Uint8Array(ids.length).fill(1) : undefined);
          tokens += ids.length;
        }
        onProgress?.({ documents: ++documents, tokens });
      }
    }
    if (tokens === 0) throw fileError(sources.map((s) => s.path).join(", "), "some text", "no tokens at all");
    writer.finish(fingerprint);
  } catch (error) {
    writer.abort();
    throw error;
  }
}

/** A document is encoded in slices at line ends, so that a tokenizer never sees a text of many megabytes at once. */
function encodeText(tokenizer: Tokenizer, text: string): Int32Array {
  const parts: Int32Array[] = [];
  const slice = 1 << 18;
  for (let at = 0; at < text.length; ) {
    let end = Math.min(at + slice, text.length);
    if (end < text.length) {
      const newline = text.lastIndexOf("\n", end);
      if (newline > at) end = newline;
    }
    parts.push(tokenizer.encode(text.slice(at, end), { addSpecialTokens: at === 0, parseSpecial: false }));
    at = end;
  }
  const endOfText = tokenizer.eosId === undefined ? [] : [tokenizer.eosId];
  const length = parts.reduce((n, part) => n + part.length, endOfText.length);
  const ids = new Int32Array(length);
  let offset = 0;
  for (const part of parts) {
    ids.set(part, offset);
    offset += part.length;
  }
  // A tokenizer whose template already ends with the token does not get it twice.
  if (endOfText.length > 0 && offset > 0 && ids[offset - 1] === endOfText[0]) return ids.subarray(0, offset);
  ids.set(endOfText, offset);
  return ids;
}

async function fingerprintOf(sources: readonly DocumentSource[], tokenizerFingerprint: string): Promise<string> {
  const hash = createHash("sha256").update(tokenizerFingerprint);
  for (const source of sources) {
    hash.update(JSON.stringify([source.format ?? null, source.field ?? null, source.separator ?? null]));
    if (!existsSync(source.path)) throw fileError(source.path, "a training text", "no such file");
    try {
      for await (const chunk of createReadStream(source.path)) hash.update(chunk as Buffer);
    } catch (error) {
      throw systemError(source.path, "a readable file", error);
    }
  }
  return hash.digest("hex");
}

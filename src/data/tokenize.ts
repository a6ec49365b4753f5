/**
 * Makes a token file from text sources, once: the file's fingerprint covers the bytes of the sources, how they are read
 * and the tokenizer, and a current file is opened as it is.
 *
 * A long document is encoded in slices, with a pause for the event loop after each, so that progress shows and a signal is
 * heard within a fraction of a second. A slice ends behind a line end that a character other than white space follows:
 * there every splitting pattern in use cuts anyway. (SentencePiece models see a new text at each slice, and put their
 * leading space before it: one in a quarter of a million characters.)
 */
import { createHash } from "node:crypto";
import { createReadStream, existsSync, mkdirSync } from "node:fs";
import { basename, dirname } from "node:path";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { fileError, MoeError } from "../util/errors.ts";
import { removeTemporaries, systemError } from "../util/files.ts";
import { formatOfSource, readDocuments, type ChatMessage, type DocumentSource } from "./documents.ts";
import { TokenFile, TokenFileWriter, type FileMapper } from "./token-file.ts";

/** Ids of a conversation, and for each whether it bears loss (1: written by the assistant). */
export interface EncodedConversation {
  readonly ids: ArrayLike<number>;
  readonly mask: Uint8Array;
}

export interface TokenizeProgress {
  readonly documents: number;
  readonly characters: number;
  readonly tokens: number;
}

export interface TokenizeOptions {
  readonly tokenizer: Tokenizer;
  /** Identifies the tokenizer in the fingerprint (a hash of its files). */
  readonly tokenizerFingerprint: string;
  /** Encodes a conversation; required when a source holds conversations. */
  readonly encodeChat?: (messages: readonly ChatMessage[]) => EncodedConversation;
  /** Called after every slice, some ten times a second. */
  readonly onProgress?: (progress: TokenizeProgress) => void;
  /** Aborted: tokenization ends with an error and leaves nothing behind. */
  readonly signal?: AbortSignal | undefined;
  /** Maps the finished file into memory. */
  readonly map?: FileMapper | undefined;
}

/** Characters that a tokenizer sees at once. */
const sliceCharacters = 1 << 18;

/**
 * Opens the token file at `path`, making it first where it is missing or stale. Each text document gets the tokenizer's
 * special tokens and ends with its end-of-text token, if it has one.
 * Throws `file` for input that is missing, malformed, or has no tokens, `resource` when the signal is aborted.
 */
export async function prepareTokens(path: string, sources: readonly DocumentSource[], options: TokenizeOptions): Promise<TokenFile> {
  const { map, signal } = options;
  const fingerprint = await fingerprintOf(sources, options.tokenizerFingerprint, signal);
  if (existsSync(path)) {
    const file = openOrNull(path, map);
    if (file?.header.fingerprint === fingerprint) return file;
    file?.[Symbol.dispose]();
  }
  try {
    mkdirSync(dirname(path), { recursive: true });
    // Only those of this file: others in a shared folder may be under way.
    removeTemporaries(dirname(path), basename(path));
    await writeTokens(path, sources, options, fingerprint);
  } catch (error) {
    throw systemError(path, "a token file that can be written", error);
  }
  return new TokenFile(path, { map });
}

/** A token file that does not open is made again; anything else that fails is the caller's to see. */
function openOrNull(path: string, map: FileMapper | undefined): TokenFile | null {
  try {
    return new TokenFile(path, { map });
  } catch (error) {
    if (error instanceof MoeError && error.kind === "file") return null;
    throw error;
  }
}

async function writeTokens(path: string, sources: readonly DocumentSource[], options: TokenizeOptions, fingerprint: string): Promise<void> {
  const { tokenizer, encodeChat, onProgress, signal } = options;
  using writer = new TokenFileWriter(path, { vocabSize: tokenizer.vocabSize });
  let documents = 0;
  let characters = 0;
  /** Of the document under way. */
  let pendingTokens = 0;
  /** Lets signals, streams and progress bars be heard, at most ten times a second. */
  let lastPause = performance.now();
  const pause = async (): Promise<void> => {
    if (performance.now() - lastPause < 100) return;
    onProgress?.({ documents, characters, tokens: writer.numTokens + pendingTokens });
    await new Promise((resolve) => setImmediate(resolve));
    refuseIfAborted(signal);
    lastPause = performance.now();
  };
  for (const source of sources) {
    for await (const document of readDocuments(source)) {
      if ("messages" in document) {
        if (encodeChat === undefined) throw fileError(source.path, "a tokenizer with a chat template for conversations", "one without");
        const { ids, mask } = encodeChat(document.messages);
        writer.append(ids, mask);
        for (const { content } of document.messages) characters += content.length;
      } else {
        const before = characters;
        const ids = await encodeText(tokenizer, document.text, async (done, tokens) => {
          characters = before + done;
          pendingTokens = tokens;
          await pause();
        });
        writer.append(ids);
        pendingTokens = 0;
      }
      documents++;
      await pause();
    }
  }
  if (writer.numTokens === 0) throw fileError(sources.map((s) => s.path).join(", "), "some text", "no tokens at all");
  onProgress?.({ documents, characters, tokens: writer.numTokens });
  writer.finish(fingerprint);
}

function refuseIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true)
    throw new MoeError("resource", "stopped while reading the text, before the first step: there is nothing to save");
}

/** Where the slice that begins at `at` ends. */
function sliceEnd(text: string, at: number): number {
  const limit = at + sliceCharacters;
  if (limit >= text.length) return text.length;
  for (let newline = text.lastIndexOf("\n", limit - 1); newline > at; newline = text.lastIndexOf("\n", newline - 1)) {
    if (!/\s/.test(text[newline + 1] ?? "")) return newline + 1;
  }
  // No such line end in a quarter of a million characters: anywhere but within a pair of surrogates.
  return /[\udc00-\udfff]/.test(text[limit] ?? "") ? limit - 1 : limit;
}

async function encodeText(
  tokenizer: Tokenizer,
  text: string,
  afterSlice: (done: number, tokens: number) => Promise<void>,
): Promise<Int32Array> {
  const parts: Int32Array[] = [];
  let length = 0;
  for (let at = 0; at < text.length;) {
    const end = sliceEnd(text, at);
    const part = tokenizer.encode(text.slice(at, end), { addSpecialTokens: at === 0, parseSpecial: false });
    parts.push(part);
    length += part.length;
    at = end;
    await afterSlice(at, length);
  }
  const ids = new Int32Array(length + 1);
  let offset = 0;
  for (const part of parts) {
    ids.set(part, offset);
    offset += part.length;
  }
  const { eosId } = tokenizer;
  // A tokenizer whose template already ends with the token does not get it twice.
  if (eosId === undefined || length === 0 || ids[length - 1] === eosId) return ids.subarray(0, length);
  ids[length] = eosId;
  return ids;
}

async function fingerprintOf(
  sources: readonly DocumentSource[],
  tokenizerFingerprint: string,
  signal: AbortSignal | undefined,
): Promise<string> {
  const hash = createHash("sha256").update(tokenizerFingerprint);
  for (const source of sources) {
    if (!existsSync(source.path)) throw fileError(source.path, "a training text", "no such file");
    const content = createHash("sha256");
    try {
      for await (const chunk of createReadStream(source.path, { highWaterMark: 1 << 20 })) {
        content.update(chunk as Buffer);
        refuseIfAborted(signal);
      }
    } catch (error) {
      throw systemError(source.path, "a readable file", error);
    }
    hash.update(JSON.stringify([formatOfSource(source), source.field ?? null, source.separator ?? null, content.digest("hex")]));
  }
  return hash.digest("hex");
}

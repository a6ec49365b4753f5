/**
 * Reads training text as a stream of documents, one at a time, from plain text, JSONL, chat JSONL and Parquet files.
 * Nothing here knows tokens. A malformed record is an error that names the file and the line; nothing is skipped silently.
 */
import { createReadStream, existsSync, statSync } from "node:fs";
import { parquetReadObjects } from "hyparquet";
import { compressors } from "hyparquet-compressors";
import { fileError, MoeError } from "../util/errors.ts";
import { systemError } from "../util/files.ts";
import { openParquet } from "../util/parquet.ts";

export type DocumentFormat = "text" | "jsonl" | "chat" | "parquet";

export interface ChatMessage {
  readonly role: string;
  readonly content: string;
}

/** One document: running text, or a conversation whose loss is on the assistant's tokens only. */
export type SourceDocument = { readonly text: string } | { readonly messages: readonly ChatMessage[] };

export interface DocumentSource {
  readonly path: string;
  /** Default: by extension (`.txt` and others text, `.jsonl` by its first record, `.parquet`). */
  readonly format?: DocumentFormat;
  /** JSONL key or Parquet column that holds the text. Default `text`. */
  readonly field?: string;
  /** Plain text only: a line that separates documents (an empty one: `""`). Default: the whole file is one document. */
  readonly separator?: string;
}

/** Longest line (JSONL record) that is read, in characters. */
const maxLineCharacters = 64 * 1024 * 1024;

/** Longest document of a plain text, in characters: V8 has no strings above 2^29. */
const maxTextCharacters = 500_000_000;

/** The documents of a source in file order. Throws `file` errors for missing, empty or malformed input. */
export async function* readDocuments(source: DocumentSource): AsyncGenerator<SourceDocument> {
  if (!existsSync(source.path)) throw fileError(source.path, "a text, JSONL or Parquet file", "no such file");
  const stat = statSync(source.path);
  if (!stat.isFile()) throw fileError(source.path, "a file", "a directory");
  if (stat.size === 0) throw fileError(source.path, "some text", "an empty file");
  const format = formatOfSource(source);
  switch (format) {
    case "text":
      yield* readText(source);
      break;
    case "jsonl":
    case "chat":
      yield* readJsonLines(source, format === "chat");
      break;
    case "parquet":
      yield* readParquet(source);
      break;
    default:
      throw new MoeError("internal", `document format ${String(format satisfies never)}`);
  }
}

/** The format a source is read as: what it says, otherwise by extension. */
export function formatOfSource({ format, path }: DocumentSource): DocumentFormat {
  if (format !== undefined) return format;
  if (path.endsWith(".parquet")) return "parquet";
  return path.endsWith(".jsonl") || path.endsWith(".ndjson") ? "jsonl" : "text";
}

async function* readText({ path, separator }: DocumentSource): AsyncGenerator<SourceDocument> {
  let text = "";
  if (separator === undefined) {
    for await (const chunk of decoded(path)) {
      if (text.length + chunk.length > maxTextCharacters) {
        const remedy = 'a line that separates documents ("separator"), or several files';
        throw fileError(path, `a text of at most ${maxTextCharacters} characters in one document, or ${remedy}`, "a longer one");
      }
      text += chunk;
    }
    if (text.trim() !== "") yield { text };
    return;
  }
  let isFirst = true;
  for await (const line of linesOf(path)) {
    if (line === separator) {
      if (text.trim() !== "") yield { text };
      text = "";
      isFirst = true;
      continue;
    }
    text += isFirst ? line : `\n${line}`;
    isFirst = false;
  }
  if (text.trim() !== "") yield { text };
}

/** Lines without their ends. What follows the last line end is a line if it is not empty. */
async function* linesOf(path: string): AsyncGenerator<string> {
  let pending = "";
  for await (const chunk of decoded(path)) {
    const lines = (pending + chunk).split("\n");
    pending = lines.pop() ?? "";
    if (pending.length > maxLineCharacters) throw fileError(path, `lines of at most ${maxLineCharacters} characters`, "a longer one");
    for (const line of lines) yield line.endsWith("\r") ? line.slice(0, -1) : line;
  }
  if (pending !== "") yield pending;
}

/** The text of a file, in pieces that are never cut within a character. */
async function* decoded(path: string): AsyncGenerator<string> {
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: false });
  let offset = 0;
  try {
    for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) {
      yield decoder.decode(chunk as Buffer, { stream: true });
      offset += (chunk as Buffer).length;
    }
    yield decoder.decode();
  } catch (error) {
    if (error instanceof TypeError) throw fileError(path, "UTF-8 text", `invalid bytes after offset ${offset}`, error);
    throw systemError(path, "a readable file", error);
  }
}

async function* readJsonLines(source: DocumentSource, forceChat: boolean): AsyncGenerator<SourceDocument> {
  const field = source.field ?? "text";
  let lineNumber = 0;
  for await (const line of linesOf(source.path)) {
    lineNumber++;
    if (line.trim() === "") continue;
    const where = `${source.path}:${lineNumber}`;
    yield recordToDocument(parseRecord(line, where), where, field, forceChat);
  }
}

function parseRecord(line: string, where: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (error) {
    throw fileError(where, "a JSON object a line", "text that is not JSON", error);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw fileError(where, "a JSON object", "another value");
  return value as Record<string, unknown>;
}

function recordToDocument(record: Record<string, unknown>, where: string, field: string, forceChat: boolean): SourceDocument {
  const { messages } = record;
  if (forceChat || (messages !== undefined && record[field] === undefined)) {
    if (!Array.isArray(messages) || messages.length === 0) throw fileError(where, 'a list "messages"', typeof messages);
    return { messages: messages.map((message, i) => checkedMessage(message, `${where} message ${i}`)) };
  }
  const text = record[field];
  if (typeof text !== "string") {
    throw fileError(where, `a string under "${field}"`, text === undefined ? `keys ${Object.keys(record).join(", ")}` : typeof text);
  }
  return { text };
}

function checkedMessage(message: unknown, where: string): ChatMessage {
  const { role, content } = (message ?? {}) as Record<string, unknown>;
  if (typeof role !== "string" || typeof content !== "string")
    throw fileError(where, '"role" and "content" strings', JSON.stringify(message) ?? "nothing");
  return { role, content };
}

async function* readParquet(source: DocumentSource): AsyncGenerator<SourceDocument> {
  const field = source.field ?? "text";
  const { file, metadata } = await openParquet(source.path).catch((error: unknown) => {
    throw fileError(source.path, "a Parquet file", "a footer that does not parse or contradicts itself", error);
  });
  const columns = metadata.schema.slice(1).map((element) => element.name);
  if (!columns.includes(field)) throw fileError(source.path, `a column "${field}"`, `columns ${columns.join(", ")}`);
  let rowStart = 0;
  for (const group of metadata.row_groups) {
    const rowEnd = rowStart + Number(group.num_rows);
    const rows = await parquetReadObjects({ file, metadata, columns: [field], rowStart, rowEnd, compressors }).catch((error: unknown) => {
      throw fileError(source.path, `readable rows ${rowStart}..${rowEnd}`, "corrupt data", error);
    });
    for (const [i, row] of rows.entries()) {
      const text: unknown = row[field];
      if (typeof text !== "string")
        throw fileError(`${source.path} row ${rowStart + i}`, `text in column "${field}"`, text === null ? "null" : typeof text);
      yield { text };
    }
    rowStart = rowEnd;
  }
}

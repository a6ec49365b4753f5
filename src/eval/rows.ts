/**
 * Rows of evaluation files: JSON lines, CSV and Parquet, the first two also gzipped. A row that cannot be read is given as
 * a problem with its place, for the caller to refuse or to count; a file that cannot be read at all is an error at once.
 * CSV is RFC 4180: quoted cells may hold commas, doubled quotes and line ends. Its cells stay text, but for an unnamed first
 * column of row numbers, which becomes numbers under the name `Unnamed: 0`.
 */
import { constants } from "node:buffer";
import { readFileSync } from "node:fs";
import { gunzipSync } from "node:zlib";
import { parquetReadObjects } from "hyparquet";
import { compressors } from "hyparquet-compressors";
import { fileError } from "../util/errors.ts";
import { systemError } from "../util/files.ts";
import { openParquet } from "../util/parquet.ts";
import type { Doc } from "./task.ts";

/** Where a row stands (`file:line`), with the row, or with what is wrong. */
export type SourceRow = { readonly where: string; readonly row: Doc } | { readonly where: string; readonly problem: string };

/** Endings of the files that can be read, in the order in which they are looked for. */
export const rowFileEndings: readonly string[] = [".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet"];

/** All rows of a file; one of any other ending is one row with its whole text under `text`. `columns`: names of the columns of a CSV file whose first line is none of names. Throws `file`. */
export async function readRows(path: string, columns?: readonly string[]): Promise<readonly SourceRow[]> {
  if (path.endsWith(".parquet")) return readParquet(path);
  const text = readText(path);
  if (!rowFileEndings.some((ending) => path.endsWith(ending))) return [{ where: path, row: { text } }];
  return path.replace(/\.gz$/, "").endsWith(".csv") ? readCsv(path, text, columns) : readJsonLines(path, text);
}

function readText(path: string): string {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    throw systemError(path, "a readable file", error);
  }
  try {
    // A text is one string; what unpacks to more than fits into one is refused before it fills the memory.
    if (path.endsWith(".gz")) bytes = gunzipSync(bytes, { maxOutputLength: constants.MAX_STRING_LENGTH });
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (error) {
    const most = `of at most ${constants.MAX_STRING_LENGTH} bytes`;
    throw fileError(path, `${path.endsWith(".gz") ? "gzipped UTF-8 text" : "UTF-8 text"} ${most}`, "bytes that are not, or more", error);
  }
}

function readJsonLines(path: string, text: string): readonly SourceRow[] {
  const rows: SourceRow[] = [];
  for (const [index, line] of text.split("\n").entries()) {
    if (line.trim() === "") continue;
    const where = `${path}:${index + 1}`;
    try {
      const value: unknown = JSON.parse(line);
      if (isRecord(value)) rows.push({ where, row: value });
      else rows.push({ where, problem: "a JSON object, got another value" });
    } catch {
      rows.push({ where, problem: "a JSON object a line, got text that is not JSON" });
    }
  }
  return rows;
}

function isRecord(value: unknown): value is Doc {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

interface CsvLine {
  readonly line: number;
  readonly cells: readonly string[];
  readonly open: boolean;
}

function readCsv(path: string, text: string, columns: readonly string[] | undefined): readonly SourceRow[] {
  const lines = csvLines(text);
  const [first] = lines;
  if (first === undefined) return [];
  const hasHeader = columns === undefined || columns.every((name) => first.cells.some((cell) => cell.toLowerCase() === name.toLowerCase()));
  const names = hasHeader ? first.cells : (columns ?? []);
  return (hasHeader ? lines.slice(1) : lines).map(({ line, cells, open }) => {
    const where = `${path}:${line}`;
    if (open) return { where, problem: "a closing quote, got the end of the file" };
    if (cells.length !== names.length) return { where, problem: `${names.length} cells (${names.join(", ")}), got ${cells.length}` };
    const row = Object.fromEntries(
      names.map((name, i) => (name === "" && i === 0 ? ["Unnamed: 0", numbered(cells[i])] : [name, cells[i]])),
    );
    return { where, row };
  });
}

function numbered(cell: string | undefined): unknown {
  return cell !== undefined && /^\d+$/.test(cell) ? Number(cell) : cell;
}

function csvLines(text: string): readonly CsvLine[] {
  const lines: CsvLine[] = [];
  // A cell: quoted, or up to a comma or line end. What follows it says whether the line goes on.
  // (Runs between quotes are one step each: a cell of megabytes must not overflow the matcher's stack.)
  const cell = /(?:"([^"]*(?:""[^"]*)*)("|$)|([^,\r\n]*))(,|\r?\n|\r|)/gy;
  let line = 1;
  let start = 1;
  let cells: string[] = [];
  while (cell.lastIndex < text.length || cells.length > 0) {
    const [match = "", quoted, closing, plain = "", end] = cell.exec(text) ?? [];
    const open = quoted !== undefined && closing !== '"';
    cells.push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
    line += match.match(/\r\n|\n|\r/g)?.length ?? 0;
    if (end === "," && !open) continue;
    // Text behind a closing quote: the rest of the cell is read as a cell of its own, so that the count does not fit.
    if (end === "" && cell.lastIndex < text.length) continue;
    if (cells.length > 1 || cells[0] !== "") lines.push({ line: start, cells, open });
    cells = [];
    start = line;
  }
  return lines;
}

async function readParquet(path: string): Promise<readonly SourceRow[]> {
  try {
    const rows = await parquetReadObjects({ ...(await openParquet(path)), compressors });
    return rows.map((row, i) => ({ where: `${path} row ${i}`, row: plainNumbers(row) as Doc }));
  } catch (error) {
    throw fileError(path, "a Parquet file", error instanceof Error ? error.message : String(error), error);
  }
}

/** 64-bit integers as numbers: answers are small. */
function plainNumbers(value: unknown): unknown {
  if (typeof value === "bigint") return Number(value);
  if (Array.isArray(value)) return value.map(plainNumbers);
  if (isRecord(value)) return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, plainNumbers(item)]));
  return value;
}

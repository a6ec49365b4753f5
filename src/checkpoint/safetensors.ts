/**
 * Reads the safetensors format: 8 bytes of header length (u64, little-endian), a JSON header
 * `{name: {dtype, shape, data_offsets: [begin, end]}, "__metadata__": {string: string}}`, then the tensors' bytes without gaps.
 *
 * A file is opened, its header checked, and nothing else is read until somebody asks: tensors are read in pieces, at any
 * position, into the caller's buffer, so a model never lies in memory twice. Files come from strangers; whatever a header
 * says is checked against the size of the file before anything is allocated, and every objection is a MoeError of kind
 * `file` that names the file, the tensor, what was expected and what is there. As in the format's own library the tensors
 * have to cover the data exactly (a gap can hide something, a truncated download shows). Alignment is not required.
 *
 * Specification: https://huggingface.co/docs/safetensors. Not here: folders and shards (model-weights.ts), writing
 * (safetensors-writer.ts), conversion of values (dtypes.ts).
 */
import * as fs from "node:fs";
import { fileError, MoeError } from "../util/errors.ts";
import { openForReading, readFully } from "../util/files.ts";
import { didYouMean } from "../util/nearest.ts";
import { countElements, dtypeBytes, FILE_DTYPES, isFileDtype, toFloat32 } from "./dtypes.ts";
import type { FileDtype } from "./dtypes.ts";
import { decodeUtf8, JsonCursor } from "./json-cursor.ts";

/** The limit of the format's own library. */
export const MAX_HEADER_BYTES = 100_000_000;

/** More dimensions than any array library has; a list of millions is an attack. */
const MAX_RANK = 64;

/** Where a tensor lies. `shape` is row-major (the last dimension is contiguous), `offset` counts from the start of the file. */
export interface TensorEntry {
  readonly name: string;
  readonly dtype: FileDtype;
  readonly shape: readonly number[];
  readonly offset: number;
  readonly byteLength: number;
}

interface HeaderEntry {
  readonly name: string;
  readonly dtype: FileDtype;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly end: number;
}

function parseEntry(cursor: JsonCursor, name: string, filePath: string): HeaderEntry {
  const tensor = `tensor ${JSON.stringify(name)}`;
  let dtype: string | undefined;
  let shape: number[] | undefined;
  let offsets: number[] | undefined;
  cursor.object(tensor, (field) => {
    if (field === "dtype") dtype = cursor.string();
    else if (field === "shape" || field === "data_offsets") {
      const list: number[] = [];
      cursor.array(`${field} of ${tensor}`, (index) => {
        if (index === MAX_RANK) cursor.fail(`at most ${MAX_RANK} numbers in ${field} of ${tensor}`);
        list.push(cursor.integer(`${field} of ${tensor}`));
      });
      if (field === "shape") shape = list;
      else offsets = list;
    } else cursor.fail(`only dtype, shape and data_offsets in ${tensor}, but there is ${JSON.stringify(field)}`);
  });
  if (dtype === undefined || shape === undefined || offsets === undefined) {
    throw fileError(
      filePath,
      `dtype, shape and data_offsets for ${tensor}`,
      dtype === undefined ? "no dtype" : shape === undefined ? "no shape" : "no data_offsets",
    );
  }
  if (!isFileDtype(dtype)) {
    throw fileError(
      filePath,
      `one of the dtypes ${FILE_DTYPES.join(", ")} for ${tensor}`,
      `${JSON.stringify(dtype)}${didYouMean(dtype, FILE_DTYPES)}`,
    );
  }
  const [begin, end] = offsets;
  if (begin === undefined || end === undefined || offsets.length !== 2 || end < begin) {
    throw fileError(filePath, `data_offsets [begin, end] with begin <= end for ${tensor}`, JSON.stringify(offsets.slice(0, 4)));
  }
  return { name, dtype, shape, begin, end };
}

/** Checks one entry against its dtype and the size of the data. */
function checkEntry(entry: HeaderEntry, dataBytes: number, filePath: string): void {
  const tensor = `tensor ${JSON.stringify(entry.name)}`;
  const shape = `[${entry.shape.slice(0, 16).join(", ")}${entry.shape.length > 16 ? ", ..." : ""}]`;
  const count = countElements(entry.shape);
  const bytes = count === undefined ? undefined : count * dtypeBytes(entry.dtype);
  if (bytes === undefined || !Number.isSafeInteger(bytes)) {
    throw fileError(filePath, `a shape that memory could hold for ${tensor}`, `${shape}, whose size overflows`);
  }
  if (bytes !== entry.end - entry.begin) {
    throw fileError(
      filePath,
      `${bytes} bytes for ${tensor} (${entry.dtype} ${shape})`,
      `data_offsets [${entry.begin}, ${entry.end}], which are ${entry.end - entry.begin}`,
    );
  }
  if (entry.end > dataBytes) {
    throw fileError(filePath, `${tensor} to end within the file's ${dataBytes} bytes of data`, `an end at ${entry.end} (truncated?)`);
  }
}

/** Checks that the entries, sorted by position, cover the data without gap or overlap. */
function checkCover(sorted: readonly HeaderEntry[], dataBytes: number, filePath: string): void {
  let at = 0;
  let before = "the header";
  for (const entry of sorted) {
    if (entry.begin !== at) {
      const problem = entry.begin < at ? "overlaps" : "leaves a gap after";
      throw fileError(
        filePath,
        `tensor ${JSON.stringify(entry.name)} to begin at offset ${at}`,
        `${entry.begin}, which ${problem} ${before}`,
      );
    }
    at = entry.end;
    before = `tensor ${JSON.stringify(entry.name)}`;
  }
  if (at !== dataBytes) throw fileError(filePath, `${at} bytes of data, where the last tensor ends`, `${dataBytes}`);
}

function readHeader(fd: number, size: number, filePath: string): { text: string; dataStart: number } {
  if (size < 8) throw fileError(filePath, "a safetensors file, which has at least 8 bytes", `${size} bytes`);
  const prefix = new Uint8Array(8);
  readFully(fd, prefix, 0, filePath);
  const headerBytes = new DataView(prefix.buffer).getBigUint64(0, true);
  if (headerBytes > BigInt(MAX_HEADER_BYTES)) {
    throw fileError(
      filePath,
      `a safetensors header of at most ${MAX_HEADER_BYTES} bytes`,
      `${headerBytes} bytes (is this a safetensors file?)`,
    );
  }
  if (headerBytes > BigInt(size - 8))
    throw fileError(filePath, `a header of ${headerBytes} bytes`, `a file that ends after ${size} bytes (truncated?)`);
  const header = new Uint8Array(Number(headerBytes));
  readFully(fd, header, 8, filePath);
  if (header[0] !== 0x7b)
    throw fileError(filePath, 'a header that starts with "{"', header.length === 0 ? "an empty one" : `byte ${header[0]}`);
  return { text: decodeUtf8(header, filePath, "the header"), dataStart: 8 + header.length };
}

function parseHeader(text: string, filePath: string): { entries: HeaderEntry[]; metadata: Map<string, string> } {
  const cursor = new JsonCursor(text, filePath, "the header");
  const entries: HeaderEntry[] = [];
  const metadata = new Map<string, string>();
  cursor.object("the header", (name) => {
    if (name === "__metadata__") cursor.object("__metadata__", (key) => metadata.set(key, cursor.string()));
    else entries.push(parseEntry(cursor, name, filePath));
  });
  cursor.end();
  return { entries, metadata };
}

/** An open safetensors file. Close it (`using`, or `close()`) when done. */
export class SafetensorsFile implements Disposable {
  readonly path: string;
  /** Tensors in the order of their bytes in the file. */
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  /** The strings of `__metadata__`; empty when there is none. */
  readonly metadata: ReadonlyMap<string, string>;
  #fd: number | undefined;

  constructor(filePath: string) {
    const { fd, size } = openForReading(filePath);
    try {
      const { text, dataStart } = readHeader(fd, size, filePath);
      const { entries, metadata } = parseHeader(text, filePath);
      for (const entry of entries) checkEntry(entry, size - dataStart, filePath);
      entries.sort((a, b) => a.begin - b.begin || a.end - b.end);
      checkCover(entries, size - dataStart, filePath);
      this.path = filePath;
      this.metadata = metadata;
      this.tensors = new Map(
        entries.map(({ name, dtype, shape, begin, end }) => [
          name,
          { name, dtype, shape, offset: dataStart + begin, byteLength: end - begin },
        ]),
      );
      this.#fd = fd;
    } catch (error) {
      fs.closeSync(fd);
      throw error;
    }
  }

  /** The entry of a tensor; an unknown name is an error of kind `file` that names the nearest. */
  entry(name: string): TensorEntry {
    const entry = this.tensors.get(name);
    if (entry === undefined) throw fileError(this.path, `a tensor ${JSON.stringify(name)}`, `none${didYouMean(name, this.tensors.keys())}`);
    return entry;
  }

  /** Fills `into` with the tensor's bytes from byte `from` on. Reading past its end is an error of kind `shape`. */
  read(name: string, into: Uint8Array, from = 0): void {
    const { offset, byteLength } = this.entry(name);
    if (this.#fd === undefined)
      throw new MoeError("internal", `${this.path}: tensor ${JSON.stringify(name)} read after the file was closed`);
    if (!Number.isSafeInteger(from) || from < 0 || from + into.byteLength > byteLength) {
      throw new MoeError(
        "shape",
        `${this.path}: expected a range within the ${byteLength} bytes of tensor ${JSON.stringify(name)}, got ${from} to ${from + into.byteLength}`,
      );
    }
    readFully(this.#fd, into, offset + from, this.path);
  }

  /**
   * Fills `into` with elements `from` to `from + into.length` of the tensor (row-major), converted to f32. Memory beyond
   * `into`: one piece of at most 4 MiB.
   */
  readFloat32(name: string, into: Float32Array, from = 0): void {
    const { dtype } = this.entry(name);
    const size = dtypeBytes(dtype);
    if (dtype === "F32") return this.read(name, new Uint8Array(into.buffer, into.byteOffset, into.byteLength), from * 4);
    const piece = new Uint8Array(Math.min(into.length * size, 1 << 22));
    for (let done = 0; done < into.length;) {
      const count = Math.min(into.length - done, piece.byteLength / size);
      const bytes = piece.subarray(0, count * size);
      this.read(name, bytes, (from + done) * size);
      toFloat32(dtype, bytes, into.subarray(done, done + count));
      done += count;
    }
  }

  /** Closes the file. Closing twice is harmless. */
  close(): void {
    if (this.#fd !== undefined) fs.closeSync(this.#fd);
    this.#fd = undefined;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Opens and checks a safetensors file.
 *
 * ```ts
 * using file = openSafetensors("model.safetensors");
 * const { shape } = file.entry("lm_head.weight");
 * const row = new Float32Array(shape[1] ?? 0);
 * file.readFloat32("lm_head.weight", row, 5 * row.length); // row 5
 * ```
 */
export function openSafetensors(filePath: string): SafetensorsFile {
  return new SafetensorsFile(filePath);
}

/**
 * Reads GGUF, the file format of llama.cpp: versions 2 and 3, little-endian.
 *
 * Layout: "GGUF", version (u32), number of tensors and of metadata entries (u64 each); the metadata, each a key (a string:
 * u64 length, UTF-8), a type code (u32) and a value; the tensors' names, shapes, types and offsets; then, from the next
 * multiple of `general.alignment` (default 32) on, the tensors' bytes. The metadata is read through a window of the file;
 * tensors are read in pieces and dequantized into the caller's buffer. As with every file of strangers, counts are checked
 * against what is left of the file before anything is allocated, and objections are MoeErrors of kind `file` (kind
 * `unsupported` for valid things we do not do: version 1, big-endian, a tensor type without dequantization).
 *
 * Shapes: GGUF lists the contiguous dimension first; `shape` here is row-major as everywhere else (reversed).
 *
 * Keys that describe a model, `{arch}` being the value of `general.architecture` (llama, qwen2, qwen3, ...; a Mixtral is a
 * llama with experts):
 * - `general.architecture`, `general.name`, `general.file_type` (u32, the dominant type), `general.quantization_version`,
 *   `general.alignment` (u32)
 * - `{arch}.block_count` (layers), `.context_length`, `.embedding_length` (hidden size), `.feed_forward_length`,
 *   `.vocab_size` (u32)
 * - `{arch}.attention.head_count`, `.attention.head_count_kv`, `.attention.key_length`, `.attention.value_length`,
 *   `.attention.sliding_window` (u32), `.attention.layer_norm_rms_epsilon` (f32)
 * - `{arch}.rope.dimension_count` (u32), `.rope.freq_base` (f32), `.rope.scaling.type` (string: none, linear, yarn),
 *   `.rope.scaling.factor` (f32), `.rope.scaling.original_context_length` (u32); Llama 3 scaling is a tensor `rope_freqs.weight`
 * - `{arch}.expert_count`, `.expert_used_count`, `.expert_feed_forward_length`, `.expert_shared_count` (u32)
 * - `tokenizer.ggml.model` (gpt2: byte-level BPE; llama: SentencePiece BPE), `.pre`, `.tokens` (strings), `.scores` (f32),
 *   `.token_type` (i32), `.merges` (strings), `.bos_token_id`, `.eos_token_id`, `.unknown_token_id`, `.padding_token_id`,
 *   `.add_bos_token`, `.add_eos_token`, `.add_space_prefix` (bool); `tokenizer.chat_template` (Jinja)
 *
 * Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Not here: names and configuration of Hugging
 * Face (gguf-model.ts), the tokenizer (src/tokenizer), writing (gguf-writer.ts).
 */
import * as fs from "node:fs";
import { fileError, MoeError } from "../util/errors.ts";
import { openForReading, readFully } from "../util/files.ts";
import { didYouMean } from "../util/nearest.ts";
import { countElements } from "./dtypes.ts";
import { DEQUANTIZABLE, dequantize, isDequantizable } from "./gguf-dequantize.ts";
import { GgufCursor } from "./gguf-cursor.ts";
import { GGUF_TENSOR_TYPES, tensorTypeOfCode } from "./gguf-types.ts";
import type { GgufTensorType, GgufValue } from "./gguf-types.ts";

/** Where a tensor lies. `shape` is row-major, `offset` counts from the start of the file. */
export interface GgufTensor {
  readonly name: string;
  readonly type: GgufTensorType;
  readonly shape: readonly number[];
  readonly numElements: number;
  readonly offset: number;
  readonly byteLength: number;
}

/** ggml's limit. */
const MAX_DIMS = 4;
/** ggml's limit is 63 characters; some files in the wild are longer. */
const MAX_NAME_BYTES = 1024;
const DEFAULT_ALIGNMENT = 32;

function readPreamble(cursor: GgufCursor, filePath: string): { version: number; numTensors: number; numEntries: number } {
  const magic = cursor.uint32("the magic number");
  if (magic !== 0x46554747) throw fileError(filePath, 'a GGUF file, which starts with "GGUF"', `0x${magic.toString(16).padStart(8, "0")}`);
  const version = cursor.uint32("the version");
  if (version === 1)
    throw new MoeError("unsupported", `${filePath}: expected GGUF version 2 or 3, got version 1; convert it with a current llama.cpp`);
  if ((version & 0xffff) === 0 && version !== 0)
    throw new MoeError("unsupported", `${filePath}: expected a little-endian GGUF file, got a big-endian one`);
  if (version !== 2 && version !== 3) throw fileError(filePath, "GGUF version 2 or 3", `version ${version}`);
  // A tensor takes at least a name's length, dimensions, a type and an offset; an entry a key's length, a type and a byte.
  const numTensors = cursor.count("the number of tensors", 24);
  const numEntries = cursor.count("the number of metadata entries", 13);
  return { version, numTensors, numEntries };
}

function readMetadata(cursor: GgufCursor, numEntries: number, filePath: string): Map<string, GgufValue> {
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < numEntries; i++) {
    const key = cursor.string(`metadata key ${i}`);
    if (metadata.has(key)) throw fileError(filePath, "each metadata key once", `${JSON.stringify(key.slice(0, 100))} twice`);
    metadata.set(key, cursor.value(`metadata ${JSON.stringify(key.slice(0, 100))}`));
  }
  return metadata;
}

function alignmentOf(metadata: ReadonlyMap<string, GgufValue>, filePath: string): number {
  const alignment = metadata.get("general.alignment");
  if (alignment === undefined) return DEFAULT_ALIGNMENT;
  const value = alignment.type === "uint32" ? alignment.value : 0;
  if (value < 1 || value > 1 << 30 || (value & (value - 1)) !== 0) {
    throw fileError(
      filePath,
      "general.alignment to be a uint32 and a power of two",
      `${alignment.type}${alignment.type === "uint32" ? ` ${value}` : ""}`,
    );
  }
  return value;
}

function readTensorInfo(cursor: GgufCursor, index: number, filePath: string): GgufTensor {
  const name = cursor.string(`the name of tensor ${index}`, MAX_NAME_BYTES);
  const tensor = `tensor ${JSON.stringify(name)}`;
  const rank = cursor.uint32(`the rank of ${tensor}`);
  if (rank > MAX_DIMS) throw fileError(filePath, `at most ${MAX_DIMS} dimensions for ${tensor}`, `${rank}`);
  const shape: number[] = [];
  for (let d = 0; d < rank; d++) shape.unshift(cursor.safeInteger(`a dimension of ${tensor}`));
  const code = cursor.uint32(`the type of ${tensor}`);
  const offset = cursor.safeInteger(`the offset of ${tensor}`);
  const type = tensorTypeOfCode(code);
  if (type === undefined) throw new MoeError("unsupported", `${filePath}: expected a known GGUF type for ${tensor}, got type code ${code}`);
  const { blockElements, blockBytes } = GGUF_TENSOR_TYPES[type];
  const numElements = countElements(shape);
  if ((shape.at(-1) ?? 1) % blockElements !== 0) {
    throw fileError(filePath, `rows of whole ${type} blocks of ${blockElements} elements for ${tensor}`, `shape [${shape.join(", ")}]`);
  }
  const byteLength = numElements === undefined ? Number.NaN : (numElements / blockElements) * blockBytes;
  if (numElements === undefined || !Number.isSafeInteger(byteLength)) {
    throw fileError(filePath, `a shape that memory could hold for ${tensor}`, `[${shape.join(", ")}], whose size overflows`);
  }
  return { name, type, shape, numElements, offset, byteLength };
}

/** Makes offsets absolute and checks that the tensors lie within the file, aligned and apart from each other. */
function placeTensors(
  infos: readonly GgufTensor[],
  dataStart: number,
  alignment: number,
  size: number,
  filePath: string,
): Map<string, GgufTensor> {
  const tensors = new Map<string, GgufTensor>();
  for (const info of infos) {
    const tensor = `tensor ${JSON.stringify(info.name)}`;
    if (tensors.has(info.name)) throw fileError(filePath, "each tensor name once", `${JSON.stringify(info.name)} twice`);
    if (info.offset % alignment !== 0)
      throw fileError(filePath, `an offset that is a multiple of ${alignment} for ${tensor}`, `${info.offset}`);
    const offset = dataStart + info.offset;
    if (offset + info.byteLength > size) {
      throw fileError(
        filePath,
        `${tensor} (${info.type} [${info.shape.join(", ")}]) to end at byte ${offset + info.byteLength}`,
        `a file of ${size} bytes (truncated?)`,
      );
    }
    tensors.set(info.name, { ...info, offset });
  }
  const sorted = [...tensors.values()].sort((a, b) => a.offset - b.offset || a.byteLength - b.byteLength);
  let before: GgufTensor | undefined;
  for (const tensor of sorted) {
    if (before !== undefined && tensor.offset < before.offset + before.byteLength) {
      throw fileError(
        filePath,
        "tensors that do not overlap",
        `tensors ${JSON.stringify(before.name)} and ${JSON.stringify(tensor.name)} overlapping`,
      );
    }
    before = tensor;
  }
  return tensors;
}

/** An open GGUF file. Close it (`using`, or `close()`) when done. */
export class GgufFile implements Disposable {
  readonly path: string;
  readonly version: number;
  readonly alignment: number;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  /** Tensors in the order in which the file lists them. */
  readonly tensors: ReadonlyMap<string, GgufTensor>;
  #fd: number | undefined;

  constructor(filePath: string) {
    const { fd, size } = openForReading(filePath);
    try {
      const cursor = new GgufCursor(fd, size, filePath);
      const { version, numTensors, numEntries } = readPreamble(cursor, filePath);
      this.path = filePath;
      this.version = version;
      this.metadata = readMetadata(cursor, numEntries, filePath);
      this.alignment = alignmentOf(this.metadata, filePath);
      const infos = Array.from({ length: numTensors }, (_, i) => readTensorInfo(cursor, i, filePath));
      const dataStart = Math.ceil(cursor.position / this.alignment) * this.alignment;
      this.tensors = placeTensors(infos, dataStart, this.alignment, size, filePath);
      this.#fd = fd;
    } catch (error) {
      fs.closeSync(fd);
      throw error;
    }
  }

  /** The entry of a tensor; an unknown name is an error of kind `file` that names the nearest. */
  entry(name: string): GgufTensor {
    const tensor = this.tensors.get(name);
    if (tensor === undefined)
      throw fileError(this.path, `a tensor ${JSON.stringify(name)}`, `none${didYouMean(name, this.tensors.keys())}`);
    return tensor;
  }

  /** Fills `into` with the tensor's stored bytes from byte `from` on. Reading past its end is an error of kind `shape`. */
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
   * Fills `into` with elements `from` to `from + into.length` of the tensor (row-major), dequantized to f32. Both have to be
   * multiples of the type's block (whole rows always are; error of kind `shape`). A type that cannot be dequantized is an
   * error of kind `unsupported`. Memory beyond `into`: one piece of at most 1 MiB.
   */
  readFloat32(name: string, into: Float32Array, from = 0): void {
    const { type } = this.entry(name);
    if (!isDequantizable(type)) {
      throw new MoeError(
        "unsupported",
        `${this.path}: expected tensor ${JSON.stringify(name)} to have one of the types ${DEQUANTIZABLE.join(", ")}, got ${type}`,
      );
    }
    if (type === "F32") return this.read(name, new Uint8Array(into.buffer, into.byteOffset, into.byteLength), from * 4);
    const { blockElements, blockBytes } = GGUF_TENSOR_TYPES[type];
    if (from % blockElements !== 0 || into.length % blockElements !== 0) {
      throw new MoeError(
        "shape",
        `${this.path}: expected whole blocks of ${blockElements} elements of tensor ${JSON.stringify(name)} (${type}), got ${from} to ${from + into.length}`,
      );
    }
    const numBlocks = into.length / blockElements;
    const piece = new Uint8Array(Math.min(numBlocks, Math.floor((1 << 20) / blockBytes)) * blockBytes);
    const pieceBlocks = piece.byteLength / blockBytes;
    for (let done = 0; done < numBlocks; done += pieceBlocks) {
      const count = Math.min(numBlocks - done, pieceBlocks);
      const bytes = piece.subarray(0, count * blockBytes);
      this.read(name, bytes, (from / blockElements + done) * blockBytes);
      dequantize(type, bytes, into.subarray(done * blockElements, (done + count) * blockElements));
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
 * Opens and checks a GGUF file.
 *
 * ```ts
 * using file = openGguf("model.gguf");
 * const { numElements } = file.entry("output_norm.weight");
 * const weight = new Float32Array(numElements);
 * file.readFloat32("output_norm.weight", weight);
 * ```
 */
export function openGguf(filePath: string): GgufFile {
  return new GgufFile(filePath);
}

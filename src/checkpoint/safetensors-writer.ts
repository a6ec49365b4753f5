/**
 * Writes safetensors: one file, or a model folder in as many files as it takes.
 *
 * All tensors are declared first (the header precedes the data), then their bytes follow in the declared order and go
 * straight to the disk. In the file the tensors are laid out by element size, the widest first, and the header is padded to
 * 8 bytes, so that every tensor is aligned for whoever maps the file into memory; that is what the format's own library does.
 *
 * A model folder must not be loadable while it is half new and half old. Shards are written and flushed under temporary
 * names; at `commit()` the old `model.safetensors` or index goes first, the shards take their names, the index comes last. A
 * process killed at any moment leaves the old model, the new one, or a folder that does not load, never a mixture.
 */
import * as fs from "node:fs";
import * as path from "node:path";
import { MoeError } from "../util/errors.ts";
import { AtomicFile, syncDirectory, systemError } from "../util/files.ts";
import { countElements, dtypeBytes } from "./dtypes.ts";
import type { FileDtype } from "./dtypes.ts";
import { INDEX_FILE, SINGLE_FILE } from "./model-weights.ts";
import { TensorFileWriter } from "./tensor-file-writer.ts";
import type { Placement, TensorWriter } from "./tensor-file-writer.ts";

/** A tensor to be written: row-major, little-endian. */
export interface TensorDeclaration {
  readonly name: string;
  readonly dtype: FileDtype;
  readonly shape: readonly number[];
}

export interface SafetensorsOptions {
  /** Strings for `__metadata__`. By default `{format: "pt"}`, without which transformers refuses a file. */
  readonly metadata?: Readonly<Record<string, string>>;
}

interface Layout {
  readonly prelude: Uint8Array;
  readonly placements: readonly Placement[];
  readonly totalBytes: number;
}

/** Bytes of a declared tensor; throws (kind `shape`) when the shape is not one. */
function declaredBytes({ name, dtype, shape }: TensorDeclaration): number {
  const bytes = (countElements(shape) ?? Number.NaN) * dtypeBytes(dtype);
  if (!Number.isSafeInteger(bytes))
    throw new MoeError("shape", `tensor ${JSON.stringify(name)}: expected a shape of non-negative integers, got [${shape.join(", ")}]`);
  return bytes;
}

function checkNames(tensors: readonly TensorDeclaration[], what: string): void {
  const names = new Set<string>(["__metadata__"]);
  for (const { name } of tensors) {
    if (names.has(name) || !name.isWellFormed())
      throw new MoeError(
        "internal",
        `${what}: expected different, well-formed tensor names, got ${JSON.stringify(name)} again or ill-formed`,
      );
    names.add(name);
  }
}

function layOut(tensors: readonly TensorDeclaration[], metadata: Readonly<Record<string, string>>): Layout {
  const inFile = tensors.map((tensor, order) => ({ tensor, order, bytes: declaredBytes(tensor) }));
  inFile.sort((a, b) => dtypeBytes(b.tensor.dtype) - dtypeBytes(a.tensor.dtype) || a.order - b.order);
  const members = Object.keys(metadata).length === 0 ? [] : [`"__metadata__":${JSON.stringify(metadata)}`];
  const begins: number[] = [];
  let at = 0;
  for (const { tensor, order, bytes } of inFile) {
    begins[order] = at;
    members.push(
      `${JSON.stringify(tensor.name)}:${JSON.stringify({ dtype: tensor.dtype, shape: tensor.shape, data_offsets: [at, at + bytes] })}`,
    );
    at += bytes;
  }
  const json = new TextEncoder().encode(`{${members.join(",")}}`);
  const headerBytes = Math.ceil(json.byteLength / 8) * 8;
  const prelude = new Uint8Array(8 + headerBytes).fill(0x20);
  new DataView(prelude.buffer).setBigUint64(0, BigInt(headerBytes), true);
  prelude.set(json, 8);
  const placements = tensors.map((tensor, order) => ({
    name: tensor.name,
    offset: prelude.byteLength + (begins[order] ?? 0),
    byteLength: declaredBytes(tensor),
  }));
  return { prelude, placements, totalBytes: prelude.byteLength + at };
}

/**
 * Starts a safetensors file. Deliver the bytes with `write`, in the declared order, then `commit()`.
 *
 * ```ts
 * using writer = createSafetensors("out.safetensors", [{ name: "w", dtype: "F32", shape: [2, 3] }]);
 * writer.write("w", new Uint8Array(24));
 * writer.commit();
 * ```
 */
export function createSafetensors(
  filePath: string,
  tensors: readonly TensorDeclaration[],
  options: SafetensorsOptions = {},
): TensorFileWriter {
  const { prelude, placements, totalBytes } = planSafetensors(filePath, tensors, options);
  return new TensorFileWriter(filePath, prelude, placements, totalBytes);
}

export interface ModelWeightsOptions extends SafetensorsOptions {
  /** A shard's largest sum of tensor bytes; one tensor larger than that gets a shard of its own. Default 5 GB, as transformers had it for years. */
  readonly maxShardBytes?: number;
}

/** Splits declarations, in order, into shards of at most `maxShardBytes`. */
function splitShards(tensors: readonly TensorDeclaration[], maxShardBytes: number): TensorDeclaration[][] {
  const shards: TensorDeclaration[][] = [[]];
  let filled = 0;
  for (const tensor of tensors) {
    const bytes = declaredBytes(tensor);
    if (filled > 0 && filled + bytes > maxShardBytes) {
      shards.push([]);
      filled = 0;
    }
    shards.at(-1)?.push(tensor);
    filled += bytes;
  }
  return shards;
}

/** A file of tensors whose every byte has a place before the first is written: for writers that can begin again where they were. */
export interface PlannedFile {
  readonly fileName: string;
  readonly tensors: readonly TensorDeclaration[];
  /** The header, at byte 0. */
  readonly prelude: Uint8Array;
  readonly placements: readonly Placement[];
  readonly totalBytes: number;
}

/** The layout of one safetensors file. */
export function planSafetensors(fileName: string, tensors: readonly TensorDeclaration[], options: SafetensorsOptions = {}): PlannedFile {
  checkNames(tensors, fileName);
  return { fileName, tensors, ...layOut(tensors, options.metadata ?? { format: "pt" }) };
}

/** The files of a model's weights, and the content of the index that goes beside them where there is more than one. */
export interface PlannedWeights {
  readonly files: readonly PlannedFile[];
  readonly index: string | null;
}

/** Names, shards and layouts of a model's weights: `model.safetensors`, or shards with an index. Throws `internal` for equal names. */
export function planModelWeights(tensors: readonly TensorDeclaration[], options: ModelWeightsOptions = {}): PlannedWeights {
  checkNames(tensors, "model weights");
  const shards = splitShards(tensors, options.maxShardBytes ?? 5e9);
  const files = shards.map((list, i) =>
    planSafetensors(shards.length === 1 ? SINGLE_FILE : `model-${digits(i + 1)}-of-${digits(shards.length)}.safetensors`, list, options),
  );
  if (files.length === 1) return { files, index: null };
  const weightMap = files.flatMap((file) => file.tensors.map(({ name }): [string, string] => [name, file.fileName]));
  const json = {
    metadata: { total_size: tensors.reduce((sum, tensor) => sum + declaredBytes(tensor), 0) },
    weight_map: Object.fromEntries(weightMap),
  };
  return { files, index: `${JSON.stringify(json, undefined, 2)}\n` };
}

/** Weights of an earlier model in the folder that a new one of these `files` would leave lying about. */
function staleFiles(directory: string, files: ReadonlySet<string>): string[] {
  const ours = /^model(-\d{5}-of-\d{5})?\.safetensors$/;
  return fs.readdirSync(directory).filter((name) => ours.test(name) && !files.has(name));
}

/** A shard's number as it stands in file names. */
function digits(n: number): string {
  return String(n).padStart(5, "0");
}

class ModelWeightsWriter implements TensorWriter {
  readonly #directory: string;
  readonly #plan: PlannedWeights;
  readonly #sealed: TensorFileWriter[] = [];
  #current: TensorFileWriter;

  constructor(directory: string, tensors: readonly TensorDeclaration[], options: ModelWeightsOptions) {
    this.#directory = directory;
    this.#plan = planModelWeights(tensors, options);
    this.#current = this.#open(0);
  }

  #open(index: number): TensorFileWriter {
    const file = this.#plan.files[index];
    if (file === undefined) throw new MoeError("internal", `${this.#directory}: shard ${index} of ${this.#plan.files.length}`);
    return new TensorFileWriter(path.join(this.#directory, file.fileName), file.prelude, file.placements, file.totalBytes);
  }

  /** Moves on to the next shard when this one is full and there is another. */
  #advance(): void {
    while (this.#current.complete && this.#sealed.length + 1 < this.#plan.files.length) {
      this.#current.seal();
      this.#sealed.push(this.#current);
      this.#current = this.#open(this.#sealed.length);
    }
  }

  write(name: string, bytes: Uint8Array): void {
    if (bytes.byteLength === 0) return;
    this.#advance();
    this.#current.write(name, bytes);
  }

  commit(): void {
    this.#advance();
    this.#current.seal();
    try {
      this.#publish();
    } catch (error) {
      throw systemError(this.#directory, "to give the finished weights their names", error);
    }
  }

  /** Gives the sealed files their names, in an order that never shows a mixture of two models. */
  #publish(): void {
    const indexPath = path.join(this.#directory, INDEX_FILE);
    if (this.#plan.index === null) {
      this.#current.commit();
      fs.rmSync(indexPath, { force: true });
    } else {
      using index = new AtomicFile(indexPath);
      index.write(new TextEncoder().encode(this.#plan.index), 0);
      index.seal();
      fs.rmSync(indexPath, { force: true });
      fs.rmSync(path.join(this.#directory, SINGLE_FILE), { force: true });
      syncDirectory(this.#directory);
      for (const shard of [...this.#sealed, this.#current]) shard.commit();
      index.commit();
    }
    for (const name of staleFiles(this.#directory, new Set(this.#plan.files.map(({ fileName }) => fileName))))
      fs.rmSync(path.join(this.#directory, name), { force: true });
  }

  abort(): void {
    for (const shard of this.#sealed) shard.abort();
    this.#current.abort();
  }

  [Symbol.dispose](): void {
    this.abort();
  }
}

/**
 * Starts the weights of a model in a folder that exists: `model.safetensors`, or shards with an index when the tensors
 * together exceed `maxShardBytes`. Deliver the bytes in the declared order, then `commit()`; weights of an earlier model in
 * the folder are replaced and its other shards removed.
 *
 * ```ts
 * using writer = createModelWeights("out", tensors, { maxShardBytes: 2e9 });
 * for (const { name } of tensors) writer.write(name, bytesOf(name));
 * writer.commit();
 * ```
 */
export function createModelWeights(
  directory: string,
  tensors: readonly TensorDeclaration[],
  options: ModelWeightsOptions = {},
): TensorWriter {
  return new ModelWeightsWriter(directory, tensors, options);
}

/**
 * The weights of a model as one namespace, whatever the number of safetensors files they are spread over.
 *
 * Hugging Face layout: a folder with `model.safetensors`, or with `model.safetensors.index.json`, whose `weight_map` says
 * which file holds which tensor. The index comes from strangers too: a file name that leads out of the folder is refused
 * (symbolic links are followed, because the Hub's cache is made of them), every listed tensor has to be where the index
 * says, and a name that two files carry is an error rather than a coin toss. Tensors in a shard that the index does not list
 * count as well, as transformers has it. Not here: GGUF (gguf.ts), other names for the same tensors (the model layer).
 */
import * as fs from "node:fs";
import * as path from "node:path";
import { fileError } from "../util/errors.ts";
import { openForReading, readFully } from "../util/files.ts";
import { didYouMean } from "../util/nearest.ts";
import { decodeUtf8, JsonCursor } from "./json-cursor.ts";
import { MAX_HEADER_BYTES, openSafetensors } from "./safetensors.ts";
import type { SafetensorsFile, TensorEntry } from "./safetensors.ts";

export const SINGLE_FILE = "model.safetensors";
export const INDEX_FILE = "model.safetensors.index.json";

/** Any number of safetensors files as one namespace. Close it (`using`, or `close()`) when done. */
export class ModelWeights implements Disposable {
  /** The file or index that was opened; errors about the whole name it. */
  readonly path: string;
  /** Every tensor by name; within a file in the order of the bytes. */
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  /** Bytes of all tensors together. */
  readonly numBytes: number;
  readonly #files: readonly SafetensorsFile[];
  readonly #owner: ReadonlyMap<string, SafetensorsFile>;

  /** Takes ownership of `files`, also when it throws. */
  constructor(sourcePath: string, files: readonly SafetensorsFile[]) {
    this.path = sourcePath;
    this.#files = files;
    const tensors = new Map<string, TensorEntry>();
    const owner = new Map<string, SafetensorsFile>();
    let numBytes = 0;
    for (const file of files) {
      for (const [name, entry] of file.tensors) {
        const other = owner.get(name);
        if (other !== undefined) {
          this.close();
          throw fileError(
            sourcePath,
            `tensor ${JSON.stringify(name)} in one file`,
            `it in ${path.basename(other.path)} and in ${path.basename(file.path)}`,
          );
        }
        tensors.set(name, entry);
        owner.set(name, file);
        numBytes += entry.byteLength;
      }
    }
    this.tensors = tensors;
    this.#owner = owner;
    this.numBytes = numBytes;
  }

  /** The files, in the order they were opened. */
  get files(): readonly SafetensorsFile[] {
    return this.#files;
  }

  #fileOf(name: string): SafetensorsFile {
    const file = this.#owner.get(name);
    if (file === undefined) throw fileError(this.path, `a tensor ${JSON.stringify(name)}`, `none${didYouMean(name, this.tensors.keys())}`);
    return file;
  }

  /** The entry of a tensor; an unknown name is an error of kind `file` that names the nearest. */
  entry(name: string): TensorEntry {
    return this.#fileOf(name).entry(name);
  }

  /** Fills `into` with the tensor's bytes from byte `from` on. */
  read(name: string, into: Uint8Array, from = 0): void {
    this.#fileOf(name).read(name, into, from);
  }

  /** Fills `into` with the tensor's elements from element `from` on (row-major), converted to f32. */
  readFloat32(name: string, into: Float32Array, from = 0): void {
    this.#fileOf(name).readFloat32(name, into, from);
  }

  /** Closes every file. Closing twice is harmless. */
  close(): void {
    for (const file of this.#files) file.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** The path of a shard, provided that it stays in the index's folder, read as a path of any system. */
function shardPath(indexPath: string, shard: string): string {
  const leaves =
    path.posix.isAbsolute(shard) || path.win32.isAbsolute(shard) || /^[A-Za-z]:/.test(shard) || shard.split(/[/\\]/).includes("..");
  if (leaves || shard === "" || shard.includes("\0")) {
    throw fileError(indexPath, "file names that stay in the folder of the index", JSON.stringify(shard));
  }
  if (!shard.endsWith(".safetensors")) throw fileError(indexPath, "names of .safetensors files", JSON.stringify(shard));
  return path.join(path.dirname(indexPath), shard);
}

/** The index's `weight_map`: file name by tensor name. */
function readWeightMap(indexPath: string): Map<string, string> {
  const { fd, size } = openForReading(indexPath);
  const bytes = new Uint8Array(Math.min(size, MAX_HEADER_BYTES));
  try {
    if (size > MAX_HEADER_BYTES) throw fileError(indexPath, `an index of at most ${MAX_HEADER_BYTES} bytes`, `${size} bytes`);
    readFully(fd, bytes, 0, indexPath);
  } finally {
    fs.closeSync(fd);
  }
  const cursor = new JsonCursor(decodeUtf8(bytes, indexPath, "the index"), indexPath, "the index");
  let weightMap: Map<string, string> | undefined;
  cursor.object("the index", (key) => {
    if (key !== "weight_map") return cursor.skip(8);
    const map = new Map<string, string>();
    cursor.object("weight_map", (name) => map.set(name, cursor.string()));
    weightMap = map;
  });
  cursor.end();
  if (weightMap === undefined) throw fileError(indexPath, "a weight_map (file name by tensor name)", "none");
  return weightMap;
}

function openIndex(indexPath: string): ModelWeights {
  const weightMap = readWeightMap(indexPath);
  const files = new Map<string, SafetensorsFile>();
  try {
    for (const [name, shard] of weightMap) {
      let file = files.get(shard);
      if (file === undefined) {
        file = openSafetensors(shardPath(indexPath, shard));
        files.set(shard, file);
      }
      if (!file.tensors.has(name))
        throw fileError(file.path, `the tensor ${JSON.stringify(name)} that ${path.basename(indexPath)} promises`, "no such tensor");
    }
  } catch (error) {
    for (const file of files.values()) file.close();
    throw error;
  }
  return new ModelWeights(indexPath, [...files.values()]);
}

/**
 * Opens the safetensors weights of a model: a folder with `model.safetensors` or `model.safetensors.index.json` (the single
 * file wins, as in transformers), an index, or one safetensors file. Errors are of kind `file`.
 *
 * ```ts
 * using weights = openModelWeights("runs/tiny/checkpoint");
 * for (const [name, { dtype, shape }] of weights.tensors) console.log(name, dtype, shape);
 * ```
 */
export function openModelWeights(modelPath: string): ModelWeights {
  if (fs.statSync(modelPath, { throwIfNoEntry: false })?.isDirectory() === true) {
    const single = path.join(modelPath, SINGLE_FILE);
    const index = path.join(modelPath, INDEX_FILE);
    if (fs.existsSync(single)) return new ModelWeights(single, [openSafetensors(single)]);
    if (fs.existsSync(index)) return openIndex(index);
    throw fileError(modelPath, `a folder with ${SINGLE_FILE} or ${INDEX_FILE}`, "a folder with neither");
  }
  if (modelPath.endsWith(".json")) return openIndex(modelPath);
  return new ModelWeights(modelPath, [openSafetensors(modelPath)]);
}

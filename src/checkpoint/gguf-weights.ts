/**
 * An open GGUF model with Hugging Face names, shapes and row order: what a loader sees of it.
 *
 * Any range of elements of any tensor can be asked for; quantized blocks that the range cuts are read whole, and rows that
 * llama.cpp's converter reordered are put back on the way. Memory: one piece of a megabyte and one head's rows. The mapping is
 * gguf-model.ts, the tokenizer is read from `file.metadata` by src/tokenizer.
 */
import { fileError, MoeError } from "../util/errors.ts";
import { didYouMean } from "../util/nearest.ts";
import { ggufRowOf, ggufToHuggingFace, ROPE_FREQS } from "./gguf-model.ts";
import type { GgufPiece } from "./gguf-model.ts";
import { GGUF_TENSOR_TYPES } from "./gguf-types.ts";
import { openGguf } from "./gguf.ts";
import type { GgufFile } from "./gguf.ts";

/** A GGUF model under Hugging Face names. Close it (`using`, or `close()`) when done. */
export class GgufWeights implements Disposable {
  readonly file: GgufFile;
  /** The object of the model's `config.json`. */
  readonly config: Readonly<Record<string, unknown>>;
  /** Where each Hugging Face tensor lies, and its shape. */
  readonly tensors: ReadonlyMap<string, GgufPiece>;

  /** Takes ownership of `file`, also when it throws. */
  constructor(file: GgufFile) {
    this.file = file;
    try {
      const freqs = file.tensors.get(ROPE_FREQS);
      let ropeFreqs: Float32Array | null = null;
      if (freqs !== undefined) {
        if (freqs.numElements > 1 << 16) throw fileError(file.path, `${ROPE_FREQS} of half a head's size`, `${freqs.numElements} elements`);
        ropeFreqs = new Float32Array(freqs.numElements);
        file.readFloat32(ROPE_FREQS, ropeFreqs);
      }
      const { config, pieces } = ggufToHuggingFace({ path: file.path, metadata: file.metadata, tensors: file.tensors, ropeFreqs });
      this.config = config;
      this.tensors = pieces;
    } catch (error) {
      file.close();
      throw error;
    }
  }

  get path(): string {
    return this.file.path;
  }

  /** Where a tensor lies; an unknown name is an error of kind `file` that names the nearest. */
  entry(name: string): GgufPiece {
    const piece = this.tensors.get(name);
    if (piece === undefined)
      throw fileError(this.path, `a tensor for ${JSON.stringify(name)}`, `none${didYouMean(name, this.tensors.keys())}`);
    return piece;
  }

  /** Fills `into` with elements `from` to `from + into.length` of the Hugging Face tensor (row-major) in f32. */
  readFloat32(name: string, into: Float32Array, from = 0): void {
    const { ggufName, shape, firstElement, reorderedHeadDim } = this.entry(name);
    const size = shape.reduce((a, b) => a * b, 1);
    if (!Number.isSafeInteger(from) || from < 0 || from + into.length > size) {
      throw new MoeError(
        "shape",
        `${this.path}: expected a range within the ${size} elements of ${name}, got ${from} to ${from + into.length}`,
      );
    }
    if (reorderedHeadDim === null) return this.#read(ggufName, into, firstElement + from);
    const columns = size / (shape[0] ?? 1);
    const headSize = reorderedHeadDim * columns;
    const head = new Float32Array(headSize);
    for (let done = 0; done < into.length;) {
      const at = from + done;
      const headStart = Math.floor(at / headSize) * headSize;
      this.#read(ggufName, head, firstElement + headStart);
      const stop = Math.min(headStart + headSize, from + into.length);
      for (let element = at; element < stop;) {
        const column = element % columns;
        const count = Math.min(columns - column, stop - element);
        const row = ggufRowOf((element - headStart - column) / columns, reorderedHeadDim);
        into.set(head.subarray(row * columns + column, row * columns + column + count), element - from);
        element += count;
      }
      done = stop - from;
    }
  }

  /** Any range of a GGUF tensor: whole blocks directly, the blocks that the range cuts through a buffer. */
  #read(ggufName: string, into: Float32Array, from: number): void {
    const block = GGUF_TENSOR_TYPES[this.file.entry(ggufName).type].blockElements;
    const end = from + into.length;
    const firstWhole = Math.min(Math.ceil(from / block) * block, end);
    const lastWhole = Math.max(Math.floor(end / block) * block, firstWhole);
    const cut = (begin: number, stop: number): void => {
      if (begin === stop) return;
      const start = Math.floor(begin / block) * block;
      const whole = new Float32Array(block);
      this.file.readFloat32(ggufName, whole, start);
      into.set(whole.subarray(begin - start, stop - start), begin - from);
    };
    cut(from, firstWhole);
    if (lastWhole > firstWhole) this.file.readFloat32(ggufName, into.subarray(firstWhole - from, lastWhole - from), firstWhole);
    cut(lastWhole, end);
  }

  /** Closes the file. Closing twice is harmless. */
  close(): void {
    this.file.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Opens a GGUF model under Hugging Face names.
 *
 * ```ts
 * using model = openGgufWeights("SmolLM2-135M-Instruct.Q4_1.gguf");
 * const row = new Float32Array(576);
 * model.readFloat32("model.layers.0.self_attn.q_proj.weight", row, 7 * 576); // row 7, in Hugging Face order
 * ```
 */
export function openGgufWeights(filePath: string): GgufWeights {
  return new GgufWeights(openGguf(filePath));
}

/**
 * Carries recipes out: gives the bytes of each output tensor, in pieces of a few megabytes. The one thing kept is the dense
 * matrix that experts are being made of, as bytes of the output's type, because all experts of a matrix follow one another: memory is
 * that of the largest such matrix and a few megabytes, whatever the model.
 */
import { fromFloat32, toFloat32 } from "../checkpoint/dtypes.ts";
import type { ModelDType, ModelSource } from "../model/index.ts";
import { MoeError } from "../util/errors.ts";
import { Random } from "../util/random.ts";
import type { CheckedOptions } from "./options.ts";
import type { Change, OutputTensor, Recipe, Shard } from "./recipe.ts";

/** What tensors are read from. */
export type TensorReader = Pick<ModelSource, "readFloat32" | "raw">;

/** Elements that pass through at once. */
const chunkElements = 1 << 20;

/** What random numbers are for: parts of their keys. */
const purposes = { router: 1, noise: 2, chosen: 3, redrawn: 4, other: 5 } as const;

export interface MakerContext {
  readonly readers: readonly TensorReader[];
  readonly options: CheckedOptions;
  readonly hiddenSize: number;
  /** Router rows [copies, H] of a layer, where they come from prompts. */
  readonly promptRows: ((layer: number) => Float32Array) | null;
}

interface Matrix {
  readonly bytes: Uint8Array;
  readonly rows: number;
  readonly columns: number;
  readonly dtype: ModelDType;
}
/** A rectangle of a matrix. */
interface Part {
  readonly firstRow: number;
  readonly rows: number;
  readonly firstColumn: number;
  readonly columns: number;
}

export class TensorMaker {
  readonly #context: MakerContext;
  /** Memory of the dense matrix in use, and what is in it. */
  #buffer = new Uint8Array(0);
  #cached: { readonly key: string; readonly matrix: Matrix } | null = null;
  readonly #values = new Float32Array(chunkElements);
  readonly #bytes = new Uint8Array(4 * chunkElements);

  constructor(context: MakerContext) {
    this.#context = context;
  }

  /** A key that outputs of equal bytes share, or null where each has its own. */
  static contentKey({ recipe, dtype }: OutputTensor): string | null {
    if (recipe.type !== "expert" || recipe.change.method.type !== "copy") return null;
    const { from, name, shard, change } = recipe;
    return [from, name, dtype, shard.index, shard.count, change.factor].join();
  }

  /** Gives the tensor's bytes to `write`, in order. The pieces are valid during the call only. */
  make(output: OutputTensor, write: (bytes: Uint8Array) => void): void {
    this.#carryOut(output.recipe, output, write);
  }

  #carryOut(recipe: Recipe, output: Pick<OutputTensor, "shape" | "dtype">, write: (bytes: Uint8Array) => void): void {
    const numElements = output.shape.reduce((a, b) => a * b, 1);
    switch (recipe.type) {
      case "copy":
        return this.#copy(recipe.from, recipe.name, numElements, output.dtype, write);
      case "expert":
        return this.#expert(recipe, output.dtype, write);
      case "stack": {
        const shape = output.shape.slice(1);
        for (const part of recipe.parts) this.#carryOut(part, { shape, dtype: output.dtype }, write);
        return;
      }
      case "router":
        return this.#encode(this.#routerRows(recipe.layer), output.dtype, write);
      case "normal": {
        const random = this.#random("other", recipe.key);
        return this.#generate(numElements, output.dtype, write, (values) => random.fillNormal(values, recipe.std));
      }
      case "zero":
        return this.#generate(numElements, output.dtype, write, (values) => values.fill(0));
      default:
        return recipe satisfies never;
    }
  }

  #random(purpose: keyof typeof purposes, ...key: readonly number[]): Random {
    return Random.keyed(this.#context.options.seed, purposes[purpose], ...key);
  }
  #reader(index: number): TensorReader {
    const reader = this.#context.readers[index];
    if (reader === undefined) throw new MoeError("internal", `upcycle: source ${index} of ${this.#context.readers.length}`);
    return reader;
  }

  /** Reads a tensor piece by piece as bytes of `dtype`: as they are where the file has that type. */
  #copy(from: number, name: string, numElements: number, dtype: ModelDType, write: (bytes: Uint8Array) => void): void {
    const reader = this.#reader(from);
    const raw = reader.raw(name);
    const size = elementBytes(dtype);
    for (let at = 0; at < numElements; at += chunkElements) {
      const n = Math.min(chunkElements, numElements - at);
      if (raw !== null && raw.dtype === dtype) {
        const bytes = this.#bytes.subarray(0, n * size);
        raw.read(bytes, at * size);
        write(bytes);
      } else {
        const values = this.#values.subarray(0, n);
        reader.readFloat32(name, values, at);
        this.#encode(values, dtype, write);
      }
    }
  }
  /** At most `chunkElements` values, or more in pieces. */
  #encode(values: Float32Array, dtype: ModelDType, write: (bytes: Uint8Array) => void): void {
    for (let at = 0; at < values.length; at += chunkElements) {
      const piece = values.subarray(at, at + chunkElements);
      const bytes = this.#bytes.subarray(0, piece.length * elementBytes(dtype));
      fromFloat32(fileDtype(dtype), piece, bytes);
      write(bytes);
    }
  }
  #generate(numElements: number, dtype: ModelDType, write: (bytes: Uint8Array) => void, fill: (values: Float32Array) => void): void {
    for (let at = 0; at < numElements; at += chunkElements) {
      const values = this.#values.subarray(0, Math.min(chunkElements, numElements - at));
      fill(values);
      this.#encode(values, dtype, write);
    }
  }

  /** Rows [E, H]: shards of one copy have the same. */
  #routerRows(layer: number): Float32Array {
    const { options, hiddenSize: H, promptRows } = this.#context;
    const { numExperts, granularity: G, router } = options;
    const rows = new Float32Array(numExperts * H);
    if (router.type === "zero") return rows;
    const random = this.#random("router", layer);
    const fromPrompts = router.type === "prompts" ? (promptRows?.(layer) ?? null) : null;
    if (router.type === "prompts" && fromPrompts === null) throw new MoeError("internal", "upcycle: no router rows from prompts");
    for (let copy = 0; copy * G < numExperts; copy++) {
      const row = new Float32Array(H);
      if (router.type === "normal") random.fillNormal(row, router.std);
      else row.set(fromPrompts?.subarray(copy * H, (copy + 1) * H) ?? row);
      for (let e = copy * G; e < Math.min(numExperts, (copy + 1) * G); e++) rows.set(row, e * H);
    }
    return rows;
  }

  /** The whole dense matrix in bytes of `dtype`. */
  #matrix({ from, name, rows, columns }: Extract<Recipe, { type: "expert" }>, dtype: ModelDType): Matrix {
    const key = `${from} ${dtype} ${name}`;
    if (this.#cached?.key === key) return this.#cached.matrix;
    const byteLength = rows * columns * elementBytes(dtype);
    if (this.#buffer.byteLength < byteLength) this.#buffer = new Uint8Array(byteLength);
    const bytes = this.#buffer.subarray(0, byteLength);
    let done = 0;
    this.#copy(from, name, rows * columns, dtype, (piece) => {
      bytes.set(piece, done);
      done += piece.byteLength;
    });
    const matrix = { bytes, rows, columns, dtype };
    this.#cached = { key, matrix };
    return matrix;
  }

  #expert(recipe: Extract<Recipe, { type: "expert" }>, dtype: ModelDType, write: (bytes: Uint8Array) => void): void {
    const matrix = this.#matrix(recipe, dtype);
    const part = partOf(matrix, recipe.shard);
    const { change, shard } = recipe;
    if (change.factor === 1 && change.method.type === "copy") return this.#eachBytes(matrix, part, write);
    const edit = this.#edit(matrix, part, shard, change);
    let at = 0;
    this.#eachBytes(matrix, part, (bytes) => {
      const values = this.#values.subarray(0, bytes.byteLength / elementBytes(dtype));
      toFloat32(fileDtype(dtype), bytes, values);
      if (change.factor !== 1) for (let i = 0; i < values.length; i++) values[i] = (values[i] ?? 0) * change.factor;
      edit(values, at);
      at += values.length;
      this.#encode(values, dtype, write);
    });
  }

  /** A part's bytes, in pieces of whole rows where it is narrower than the matrix. Pieces are at most a chunk unless they need no buffer. */
  #eachBytes({ bytes, columns, dtype }: Matrix, part: Part, visit: (bytes: Uint8Array) => void): void {
    const size = elementBytes(dtype);
    if (part.columns === columns) {
      const whole = bytes.subarray(part.firstRow * columns * size, (part.firstRow + part.rows) * columns * size);
      for (let at = 0; at < whole.byteLength; at += chunkElements * size) visit(whole.subarray(at, at + chunkElements * size));
      return;
    }
    const rowsAtOnce = Math.max(1, Math.floor(chunkElements / part.columns));
    const gathered = new Uint8Array(Math.min(rowsAtOnce, part.rows) * part.columns * size);
    for (let row = 0; row < part.rows; row += rowsAtOnce) {
      const n = Math.min(rowsAtOnce, part.rows - row);
      for (let r = 0; r < n; r++) {
        const from = ((part.firstRow + row + r) * columns + part.firstColumn) * size;
        gathered.set(bytes.subarray(from, from + part.columns * size), r * part.columns * size);
      }
      visit(gathered.subarray(0, n * part.columns * size));
    }
  }

  /** What the method does to values (already multiplied by the factor), of which the first is element `at` of the part. */
  #edit(matrix: Matrix, part: Part, shard: Shard, change: Change): (values: Float32Array, at: number) => void {
    const { method, key } = change;
    if (method.type === "copy") return () => undefined;
    if (method.type === "noise") {
      const std = method.std * this.#statistics(matrix, part, change.factor, () => true).std;
      const random = this.#random("noise", ...key);
      const noise = new Float32Array(chunkElements);
      return (values) => {
        random.fillNormal(noise.subarray(0, values.length), std);
        for (let i = 0; i < values.length; i++) values[i] = (values[i] ?? 0) + (noise[i] ?? 0);
      };
    }
    const dropped = this.#dropped(shard.by === "rows" ? part.rows : part.columns, method.ratio, key);
    const isDropped =
      shard.by === "rows"
        ? (i: number): boolean => dropped[Math.floor(i / part.columns)] === 1
        : (i: number): boolean => dropped[i % part.columns] === 1;
    if (method.type === "clear") {
      return (values, at) => {
        for (let i = 0; i < values.length; i++) if (isDropped(at + i)) values[i] = 0;
      };
    }
    const { mean, std } = this.#statistics(matrix, part, change.factor, isDropped);
    const random = this.#random("redrawn", ...key);
    return (values, at) => {
      for (let i = 0; i < values.length; i++) if (isDropped(at + i)) values[i] = mean + std * random.normal();
    };
  }
  /** 1 for each intermediate dimension that an expert drops: the same ones in its three matrices. */
  #dropped(width: number, ratio: number, [layer, expert]: Change["key"]): Uint8Array {
    const order = this.#random("chosen", layer, expert).shuffle(Int32Array.from({ length: width }, (_, i) => i));
    const dropped = new Uint8Array(width);
    for (const index of order.subarray(0, Math.round(ratio * width))) dropped[index] = 1;
    return dropped;
  }
  /** Mean and standard deviation of a part's elements that `counts` chooses, times `factor`. */
  #statistics(matrix: Matrix, part: Part, factor: number, counts: (i: number) => boolean): { mean: number; std: number } {
    let [n, sum, squares, at] = [0, 0, 0, 0];
    const values = new Float32Array(chunkElements);
    this.#eachBytes(matrix, part, (bytes) => {
      const piece = values.subarray(0, bytes.byteLength / elementBytes(matrix.dtype));
      toFloat32(fileDtype(matrix.dtype), bytes, piece);
      for (let i = 0; i < piece.length; i++) {
        if (!counts(at + i)) continue;
        const x = piece[i] ?? 0;
        n++;
        sum += x;
        squares += x * x;
      }
      at += piece.length;
    });
    if (n === 0) return { mean: 0, std: 0 };
    const mean = sum / n;
    return { mean: factor * mean, std: factor * Math.sqrt(Math.max(0, squares / n - mean * mean)) };
  }
}

function partOf({ rows, columns }: Matrix, { index, count, by }: Shard): Part {
  if (by === "rows") return { firstRow: (index * rows) / count, rows: rows / count, firstColumn: 0, columns };
  return { firstRow: 0, rows, firstColumn: (index * columns) / count, columns: columns / count };
}
export function elementBytes(dtype: ModelDType): 2 | 4 {
  return dtype === "f32" ? 4 : 2;
}
export function fileDtype(dtype: ModelDType): "F32" | "BF16" {
  return dtype === "f32" ? "F32" : "BF16";
}

/**
 * A tensor: a shape and a dtype over bytes of a backend. Dense, row-major, no strides: a view has the same elements in the
 * same order (`view`) or a run of rows (`rows`). Memory is owned explicitly: storage is counted, a handle is disposed by
 * the scope that made it, by `using`, or by `dispose()`.
 *
 * Autograd identifies a value by `valueId`: views of all elements share it, so their gradients are one buffer.
 */
import { dtypeBytes, type ActivationScaling, type DType, type Fp8Scaling, type Ptr } from "../backend/kernels.ts";
import { MoeError } from "../util/errors.ts";
import type { Engine } from "./engine.ts";

export type Shape = readonly number[];

export function numElements(shape: Shape): number {
  let n = 1;
  for (const size of shape) n *= size;
  return n;
}

/** Counted bytes. `release` is called once, when the last reference goes. */
export class Storage {
  readonly ptr: Ptr;
  readonly byteLength: number;
  /** Number of in-place changes by ops: the tape compares it to notice that what it saved is no longer what it was. */
  version = 0;
  #references = 1;
  readonly #release: () => void;

  constructor(ptr: Ptr, byteLength: number, release: () => void) {
    this.ptr = ptr;
    this.byteLength = byteLength;
    this.#release = release;
  }
  get references(): number {
    return this.#references;
  }
  retain(): this {
    if (this.#references === 0) throw new MoeError("internal", "storage retained after it was freed");
    this.#references++;
    return this;
  }
  release(): void {
    if (this.#references === 0) throw new MoeError("internal", "storage released twice");
    if (--this.#references === 0) this.#release();
  }
}

/** A trainable tensor's extra state: its name and its f32 gradient, made when first needed. */
export interface ParameterState {
  readonly name: string;
  /** f32, the parameter's shape; null until a backward pass wrote it. */
  grad: Tensor | null;
  /** False: the next backward overwrites `grad`. True: it adds. */
  gradIsSet: boolean;
}

/** Scales of an fp8 weight [N, K] or [E, N, K]: f32, for each matrix one, [N], or [ceil(N / 128), ceil(K / 128)]. A weight is code * scale. */
export interface WeightScales {
  readonly scaling: Fp8Scaling;
  readonly values: Tensor;
  /** How what is multiplied with the weight is rounded to E4M3 before; absent: not at all. */
  readonly activations?: ActivationScaling;
}

export class Tensor implements Disposable {
  readonly engine: Engine;
  readonly storage: Storage;
  readonly byteOffset: number;
  readonly shape: Shape;
  readonly dtype: DType;
  readonly valueId: number;
  /** True for parameters that train and for whatever was computed from them under a tape. */
  requiresGrad = false;
  /** Set on parameters only. */
  parameter: ParameterState | null = null;
  /** Set on fp8 weights only, and owned by the tensor: disposed with it. Views and rows do not have them. */
  scales: WeightScales | null = null;
  #disposed = false;

  /** Takes over one reference of `storage`. Use `engine.empty`, `engine.from` and the ops rather than this. */
  constructor(engine: Engine, storage: Storage, byteOffset: number, shape: Shape, dtype: DType, valueId: number) {
    this.engine = engine;
    this.storage = storage;
    this.byteOffset = byteOffset;
    this.shape = shape;
    this.dtype = dtype;
    this.valueId = valueId;
  }

  get size(): number {
    return numElements(this.shape);
  }
  get byteLength(): number {
    return this.size * dtypeBytes[this.dtype];
  }
  get isDisposed(): boolean {
    return this.#disposed;
  }
  /** Address of the first element. Throws `internal` after disposal. */
  get ptr(): Ptr {
    if (this.#disposed) throw new MoeError("internal", `use of a disposed tensor of shape [${this.shape.join(", ")}]`);
    return this.storage.ptr + this.byteOffset;
  }
  /** Size of dimension `i`, counted from the end when negative. */
  dim(i: number): number {
    const size = this.shape.at(i);
    if (size === undefined) throw new MoeError("shape", `dimension ${i} of a tensor of shape [${this.shape.join(", ")}]`);
    return size;
  }

  /** The same elements under another shape (one size may be -1). Shares storage and gradient. */
  view(...shape: number[]): Tensor {
    const known = shape.reduce((n, size) => (size === -1 ? n : n * size), 1);
    const resolved = shape.map((size) => (size === -1 ? (known === 0 ? 0 : this.size / known) : size));
    if (numElements(resolved) !== this.size || !resolved.every(Number.isInteger) || shape.filter((size) => size === -1).length > 1) {
      throw new MoeError("shape", `view of [${this.shape.join(", ")}] as [${shape.join(", ")}]: element counts differ`);
    }
    return this.#share(this.byteOffset, resolved, this.valueId);
  }
  /** Rows start..end-1 of the first dimension. Shares storage; not differentiable. */
  rows(start: number, end: number): Tensor {
    const [count = 0, ...rest] = this.shape;
    if (!(start >= 0 && start <= end && end <= count)) {
      throw new MoeError("shape", `rows ${start}..${end} of a tensor of shape [${this.shape.join(", ")}]`);
    }
    const rowBytes = numElements(rest) * dtypeBytes[this.dtype];
    return this.#share(this.byteOffset + start * rowBytes, [end - start, ...rest], this.engine.nextValueId());
  }
  /** Another handle of the same value that no scope owns: the caller disposes it. */
  retain(): Tensor {
    const handle = new Tensor(this.engine, this.storage.retain(), this.byteOffset, this.shape, this.dtype, this.valueId);
    handle.requiresGrad = this.requiresGrad;
    handle.parameter = this.parameter;
    if (this.scales !== null) handle.scales = { ...this.scales, values: this.scales.values.retain() };
    return handle;
  }
  #share(byteOffset: number, shape: Shape, valueId: number): Tensor {
    if (this.#disposed) throw new MoeError("internal", "view of a disposed tensor");
    const tensor = new Tensor(this.engine, this.storage.retain(), byteOffset, shape, this.dtype, valueId);
    if (valueId === this.valueId) {
      tensor.requiresGrad = this.requiresGrad;
      tensor.parameter = this.parameter;
    }
    return this.engine.adopt(tensor);
  }

  /** A copy of the elements as f32 (converted when bf16, f16 or fp8; scales are not applied). */
  toFloat32Array(): Float32Array {
    if (this.dtype === "f32") return this.#read(new Float32Array(this.size));
    using converted = this.engine.detached(this.shape, "f32");
    this.engine.cast(converted, this);
    return converted.#read(new Float32Array(this.size));
  }
  /** A copy of the elements of an i32 tensor. */
  toInt32Array(): Int32Array {
    if (this.dtype !== "i32") throw new MoeError("shape", `toInt32Array of a ${this.dtype} tensor`);
    return this.#read(new Int32Array(this.size));
  }
  /** The only element, as a number. */
  item(): number {
    if (this.size !== 1) throw new MoeError("shape", `item() of a tensor of shape [${this.shape.join(", ")}]`);
    return this.dtype === "i32" ? (this.toInt32Array()[0] ?? 0) : (this.toFloat32Array()[0] ?? 0);
  }
  #read<T extends ArrayBufferView>(target: T): T {
    this.engine.backend.read(target, this.ptr);
    return target;
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.storage.release();
    this.scales?.values.dispose();
  }
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * An engine: a backend, the scopes that own tensors, and the tape that records, if any. All mutable state of tensor
 * computing is here; two engines do not know each other.
 */
import type { Backend } from "../backend/backend.ts";
import { dtypeBytes, dtypeCodes, fp8Formats, type DType } from "../backend/kernels.ts";
import { MoeError } from "../util/errors.ts";
import type { Tape } from "./tape.ts";
import { numElements, Storage, Tensor, type Shape } from "./tensor.ts";

export interface OpenScope {
  /** Runs `fn`; tensors that it makes belong to this scope. */
  run<T>(fn: () => T): T;
  /** Disposes them, except `kept`, which go to the current scope. */
  end(kept: readonly Tensor[]): void;
}

export class Engine implements Disposable {
  readonly backend: Backend;
  #scopes: Tensor[][] = [];
  #tape: Tape | null = null;
  #lastValueId = 0;

  constructor(backend: Backend) {
    this.backend = backend;
  }

  /** The tape that ops record on, or null. */
  get tape(): Tape | null {
    return this.#tape;
  }
  nextValueId(): number {
    return ++this.#lastValueId;
  }

  /** Runs `fn` while ops record on `tape` (null: while nothing is recorded). */
  withTape<T>(tape: Tape | null, fn: () => T): T {
    const before = this.#tape;
    this.#tape = tape;
    try {
      return fn();
    } finally {
      this.#tape = before;
    }
  }

  /**
   * Runs `fn` and disposes every tensor that it made, except those it returns (a tensor, or tensors in arrays and plain
   * objects, however deep): these go to the enclosing scope, or to the caller where there is none. Synchronous only.
   */
  scope<T>(fn: () => T): T {
    const owned: Tensor[] = [];
    this.#scopes.push(owned);
    let kept = new Set<Tensor>();
    try {
      const result = fn();
      kept = tensorsIn(result);
      return result;
    } finally {
      this.#scopes.pop();
      for (const tensor of owned) {
        if (kept.has(tensor)) this.adopt(tensor);
        else tensor.dispose();
      }
    }
  }
  /** A scope that is entered several times, for work that takes turns with other work. The caller ends it. */
  openScope(): OpenScope {
    const owned: Tensor[] = [];
    return {
      run: (fn) => {
        this.#scopes.push(owned);
        try {
          return fn();
        } finally {
          this.#scopes.pop();
        }
      },
      end: (kept) => {
        for (const tensor of owned.splice(0)) {
          if (kept.includes(tensor)) this.adopt(tensor);
          else tensor.dispose();
        }
      },
    };
  }
  /** Gives `tensor` to the current scope. */
  adopt(tensor: Tensor): Tensor {
    this.#scopes.at(-1)?.push(tensor);
    return tensor;
  }

  /** A tensor with undefined contents that no scope owns: the caller disposes it. */
  detached(shape: Shape, dtype: DType): Tensor {
    for (const size of shape) {
      if (!Number.isSafeInteger(size) || size < 0) throw new MoeError("shape", `a tensor of shape [${shape.join(", ")}]`);
    }
    const byteLength = numElements(shape) * dtypeBytes[dtype];
    const ptr = this.backend.alloc(byteLength);
    const storage = new Storage(ptr, byteLength, () => this.backend.free(ptr));
    return new Tensor(this, storage, 0, shape, dtype, this.nextValueId());
  }
  /** A tensor with undefined contents. */
  empty(shape: Shape, dtype: DType): Tensor {
    return this.adopt(this.detached(shape, dtype));
  }
  zeros(shape: Shape, dtype: DType): Tensor {
    const tensor = this.empty(shape, dtype);
    this.fillZero(tensor);
    return tensor;
  }
  /** A tensor with these elements; f32 data is rounded when `dtype` is bf16, f16 or fp8. */
  from(data: ArrayLike<number>, shape: Shape, dtype: DType): Tensor {
    if (data.length !== numElements(shape)) {
      throw new MoeError("shape", `${data.length} elements for a tensor of shape [${shape.join(", ")}]`);
    }
    const tensor = this.empty(shape, dtype);
    if (dtype === "i32") {
      this.backend.write(tensor.ptr, data instanceof Int32Array ? data : Int32Array.from(data));
    } else if (dtype === "f32") {
      this.backend.write(tensor.ptr, data instanceof Float32Array ? data : Float32Array.from(data));
    } else {
      using source = this.detached(shape, "f32");
      this.backend.write(source.ptr, data instanceof Float32Array ? data : Float32Array.from(data));
      this.cast(tensor, source);
    }
    return tensor;
  }
  /** Wraps memory that something else owns (a mapped file). `release` is called when the last handle goes. */
  wrap(ptr: number, shape: Shape, dtype: DType, release: () => void): Tensor {
    const storage = new Storage(ptr, numElements(shape) * dtypeBytes[dtype], release);
    return this.adopt(new Tensor(this, storage, 0, shape, dtype, this.nextValueId()));
  }

  fillZero(tensor: Tensor): void {
    const words = Math.floor(tensor.byteLength / 4);
    this.backend.kernels.fillF32(tensor.ptr, words, 0);
    if (tensor.byteLength % 4 !== 0) this.backend.write(tensor.ptr + words * 4, new Uint8Array(tensor.byteLength % 4));
  }
  /** out = x converted to out's dtype; the shapes hold the same number of elements. */
  cast(out: Tensor, x: Tensor): void {
    if (out.size !== x.size) throw new MoeError("shape", `cast of ${x.size} elements into ${out.size}`);
    const { kernels } = this.backend;
    // fp8 is E4M3 here, without a scale: beyond 448 it saturates.
    if (out.dtype === "fp8") kernels.castToFp8(out.ptr, x.ptr, x.size, 1, dtypeCodes[x.dtype], fp8Formats.e4m3);
    else if (x.dtype === "fp8") kernels.castFromFp8(out.ptr, x.ptr, x.size, 1, dtypeCodes[out.dtype], fp8Formats.e4m3);
    else kernels.cast(out.ptr, x.ptr, x.size, dtypeCodes[out.dtype], dtypeCodes[x.dtype]);
  }

  [Symbol.dispose](): void {
    this.backend.dispose();
  }
}

function tensorsIn(value: unknown, found = new Set<Tensor>()): Set<Tensor> {
  if (value instanceof Tensor) found.add(value);
  else if (Array.isArray(value)) for (const item of value) tensorsIn(item, found);
  else if (typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype) {
    for (const item of Object.values(value)) tensorsIn(item, found);
  }
  return found;
}

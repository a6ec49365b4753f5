/**
 * The native backend: memory is raw addresses in heaps of C (`native/memory.c`), kernels are C functions called through koffi.
 *
 * One backend owns one context: its threads, scratch memory and heap. Use it from the thread that made it; other threads make
 * their own. A pointer says nothing about its size, so nothing here can check a kernel's operands: that is the tensor layer's job,
 * and the reference backend's in tests.
 */
import { MoeError, fileError } from "../../util/errors.ts";
import type { Backend, MappedFile } from "../backend.ts";
import type { NativeIsa } from "../environment.ts";
import type { Kernels, Ptr } from "../kernels.ts";
import { retireKernels } from "../symbols.ts";
import type { NativeLibrary } from "./library.ts";

/** koffi copies nothing to make a view, but V8 caps an ArrayBuffer; Node 20 ends the process above this. */
const maxViewBytes = 2 ** 32;

export class NativeBackend implements Backend {
  readonly name = "native";
  readonly canView = true;
  readonly isa: NativeIsa;
  readonly numThreads: number;
  readonly kernels: Kernels;
  readonly library: NativeLibrary;
  #context: number;

  /** Starts `numThreads - 1` threads. Throws `resource` without memory for it. */
  constructor(library: NativeLibrary, isa: NativeIsa, numThreads: number) {
    this.library = library;
    this.isa = isa;
    this.#context = library.runtime.contextCreate(numThreads);
    if (this.#context === 0) throw new MoeError("resource", "native backend: no memory for a context");
    this.numThreads = library.runtime.contextThreads(this.#context);
    this.kernels = library.bindKernels(isa, this.#context);
  }

  get #live(): number {
    if (this.#context === 0) throw new MoeError("internal", "native backend: used after dispose()");
    return this.#context;
  }

  alloc(byteLength: number): Ptr {
    if (!Number.isSafeInteger(byteLength) || byteLength < 0)
      throw new MoeError("internal", `native alloc: expected a count of bytes, got ${byteLength}`);
    const ptr = this.library.runtime.alloc(this.#live, byteLength);
    if (ptr === 0) throw new MoeError("resource", `out of memory: asked for ${byteLength} bytes with ${this.liveBytes} bytes live`);
    return ptr;
  }

  free(ptr: Ptr): void {
    if (ptr === 0 || this.library.runtime.free(this.#live, ptr) !== 0) {
      throw new MoeError(
        "internal",
        `native free: expected the address of a live allocation, got ${ptr} (freed twice, or never allocated)`,
      );
    }
  }

  get liveBytes(): number {
    return this.#context === 0 ? 0 : this.library.runtime.liveBytes(this.#context);
  }
  get peakBytes(): number {
    return this.#context === 0 ? 0 : this.library.runtime.peakBytes(this.#context);
  }
  resetPeak(): void {
    this.library.runtime.resetPeak(this.#live);
  }
  trim(): void {
    this.library.runtime.trim(this.#live);
  }

  read(target: ArrayBufferView, ptr: Ptr): void {
    if (target.byteLength > 0) this.library.runtime.copyOut(target, ptr, target.byteLength);
  }

  write(ptr: Ptr, source: ArrayBufferView): void {
    if (source.byteLength > 0) this.library.runtime.copyIn(ptr, source, source.byteLength);
  }

  view(ptr: Ptr, byteLength: number): Uint8Array {
    if (byteLength === 0) return new Uint8Array(0);
    if (ptr === 0 || byteLength < 0 || byteLength > maxViewBytes) {
      throw new MoeError("internal", `native view: expected an address and 0 to ${maxViewBytes} bytes, got ${byteLength} bytes at ${ptr}`);
    }
    return this.library.view(ptr, byteLength);
  }

  /** Throws `file` where the path is not a readable file. The mapping is the page cache itself and counts in no statistics. */
  mapFile(path: string): MappedFile {
    const { runtime } = this.library;
    const [address, size] = [new BigUint64Array(1), new BigUint64Array(1)];
    const error = runtime.mapFile(path, address, size);
    if (error !== 0) throw fileError(path, "a readable file", runtime.errorText(error));
    const ptr = Number(address[0]);
    const byteLength = Number(size[0]);
    let open = true;
    return {
      ptr,
      byteLength,
      close() {
        if (open && ptr !== 0) runtime.unmapFile(ptr, byteLength);
        open = false;
      },
    };
  }

  /** Chunks of nothing, `times` times: what the thread pool itself costs (benchmarks and tests). */
  emptyParallelFor(numChunks: number, times: number): void {
    this.library.runtime.emptyParallelFor(this.#live, numChunks, times);
  }

  /** Bytes held from the system, free ones included. */
  get mappedBytes(): number {
    return this.#context === 0 ? 0 : this.library.runtime.mappedBytes(this.#context);
  }

  dispose(): void {
    if (this.#context === 0) return;
    retireKernels(this.kernels, "native backend");
    this.library.runtime.contextDestroy(this.#context);
    this.#context = 0;
  }
}

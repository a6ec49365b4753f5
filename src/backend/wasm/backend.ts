/**
 * The WebAssembly backend: the C kernels as simd128 code, in one shared memory of at most 4 GiB, with a pool of worker threads.
 * It needs no compiler and no native addon, and runs in browsers; it has no file mappings, and memory once taken stays taken.
 *
 * Threads start by themselves after the constructor; until then, and wherever one fails to start, the caller computes its share.
 */
import { MoeError } from "../../util/errors.ts";
import type { Backend } from "../backend.ts";
import type { Kernels, Ptr } from "../kernels.ts";
import { bindKernels, retireKernels } from "../symbols.ts";
import type { WasmRuntime } from "./instance.ts";
import { createMemory, instantiate, stackBytes, wasmApi } from "./instance.ts";
import type { WasmHost, WasmMemory, WasmModule, WorkerHandle } from "./types.ts";

const isa = "simd128";
const alignment = 64;

export class WasmBackend implements Backend {
  readonly name = "wasm";
  readonly isa = isa;
  readonly canView = true;
  readonly numThreads: number;
  readonly kernels: Kernels;
  /** Why there are fewer threads than asked for; undefined where all were started. */
  readonly threadsReason: string | undefined;
  readonly #memory: WasmMemory;
  readonly #runtime: WasmRuntime;
  readonly #workers: WorkerHandle[] = [];
  #context: number;

  /** Use `createWasmBackend`. Throws `resource` where the memory cannot be had. */
  constructor(host: WasmHost, module: WasmModule, numThreads: number) {
    this.#memory = createMemory();
    const exports = instantiate(module, this.#memory);
    this.#runtime = exports;
    this.#context = exports.moe_context_create(numThreads) >>> 0;
    if (this.#context === 0) throw new MoeError("resource", "wasm backend: no memory for a context");
    exports.moe_context_set_caller_spins(this.#context, host.callerMayWait ? 0 : 1);
    this.threadsReason = this.#startThreads(host, module, numThreads);
    this.numThreads = this.#workers.length + 1;
    exports.moe_context_set_threads(this.#context, this.numThreads);
    this.kernels = bindKernels("moe.wasm", isa, (symbol) => {
      const kernel = exports[symbol];
      return typeof kernel === "function" ? (kernel.bind(null, this.#context) as (...args: number[]) => void) : null;
    });
  }

  #startThreads(host: WasmHost, module: WasmModule, numThreads: number): string | undefined {
    const tlsBytes = this.#runtime.__tls_size?.value ?? 0; // oxlint-disable-line no-underscore-dangle -- the linker's name
    const blockBytes = Math.ceil((tlsBytes + stackBytes) / alignment) * alignment;
    for (let thread = 1; thread < numThreads; thread++) {
      const blockStart = this.#runtime.moe_alloc_uncounted(this.#context, blockBytes) >>> 0;
      if (blockStart === 0) return "no memory for another thread's stack";
      try {
        this.#workers.push(
          host.spawn({ module, memory: this.#memory, context: this.#context, thread, blockStart, blockEnd: blockStart + blockBytes }),
        );
      } catch (error) {
        this.#runtime.moe_free(this.#context, blockStart);
        return `threads do not start: ${error instanceof Error ? error.message : String(error)}`;
      }
    }
    return undefined;
  }

  get #live(): number {
    if (this.#context === 0) throw new MoeError("internal", "wasm backend: used after dispose()");
    return this.#context;
  }

  alloc(byteLength: number): Ptr {
    if (!Number.isSafeInteger(byteLength) || byteLength < 0)
      throw new MoeError("internal", `wasm alloc: expected a count of bytes, got ${byteLength}`);
    const ptr = byteLength < 2 ** 32 ? this.#runtime.moe_alloc(this.#live, byteLength) >>> 0 : 0;
    if (ptr === 0) {
      throw new MoeError(
        "resource",
        `out of memory: asked for ${byteLength} bytes with ${this.liveBytes} bytes live; the WebAssembly engine ends at 4 GiB`,
      );
    }
    return ptr;
  }

  free(ptr: Ptr): void {
    const known = Number.isInteger(ptr) && ptr > 0 && ptr < this.#memory.buffer.byteLength;
    if (!known || this.#runtime.moe_free(this.#live, ptr) !== 0) {
      throw new MoeError("internal", `wasm free: expected the address of a live allocation, got ${ptr} (freed twice, or never allocated)`);
    }
  }

  get liveBytes(): number {
    return this.#context === 0 ? 0 : this.#runtime.moe_live_bytes(this.#context);
  }
  get peakBytes(): number {
    return this.#context === 0 ? 0 : this.#runtime.moe_peak_bytes(this.#context);
  }
  /** Bytes held from the system, free ones included. */
  get mappedBytes(): number {
    return this.#context === 0 ? 0 : this.#runtime.moe_mapped_bytes(this.#context);
  }
  resetPeak(): void {
    this.#runtime.moe_reset_peak(this.#live);
  }
  trim(): void {
    this.#runtime.moe_trim(this.#live);
  }

  read(target: ArrayBufferView, ptr: Ptr): void {
    new Uint8Array(target.buffer, target.byteOffset, target.byteLength).set(this.view(ptr, target.byteLength));
  }
  write(ptr: Ptr, source: ArrayBufferView): void {
    this.view(ptr, source.byteLength).set(new Uint8Array(source.buffer, source.byteOffset, source.byteLength));
  }
  /** Over a SharedArrayBuffer; stays right when the memory grows. The buffer is asked for anew each time, because growing replaces it. */
  view(ptr: Ptr, byteLength: number): Uint8Array {
    if (byteLength === 0) return new Uint8Array(0);
    const { buffer } = this.#memory;
    if (this.#live === 0 || !(ptr > 0) || !(ptr + byteLength <= buffer.byteLength)) {
      throw new MoeError("internal", `wasm: expected bytes within a memory of ${buffer.byteLength}, got ${byteLength} bytes at ${ptr}`);
    }
    return new Uint8Array(buffer, ptr, byteLength);
  }
  mapFile(): null {
    return null;
  }

  /** Chunks of nothing, `times` times: what the thread pool itself costs (benchmarks and tests). */
  emptyParallelFor(numChunks: number, times: number): void {
    this.#runtime.moe_empty_parallel_for(this.#live, numChunks, times);
  }

  dispose(): void {
    if (this.#context === 0) return;
    retireKernels(this.kernels, "wasm backend");
    this.#runtime.moe_context_destroy(this.#context);
    for (const worker of this.#workers) worker.terminate();
    this.#context = 0;
  }
}

/** Reads, compiles and starts the engine. Throws `resource` where the host has no WebAssembly with SIMD and shared memory. */
export async function createWasmBackend(host: WasmHost, numThreads: number): Promise<WasmBackend> {
  const bytes = await host.readArtifact();
  try {
    return new WasmBackend(host, new (wasmApi().Module)(bytes), numThreads);
  } catch (error) {
    if (error instanceof MoeError) throw error;
    throw new MoeError(
      "resource",
      `the WebAssembly engine does not start here: ${error instanceof Error ? error.message : String(error)}`,
      { cause: error },
    );
  }
}

/**
 * One instance of moe.wasm: every thread has its own, all on one shared memory. The first instance makes the context; the others get
 * a stack of their own and join its pool. A thread that ran on another's stack would corrupt memory, so the stack pointer is set
 * before anything else is called, and thread-local data after it.
 */
import type { WasmApi, WasmGlobal, WasmMemory, WasmModule, WorkerInit } from "./types.ts";

declare const performance: { now(): number };

const pageBytes = 65536;
/** The limits that native/build-wasm.mjs links with. */
const initialPages = 64;
const maximumPages = 65536;
/** Stack of a worker. Kernels keep large buffers in scratch memory. */
export const stackBytes = 1 << 20;

/** What moe.wasm exports for the host. Addresses are signed 32-bit on the way out: use `>>> 0`. */
export interface WasmRuntime {
  readonly __stack_pointer: WasmGlobal;
  readonly __tls_size?: WasmGlobal;
  __wasm_init_tls?(block: number): void;
  moe_context_create(numThreads: number): number;
  moe_context_destroy(context: number): void;
  moe_context_set_caller_spins(context: number, spins: number): void;
  moe_context_set_threads(context: number, numThreads: number): void;
  moe_context_work(context: number, thread: number): void;
  moe_alloc(context: number, byteLength: number): number;
  moe_alloc_uncounted(context: number, byteLength: number): number;
  moe_free(context: number, ptr: number): number;
  moe_live_bytes(context: number): number;
  moe_peak_bytes(context: number): number;
  moe_mapped_bytes(context: number): number;
  moe_reset_peak(context: number): void;
  moe_trim(context: number): void;
  moe_empty_parallel_for(context: number, numChunks: number, times: number): void;
}

/** The engine's WebAssembly object. Throws where the host has none. */
export function wasmApi(): WasmApi {
  return (globalThis as unknown as { WebAssembly: WasmApi }).WebAssembly;
}

/** A memory that moe.wasm accepts: small at first, growing to 4 GiB. */
export function createMemory(): WasmMemory {
  return new (wasmApi().Memory)({ initial: initialPages, maximum: maximumPages, shared: true });
}

export const initialMemoryBytes = initialPages * pageBytes;

/** Instantiates the module on `memory`. Its exports are the runtime and the kernels. */
export function instantiate(module: WasmModule, memory: WasmMemory): WasmRuntime & Readonly<Record<string, unknown>> {
  const { exports } = new (wasmApi().Instance)(module, { env: { memory, now: () => performance.now() } });
  return exports as WasmRuntime & Readonly<Record<string, unknown>>;
}

/** The life of a worker thread: returns when the pool stops. */
export function joinPool(init: WorkerInit): void {
  const runtime = instantiate(init.module, init.memory);
  // The linker chose these names.
  /* oxlint-disable no-underscore-dangle */
  runtime.__stack_pointer.value = init.blockEnd;
  runtime.__wasm_init_tls?.(init.blockStart);
  /* oxlint-enable no-underscore-dangle */
  runtime.moe_context_work(init.context, init.thread);
}

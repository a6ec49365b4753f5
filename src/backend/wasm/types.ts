/**
 * The part of the WebAssembly JavaScript API that this folder uses, typed here because the browser's library of types is not
 * part of a Node project; and what every host (Node, a browser) provides.
 */

export interface WasmMemory {
  readonly buffer: SharedArrayBuffer;
}

export interface WasmGlobal {
  value: number;
}

/** A compiled module: an opaque value that can be sent to other threads. */
export type WasmModule = object;

export interface WasmApi {
  readonly Memory: new (descriptor: { initial: number; maximum: number; shared: true }) => WasmMemory;
  readonly Module: new (bytes: Uint8Array) => WasmModule;
  readonly Instance: new (module: WasmModule, imports: Readonly<Record<string, object>>) => { readonly exports: object };
}

/** What a worker thread needs in order to become one of the pool. All of it survives structured cloning. */
export interface WorkerInit {
  readonly module: WasmModule;
  readonly memory: WasmMemory;
  readonly context: number;
  readonly thread: number;
  /** Bounds of the thread's own block: thread-local data first, then the stack, which grows down from the end. */
  readonly blockStart: number;
  readonly blockEnd: number;
}

export interface WorkerHandle {
  terminate(): void;
}

/** Threads and files, as the host has them. */
export interface WasmHost {
  /** The bytes of moe.wasm. */
  readArtifact(): Promise<Uint8Array>;
  /** Starts a thread that joins the pool, or throws with the reason why there are none. The thread must not keep the process alive. */
  spawn(init: WorkerInit): WorkerHandle;
  /** False where the calling thread may not wait (a browser's main thread): it then spins. */
  readonly callerMayWait: boolean;
}

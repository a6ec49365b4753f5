/**
 * Where bytes live and kernels run. A backend is an allocator, a way to copy bytes in and out, and the kernels of
 * `kernels.ts`. It knows nothing of tensors, shapes or gradients. `read` and `write` are the portable way to move data;
 * `view` exists where the memory is the CPU's own, and is only valid until the allocation is freed.
 *
 * Kernels run in order: a call returns when its outputs may be read (a backend that queues waits in `read`).
 */
import type { Kernels, Ptr } from "./kernels.ts";

export type BackendName = "native" | "wasm" | "reference";

export interface MappedFile {
  readonly ptr: Ptr;
  readonly byteLength: number;
  /** Unmaps. Views and tensors over the mapping must not be used afterwards. */
  close(): void;
}

export interface Backend {
  readonly name: BackendName;
  /** Instruction set of the kernels in use: `avx2`, `avx512`, `avx512bf16`, `amx`, `neon`, `simd128`, `scalar`. */
  readonly isa: string;
  readonly numThreads: number;
  readonly kernels: Kernels;

  /** At least `byteLength` bytes, aligned to 64, contents undefined. 0 bytes gives a valid pointer that must be freed too. */
  alloc(byteLength: number): Ptr;
  free(ptr: Ptr): void;
  /** Bytes handed out and not freed (file mappings apart). */
  readonly liveBytes: number;
  readonly peakBytes: number;
  /** Forgets the peak: the next `peakBytes` starts from what is live now. */
  resetPeak(): void;
  /** Returns cached free memory to the system. */
  trim(): void;

  /** Copies `byteLength` bytes at `ptr` into `target` (whole view). */
  read(target: ArrayBufferView, ptr: Ptr): void;
  /** Copies the whole of `source` to `ptr`. */
  write(ptr: Ptr, source: ArrayBufferView): void;
  /** The bytes themselves. Not on every backend: check `canView`. */
  view(ptr: Ptr, byteLength: number): Uint8Array;
  readonly canView: boolean;

  /** Maps a file read-only, or returns null where this backend cannot (the caller then reads and writes). */
  mapFile(path: string): MappedFile | null;

  /** Frees everything, stops threads. Throws nothing. */
  dispose(): void;
}

/**
 * What ranks of a group do together, on raw memory of their backends. All ranks call the same operations in the same order; a
 * call returns when this rank's result is there. Sums are taken in rank order and in f32, so they are the same bits on every rank and
 * in every run.
 *
 * Implementations: `LocalCommunicator` (ranks are worker threads of one process).
 */
import type { Ptr } from "../backend/kernels.ts";

/** Bytes that this rank put in, and calls, of one operation. */
export interface Traffic {
  calls: number;
  bytes: number;
}

export interface Communicator {
  readonly rank: number;
  readonly size: number;
  readonly traffic: Readonly<Record<"allReduce" | "allGather" | "broadcast", Traffic>>;
  /** Replaces `count` elements at `ptr` by their sums over all ranks; bf16 is summed in f32 and rounded once. */
  allReduce(ptr: Ptr, count: number, dtype: "f32" | "bf16"): void;
  /** Writes to `out` the bytes at `ptr` of all ranks, one after the other; rank r has byteLengths[r], possibly 0. */
  allGather(out: Ptr, ptr: Ptr, byteLengths: readonly number[]): void;
  /** Copies `byteLength` bytes at `ptr` of rank `root` to `ptr` of all others. */
  broadcast(ptr: Ptr, byteLength: number, root: number): void;
  /** The bytes that rank `root` gives, of any length, on every rank. Others give null. */
  share(bytes: Uint8Array | null, root: number): Uint8Array;
  barrier(): void;
  /** Ends the group: every rank that waits, or will, throws `communication` with this message. */
  abort(message: string): void;
}

/**
 * What ranks of a group do together, on raw memory of their backends. All members of a communicator call the same collectives in the same
 * order (send and recv apart); a call returns when this rank's result is there and its operands may be reused.
 *
 * - **Sums** are taken in rank order, in f32, element by element; bf16 is summed in f32 and rounded once. So they are the same bits on every
 *   rank, in every run, and in every implementation: a run does not change its losses by moving from threads to a cluster. That is why the
 *   implementation over MPI moves bytes by MPI and adds by itself: MPI_SUM may add in any order, and does so differently by size and by host.
 * - **Non-blocking forms** (`start...`) return at once with a `Pending`. Operands belong to the operation until `wait` returned. Several may be
 *   under way on one communicator and on several; they may be waited for in any order, and every wait brings all of this rank's operations
 *   forward, so that two ranks that wait for different ones do not block each other.
 * - **Waits** look for a short while, then sleep; every one ends by an abort or a timeout at the latest, by an error that says for whom it waited.
 * - **In place**: `allReduce` and `broadcast` are; `reduceScatter` may have `out` at this rank's own slice of `ptr`, `allGather` may have `ptr` at this
 *   rank's own block of `out`. Other overlaps are not allowed.
 *
 * Not here: tensors and gradients (`group.ts` and the layers above), which ranks form an axis (the mesh).
 *
 * Implementations: `local` (ranks are threads of one process), `mpi` (ranks are processes started by `mpirun` or `srun`).
 */
import type { Ptr } from "../backend/kernels.ts";

/** What sums are made of. */
export type SumDType = "f32" | "bf16";

/** Operations that are counted. */
export const operationNames = ["allReduce", "reduceScatter", "allGather", "allToAll", "broadcast", "send", "recv", "barrier"] as const;
export type OperationName = (typeof operationNames)[number];

/** What one rank did of one operation on one communicator. */
export interface Traffic {
  calls: number;
  /** Bytes of this rank's operand: of `ptr`; for `recv` what came; for `broadcast` only on the root. */
  bytes: number;
  /** Bytes that left this rank for others, and bytes that came from others. */
  sentBytes: number;
  receivedBytes: number;
  /** Seconds that this rank spent inside calls: what the communication cost the computation. */
  seconds: number;
  /** Seconds from start to end of operations; under overlap more than `seconds`. */
  flightSeconds: number;
}
export type TrafficTable = Readonly<Record<OperationName, Readonly<Traffic>>>;
export interface AxisTraffic {
  readonly name: string;
  readonly traffic: TrafficTable;
}

/** An operation under way. */
export interface Pending {
  /** Whether `wait` would return at once. Brings operations forward. Throws as `wait` does. */
  done(): boolean;
  /** Returns when the result is there. Throws `communication`. */
  wait(): void;
}

/**
 * A link that is slower than the memory of this machine, to show on one machine what happens on a cluster. What a rank sends over it
 * leaves one after the other at this rate and arrives this much later; who waits sleeps.
 */
export interface LinkEmulation {
  readonly latencyUs: number;
  /** 10^9 bytes a second, of each rank. */
  readonly gigabytesPerSecond: number;
}

export interface Communicator {
  /** The axis: `world`, `dp`, `tp`, ... */
  readonly name: string;
  readonly rank: number;
  readonly size: number;
  /** Ranks of the world, by rank here. */
  readonly members: readonly number[];
  readonly traffic: TrafficTable;
  /** Traffic of this communicator and of all that were split from it, on this rank; those of one name together. */
  readonly axes: readonly AxisTraffic[];

  /** Replaces `count` elements at `ptr` by their sums over all ranks. */
  allReduce(ptr: Ptr, count: number, dtype: SumDType): void;
  /** Element sums over all ranks of `ptr` (the sum of `counts` elements), of which rank r gets the r-th `counts[r]`, at `out`. */
  reduceScatter(out: Ptr, ptr: Ptr, counts: readonly number[], dtype: SumDType): void;
  /** Writes to `out` the bytes at `ptr` of all ranks, one after the other; rank r has byteLengths[r], possibly 0. */
  allGather(out: Ptr, ptr: Ptr, byteLengths: readonly number[]): void;
  /**
   * Sends the r-th `sendByteLengths[r]` bytes at `ptr` to rank r, and writes what comes to `out`, one after the other in rank order;
   * `recvByteLengths[r]` come from rank r. Zeros are fine. Throws `communication` where the two sides disagree.
   */
  allToAll(out: Ptr, recvByteLengths: readonly number[], ptr: Ptr, sendByteLengths: readonly number[]): void;
  /** Copies `byteLength` bytes at `ptr` of rank `root` to `ptr` of all others. */
  broadcast(ptr: Ptr, byteLength: number, root: number): void;
  /** To rank `to`. Buffered: returns when `ptr` may be reused and never waits for the receiver. Messages of one tag arrive in order. */
  send(ptr: Ptr, byteLength: number, to: number, tag?: number): void;
  /** From rank `from`: the oldest message of this tag, which has `byteLength` bytes (else `communication`). */
  recv(ptr: Ptr, byteLength: number, from: number, tag?: number): void;
  /** The bytes that rank `root` gives, of any length, on every rank. Others give null. */
  share(bytes: Uint8Array | null, root: number): Uint8Array;
  barrier(): void;

  startAllReduce(ptr: Ptr, count: number, dtype: SumDType): Pending;
  startReduceScatter(out: Ptr, ptr: Ptr, counts: readonly number[], dtype: SumDType): Pending;
  startAllGather(out: Ptr, ptr: Ptr, byteLengths: readonly number[]): Pending;
  startAllToAll(out: Ptr, recvByteLengths: readonly number[], ptr: Ptr, sendByteLengths: readonly number[]): Pending;
  /** Not buffered: `ptr` must stay as it is until `wait` returned. */
  startSend(ptr: Ptr, byteLength: number, to: number, tag?: number): Pending;
  startRecv(ptr: Ptr, byteLength: number, from: number, tag?: number): Pending;

  /**
   * A communicator for each of `groups`: ranks of this one, no rank twice, in the order that the new ranks have. All members call it alike. Returns that
   * of the group this rank is in, or null if in none. Traffic is counted under `name`.
   */
  split(groups: readonly (readonly number[])[], name: string): Communicator | null;
  /** From now on, what this communicator sends takes as long as over such a link (null: as long as it takes). All members call it alike. */
  emulateLink(link: LinkEmulation | null): void;
  /** Ends all ranks of the world: every one that waits, or will, throws `communication` with this message. */
  abort(message: string): void;
}

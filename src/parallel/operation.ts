/**
 * What a communicator asks of its implementation: one of these operations, as data, and a ticket for it. Everything that is the same for
 * all implementations (checks of arguments, counting, how many bytes leave a rank) is done before, in `group-communicator.ts`.
 */
import type { Ptr } from "../backend/kernels.ts";
import { equalSpeeds, partition, type Interval } from "../util/partition.ts";
import type { OperationName, SumDType } from "./communicator.ts";
import type { Passage } from "./link.ts";

export type Request =
  | { readonly kind: "allReduce"; readonly ptr: Ptr; readonly count: number; readonly dtype: SumDType }
  | { readonly kind: "reduceScatter"; readonly out: Ptr; readonly ptr: Ptr; readonly counts: readonly number[]; readonly dtype: SumDType }
  | { readonly kind: "allGather"; readonly out: Ptr; readonly ptr: Ptr; readonly lengths: readonly number[] }
  | {
      readonly kind: "allToAll";
      readonly out: Ptr;
      readonly recvLengths: readonly number[];
      readonly ptr: Ptr;
      readonly sendLengths: readonly number[];
    }
  | { readonly kind: "broadcast"; readonly ptr: Ptr; readonly length: number; readonly root: number }
  | {
      readonly kind: "send";
      readonly ptr: Ptr;
      readonly length: number;
      readonly peer: number;
      readonly tag: number;
      readonly buffered: boolean;
    }
  | { readonly kind: "recv"; readonly ptr: Ptr; readonly length: number; readonly peer: number; readonly tag: number }
  | { readonly kind: "barrier" };

/** An operation under way in an implementation. */
export interface Ticket {
  done(): boolean;
  wait(): void;
  /** When it was complete, ns of the monotonic clock, where a link is emulated; 0 otherwise. Valid once done. */
  readonly completedNs: number;
}

/** What an implementation does for the members of one communicator. */
export interface GroupDriver {
  /** `passage`: when what this rank sends leaves and arrives. */
  begin(request: Request, passage: Passage): Ticket;
  /**
   * The driver of some of these members (ranks here, in order). All members call `split` alike, each with its own group or null; `index` is that of the group.
   */
  split(group: readonly number[] | null, index: number): GroupDriver | null;
  abort(message: string): void;
}

export function total(lengths: readonly number[]): number {
  let sum = 0;
  for (const length of lengths) sum += length;
  return sum;
}

/** Where each begins. */
export function offsets(lengths: readonly number[]): number[] {
  let at = 0;
  return lengths.map((length) => {
    at += length;
    return at - length;
  });
}

export function elementBytes(dtype: SumDType): 2 | 4 {
  return dtype === "f32" ? 4 : 2;
}

/** Elements of an all-reduce that each rank adds up for all. */
export function reduceSlices(count: number, size: number): Interval[] {
  return partition(count, equalSpeeds(size));
}

/** Bytes that a request takes from and brings to this rank. */
export interface Volume {
  readonly bytes: number;
  readonly sent: number;
  readonly received: number;
}

/** Of one rank. A sum is a scatter of slices to who adds them, and (all-reduce) a gather of the sums. */
export function volumeOf(request: Request, rank: number, size: number): Volume {
  const others = size - 1;
  switch (request.kind) {
    case "allReduce": {
      const element = elementBytes(request.dtype);
      const own = size === 1 ? request.count : ownSlice(request.count, rank, size);
      const moved = (request.count - own + own * others) * element;
      return { bytes: request.count * element, sent: moved, received: moved };
    }
    case "reduceScatter": {
      const [element, all, own] = [elementBytes(request.dtype), total(request.counts), request.counts[rank] ?? 0];
      return { bytes: all * element, sent: (all - own) * element, received: own * others * element };
    }
    case "allGather": {
      const own = request.lengths[rank] ?? 0;
      return { bytes: own, sent: own * others, received: total(request.lengths) - own };
    }
    case "allToAll":
      return {
        bytes: total(request.sendLengths),
        sent: total(request.sendLengths) - (request.sendLengths[rank] ?? 0),
        received: total(request.recvLengths) - (request.recvLengths[rank] ?? 0),
      };
    case "broadcast":
      return rank === request.root
        ? { bytes: request.length, sent: request.length * others, received: 0 }
        : { bytes: 0, sent: 0, received: request.length };
    case "send":
      return { bytes: request.length, sent: request.length, received: 0 };
    case "recv":
      return { bytes: request.length, sent: 0, received: request.length };
    case "barrier":
      return { bytes: 0, sent: 0, received: 0 };
    default:
      return request satisfies never;
  }
}
/** Length of `reduceSlices(count, size)[rank]`, without the others. */
function ownSlice(count: number, rank: number, size: number): number {
  return Math.floor(count / size) + (rank < count % size ? 1 : 0);
}

/** Elements or bytes that all members must agree on; shown where they do not. */
export function extentOf(request: Request): number {
  switch (request.kind) {
    case "allReduce":
      return request.count;
    case "reduceScatter":
      return total(request.counts);
    case "allGather":
      return total(request.lengths);
    case "broadcast":
    case "send":
    case "recv":
      return request.length;
    // Each pair has its own.
    case "allToAll":
    case "barrier":
      return 0;
    default:
      return request satisfies never;
  }
}

const words: Readonly<Record<OperationName, string>> = {
  allReduce: "all-reduce",
  reduceScatter: "reduce-scatter",
  allGather: "all-gather",
  allToAll: "all-to-all",
  broadcast: "broadcast",
  send: "send",
  recv: "receive",
  barrier: "barrier",
};
export function wordOf(kind: OperationName): string {
  return words[kind];
}

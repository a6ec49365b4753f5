/**
 * Communicators whose work is done in C: between threads on native memory (`native/ranks/shared.c`) and between processes over MPI
 * (`native/ranks/mpi.c`). Both have the same calls, so there is one driver; here is what is left to TypeScript: arguments, patience, and
 * what an error says.
 *
 * A wait in C lasts a slice of time at most. Between two slices this looks whether the group was ended from outside (a thread that died) and
 * whether the wait has been too long.
 */
import type { Ptr } from "../backend/kernels.ts";
import { MoeError } from "../util/errors.ts";
import type { OperationName, SumDType } from "./communicator.ts";
import type { Passage } from "./link.ts";
import { extentOf, wordOf, type GroupDriver, type Request, type Ticket } from "./operation.ts";

/** C functions with the prefix of a library: `moe_ranks_begin`, `moe_mpi_begin`. Addresses are numbers. */
export interface NativeCalls {
  begin(
    group: number,
    kind: number,
    ptr: Ptr,
    out: Ptr,
    extent: number,
    lengths: Float64Array | null,
    receives: Float64Array | null,
    dtype: number,
    peer: number,
    tag: number,
    buffered: number,
    leaveNs: number,
    arriveNs: number,
  ): number;
  poll(operation: number): number;
  wait(operation: number, ns: number): number;
  missing(operation: number, ranks: Int32Array): number;
  mismatch(operation: number, found: Float64Array): void;
  open(self: number, parent: number, split: number, index: number, members: Int32Array, size: number, rank: number): number;
}
export const nativeCallTypes = {
  begin: [
    "uintptr_t",
    "uintptr_t",
    "int",
    "uintptr_t",
    "uintptr_t",
    "int64_t",
    "void *",
    "void *",
    "int",
    "int",
    "int",
    "int",
    "double",
    "double",
  ],
  poll: ["double", "uintptr_t"],
  wait: ["double", "uintptr_t", "double"],
  missing: ["int", "uintptr_t", "void *"],
  mismatch: ["void", "uintptr_t", "void *"],
  open: ["uintptr_t", "uintptr_t", "uintptr_t", "int", "int", "void *", "int", "int"],
} as const satisfies Record<keyof NativeCalls, readonly [string, ...string[]]>;

/** Functions by their names here: `hasEnded` is `<prefix>_has_ended` in C. `types`: koffi's, the result first. */
export function bindCalls<Calls>(
  bind: (symbol: string, result: string, args: readonly string[]) => (...args: never[]) => unknown,
  prefix: string,
  types: Readonly<Record<keyof Calls & string, readonly [string, ...string[]]>>,
): Calls {
  const calls = Object.entries<readonly [string, ...string[]]>(types).map(([name, [result, ...args]]) => {
    return [name, bind(`${prefix}_${name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)}`, result, args)] as const;
  });
  return Object.fromEntries(calls) as Calls;
}

/** The rank of the world that groups belong to. */
export interface NativeHost {
  readonly calls: NativeCalls;
  /** Address of this rank's structure in C. */
  readonly self: number;
  readonly rank: number;
  readonly size: number;
  readonly timeoutMs: number;
  /** Throws `communication` if the group was ended from outside. */
  check(): void;
  /** Those among world ranks that are through and will never come. */
  gone(ranks: readonly number[]): readonly number[];
  /** The group was ended: throws its reason. */
  ended(): never;
  /** What C could not do, after it said so. */
  failure(): string;
  /** Ends the group, throws nothing. */
  abort(message: string): void;
}

/** In the order of native/ranks/operation.h. */
const requestKinds = [
  "allReduce",
  "reduceScatter",
  "allGather",
  "allToAll",
  "broadcast",
  "send",
  "recv",
  "barrier",
] as const satisfies readonly OperationName[];
const dtypes: Readonly<Record<SumDType, number>> = { f32: 0, bf16: 1 };
const status = { ended: -1, mismatch: -2, failed: -3 } as const;

/** How long a wait stays in C: how late an abort from outside is noticed. */
const sliceNs = 10e6;

/** Completed before anything can be emulated: C says 1. */
const noLink = 1;

export class NativeDriver implements GroupDriver {
  readonly #host: NativeHost;
  readonly #members: readonly number[];
  readonly #group: number;
  #numSplits = 0;

  /** All ranks, or group `index` of a split of `parent`. Throws `resource` without memory. */
  constructor(
    host: NativeHost,
    members: readonly number[],
    from: { readonly parent: number; readonly split: number; readonly index: number },
  ) {
    this.#host = host;
    this.#members = members;
    const { parent, split, index } = from;
    const rank = members.indexOf(host.rank);
    this.#group = host.calls.open(host.self, parent, split, index, Int32Array.from(members), members.length, rank);
    if (this.#group === 0) throw new MoeError("resource", `communicator of ranks ${members.join(", ")}: it could not be made`);
  }

  begin(request: Request, { leaveNs, arriveNs }: Passage): Ticket {
    const { calls } = this.#host;
    this.#host.check();
    const { ptr, out, lengths, receives, dtype, peer, tag, buffered } = argumentsOf(request);
    const kind = requestKinds.indexOf(request.kind);
    const extent = extentOf(request);
    const operation = calls.begin(this.#group, kind, ptr, out, extent, lengths, receives, dtype, peer, tag, buffered, leaveNs, arriveNs);
    if (operation === 0) throw new MoeError("communication", `rank ${this.#host.rank}, ${wordOf(request.kind)}: ${this.#host.failure()}`);
    return new NativeTicket(this.#host, operation, request.kind);
  }

  split(group: readonly number[] | null, index: number): NativeDriver | null {
    const split = this.#numSplits++;
    if (group === null) {
      // MPI wants to hear from who is in no group, too.
      this.#host.calls.open(this.#host.self, this.#group, split, -1, new Int32Array(1), 0, 0);
      return null;
    }
    const members = group.map((rank) => this.#members[rank] ?? 0);
    return new NativeDriver(this.#host, members, { parent: this.#group, split, index });
  }
  abort(message: string): void {
    this.#host.abort(message);
  }
}

class NativeTicket implements Ticket {
  completedNs = 0;
  readonly #host: NativeHost;
  readonly #operation: number;
  readonly #kind: OperationName;

  constructor(host: NativeHost, operation: number, kind: OperationName) {
    this.#host = host;
    this.#operation = operation;
    this.#kind = kind;
  }
  done(): boolean {
    return this.#accept(this.#host.calls.poll(this.#operation));
  }
  wait(): void {
    let deadline = 0;
    while (!this.#accept(this.#host.calls.wait(this.#operation, sliceNs))) {
      const now = performance.now();
      if (deadline === 0) deadline = now + this.#host.timeoutMs - sliceNs / 1e6;
      const gone = this.#host.gone(this.#missing());
      if (gone.length > 0) {
        // What it did before it left may just have come.
        if (this.done()) return;
        this.#giveUp(`rank ${gone.join(", ")}, which has ended`);
      }
      if (now >= deadline) this.#giveUp(`rank ${this.#missing().join(", ")}`, `${this.#host.timeoutMs / 1000} s `);
    }
  }
  /** Whether the operation is over; it is gone then. */
  #accept(value: number): boolean {
    if (value > 0) {
      this.completedNs = value > noLink ? value : 0;
      return true;
    }
    const host = this.#host;
    host.check();
    if (value === status.mismatch) this.#mismatch();
    if (value === status.ended) host.ended();
    if (value === status.failed) throw new MoeError("communication", `rank ${host.rank}, ${wordOf(this.#kind)}: ${host.failure()}`);
    return false;
  }
  #mismatch(): never {
    const found = new Float64Array(6);
    this.#host.calls.mismatch(this.#operation, found);
    const place = (at: number): string => {
      const [rank, kind, extent] = found.subarray(at, at + 3);
      const word = requestKinds[kind ?? -1];
      // Over MPI what came says nothing of its operation, and of what is too long not even how long it is.
      if (word === undefined) return `rank ${rank}, which sent ${(extent ?? -1) < 0 ? "more" : `${extent} bytes`}`;
      return `rank ${rank} in ${wordOf(word)} of ${extent}`;
    };
    this.#host.abort(`ranks are at different places: ${place(0)}, ${place(3)}`);
    return this.#host.ended();
  }
  /** World ranks that the operation waits for. */
  #missing(): number[] {
    const ranks = new Int32Array(this.#host.size);
    return [...ranks.subarray(0, this.#host.calls.missing(this.#operation, ranks))];
  }
  #giveUp(whom: string, howLong = ""): never {
    this.#host.abort(`rank ${this.#host.rank} waited ${howLong}in ${wordOf(this.#kind)} for ${whom}`);
    return this.#host.ended();
  }
}

interface Arguments {
  readonly ptr: Ptr;
  readonly out: Ptr;
  readonly lengths: Float64Array | null;
  readonly receives: Float64Array | null;
  readonly dtype: number;
  readonly peer: number;
  readonly tag: number;
  readonly buffered: number;
}
const absent: Arguments = { ptr: 0, out: 0, lengths: null, receives: null, dtype: 0, peer: 0, tag: 0, buffered: 0 };

/** Written out, field by field: a spread costs more than a small sum. */
function argumentsOf(request: Request): Arguments {
  switch (request.kind) {
    case "allReduce":
      return { ptr: request.ptr, out: 0, lengths: null, receives: null, dtype: dtypes[request.dtype], peer: 0, tag: 0, buffered: 0 };
    case "reduceScatter": {
      const { ptr, out, counts, dtype } = request;
      return { ptr, out, lengths: Float64Array.from(counts), receives: null, dtype: dtypes[dtype], peer: 0, tag: 0, buffered: 0 };
    }
    case "allGather": {
      const { ptr, out, lengths } = request;
      return { ptr, out, lengths: Float64Array.from(lengths), receives: null, dtype: 0, peer: 0, tag: 0, buffered: 0 };
    }
    case "allToAll": {
      const { ptr, out, sendLengths, recvLengths } = request;
      const [lengths, receives] = [Float64Array.from(sendLengths), Float64Array.from(recvLengths)];
      return { ptr, out, lengths, receives, dtype: 0, peer: 0, tag: 0, buffered: 0 };
    }
    case "broadcast":
      return { ptr: request.ptr, out: 0, lengths: null, receives: null, dtype: 0, peer: request.root, tag: 0, buffered: 0 };
    case "send":
    case "recv": {
      const { ptr, peer, tag } = request;
      const buffered = request.kind === "send" && request.buffered ? 1 : 0;
      return { ptr, out: 0, lengths: null, receives: null, dtype: 0, peer, tag, buffered };
    }
    case "barrier":
      return absent;
    default:
      return request satisfies never;
  }
}

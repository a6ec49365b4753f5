/**
 * A communicator between worker threads of one process, through a SharedArrayBuffer: each rank copies what it gives into its slot,
 * a barrier opens, each rank takes what it needs. Works with every backend, because bytes enter and leave by `read` and `write`.
 *
 * Slots exist twice and operations take them in turn: a rank that is already in the next operation writes the other ones, and the one
 * after that begins only when all have left this one. So a gather costs one barrier, and a sum two: each rank adds up its part of the
 * elements for all.
 */
import type { Backend } from "../backend/backend.ts";
import type { Ptr } from "../backend/kernels.ts";
import { MoeError } from "../util/errors.ts";
import { equalSpeeds, partition } from "../util/partition.ts";
import type { Communicator, Traffic } from "./communicator.ts";
import { controlBytes, SharedBarrier, type BarrierOptions } from "./shared-barrier.ts";

/** What ranks share. Plain data: it goes to workers by `workerData`. */
export interface LocalGroupMemory {
  readonly size: number;
  readonly control: SharedArrayBuffer;
  /** size x 2 slots of `slotBytes`, then 2 for results. */
  readonly slots: SharedArrayBuffer;
  readonly slotBytes: number;
}

/** Memory for a group. `slotBytes` (a multiple of 8) is how much of an operand moves at once. */
export function createLocalGroup(size: number, slotBytes = 1 << 18): LocalGroupMemory {
  return {
    size,
    control: new SharedArrayBuffer(controlBytes(size)),
    slots: new SharedArrayBuffer(2 * (size + 1) * slotBytes),
    slotBytes,
  };
}

export class LocalCommunicator implements Communicator {
  readonly rank: number;
  readonly size: number;
  readonly traffic: Readonly<Record<"allReduce" | "allGather" | "broadcast", Traffic>> = {
    allReduce: { calls: 0, bytes: 0 },
    allGather: { calls: 0, bytes: 0 },
    broadcast: { calls: 0, bytes: 0 },
  };
  readonly #backend: Backend;
  readonly #memory: LocalGroupMemory;
  readonly #barrier: SharedBarrier;
  /** Foreign functions and `TextDecoder` want memory that is not shared: what enters or leaves passes through here. */
  readonly #bounce: ArrayBuffer;
  #turn: 0 | 1 = 0;

  constructor(backend: Backend, memory: LocalGroupMemory, options: Pick<BarrierOptions, "rank" | "spins" | "timeoutMs">) {
    this.rank = options.rank;
    this.size = memory.size;
    this.#backend = backend;
    this.#memory = memory;
    this.#barrier = new SharedBarrier(memory.control, { ...options, size: memory.size });
    this.#bounce = new ArrayBuffer(memory.slotBytes);
  }

  allReduce(ptr: Ptr, count: number, dtype: "f32" | "bf16"): void {
    const elementBytes = dtype === "f32" ? 4 : 2;
    this.#count("allReduce", count * elementBytes);
    if (this.size === 1) return;
    const most = this.#memory.slotBytes / 4;
    for (let from = 0; from < count; from += most) {
      const n = Math.min(most, count - from);
      if (dtype === "f32") this.#sum(ptr + from * 4, n);
      else this.#sumBf16(ptr + from * 2, n);
    }
  }
  #sum(ptr: Ptr, n: number): void {
    const bounce = new Float32Array(this.#bounce, 0, n);
    this.#backend.read(bounce, ptr);
    this.#floats(this.rank, n).set(bounce);
    this.#reduce(n);
    bounce.set(this.#floats(this.size, n));
    this.#backend.write(ptr, bounce);
    this.#turn = this.#turn === 0 ? 1 : 0;
  }
  #sumBf16(ptr: Ptr, n: number): void {
    const bounce = new Uint16Array(this.#bounce, 0, n);
    this.#backend.read(bounce, ptr);
    const bits = new Uint32Array(this.#memory.slots, this.#offset(this.rank), n);
    for (let i = 0; i < n; i++) bits[i] = (bounce[i] ?? 0) << 16;
    this.#reduce(n);
    roundToBf16(bounce, new Uint32Array(this.#memory.slots, this.#offset(this.size), n));
    this.#backend.write(ptr, bounce);
    this.#turn = this.#turn === 0 ? 1 : 0;
  }
  /** The sums of n f32 of all slots into the result slot, which every rank may then read. */
  #reduce(n: number): void {
    this.#barrier.wait("all-reduce", n);
    const parts = Array.from({ length: this.size }, (_, r) => this.#floats(r, n));
    const { start, end } = partition(n, equalSpeeds(this.size))[this.rank] ?? { start: 0, end: 0 };
    addUp(this.#floats(this.size, n), parts, start, end);
    this.#barrier.wait("all-reduce", n);
  }

  allGather(out: Ptr, ptr: Ptr, byteLengths: readonly number[]): void {
    if (byteLengths.length !== this.size)
      throw new MoeError("internal", `all-gather: expected ${this.size} lengths, got ${byteLengths.length}`);
    this.#count("allGather", byteLengths[this.rank] ?? 0);
    const { slotBytes } = this.#memory;
    const longest = Math.max(...byteLengths);
    for (let from = 0; from < longest; from += slotBytes) {
      const lengthOf = (r: number): number => Math.max(0, Math.min(slotBytes, (byteLengths[r] ?? 0) - from));
      this.#put(ptr + from, lengthOf(this.rank));
      this.#barrier.wait("all-gather", longest);
      let at = out + from;
      for (let r = 0; r < this.size; r++) {
        this.#take(at, r, lengthOf(r));
        at += byteLengths[r] ?? 0;
      }
      this.#turn = this.#turn === 0 ? 1 : 0;
    }
  }

  broadcast(ptr: Ptr, byteLength: number, root: number): void {
    this.#count("broadcast", this.rank === root ? byteLength : 0);
    const { slotBytes } = this.#memory;
    for (let from = 0; from < byteLength; from += slotBytes) {
      const n = Math.min(slotBytes, byteLength - from);
      if (this.rank === root) this.#put(ptr + from, n);
      this.#barrier.wait("broadcast", byteLength);
      if (this.rank !== root) this.#take(ptr + from, root, n);
      this.#turn = this.#turn === 0 ? 1 : 0;
    }
  }

  share(bytes: Uint8Array | null, root: number): Uint8Array {
    const { slotBytes } = this.#memory;
    const room = slotBytes - 8;
    const pieces: Uint8Array[] = [];
    let [from, total] = [0, bytes?.length ?? 0];
    do {
      // Each piece says how long the whole is.
      const header = new Float64Array(this.#memory.slots, this.#offset(root), 1);
      if (this.rank === root && bytes !== null) {
        header[0] = total;
        this.#bytes(root, slotBytes).set(bytes.subarray(from, from + room), 8);
      }
      this.#barrier.wait("share", from);
      total = header[0] ?? 0;
      pieces.push(this.#bytes(root, slotBytes).slice(8, 8 + Math.min(room, total - from)));
      from += room;
      this.#turn = this.#turn === 0 ? 1 : 0;
    } while (from < total);
    this.#count("broadcast", this.rank === root ? total : 0);
    return joined(pieces, total);
  }

  barrier(): void {
    this.#barrier.wait("barrier", 0);
  }
  abort(message: string): void {
    this.#barrier.abort(message);
  }

  #count(operation: keyof LocalCommunicator["traffic"], bytes: number): void {
    const entry = this.traffic[operation];
    entry.calls++;
    entry.bytes += bytes;
  }
  /** Slot of a rank (`size`: the result) for this operation. */
  #offset(slot: number): number {
    return (2 * slot + this.#turn) * this.#memory.slotBytes;
  }
  #floats(slot: number, n: number): Float32Array {
    return new Float32Array(this.#memory.slots, this.#offset(slot), n);
  }
  #bytes(slot: number, n: number): Uint8Array {
    return new Uint8Array(this.#memory.slots, this.#offset(slot), n);
  }
  #put(ptr: Ptr, n: number): void {
    const bounce = new Uint8Array(this.#bounce, 0, n);
    this.#backend.read(bounce, ptr);
    this.#bytes(this.rank, n).set(bounce);
  }
  #take(ptr: Ptr, slot: number, n: number): void {
    const bounce = new Uint8Array(this.#bounce, 0, n);
    bounce.set(this.#bytes(slot, n));
    this.#backend.write(ptr, bounce);
  }
}

/** out[i] = parts[0][i] + parts[1][i] + ..., in this order, for i from start to end - 1. */
function addUp(out: Float32Array, parts: readonly Float32Array[], start: number, end: number): void {
  const [first, ...others] = parts;
  if (first === undefined) return;
  out.set(first.subarray(start, end), start);
  for (const part of others) {
    for (let i = start; i < end; i++) out[i] = (out[i] ?? 0) + (part[i] ?? 0);
  }
}

/** To nearest, ties to even; NaN kept. `bits` are those of f32. */
function roundToBf16(out: Uint16Array, bits: Uint32Array): void {
  for (let i = 0; i < out.length; i++) {
    const b = bits[i] ?? 0;
    const isNaN = (b & 0x7fffffff) > 0x7f800000;
    out[i] = isNaN ? (b >>> 16) | 0x40 : (b + 0x7fff + ((b >>> 16) & 1)) >>> 16;
  }
}

function joined(pieces: readonly Uint8Array[], total: number): Uint8Array {
  const all = new Uint8Array(total);
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return all;
}

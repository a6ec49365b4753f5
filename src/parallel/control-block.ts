/**
 * What threads of one group share whatever they compute with: the flag that ends the group, with its reason, and a bell for each rank,
 * on which it sleeps and which others ring when they have something for it.
 *
 * An abort sets its flag and rings all bells: nobody stays asleep.
 */
import { MoeError } from "../util/errors.ts";

/** Int32 fields, then a bell, a sleeping flag and a flag of having left for each rank, then the address of the native world, then the message. */
const field = { aborted: 0, messageBytes: 1, bells: 2 } as const;
const maxMessageBytes = 1024;

function addressAt(size: number): number {
  return Math.ceil((4 * (field.bells + 3 * size)) / 8) * 8;
}

export function controlBytes(size: number): number {
  return addressAt(size) + 8 + maxMessageBytes;
}

export class ControlBlock {
  readonly size: number;
  readonly #fields: Int32Array;
  readonly #address: BigInt64Array;
  readonly #message: Uint8Array;

  /** `memory` has `controlBytes(size)` bytes, zeros at first, the same for all ranks. */
  constructor(memory: SharedArrayBuffer, size: number) {
    this.size = size;
    this.#fields = new Int32Array(memory, 0, field.bells + 3 * size);
    this.#address = new BigInt64Array(memory, addressAt(size), 1);
    this.#message = new Uint8Array(memory, addressAt(size) + 8, maxMessageBytes);
  }

  get isAborted(): boolean {
    return Atomics.load(this.#fields, field.aborted) !== 0;
  }
  /** Throws `communication` if the group was ended. */
  check(): void {
    if (!this.isAborted) return;
    const length = Atomics.load(this.#fields, field.messageBytes);
    const text = new TextDecoder().decode(this.#message.slice(0, length));
    throw new MoeError("communication", text === "" ? "the group was ended" : text);
  }
  /** Ends the group; the first message counts. */
  abort(message: string): void {
    if (Atomics.compareExchange(this.#fields, field.messageBytes, 0, -1) !== 0) return;
    const bytes = new TextEncoder().encode(message).subarray(0, maxMessageBytes);
    this.#message.set(bytes);
    Atomics.store(this.#fields, field.messageBytes, bytes.length);
    Atomics.store(this.#fields, field.aborted, 1);
    for (let rank = 0; rank < this.size; rank++) {
      Atomics.add(this.#fields, field.bells + rank, 1);
      Atomics.notify(this.#fields, field.bells + rank);
    }
  }

  /** Tells a rank that something came for it. */
  ring(rank: number): void {
    Atomics.add(this.#fields, field.bells + rank, 1);
    if (Atomics.load(this.#fields, field.bells + this.size + rank) !== 0) Atomics.notify(this.#fields, field.bells + rank);
  }
  /** How often the bell of a rank rang. Take it before looking whether there is something to do. */
  bell(rank: number): number {
    return Atomics.load(this.#fields, field.bells + rank);
  }
  /** Sleeps until the bell of this rank rings, or rang since it was `seen`, or for this long. */
  sleep(rank: number, seen: number, milliseconds: number): void {
    Atomics.store(this.#fields, field.bells + this.size + rank, 1);
    Atomics.wait(this.#fields, field.bells + rank, seen, milliseconds);
    Atomics.store(this.#fields, field.bells + this.size + rank, 0);
  }

  /** This rank is through, and will take part in nothing more. */
  leave(rank: number): void {
    Atomics.store(this.#fields, field.bells + 2 * this.size + rank, 1);
    for (let other = 0; other < this.size; other++) this.ring(other);
  }
  /** Those among `ranks` that have left. */
  gone(ranks: readonly number[]): number[] {
    return ranks.filter((rank) => Atomics.load(this.#fields, field.bells + 2 * this.size + rank) !== 0);
  }

  /** Of the native world, which rank 0 makes; `noWorld` where it computes with something else. */
  set address(address: number) {
    Atomics.store(this.#address, 0, BigInt(address));
    for (let rank = 0; rank < this.size; rank++) this.ring(rank);
  }
  /** By another rank: rank 0's world. Throws `communication` after the timeout and when the group was ended. */
  awaitAddress(rank: number, timeoutMs: number): number {
    for (const until = performance.now() + timeoutMs; ;) {
      const seen = this.bell(rank);
      const address = Number(Atomics.load(this.#address, 0));
      if (address !== 0) return address;
      this.check();
      const left = until - performance.now();
      if (left <= 0) this.abort(`rank ${rank} waited ${timeoutMs / 1000} s for rank 0 to start`);
      else this.sleep(rank, seen, left);
    }
  }
}

/** Says that rank 0 has no native memory. */
export const noWorld = -1;

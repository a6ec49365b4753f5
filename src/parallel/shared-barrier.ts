/**
 * The control block of a local group in shared memory: a barrier that says who is missing when it gives up, and the flag that ends
 * the group.
 *
 * Whoever arrives last opens the barrier by counting up its generation. The others look for it for a short while, which is faster than
 * sleeping while there are as many cores as ranks, and then sleep (`Atomics.wait`), so that any number of ranks on any number of
 * cores makes progress. An abort sets its flag and counts the generation up: nobody stays asleep.
 */
import { MoeError } from "../util/errors.ts";

/** What ranks meet for. */
export const operations = ["barrier", "all-reduce", "all-gather", "broadcast", "share"] as const;
export type OperationName = (typeof operations)[number];

/** Int32 fields, then the generation that each rank reached, then what each came for (its place above, and a size), then the message. */
const field = { generation: 0, arrived: 1, aborted: 2, messageBytes: 3, ranks: 4 } as const;
const messageBytes = 1024;

export function controlBytes(size: number): number {
  return 4 * (field.ranks + 3 * size) + messageBytes;
}

export interface BarrierOptions {
  readonly rank: number;
  readonly size: number;
  /** Looks at the generation before sleeping. 0 where ranks share cores. */
  readonly spins: number;
  readonly timeoutMs: number;
}

export class SharedBarrier {
  readonly options: BarrierOptions;
  readonly #fields: Int32Array;
  readonly #message: Uint8Array;

  /** `control` has `controlBytes(size)` bytes, zeros at first, the same for all ranks. */
  constructor(control: SharedArrayBuffer, options: BarrierOptions) {
    this.options = options;
    this.#fields = new Int32Array(control, 0, field.ranks + 3 * options.size);
    this.#message = new Uint8Array(control, this.#fields.byteLength, messageBytes);
  }

  /** Throws `communication` if the group was ended. */
  check(): void {
    if (Atomics.load(this.#fields, field.aborted) === 0) return;
    const length = Atomics.load(this.#fields, field.messageBytes);
    const text = new TextDecoder().decode(this.#message.slice(0, length));
    throw new MoeError("communication", text === "" ? "the group was ended" : text);
  }

  /**
   * Returns when all ranks are here, for the same operation of the same size: a rank that left a computation by an error of its own, and
   * goes on elsewhere, would otherwise take others' bytes for what they are not. Throws `communication`.
   */
  wait(operation: OperationName, elements: number): void {
    this.check();
    const { rank, size, spins, timeoutMs } = this.options;
    const fields = this.#fields;
    const before = Atomics.load(fields, field.generation);
    Atomics.store(fields, field.ranks + rank, before + 1);
    Atomics.store(fields, field.ranks + size + rank, operations.indexOf(operation));
    Atomics.store(fields, field.ranks + 2 * size + rank, elements | 0);
    if (Atomics.add(fields, field.arrived, 1) === size - 1) {
      this.#compare();
      Atomics.store(fields, field.arrived, 0);
      Atomics.add(fields, field.generation, 1);
      Atomics.notify(fields, field.generation);
      return;
    }
    for (let spin = 0; spin < spins; spin++) {
      if (Atomics.load(fields, field.generation) !== before) {
        this.check();
        return;
      }
    }
    if (Atomics.wait(fields, field.generation, before, timeoutMs) === "timed-out") this.#giveUp(operation, before);
    this.check();
  }
  /** By the last to arrive. */
  #compare(): void {
    const { size } = this.options;
    const came = (r: number): string =>
      `${operations[Atomics.load(this.#fields, field.ranks + size + r)]} of ${Atomics.load(this.#fields, field.ranks + 2 * size + r)}`;
    for (let r = 1; r < size; r++) {
      const same = [1, 2].every(
        (row) => Atomics.load(this.#fields, field.ranks + row * size + r) === Atomics.load(this.#fields, field.ranks + row * size),
      );
      if (same) continue;
      this.abort(`ranks are at different places: rank 0 in ${came(0)}, rank ${r} in ${came(r)}`);
      this.check();
    }
  }
  #giveUp(operation: string, before: number): void {
    if (Atomics.load(this.#fields, field.generation) !== before) return;
    const { rank, size, timeoutMs } = this.options;
    const missing = Array.from({ length: size }, (_, r) => r).filter((r) => Atomics.load(this.#fields, field.ranks + r) <= before);
    this.abort(`rank ${rank} waited ${timeoutMs / 1000} s in ${operation} for rank ${missing.join(", ")}`);
  }

  /** Ends the group; the first message counts. */
  abort(message: string): void {
    if (Atomics.compareExchange(this.#fields, field.messageBytes, 0, -1) !== 0) return;
    const bytes = new TextEncoder().encode(message).subarray(0, messageBytes);
    this.#message.set(bytes);
    Atomics.store(this.#fields, field.messageBytes, bytes.length);
    Atomics.store(this.#fields, field.aborted, 1);
    Atomics.add(this.#fields, field.generation, 1);
    Atomics.notify(this.#fields, field.generation);
  }
}

/**
 * Messages that come to rank 0 whenever they come, handed to all ranks at the same places of their programs. Ranks that start alike, run the
 * same program and get the same messages at the same places stay alike: what one decides, all decide, and nobody has to be told.
 */
import { deserialize, serialize } from "node:v8";
import type { Communicator } from "./communicator.ts";

/** Rank 0 shows so often that it is there, while nothing happens. Far below what ranks wait for each other. */
const heartbeatMs = 1000;

export class Lockstep {
  readonly #communicator: Communicator;
  #queue: unknown[] = [];
  #wake: (() => void) | null = null;

  constructor(communicator: Communicator) {
    this.#communicator = communicator;
  }

  /** On rank 0: takes a message (clonable). */
  push(message: unknown): void {
    this.#queue.push(message);
    this.#wake?.();
  }

  /**
   * The messages since the last call, the same on every rank, in order. All ranks call it at the same places. With `idle`, nothing is left
   * to do: rank 0 first waits for a message, a while at most. On rank 0 its event loop turns in any case.
   */
  async next(idle: boolean): Promise<unknown[]> {
    if (this.#communicator.rank !== 0) return deserialize(this.#communicator.share(null, 0)) as unknown[];
    if (idle && this.#queue.length === 0) await this.#message();
    else await new Promise((turn) => setImmediate(turn));
    const messages = this.#queue;
    this.#queue = [];
    this.#communicator.share(serialize(messages), 0);
    return messages;
  }
  #message(): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, heartbeatMs);
      this.#wake = () => {
        clearTimeout(timer);
        this.#wake = null;
        resolve();
      };
    });
  }
}

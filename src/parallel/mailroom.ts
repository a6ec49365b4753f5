/**
 * Messages between threads of one process: bytes in shared memory, handed over by reference through a port for each pair of ranks, and the
 * waiting that goes with it. Nothing here knows what the messages are for.
 *
 * A sender never waits: it copies what it sends into shared memory of the message's own. A receiver takes a message's memory over and
 * keeps it for what it sends later, so that in a steady exchange none is allocated.
 *
 * All operations that a rank has under way are kept here, and every wait steps all of them (`step`): a rank that waits for one operation
 * still does its part of the others.
 */
import { receiveMessageOnPort, type MessagePort } from "node:worker_threads";
import { MoeError } from "../util/errors.ts";
import type { ControlBlock } from "./control-block.ts";
import { nowNs } from "./link.ts";

export interface Letter {
  /** Communicator, and operation or tag. */
  readonly key: string;
  /** What the sender thinks that this is, for the check that both sides are at the same place. */
  readonly about: string;
  readonly arriveNs: number;
  readonly memory: SharedArrayBuffer | null;
  readonly byteLength: number;
}

/** An operation under way. */
export interface Step {
  /** Does what can be done now. Returns whether all is done. */
  step(): boolean;
  /** For the error of who waits in vain. */
  readonly word: string;
  /** World ranks that it waits for. */
  missing(): readonly number[];
  /** When the result may be used, ns of the monotonic clock; 0: at once. Valid when all is done. */
  readonly arriveNs: number;
}

export interface WaitOptions {
  /** Looks before sleeping. 0 where ranks share cores. */
  readonly spins: number;
  readonly timeoutMs: number;
}

/** Kept for later messages, at most this many buffers. */
const maxPooled = 16;

export class Mailroom {
  readonly rank: number;
  readonly control: ControlBlock;
  readonly #ports: readonly (MessagePort | null)[];
  readonly #options: WaitOptions;
  readonly #letters = new Map<string, Letter[]>();
  readonly #active = new Set<Step>();
  readonly #pool: SharedArrayBuffer[] = [];

  /** `ports[r]` leads to world rank r. */
  constructor(rank: number, control: ControlBlock, ports: readonly (MessagePort | null)[], options: WaitOptions) {
    this.rank = rank;
    this.control = control;
    this.#ports = ports;
    this.#options = options;
  }

  /** Shared memory for a message. */
  memory(byteLength: number): SharedArrayBuffer {
    const fits = this.#pool.findIndex((buffer) => buffer.byteLength >= byteLength && buffer.byteLength <= 4 * byteLength + 4096);
    const [found] = fits < 0 ? [] : this.#pool.splice(fits, 1);
    // Sizes in steps, so that messages of nearly one size share buffers.
    return found ?? new SharedArrayBuffer(Math.ceil(Math.max(byteLength, 1) / 4096) * 4096);
  }
  keep(memory: SharedArrayBuffer | null): void {
    if (memory === null) return;
    this.#pool.push(memory);
    if (this.#pool.length > maxPooled) this.#pool.shift();
  }

  post(to: number, letter: Letter): void {
    this.#ports[to]?.postMessage(letter);
    this.control.ring(to);
  }
  /** The oldest letter of world rank `from` under this key, or null. */
  take(from: number, key: string): Letter | null {
    const place = `${from} ${key}`;
    const waiting = this.#letters.get(place);
    const letter = waiting?.shift() ?? null;
    if (waiting?.length === 0) this.#letters.delete(place);
    return letter;
  }
  #collect(): void {
    for (const [from, port] of this.#ports.entries()) {
      if (port === null) continue;
      for (let received = receiveMessageOnPort(port); received !== undefined; received = receiveMessageOnPort(port)) {
        const letter = received.message as Letter;
        const place = `${from} ${letter.key}`;
        const waiting = this.#letters.get(place);
        if (waiting === undefined) this.#letters.set(place, [letter]);
        else waiting.push(letter);
      }
    }
  }

  begin(operation: Step): void {
    this.control.check();
    this.#active.add(operation);
    if (operation.step()) this.#active.delete(operation);
  }
  /** Whether `operation` is done, after a step of all. */
  poll(operation: Step): boolean {
    if (this.#active.has(operation)) {
      this.control.check();
      this.#collect();
      for (const active of this.#active) if (active.step()) this.#active.delete(active);
    }
    return !this.#active.has(operation) && operation.arriveNs <= nowNs();
  }
  /** Throws `communication` after the timeout and when the group was ended. */
  wait(operation: Step): void {
    const { spins, timeoutMs } = this.#options;
    const deadlineNs = nowNs() + timeoutMs * 1e6;
    for (let looks = 0; ; looks++) {
      const seen = this.control.bell(this.rank);
      if (this.poll(operation)) return;
      if (looks < spins / 16) {
        for (let i = 0; i < 16 && this.control.bell(this.rank) === seen; i++);
        continue;
      }
      const now = nowNs();
      const gone = this.#active.has(operation) ? this.control.gone(operation.missing()) : [];
      // What it sent before it left may just have come.
      if (gone.length > 0 && !this.poll(operation) && this.#active.has(operation))
        this.control.abort(`rank ${this.rank} waited in ${operation.word} for rank ${gone.join(", ")}, which has ended`);
      this.control.check();
      const until = this.#active.has(operation) ? deadlineNs : operation.arriveNs;
      if (now < until) this.control.sleep(this.rank, seen, (until - now) / 1e6);
      else if (this.#active.has(operation)) this.#giveUp(operation);
      this.control.check();
    }
  }
  #giveUp(operation: Step): void {
    const { timeoutMs } = this.#options;
    this.control.abort(`rank ${this.rank} waited ${timeoutMs / 1000} s in ${operation.word} for rank ${operation.missing().join(", ")}`);
  }

  /** Ends the group because ranks are not where they should be. */
  mismatch(mine: string, other: number, theirs: string): never {
    const message = `ranks are at different places: rank ${this.rank} in ${mine}, rank ${other} in ${theirs}`;
    this.control.abort(message);
    this.control.check();
    throw new MoeError("communication", message);
  }
}

/**
 * Groups of ranks that are threads of one process: what they share, and the communicator of all of them.
 */
import { MessageChannel, type MessagePort } from "node:worker_threads";
import type { Backend } from "../backend/backend.ts";
import { NativeBackend } from "../backend/native/backend.ts";
import { MoeError } from "../util/errors.ts";
import { ControlBlock, controlBytes, noWorld } from "./control-block.ts";
import { GroupCommunicator } from "./group-communicator.ts";
import { Mailroom, type WaitOptions } from "./mailroom.ts";
import { worldMessageDriver } from "./message-driver.ts";
import { NativeDriver } from "./native-driver.ts";
import { SharedWorld } from "./shared-world.ts";

/** What one rank gets, by `workerData`; its ports must be in the transfer list. */
export interface LocalRankMemory {
  readonly rank: number;
  readonly size: number;
  readonly control: SharedArrayBuffer;
  /** To each rank; null to itself. */
  readonly ports: readonly (MessagePort | null)[];
}

/** For each rank of a group. */
export function createLocalGroup(size: number): LocalRankMemory[] {
  const control = new SharedArrayBuffer(controlBytes(size));
  const ports = Array.from({ length: size }, () => new Array<MessagePort | null>(size).fill(null));
  for (let low = 0; low < size; low++) {
    for (let high = low + 1; high < size; high++) {
      const { port1, port2 } = new MessageChannel();
      const [atLow, atHigh] = [ports[low], ports[high]];
      if (atLow === undefined || atHigh === undefined) continue;
      atLow[high] = port1;
      atHigh[low] = port2;
    }
  }
  return ports.map((own, rank) => ({ rank, size, control, ports: own }));
}

/** The communicator of all ranks, and its end. */
export interface LocalWorld extends Disposable {
  readonly communicator: GroupCommunicator;
  /** Ends the group with the reason that this rank failed. Others then leave its memory alone, so it comes before that goes. */
  fail(message: string): void;
}

/**
 * For the thread of one rank. Ranks that compute natively read each other's memory; others send messages. Throws `communication` where
 * ranks do not compute alike.
 */
export function openLocalWorld(backend: Backend, memory: LocalRankMemory, options: WaitOptions): LocalWorld {
  const { rank, size, ports } = memory;
  const control = new ControlBlock(memory.control, size);
  const members = [...Array(size).keys()];
  const identity = { name: "world", rank, members };
  if (backend instanceof NativeBackend) {
    const world = new SharedWorld(backend, control, rank, options.timeoutMs);
    const driver = new NativeDriver(world, members, { parent: 0, split: 0, index: 0 });
    return {
      communicator: new GroupCommunicator(backend, driver, identity),
      fail: (message) => world.abort(message),
      [Symbol.dispose]: () => world.leave(),
    };
  }
  if (rank === 0) control.address = noWorld;
  else if (control.awaitAddress(rank, options.timeoutMs) !== noWorld)
    throw new MoeError(
      "communication",
      `rank 0 computes natively, rank ${rank} with ${backend.name}: ranks of one group must compute alike`,
    );
  const mailroom = new Mailroom(rank, control, ports, options);
  return {
    communicator: new GroupCommunicator(backend, worldMessageDriver(backend, mailroom, size), identity),
    fail: (message) => control.abort(message),
    // The ports stay: what this rank sent last may not have been taken yet. They go with the thread.
    [Symbol.dispose]: () => control.leave(rank),
  };
}

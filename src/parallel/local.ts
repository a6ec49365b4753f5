/**
 * Groups of ranks that are threads of one process: what they share, and the communicator of all of them.
 */
import { MessageChannel, type MessagePort } from "node:worker_threads";
import type { Backend } from "../backend/backend.ts";
import { ControlBlock, controlBytes } from "./control-block.ts";
import { GroupCommunicator } from "./group-communicator.ts";
import { Mailroom, type WaitOptions } from "./mailroom.ts";
import { worldMessageDriver } from "./message-driver.ts";

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

/** The communicator of all ranks, for the thread of one of them. */
export function openLocalWorld(backend: Backend, { rank, size, control, ports }: LocalRankMemory, options: WaitOptions): GroupCommunicator {
  const mailroom = new Mailroom(rank, new ControlBlock(control, size), ports, options);
  const members = [...Array(size).keys()];
  return new GroupCommunicator(backend, worldMessageDriver(backend, mailroom, size), { name: "world", rank, members });
}

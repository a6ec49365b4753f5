/**
 * The communicator that programs see, over any implementation: checks what it is asked, counts it, lets it pass an emulated link, and hands
 * it on. What moves the bytes is the driver (`message-driver.ts`: threads and any backend; `shared-driver.ts`: threads and native memory;
 * `mpi-driver.ts`: processes).
 */
import type { Backend } from "../backend/backend.ts";
import type { Ptr } from "../backend/kernels.ts";
import { MoeError } from "../util/errors.ts";
import type { AxisTraffic, Communicator, LinkEmulation, Pending, SumDType, Traffic, TrafficTable } from "./communicator.ts";
import { Link, nowNs } from "./link.ts";
import { total, volumeOf, wordOf, type GroupDriver, type Request, type Ticket } from "./operation.ts";
import { emptyTraffic, mergeAxes } from "./traffic.ts";

/** Who is in a group, as this rank sees it. */
export interface GroupIdentity {
  readonly name: string;
  readonly rank: number;
  readonly members: readonly number[];
}

export class GroupCommunicator implements Communicator {
  readonly name: string;
  readonly rank: number;
  readonly size: number;
  readonly members: readonly number[];
  readonly #backend: Backend;
  readonly #driver: GroupDriver;
  readonly #traffic = emptyTraffic();
  readonly #link = new Link();
  readonly #parts: GroupCommunicator[] = [];

  constructor(backend: Backend, driver: GroupDriver, { name, rank, members }: GroupIdentity) {
    this.name = name;
    this.rank = rank;
    this.size = members.length;
    this.members = members;
    this.#backend = backend;
    this.#driver = driver;
  }
  get traffic(): TrafficTable {
    return this.#traffic;
  }
  get axes(): readonly AxisTraffic[] {
    return mergeAxes([[this], ...this.#parts.map((part) => part.axes)]);
  }

  allReduce(ptr: Ptr, count: number, dtype: SumDType): void {
    this.startAllReduce(ptr, count, dtype).wait();
  }
  reduceScatter(out: Ptr, ptr: Ptr, counts: readonly number[], dtype: SumDType): void {
    this.startReduceScatter(out, ptr, counts, dtype).wait();
  }
  allGather(out: Ptr, ptr: Ptr, byteLengths: readonly number[]): void {
    this.startAllGather(out, ptr, byteLengths).wait();
  }
  allToAll(out: Ptr, recvByteLengths: readonly number[], ptr: Ptr, sendByteLengths: readonly number[]): void {
    this.startAllToAll(out, recvByteLengths, ptr, sendByteLengths).wait();
  }
  broadcast(ptr: Ptr, byteLength: number, root: number): void {
    this.#checkRank("broadcast", root);
    this.#checkCount("broadcast", byteLength);
    this.#start({ kind: "broadcast", ptr, length: byteLength, root }).wait();
  }
  send(ptr: Ptr, byteLength: number, to: number, tag = 0): void {
    this.#checkPeer("send", byteLength, to, tag);
    this.#start({ kind: "send", ptr, length: byteLength, peer: to, tag, buffered: true }).wait();
  }
  recv(ptr: Ptr, byteLength: number, from: number, tag = 0): void {
    this.startRecv(ptr, byteLength, from, tag).wait();
  }
  barrier(): void {
    this.#start({ kind: "barrier" }).wait();
  }
  share(bytes: Uint8Array | null, root: number): Uint8Array {
    const length = new Float64Array([this.rank === root ? (bytes?.length ?? 0) : 0]);
    this.#viaBackend(length, root);
    const result = new Uint8Array(length[0] ?? 0);
    if (this.rank === root && bytes !== null) result.set(bytes);
    if (result.length > 0) this.#viaBackend(result, root);
    return result;
  }
  /** Broadcasts what is JavaScript's. */
  #viaBackend(values: ArrayBufferView, root: number): void {
    const ptr = this.#backend.alloc(values.byteLength);
    try {
      if (this.rank === root) this.#backend.write(ptr, values);
      this.broadcast(ptr, values.byteLength, root);
      this.#backend.read(values, ptr);
    } finally {
      this.#backend.free(ptr);
    }
  }

  startAllReduce(ptr: Ptr, count: number, dtype: SumDType): Pending {
    this.#checkCount("allReduce", count);
    return this.#start({ kind: "allReduce", ptr, count, dtype });
  }
  startReduceScatter(out: Ptr, ptr: Ptr, counts: readonly number[], dtype: SumDType): Pending {
    this.#checkCounts("reduceScatter", counts);
    return this.#start({ kind: "reduceScatter", out, ptr, counts, dtype });
  }
  startAllGather(out: Ptr, ptr: Ptr, byteLengths: readonly number[]): Pending {
    this.#checkCounts("allGather", byteLengths);
    return this.#start({ kind: "allGather", out, ptr, lengths: byteLengths });
  }
  startAllToAll(out: Ptr, recvByteLengths: readonly number[], ptr: Ptr, sendByteLengths: readonly number[]): Pending {
    this.#checkCounts("allToAll", recvByteLengths);
    this.#checkCounts("allToAll", sendByteLengths);
    if (sendByteLengths[this.rank] !== recvByteLengths[this.rank])
      throw new MoeError(
        "internal",
        `all-to-all on ${this.name}: rank ${this.rank} sends itself ${sendByteLengths[this.rank]} bytes and expects ${recvByteLengths[this.rank]}`,
      );
    return this.#start({ kind: "allToAll", out, recvLengths: recvByteLengths, ptr, sendLengths: sendByteLengths });
  }
  startSend(ptr: Ptr, byteLength: number, to: number, tag = 0): Pending {
    this.#checkPeer("send", byteLength, to, tag);
    return this.#start({ kind: "send", ptr, length: byteLength, peer: to, tag, buffered: false });
  }
  startRecv(ptr: Ptr, byteLength: number, from: number, tag = 0): Pending {
    this.#checkPeer("recv", byteLength, from, tag);
    return this.#start({ kind: "recv", ptr, length: byteLength, peer: from, tag });
  }

  split(groups: readonly (readonly number[])[], name: string): Communicator | null {
    const seen = new Set<number>();
    for (const rank of groups.flat()) {
      if (!Number.isInteger(rank) || rank < 0 || rank >= this.size || seen.has(rank))
        throw new MoeError(
          "internal",
          `split of ${this.name} into ${name}: expected different ranks from 0 to ${this.size - 1}, got [${groups.map((group) => group.join(" ")).join(", ")}]`,
        );
      seen.add(rank);
    }
    const index = groups.findIndex((group) => group.includes(this.rank));
    const group = groups[index] ?? null;
    const driver = this.#driver.split(group, index);
    if (group === null || driver === null) return null;
    const members = group.map((rank) => this.members[rank] ?? 0);
    const part = new GroupCommunicator(this.#backend, driver, { name, rank: group.indexOf(this.rank), members });
    this.#parts.push(part);
    return part;
  }
  emulateLink(link: LinkEmulation | null): void {
    this.#link.set(link);
  }
  abort(message: string): void {
    this.#driver.abort(message);
  }

  #start(request: Request): Pending {
    const started = performance.now();
    const volume = volumeOf(request, this.rank, this.size);
    const traffic = this.#traffic[request.kind];
    traffic.calls++;
    traffic.bytes += volume.bytes;
    traffic.sentBytes += volume.sent;
    traffic.receivedBytes += volume.received;
    const passage = this.#link.pass(volume.sent);
    const startedNs = passage.arriveNs === 0 ? 0 : nowNs();
    const ticket = this.#driver.begin(request, passage);
    traffic.seconds += (performance.now() - started) / 1000;
    return new CountedPending(ticket, traffic, started, startedNs);
  }

  #checkCount(operation: Request["kind"], count: number): void {
    if (!Number.isSafeInteger(count) || count < 0)
      throw new MoeError("internal", `${wordOf(operation)} on ${this.name}: expected a count, got ${count}`);
  }
  #checkCounts(operation: Request["kind"], counts: readonly number[]): void {
    if (counts.length !== this.size)
      throw new MoeError(
        "internal",
        `${wordOf(operation)} on ${this.name}: expected ${this.size} counts, one a rank, got ${counts.length} (${total(counts)} in all)`,
      );
    for (const count of counts) this.#checkCount(operation, count);
  }
  #checkRank(operation: Request["kind"], rank: number): void {
    if (!Number.isInteger(rank) || rank < 0 || rank >= this.size)
      throw new MoeError("internal", `${wordOf(operation)} on ${this.name}: expected a rank from 0 to ${this.size - 1}, got ${rank}`);
  }
  #checkPeer(operation: "send" | "recv", byteLength: number, peer: number, tag: number): void {
    this.#checkRank(operation, peer);
    this.#checkCount(operation, byteLength);
    if (peer === this.rank) throw new MoeError("internal", `${wordOf(operation)} on ${this.name}: rank ${peer} is this rank itself`);
    if (!Number.isInteger(tag) || tag < 0 || tag > maxTag)
      throw new MoeError("internal", `${wordOf(operation)} on ${this.name}: expected a tag from 0 to ${maxTag}, got ${tag}`);
  }
}

/** Half of what every MPI allows at least; the other half is for the arrival times of emulated links. */
const maxTag = 16_383;

/** Adds the time that a rank spends on an operation. */
class CountedPending implements Pending {
  readonly #ticket: Ticket;
  readonly #traffic: Traffic;
  readonly #started: number;
  readonly #startedNs: number;
  #finished = false;

  constructor(ticket: Ticket, traffic: Traffic, started: number, startedNs: number) {
    this.#ticket = ticket;
    this.#traffic = traffic;
    this.#started = started;
    this.#startedNs = startedNs;
  }
  done(): boolean {
    if (this.#finished) return true;
    const entered = performance.now();
    const done = this.#ticket.done();
    this.#count(entered, done);
    return done;
  }
  wait(): void {
    if (this.#finished) return;
    const entered = performance.now();
    this.#ticket.wait();
    this.#count(entered, true);
  }
  #count(entered: number, done: boolean): void {
    const now = performance.now();
    this.#traffic.seconds += (now - entered) / 1000;
    if (!done) return;
    this.#finished = true;
    const { completedNs } = this.#ticket;
    this.#traffic.flightSeconds +=
      completedNs > 0 && this.#startedNs > 0 ? Math.max(0, completedNs - this.#startedNs) / 1e9 : (now - this.#started) / 1000;
  }
}

/**
 * Collectives as messages between threads, for any backend: bytes enter and leave by `read` and `write`. The plain one; native memory has
 * `shared-driver.ts`, which reads peers' operands where they are.
 *
 * A sum is a scatter of slices to the ranks that add them up, in rank order, and (all-reduce) a gather of the sums: each rank adds up its
 * part of the elements for all.
 */
import type { Backend } from "../backend/backend.ts";
import type { Ptr } from "../backend/kernels.ts";
import type { SumDType } from "./communicator.ts";
import type { Passage } from "./link.ts";
import type { Letter, Mailroom, Step } from "./mailroom.ts";
import { elementBytes, extentOf, offsets, reduceSlices, wordOf, type GroupDriver, type Request, type Ticket } from "./operation.ts";
import { orderedSum } from "./ordered-sum.ts";

/** A part of a result: bytes of `from` (a rank of the group) that come in `phase`, and what to do with them. */
interface Expected {
  readonly from: number;
  readonly phase: number;
  readonly byteLength: number;
  readonly accept: (letter: Letter) => void;
}

export class MessageDriver implements GroupDriver {
  readonly #backend: Backend;
  readonly #mailroom: Mailroom;
  readonly #rank: number;
  /** World ranks. */
  readonly #members: readonly number[];
  readonly #id: string;
  #numCollectives = 0;
  #numSplits = 0;

  /** `id` is the same on all members, and no other communicator's. */
  constructor(backend: Backend, mailroom: Mailroom, members: readonly number[], id: string) {
    this.#backend = backend;
    this.#mailroom = mailroom;
    this.#members = members;
    this.#id = id;
    this.#rank = members.indexOf(mailroom.rank);
  }

  begin(request: Request, passage: Passage): Ticket {
    const isMessage = request.kind === "send" || request.kind === "recv";
    const key = isMessage ? `${this.#id}#${request.tag}` : `${this.#id}.${this.#numCollectives++}`;
    const operation = new MessageOperation(
      { backend: this.#backend, mailroom: this.#mailroom, rank: this.#rank, members: this.#members },
      request,
      key,
      passage,
    );
    this.#mailroom.begin(operation);
    return {
      done: () => this.#mailroom.poll(operation),
      wait: () => this.#mailroom.wait(operation),
      get completedNs() {
        return operation.arriveNs;
      },
    };
  }

  split(group: readonly number[] | null, index: number): MessageDriver | null {
    const id = `${this.#id}/${this.#numSplits++}:${index}`;
    if (group === null) return null;
    return new MessageDriver(
      this.#backend,
      this.#mailroom,
      group.map((rank) => this.#members[rank] ?? 0),
      id,
    );
  }
  abort(message: string): void {
    this.#mailroom.control.abort(message);
  }
}

interface Place {
  readonly backend: Backend;
  readonly mailroom: Mailroom;
  readonly rank: number;
  readonly members: readonly number[];
}

class MessageOperation implements Step {
  readonly word: string;
  arriveNs: number;
  readonly #place: Place;
  readonly #key: string;
  readonly #about: string;
  readonly #passage: Passage;
  #expected: Expected[] = [];
  /** What is to be done when all that is expected came; may expect more. */
  #next: (() => void) | null = null;

  constructor(place: Place, request: Request, key: string, passage: Passage) {
    this.word = wordOf(request.kind);
    this.#place = place;
    this.#key = key;
    this.#passage = passage;
    this.arriveNs = passage.leaveNs;
    const isMessage = request.kind === "send" || request.kind === "recv";
    this.#about = `${isMessage ? "message" : this.word} of ${extentOf(request)}`;
    this.#begin(request);
  }

  step(): boolean {
    for (;;) {
      this.#expected = this.#expected.filter((expected) => !this.#receive(expected));
      if (this.#expected.length > 0) return false;
      const next = this.#next;
      if (next === null) return true;
      this.#next = null;
      next();
    }
  }
  missing(): number[] {
    return this.#expected.map(({ from }) => this.#place.members[from] ?? 0);
  }

  #receive({ from, phase, byteLength, accept }: Expected): boolean {
    const { mailroom, members } = this.#place;
    const world = members[from] ?? 0;
    const letter = mailroom.take(world, `${this.#key}.${phase}`);
    if (letter === null) return false;
    if (letter.about !== this.#about || letter.byteLength !== byteLength)
      mailroom.mismatch(`${this.#about} (${byteLength} bytes)`, world, `${letter.about} (${letter.byteLength} bytes)`);
    this.arriveNs = Math.max(this.arriveNs, letter.arriveNs);
    accept(letter);
    mailroom.keep(letter.memory);
    return true;
  }

  #begin(request: Request): void {
    const { rank, members } = this.#place;
    switch (request.kind) {
      case "allReduce":
        this.#allReduce(request.ptr, request.count, request.dtype);
        return;
      case "reduceScatter":
        this.#scatter(request.ptr, request.counts, request.dtype, (sum) => this.#place.backend.write(request.out, sum));
        return;
      case "allGather":
        this.#gather(request.out, request.ptr, request.lengths, 0);
        return;
      case "allToAll":
        this.#allToAll(request);
        return;
      case "broadcast":
        if (rank === request.root) for (const r of this.#others()) this.#post(r, 0, request.ptr, request.length);
        else this.#expect(request.root, 0, request.ptr, request.length);
        return;
      case "send":
        // Copied when it is sent, so that it is buffered in any case.
        this.#post(request.peer, 0, request.ptr, request.length);
        return;
      case "recv":
        this.#expect(request.peer, 0, request.ptr, request.length);
        return;
      case "barrier":
        for (const r of members.keys()) {
          if (r === rank) continue;
          this.#post(r, 0, 0, 0);
          this.#expect(r, 0, 0, 0);
        }
        return;
      default:
        request satisfies never;
    }
  }
  #others(): number[] {
    return [...this.#place.members.keys()].filter((r) => r !== this.#place.rank);
  }

  #allReduce(ptr: Ptr, count: number, dtype: SumDType): void {
    const { rank, members, backend } = this.#place;
    if (members.length === 1) return;
    const slices = reduceSlices(count, members.length);
    const counts = slices.map(({ start, end }) => end - start);
    const element = elementBytes(dtype);
    this.#scatter(ptr, counts, dtype, (sum) => {
      const own = ptr + (slices[rank]?.start ?? 0) * element;
      backend.write(own, sum);
      this.#gather(
        ptr,
        own,
        counts.map((n) => n * element),
        1,
      );
    });
  }
  /** Slices to their ranks; then `finish` with the sum of this rank's. */
  #scatter(ptr: Ptr, counts: readonly number[], dtype: SumDType, finish: (sum: Float32Array | Uint16Array) => void): void {
    const { rank, backend } = this.#place;
    const element = elementBytes(dtype);
    const starts = offsets(counts);
    const own = counts[rank] ?? 0;
    const make = (): Float32Array<ArrayBuffer> | Uint16Array<ArrayBuffer> =>
      dtype === "f32" ? new Float32Array(own) : new Uint16Array(own);
    const parts = counts.map(make);
    for (const r of this.#others()) {
      this.#post(r, 0, ptr + (starts[r] ?? 0) * element, (counts[r] ?? 0) * element);
      const part = parts[r];
      if (part === undefined) continue;
      this.#expected.push({
        from: r,
        phase: 0,
        byteLength: own * element,
        accept: ({ memory }) => {
          if (memory !== null) new Uint8Array(part.buffer).set(new Uint8Array(memory, 0, part.byteLength));
        },
      });
    }
    const mine = parts[rank];
    if (mine !== undefined) backend.read(mine, ptr + (starts[rank] ?? 0) * element);
    this.#next = () => finish(orderedSum(parts));
  }
  #gather(out: Ptr, ptr: Ptr, lengths: readonly number[], phase: number): void {
    const { rank } = this.#place;
    const starts = offsets(lengths);
    for (const r of this.#others()) {
      this.#post(r, phase, ptr, lengths[rank] ?? 0);
      this.#expect(r, phase, out + (starts[r] ?? 0), lengths[r] ?? 0);
    }
    this.#copy(out + (starts[rank] ?? 0), ptr, lengths[rank] ?? 0);
  }
  #allToAll({ out, recvLengths, ptr, sendLengths }: Request & { kind: "allToAll" }): void {
    const { rank, mailroom, members } = this.#place;
    const [from, to] = [offsets(sendLengths), offsets(recvLengths)];
    for (const r of this.#others()) {
      this.#post(r, 0, ptr + (from[r] ?? 0), sendLengths[r] ?? 0);
      this.#expect(r, 0, out + (to[r] ?? 0), recvLengths[r] ?? 0);
    }
    const [sent, received] = [sendLengths[rank] ?? 0, recvLengths[rank] ?? 0];
    if (sent !== received) mailroom.mismatch(`${this.word} (${received} bytes)`, members[rank] ?? 0, `${this.word} (${sent} bytes)`);
    this.#copy(out + (to[rank] ?? 0), ptr + (from[rank] ?? 0), received);
  }

  #copy(out: Ptr, ptr: Ptr, byteLength: number): void {
    if (out === ptr || byteLength === 0) return;
    const bytes = new Uint8Array(byteLength);
    this.#place.backend.read(bytes, ptr);
    this.#place.backend.write(out, bytes);
  }
  #post(to: number, phase: number, ptr: Ptr, byteLength: number): void {
    const { backend, mailroom, members } = this.#place;
    let memory: SharedArrayBuffer | null = null;
    if (byteLength > 0) {
      // Foreign functions take no shared memory: what leaves passes through memory of our own.
      const bytes = new Uint8Array(byteLength);
      backend.read(bytes, ptr);
      memory = mailroom.memory(byteLength);
      new Uint8Array(memory).set(bytes);
    }
    const { arriveNs } = this.#passage;
    mailroom.post(members[to] ?? 0, { key: `${this.#key}.${phase}`, about: this.#about, arriveNs, memory, byteLength });
  }
  #expect(from: number, phase: number, ptr: Ptr, byteLength: number): void {
    this.#expected.push({
      from,
      phase,
      byteLength,
      accept: ({ memory }) => {
        if (memory !== null) this.#place.backend.write(ptr, new Uint8Array(memory, 0, byteLength).slice());
      },
    });
  }
}

/** The driver of all ranks. */
export function worldMessageDriver(backend: Backend, mailroom: Mailroom, size: number): MessageDriver {
  return new MessageDriver(backend, mailroom, [...Array(size).keys()], "w");
}

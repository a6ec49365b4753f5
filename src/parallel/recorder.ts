/**
 * What a rank did when, for a timeline: spans of computing around code, and of communication by a communicator that records. Nothing is kept while
 * it is off, and a call costs a branch then.
 *
 * Times are of the machine's clock (`performance.timeOrigin` + `now`), so that ranks of one machine can be laid beside each other.
 */
import type { TraceSpan } from "../util/chrome-trace.ts";
import type { AxisTraffic, Communicator, LinkEmulation, Pending, SumDType, TrafficTable } from "./communicator.ts";

/** Rows of a rank in a timeline. Viewers and the dashboard take "compute" for the time that was of use. */
export type Track = "compute" | "communication";

export interface SpanName {
  readonly name: string;
  readonly track: Track;
  readonly args?: Readonly<Record<string, string | number>>;
}

export class Recorder {
  readonly rank: number;
  isOn = false;
  readonly #liveBytes: (() => number) | null;
  #spans: TraceSpan[] = [];

  /** `liveBytes`: what is alive in the rank's engine, noted at the end of what it computes. */
  constructor(rank: number, liveBytes: (() => number) | null = null) {
    this.rank = rank;
    this.#liveBytes = liveBytes;
  }
  /** Runs `run`; notes when, while the recorder is on. */
  span<T>({ name, track, args }: SpanName, run: () => T): T {
    if (!this.isOn) return run();
    const start = nowUs();
    try {
      return run();
    } finally {
      const span = { name, category: track, rank: this.rank, track, startUs: start, durationUs: nowUs() - start };
      const memory = track === "compute" && this.#liveBytes !== null ? { liveBytes: this.#liveBytes() } : {};
      this.#spans.push({ ...span, ...(args === undefined ? {} : { args }), ...memory });
    }
  }
  /** The spans so far, which it forgets. */
  take(): TraceSpan[] {
    const spans = this.#spans;
    this.#spans = [];
    return spans;
  }
}

function nowUs(): number {
  return (performance.timeOrigin + performance.now()) * 1000;
}

/** A communicator whose calls a recorder notes: how long each held the rank up. A non-blocking one twice, when it starts and when it is waited for. */
export class RecordedCommunicator implements Communicator {
  readonly #inner: Communicator;
  readonly #recorder: Recorder;

  constructor(inner: Communicator, recorder: Recorder) {
    this.#inner = inner;
    this.#recorder = recorder;
  }
  get name(): string {
    return this.#inner.name;
  }
  get rank(): number {
    return this.#inner.rank;
  }
  get size(): number {
    return this.#inner.size;
  }
  get members(): readonly number[] {
    return this.#inner.members;
  }
  get traffic(): TrafficTable {
    return this.#inner.traffic;
  }
  get axes(): readonly AxisTraffic[] {
    return this.#inner.axes;
  }

  #note<T>(operation: string, bytes: number, run: () => T): T {
    return this.#recorder.span({ name: `${operation} ${this.name}`, track: "communication", args: { bytes } }, run);
  }
  #noteStart(operation: string, bytes: number, start: () => Pending): Pending {
    const pending = this.#note(`start ${operation}`, bytes, start);
    return {
      done: () => pending.done(),
      wait: () => {
        this.#note(operation, bytes, () => {
          pending.wait();
        });
      },
    };
  }

  allReduce(ptr: number, count: number, dtype: SumDType): void {
    this.#note("allReduce", sumBytes(count, dtype), () => this.#inner.allReduce(ptr, count, dtype));
  }
  reduceScatter(out: number, ptr: number, counts: readonly number[], dtype: SumDType): void {
    this.#note("reduceScatter", sumBytes(total(counts), dtype), () => this.#inner.reduceScatter(out, ptr, counts, dtype));
  }
  allGather(out: number, ptr: number, byteLengths: readonly number[]): void {
    this.#note("allGather", total(byteLengths), () => this.#inner.allGather(out, ptr, byteLengths));
  }
  allToAll(out: number, recvByteLengths: readonly number[], ptr: number, sendByteLengths: readonly number[]): void {
    this.#note("allToAll", total(sendByteLengths), () => this.#inner.allToAll(out, recvByteLengths, ptr, sendByteLengths));
  }
  broadcast(ptr: number, byteLength: number, root: number): void {
    this.#note("broadcast", byteLength, () => this.#inner.broadcast(ptr, byteLength, root));
  }
  send(ptr: number, byteLength: number, to: number, tag?: number): void {
    this.#note("send", byteLength, () => this.#inner.send(ptr, byteLength, to, tag));
  }
  recv(ptr: number, byteLength: number, from: number, tag?: number): void {
    this.#note("recv", byteLength, () => this.#inner.recv(ptr, byteLength, from, tag));
  }
  share(bytes: Uint8Array | null, root: number): Uint8Array {
    return this.#note("share", bytes?.length ?? 0, () => this.#inner.share(bytes, root));
  }
  barrier(): void {
    this.#note("barrier", 0, () => this.#inner.barrier());
  }

  startAllReduce(ptr: number, count: number, dtype: SumDType): Pending {
    return this.#noteStart("allReduce", sumBytes(count, dtype), () => this.#inner.startAllReduce(ptr, count, dtype));
  }
  startReduceScatter(out: number, ptr: number, counts: readonly number[], dtype: SumDType): Pending {
    return this.#noteStart("reduceScatter", sumBytes(total(counts), dtype), () => this.#inner.startReduceScatter(out, ptr, counts, dtype));
  }
  startAllGather(out: number, ptr: number, byteLengths: readonly number[]): Pending {
    return this.#noteStart("allGather", total(byteLengths), () => this.#inner.startAllGather(out, ptr, byteLengths));
  }
  startAllToAll(out: number, recvByteLengths: readonly number[], ptr: number, sendByteLengths: readonly number[]): Pending {
    return this.#noteStart("allToAll", total(sendByteLengths), () => this.#inner.startAllToAll(out, recvByteLengths, ptr, sendByteLengths));
  }
  startSend(ptr: number, byteLength: number, to: number, tag?: number): Pending {
    return this.#noteStart("send", byteLength, () => this.#inner.startSend(ptr, byteLength, to, tag));
  }
  startRecv(ptr: number, byteLength: number, from: number, tag?: number): Pending {
    return this.#noteStart("recv", byteLength, () => this.#inner.startRecv(ptr, byteLength, from, tag));
  }

  split(groups: readonly (readonly number[])[], name: string): Communicator | null {
    const part = this.#inner.split(groups, name);
    return part === null ? null : new RecordedCommunicator(part, this.#recorder);
  }
  emulateLink(link: LinkEmulation | null): void {
    this.#inner.emulateLink(link);
  }
  abort(message: string): void {
    this.#inner.abort(message);
  }
}

function sumBytes(count: number, dtype: SumDType): number {
  return count * (dtype === "f32" ? 4 : 2);
}
function total(counts: readonly number[]): number {
  return counts.reduce((a, b) => a + b, 0);
}

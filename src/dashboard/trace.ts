/**
 * A Chrome trace (the JSON that Perfetto opens) as lanes of spans: complete events (`X`), begin and end (`B`, `E`), counters (`C`) and names
 * (`M`); other kinds are passed over. Whose trace it is does not matter: a lane is a thread of a process, whatever these stand for.
 * The bubble is 1 - mean busy share over the lanes that compute: messages and collectives, known by category or name, do not count.
 */
import type { TraceAnswer, TraceCounter, TraceEvent } from "./api.ts";
import { asArray, asNumber, asObject, asText, boundedJson } from "./record.ts";

const maxEvents = 20_000;
const maxLanes = 512;
const maxCounterPoints = 20_000;

interface Span {
  readonly lane: number;
  readonly name: string;
  readonly category: string;
  readonly start: number;
  readonly end: number;
  readonly args: Readonly<Record<string, unknown>> | null;
}
interface Lane {
  readonly pid: string;
  readonly tid: string;
  readonly order: number;
}

export function traceAnswer(name: string, json: Readonly<Record<string, unknown>>): TraceAnswer {
  const reader = new TraceReader();
  for (const item of asArray(json["traceEvents"])) {
    const event = asObject(item);
    if (event !== null) reader.add(event);
  }
  return {
    kind: "trace",
    name,
    ...reader.answer(),
    metadata: boundedJson(asObject(json["metadata"]) ?? asObject(json["otherData"]) ?? null),
  };
}

class TraceReader {
  readonly #lanes = new Map<string, Lane>();
  readonly #processes = new Map<string, string>();
  readonly #threads = new Map<string, string>();
  readonly #spans: Span[] = [];
  readonly #open = new Map<number, Omit<Span, "end">[]>();
  readonly #counters = new Map<string, { pid: string; name: string; times: number[]; values: number[] }>();

  add(event: Readonly<Record<string, unknown>>): void {
    const [pid, tid] = [idOf(event["pid"]), idOf(event["tid"])];
    const name = asText(event["name"], 200) ?? "";
    const time = asTime(event["ts"]);
    switch (event["ph"]) {
      case "M":
        return this.#name(name, pid, tid, asText(asObject(event["args"])?.["name"], 100));
      case "C":
        return this.#count(pid, name, time, asObject(event["args"]));
      case "X":
      case "B": {
        const lane = this.#lane(pid, tid);
        if (lane === null || Number.isNaN(time)) return;
        const begun = { lane, name, category: asText(event["cat"], 60) ?? "", start: time, args: asObject(event["args"]) };
        if (event["ph"] === "B") this.#stack(lane).push(begun);
        else this.#spans.push({ ...begun, end: time + Math.max(0, asTime(event["dur"]) || 0) });
        return;
      }
      case "E": {
        const lane = this.#lane(pid, tid);
        const begun = lane === null ? undefined : this.#stack(lane).pop();
        if (begun !== undefined && time >= begun.start) this.#spans.push({ ...begun, end: time });
        return;
      }
      default:
    }
  }
  #name(what: string, pid: string, tid: string, name: string | null): void {
    if (name === null) return;
    if (what === "process_name") this.#processes.set(pid, name);
    if (what === "thread_name") this.#threads.set(`${pid}/${tid}`, name);
  }
  #count(pid: string, name: string, time: number, args: Readonly<Record<string, unknown>> | null): void {
    if (Number.isNaN(time) || args === null) return;
    for (const [key, value] of Object.entries(args).slice(0, 8)) {
      if (typeof value !== "number" || !(Math.abs(value) < 1e30)) continue;
      const id = `${pid}\0${name}\0${key}`;
      if (!this.#counters.has(id) && this.#counters.size >= maxLanes) continue;
      const label = key === "value" || key === name ? name : `${name} ${key}`.slice(0, 200);
      const counter = this.#counters.get(id) ?? { pid, name: label, times: [], values: [] };
      this.#counters.set(id, counter);
      if (counter.times.length >= maxCounterPoints) continue;
      counter.times.push(time);
      counter.values.push(value);
    }
  }
  #lane(pid: string, tid: string): number | null {
    const key = `${pid}/${tid}`;
    const known = this.#lanes.get(key);
    if (known !== undefined) return known.order;
    if (this.#lanes.size >= maxLanes) return null;
    const order = this.#lanes.size;
    this.#lanes.set(key, { pid, tid, order });
    return order;
  }
  #stack(lane: number): Omit<Span, "end">[] {
    const stack = this.#open.get(lane) ?? [];
    this.#open.set(lane, stack);
    return stack;
  }

  answer(): Omit<TraceAnswer, "kind" | "name" | "metadata"> {
    const spans = this.#spans.toSorted((a, b) => a.start - b.start || b.end - a.end);
    const begin = spans[0]?.start ?? 0;
    const end = spans.reduce((latest, span) => Math.max(latest, span.end), begin);
    const duration = end - begin;
    const order = [...this.#lanes.values()].toSorted(
      (a, b) => a.pid.localeCompare(b.pid, "en", { numeric: true }) || a.tid.localeCompare(b.tid, "en", { numeric: true }),
    );
    const places = new Map(order.map((lane, index) => [lane.order, index]));
    const busy = order.map((lane) => (duration === 0 ? 0 : busyTime(spans.filter((span) => span.lane === lane.order)) / duration));
    return {
      duration,
      lanes: order.map(({ pid, tid }, index) => ({
        process: this.#processes.get(pid) ?? pid,
        thread: this.#threads.get(`${pid}/${tid}`) ?? tid,
        busy: busy[index] ?? 0,
      })),
      events: spans.slice(0, maxEvents).map((span): TraceEvent => ({
        lane: places.get(span.lane) ?? 0,
        name: span.name,
        category: span.category,
        start: span.start - begin,
        duration: span.end - span.start,
        args: plainArgs(span.args),
      })),
      counters: this.#counterAnswers(begin),
      bubble: bubbleOf(spans, duration),
      truncated: spans.length > maxEvents,
    };
  }
  #counterAnswers(begin: number): TraceCounter[] {
    return [...this.#counters.values()].map(({ pid, name, times, values }) => {
      const byTime = times.map((time, i) => [time - begin, values[i] ?? 0] as const).toSorted(([a], [b]) => a - b);
      return {
        process: this.#processes.get(pid) ?? pid,
        name,
        times: byTime.map(([time]) => time),
        values: byTime.map(([, value]) => value),
      };
    });
  }
}

/** Microseconds within some thousand years of the clock; NaN for what is none. */
function asTime(value: unknown): number {
  const time = asNumber(value);
  return Math.abs(time) < 1e18 ? time : Number.NaN;
}

function idOf(value: unknown): string {
  return typeof value === "number" || typeof value === "string" ? String(value).slice(0, 60) : "0";
}

/** Length of the union of spans that are sorted by their start. */
function busyTime(spans: readonly Span[]): number {
  let [sum, until] = [0, -Infinity];
  for (const { start, end } of spans) {
    sum += Math.max(0, end - Math.max(start, until));
    until = Math.max(until, end);
  }
  return sum;
}

/** Messages and collectives, by their category or name. */
const communication =
  /^(communication|comm|messages?|send|recv|receive|broadcast|transfer|all.?reduce|all.?gather|reduce.?scatter|all.?to.?all)/i;

/** Idle share of the lanes that compute. */
function bubbleOf(spans: readonly Span[], duration: number): number {
  const counted = spans.filter(({ category, name }) => !communication.test(category) && !communication.test(name));
  const byLane = Map.groupBy(counted, ({ lane }) => lane);
  if (duration === 0 || byLane.size === 0) return 0;
  let busy = 0;
  for (const lane of byLane.values()) busy += busyTime(lane) / duration;
  return 1 - busy / byLane.size;
}

/** Numbers and short texts of an event's arguments. */
function plainArgs(args: Readonly<Record<string, unknown>> | null): Record<string, string | number> {
  const entries = Object.entries(args ?? {}).slice(0, 16);
  return Object.fromEntries(
    entries.flatMap(([key, value]): [string, string | number][] => {
      if (typeof value === "number" && Number.isFinite(value)) return [[key.slice(0, 60), value]];
      if (typeof value === "string") return [[key.slice(0, 60), value.slice(0, 200)]];
      return typeof value === "boolean" ? [[key.slice(0, 60), String(value)]] : [];
    }),
  );
}

import { expect, test } from "vitest";
import { chromeTrace, type TraceSpan } from "./chrome-trace.ts";

interface Event {
  readonly ph: string;
  readonly name: string;
  readonly pid: number;
  readonly tid: number;
  readonly ts?: number;
  readonly dur?: number;
  readonly cat?: string;
  readonly args?: Record<string, unknown>;
}

test("a trace has a complete event for every span, in a process for its rank and a named thread for its track", () => {
  const spans: TraceSpan[] = [
    { name: "F 0.1", category: "forward", rank: 1, track: "compute", startUs: 2.5, durationUs: 10, args: { microBatch: 1 } },
    { name: "recv", category: "recv", rank: 1, track: "communication", startUs: 0, durationUs: 2.5 },
    { name: "B", category: "backward", rank: 0, track: "compute", startUs: 3, durationUs: 4 },
  ];
  const { traceEvents, otherData } = JSON.parse(chromeTrace(spans, { schedule: "1f1b" })) as { traceEvents: Event[]; otherData: unknown };
  const complete = traceEvents.filter(({ ph }) => ph === "X");
  expect(complete.map(({ name, cat, pid, ts, dur }) => [name, cat, pid, ts, dur])).toEqual(
    spans.map(({ name, category, rank, startUs, durationUs }) => [name, category, rank, startUs, durationUs]),
  );
  expect(complete[0]?.args).toEqual({ microBatch: 1 });
  const names = traceEvents.filter(({ ph }) => ph === "M");
  const threadOf = ({ pid, tid }: Event): unknown =>
    names.find((m) => m.name === "thread_name" && m.pid === pid && m.tid === tid)?.args?.["name"];
  expect(complete.map(threadOf)).toEqual(["compute", "communication", "compute"]);
  expect(names.filter(({ name }) => name === "process_name").map(({ pid, args }) => [pid, args?.["name"]])).toEqual([
    [0, "rank 0"],
    [1, "rank 1"],
  ]);
  expect(new Set(complete.map(({ pid, tid }) => `${pid} ${tid}`)).size).toBe(3);
  expect(otherData).toEqual({ schedule: "1f1b" });
});

/**
 * A simulated step as a Chrome trace (`chrome://tracing`, Perfetto): one row a pipeline rank, messages in a row of their own below it.
 * Format: "Trace Event Format", complete events (`ph: "X"`), microseconds.
 */
import type { TimelineEntry } from "./simulate.ts";

export interface ChromeTrace {
  readonly traceEvents: readonly Readonly<Record<string, unknown>>[];
  readonly displayTimeUnit: "ms";
}

export function chromeTrace(timeline: readonly TimelineEntry[]): ChromeTrace {
  const rows = new Map<number, string>();
  const events = timeline.map(({ kind, rank, stage, microBatch, startSeconds, endSeconds }) => {
    const tid = 2 * rank + (kind === "send" ? 1 : 0);
    rows.set(tid, kind === "send" ? `rank ${rank}: messages` : `rank ${rank}`);
    return {
      name: microBatch < 0 ? kind : `${kind} ${microBatch}`,
      cat: kind,
      ph: "X",
      pid: 0,
      tid,
      ts: 1e6 * startSeconds,
      dur: 1e6 * (endSeconds - startSeconds),
      args: stage < 0 ? {} : { stage, microBatch },
    };
  });
  const names = [...rows].map(([tid, name]) => ({ name: "thread_name", ph: "M", pid: 0, tid, args: { name } }));
  return { traceEvents: [...names, ...events], displayTimeUnit: "ms" };
}

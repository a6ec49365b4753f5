/**
 * Timelines as Chrome traces ("Trace Event Format"): JSON that Perfetto (ui.perfetto.dev) and chrome://tracing open. A process of the trace is a
 * rank, its threads are what the rank does beside each other (compute, communication). Times are microseconds from the start.
 */

export interface TraceSpan {
  readonly name: string;
  /** By which viewers filter and colour: "forward", "recv", ... */
  readonly category: string;
  readonly rank: number;
  /** Row within the rank. */
  readonly track: string;
  readonly startUs: number;
  readonly durationUs: number;
  readonly args?: Readonly<Record<string, string | number>>;
  /** Alive on the rank when the span ended: a point of the counter "memory". */
  readonly liveBytes?: number;
}

/** The JSON text of a trace. Spans of one track may lie within each other, but must not cross. */
export function chromeTrace(spans: readonly TraceSpan[], about: Readonly<Record<string, string>> = {}): string {
  const tracks = new Map<string, { rank: number; track: string; tid: number }>();
  for (const { rank, track } of spans) {
    const key = `${rank} ${track}`;
    if (!tracks.has(key)) tracks.set(key, { rank, track, tid: tracks.size + 1 });
  }
  const ranks = [...new Set(spans.map(({ rank }) => rank))].toSorted((a, b) => a - b);
  const events = [
    ...ranks.map((rank) => ({ ph: "M", name: "process_name", pid: rank, tid: 0, args: { name: `rank ${rank}` } })),
    ...Array.from(tracks.values(), ({ rank, track, tid }) => ({ ph: "M", name: "thread_name", pid: rank, tid, args: { name: track } })),
    ...spans.map(({ name, category, rank, track, startUs, durationUs, args }) => ({
      ph: "X",
      name,
      cat: category,
      pid: rank,
      tid: tracks.get(`${rank} ${track}`)?.tid ?? 0,
      ts: startUs,
      dur: durationUs,
      ...(args === undefined ? {} : { args }),
    })),
    ...spans.flatMap(({ rank, startUs, durationUs, liveBytes }) =>
      liveBytes === undefined ? [] : [{ ph: "C", name: "memory", pid: rank, tid: 0, ts: startUs + durationUs, args: { bytes: liveBytes } }],
    ),
  ];
  return JSON.stringify({ traceEvents: events, displayTimeUnit: "ms", otherData: about });
}

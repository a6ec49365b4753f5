/** What ran where and when: a trace as lanes, its bubble, memory of stages; and bytes that ranks sent. */
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { JSX } from "preact";
import type { TraceAnswer, TraceEvent } from "../../../src/dashboard/api.ts";
import { lineColor } from "../colors.ts";
import { runUrl, useAnswer } from "../data.ts";
import { bytes, compact, duration, percent } from "../format.ts";
import { Chart, useWidth, type Line } from "../parts/chart.tsx";
import { Card } from "../parts/controls.tsx";
import { useSettings } from "../words.ts";
import { scalarLines, useScalars, type ViewProps } from "./view.ts";

export function Pipeline(props: ViewProps): JSX.Element {
  const { main } = props;
  const { words } = useSettings();
  const traces = main.detail.artifacts.filter(({ kind }) => kind === "trace");
  const [chosen, setChosen] = useState<string | null>(null);
  const id = traces.find((trace) => trace.id === chosen)?.id ?? traces[0]?.id ?? null;
  const { data } = useAnswer<TraceAnswer>(id === null ? null : runUrl(main.detail.id, "/artifact", { id }), 0);
  return (
    <>
      {id === null ? (
        <p class="note">{words.noTrace}</p>
      ) : (
        <Card
          wide
          title={words.timeline}
          note={words.timelineHelp}
          side={
            traces.length > 1 ? (
              <label>
                {words.trace}{" "}
                <select value={id} onChange={(event) => setChosen(event.currentTarget.value)}>
                  {traces.map((trace) => (
                    <option key={trace.id} value={trace.id}>
                      {trace.name}
                    </option>
                  ))}
                </select>
              </label>
            ) : undefined
          }
        >
          {data !== null && data.kind === "trace" && <Trace trace={data} />}
        </Card>
      )}
      <Communication {...props} />
    </>
  );
}

/** Kind of an operation by its name: forward, backward, weight gradients, recomputation, communication, other. */
function kindOf({ name, category }: TraceEvent): number {
  const text = `${name} ${category}`.toLowerCase();
  if (/recompute/.test(text)) return 3;
  if (/all.?reduce|all.?gather|reduce.?scatter|all.?to.?all|send|recv|broadcast|comm|transfer/.test(text)) return 4;
  if (/weight|^w\b|^w\d|\bdw\b/.test(text)) return 2;
  if (/backward|^b\b|^b\d|\bbwd\b/.test(text)) return 1;
  if (/forward|^f\b|^f\d|\bfwd\b/.test(text)) return 0;
  return 5;
}
const kindNames = ["forward", "backward", "weights", "recompute", "communication", "other"] as const;
const kindColors = [0, 1, 2, 3, 5, 7] as const;

function Trace({ trace }: { readonly trace: TraceAnswer }): JSX.Element {
  const { words } = useSettings();
  const kinds = useMemo(() => [...new Set(trace.events.map(kindOf))].toSorted((a, b) => a - b), [trace]);
  const counters = useMemo(() => Map.groupBy(trace.counters, ({ name }) => name), [trace]);
  const computing = useMemo(() => new Set(trace.events.filter((event) => kindOf(event) !== 4).map(({ lane }) => lane)), [trace]);
  const recompute = trace.events.filter((event) => kindOf(event) === 3).reduce((sum, event) => sum + event.duration, 0);
  return (
    <>
      <dl class="tiles">
        <div>
          <dt>{words.bubble}</dt>
          <dd class="number">
            {percent(trace.bubble)} <small>{words.bubbleNote}</small>
          </dd>
        </div>
        <div>
          <dt>{words.stepTime}</dt>
          <dd class="number">{duration(trace.duration / 1e6)}</dd>
        </div>
        {recompute > 0 && (
          <div>
            <dt>{words.recomputed}</dt>
            <dd class="number">{duration(recompute / 1e6)}</dd>
          </div>
        )}
      </dl>
      {trace.truncated && <p class="banner warning">{words.truncatedTrace}</p>}
      <Timeline trace={trace} />
      <Legend kinds={kinds} />
      <h3>{words.perStage}</h3>
      <table class="numbers">
        <tbody>
          {trace.lanes.map((lane, i) => (
            <tr key={i} hidden={!computing.has(i)}>
              <th scope="row">{laneName(trace, i)}</th>
              <td class="bar">
                <meter min={0} max={1} value={lane.busy} aria-label={`${words.busy} ${percent(lane.busy)}`} />
              </td>
              <td class="number">
                {percent(lane.busy)} {words.busy}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      {[...counters].map(([name, list]) => (
        <Chart
          key={name}
          title={name}
          lines={list
            .slice(0, 32)
            .map((counter, i): Line => ({ label: counter.process, steps: counter.times, values: counter.values, color: i, dashed: i > 0 }))}
          range={null}
          fromZero
          format={/byte|memory/i.test(name) ? bytes : (value) => compact(value)}
          xLabel=""
          xFormat={(value) => duration(value / 1e6)}
        />
      ))}
    </>
  );
}
function laneName(trace: TraceAnswer, index: number): string {
  const lane = trace.lanes[index];
  if (lane === undefined) return "";
  if (trace.lanes.every(({ process }) => process === lane.process)) return lane.thread;
  const alone = trace.lanes.filter(({ process }) => process === lane.process).length === 1;
  return alone ? lane.process : `${lane.process} · ${lane.thread}`;
}

function Legend({ kinds }: { readonly kinds: readonly number[] }): JSX.Element {
  const { dark } = useSettings();
  return (
    <ul class="legend">
      {kinds.map((kind) => (
        <li key={kind}>
          <i style={{ background: lineColor(kindColors[kind] ?? 0, dark) }} /> {kindNames[kind]}
        </li>
      ))}
    </ul>
  );
}

const gutter = 120;
const laneHeight = 22;

function Timeline({ trace }: { readonly trace: TraceAnswer }): JSX.Element {
  const { words, dark } = useSettings();
  const [frame, width] = useWidth<HTMLDivElement>();
  const canvas = useRef<HTMLCanvasElement>(null);
  const [view, setView] = useState<readonly [number, number]>([0, trace.duration]);
  const [tip, setTip] = useState<{ event: TraceEvent; x: number; y: number } | null>(null);
  const left = width < 500 ? 60 : gutter;
  const height = trace.lanes.length * laneHeight + 22;
  useEffect(() => setView([0, trace.duration]), [trace]);
  const [from, to] = view;
  const x = (time: number): number => left + ((time - from) / Math.max(1e-9, to - from)) * (width - left - 4);
  useEffect(() => {
    const element = canvas.current;
    const context = element?.getContext("2d");
    if (element === null || context === null || context === undefined || width === 0) return;
    const scale = devicePixelRatio || 1;
    [element.width, element.height] = [Math.round(width * scale), Math.round(height * scale)];
    context.scale(scale, scale);
    context.clearRect(0, 0, width, height);
    const style = getComputedStyle(element);
    const [muted, track] = [style.getPropertyValue("--muted"), style.getPropertyValue("--track")];
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    for (const i of trace.lanes.keys()) {
      context.fillStyle = track;
      context.fillRect(left, i * laneHeight + 1, width - left - 4, laneHeight - 3);
      context.fillStyle = muted;
      context.fillText(laneName(trace, i).slice(0, left < 100 ? 9 : 18), 0, (i + 0.5) * laneHeight);
    }
    context.save();
    context.beginPath();
    context.rect(left, 0, width - left - 4, height);
    context.clip();
    for (const event of trace.events) {
      if (event.start > to || event.start + event.duration < from) continue;
      const [x0, x1] = [x(event.start), x(event.start + event.duration)];
      context.fillStyle = lineColor(kindColors[kindOf(event)] ?? 0, dark);
      context.fillRect(x0, event.lane * laneHeight + 2, Math.max(0.6, x1 - x0 - 0.6), laneHeight - 5);
      if (x1 - x0 > 26) {
        context.fillStyle = dark ? "#0d1013" : "#ffffff";
        context.fillText(event.name.slice(0, Math.floor((x1 - x0 - 6) / 6)), Math.max(x0, left) + 3, (event.lane + 0.5) * laneHeight);
      }
    }
    context.restore();
    context.fillStyle = muted;
    context.textBaseline = "top";
    for (let i = 0; i <= 4; i++) {
      context.textAlign = i === 0 ? "left" : i === 4 ? "right" : "center";
      context.fillText(
        duration((from + ((to - from) * i) / 4) / 1e6),
        left + ((width - left - 4) * i) / 4,
        trace.lanes.length * laneHeight + 5,
      );
    }
    context.textAlign = "left";
  }, [trace, width, view, dark]);

  const zoomed = (factor: number, around = (from + to) / 2): void => {
    const size = Math.min(trace.duration, Math.max(trace.duration / 1e5, (to - from) * factor));
    const start = Math.min(trace.duration - size, Math.max(0, around - ((around - from) / (to - from)) * size));
    setView([start, start + size]);
  };
  const moved = (share: number): void => {
    const by = Math.min(trace.duration - to, Math.max(-from, share * (to - from)));
    setView([from + by, to + by]);
  };
  const onKey = (event: KeyboardEvent): void => {
    const actions: Record<string, () => void> = {
      "+": () => zoomed(0.5),
      "=": () => zoomed(0.5),
      "-": () => zoomed(2),
      ArrowLeft: () => moved(-0.2),
      ArrowRight: () => moved(0.2),
      "0": () => setView([0, trace.duration]),
    };
    const action = actions[event.key];
    if (action === undefined) return;
    event.preventDefault();
    action();
  };
  return (
    <div class="timeline" ref={frame}>
      {width > 0 && (
        <canvas
          ref={canvas}
          role="application"
          aria-label={`${words.timeline}: ${trace.lanes.length} ${words.perStage}, ${trace.events.length} events, ${words.bubble} ${percent(trace.bubble)}. ${words.timelineHelp}`}
          tabIndex={0}
          style={{ width: `${width}px`, height: `${height}px` }}
          onKeyDown={onKey}
          onPointerLeave={() => setTip(null)}
          onPointerMove={(event) => {
            const box = event.currentTarget.getBoundingClientRect();
            const [px, py] = [event.clientX - box.left, event.clientY - box.top];
            const time = from + ((px - left) / (width - left - 4)) * (to - from);
            const lane = Math.floor(py / laneHeight);
            const found = trace.events.findLast((item) => item.lane === lane && item.start <= time && time <= item.start + item.duration);
            setTip(found === undefined ? null : { event: found, x: px, y: py });
          }}
          onDblClick={() => setView([0, trace.duration])}
          onWheel={(event) => {
            if (!event.ctrlKey && !event.shiftKey) return;
            event.preventDefault();
            const box = event.currentTarget.getBoundingClientRect();
            zoomed(event.deltaY > 0 ? 1.25 : 0.8, from + ((event.clientX - box.left - left) / (width - left - 4)) * (to - from));
          }}
        />
      )}
      <div class="zoomers">
        <button type="button" aria-label="+" onClick={() => zoomed(0.5)}>
          +
        </button>
        <button type="button" aria-label="−" onClick={() => zoomed(2)}>
          −
        </button>
      </div>
      {tip !== null && (
        <div
          class="tip"
          role="status"
          data-side={tip.x > width / 2 ? "left" : "right"}
          style={{ left: `${tip.x}px`, top: `${tip.y + 12}px` }}
        >
          <b>{tip.event.name}</b> {duration(tip.event.duration / 1e6)}
          {Object.entries(tip.event.args).map(([key, value]) => (
            <div key={key}>
              <span>{key}</span>
              <span class="number">{typeof value === "number" ? (/bytes/i.test(key) ? bytes(value) : compact(value)) : value}</span>
            </div>
          ))}
        </div>
      )}
    </div>
  );
}

/** Scalars under `traffic`: bytes of each axis (docs/metrics.md). */
function Communication({ runs, main, place, go }: ViewProps): JSX.Element {
  const { words } = useSettings();
  const keys = main.detail.scalars.filter((key) => /^traffic\.[^.]+\.bytes$/.test(key)).slice(0, 24);
  const answers = useScalars(runs, keys.length === 0 ? ["step"] : keys, place.range);
  if (keys.length === 0) return <p class="note">{words.noCommunication}</p>;
  const lines = keys.flatMap((key, i) =>
    scalarLines([main], answers, key, key.split(".").slice(1, -1).join(" ") || key).map((line) => ({ ...line, color: i })),
  );
  return (
    <Chart
      title={words.communication}
      note={words.communicationNote}
      lines={lines}
      fromZero
      logSwitch
      format={bytes}
      range={place.range}
      onRange={(range) => go({ range }, false)}
      height={260}
    />
  );
}

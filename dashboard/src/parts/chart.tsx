/**
 * Lines over steps, as SVG: the server sends as many buckets as there are pixels to show them, so that a hundred thousand steps are a path of a
 * few hundred points. A line may have a band (least to greatest of each bucket). Hovering or the arrow keys read values, dragging zooms.
 */
import { useEffect, useId, useMemo, useRef, useState } from "preact/hooks";
import type { JSX } from "preact";
import { dashes, lineColor } from "../colors.ts";
import { compact } from "../format.ts";
import { useSettings } from "../words.ts";

export interface Line {
  readonly label: string;
  readonly steps: readonly number[];
  readonly values: readonly (number | null)[];
  readonly low?: readonly (number | null)[] | undefined;
  readonly high?: readonly (number | null)[] | undefined;
  /** Index of its color and dashes; lines of one run share it. */
  readonly color: number;
  readonly dashed?: boolean;
  /** Points with bars of this half height, instead of a line. */
  readonly errors?: readonly (number | null)[] | undefined;
  readonly points?: boolean;
}
export interface ChartProps {
  readonly title: string;
  readonly note?: string;
  readonly lines: readonly Line[];
  readonly format?: (value: number) => string;
  readonly range: readonly [number, number] | null;
  readonly onRange?: (range: readonly [number, number] | null) => void;
  /** A step to mark. */
  readonly mark?: number | null;
  readonly onPick?: (step: number) => void;
  readonly height?: number;
  /** Begin the axis at 0 even if the data does not. */
  readonly fromZero?: boolean;
  readonly log?: boolean;
  readonly logSwitch?: boolean;
  /** Horizontal lines with a name. */
  readonly references?: readonly { readonly value: number; readonly label: string }[];
  readonly xLabel?: string;
  readonly xFormat?: (value: number) => string;
}

const margin = { left: 54, right: 12, top: 8, bottom: 24 };

export function useWidth<T extends HTMLElement>(): [(element: T | null) => void, number] {
  const [width, setWidth] = useState(0);
  const [element, setElement] = useState<T | null>(null);
  useEffect(() => {
    if (element === null) return;
    setWidth(element.clientWidth);
    const observer = new ResizeObserver(() => {
      setWidth(element.clientWidth);
    });
    observer.observe(element);
    return () => {
      observer.disconnect();
    };
  }, [element]);
  return [setElement, width];
}

/** About `count` round numbers from `low` to `high`. */
export function ticks(low: number, high: number, count: number): number[] {
  if (!(high > low)) return [low];
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough) ?? 10;
  const step = size * power;
  const values: number[] = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9 && values.length < 50; i++) values.push(i * step);
  return values;
}
function logTicks(low: number, high: number): number[] {
  const values: number[] = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const factor of [1, 2, 5]) {
      const value = factor * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) values.push(value);
    }
  return values.length > 9 ? values.filter((value) => Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-9) : values;
}

const given = (values: readonly (number | null)[] | undefined): number[] => (values ?? []).filter((value) => value !== null);

export function Chart(props: ChartProps): JSX.Element {
  const { title, note, lines, format = (value) => compact(value), range, onRange, mark, onPick, height = 200, references = [] } = props;
  const { words, dark } = useSettings();
  const [frame, width] = useWidth<HTMLDivElement>();
  const [log, setLog] = useState(props.log === true);
  const [cursor, setCursor] = useState<number | null>(null);
  const [drag, setDrag] = useState<{ from: number; to: number } | null>(null);
  const surface = useRef<SVGSVGElement>(null);
  const id = useId();
  const xFormat = props.xFormat ?? ((value: number) => compact(value, 4));

  const domain = useMemo(() => {
    const all = lines.flatMap((line) => [...given(line.values), ...given(line.low), ...given(line.high)]);
    for (const line of lines)
      if (line.errors !== undefined)
        for (const [i, value] of line.values.entries())
          if (value !== null) all.push(value - (line.errors[i] ?? 0), value + (line.errors[i] ?? 0));
    all.push(...references.map(({ value }) => value));
    const usable = log ? all.filter((value) => value > 0) : all;
    const steps = lines.flatMap((line) => line.steps);
    const [x0, x1] = range ?? [steps.reduce((a, b) => Math.min(a, b), Infinity), steps.reduce((a, b) => Math.max(a, b), -Infinity)];
    const empty = usable.length === references.length || steps.length === 0;
    if (empty) return { x0: 0, x1: 1, low: log ? 1 : 0, high: log ? 10 : 1, empty };
    let low = usable.reduce((a, b) => Math.min(a, b), Infinity);
    let high = usable.reduce((a, b) => Math.max(a, b), -Infinity);
    if (log) return { x0, x1, low: low / 1.1, high: high * 1.1, empty };
    if (props.fromZero === true) low = Math.min(0, low);
    const pad = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1;
    return { x0, x1, low: props.fromZero === true && low === 0 ? 0 : low - pad, high: high + pad, empty };
  }, [lines, range, log, references, props.fromZero]);

  const inner = { width: Math.max(10, width - margin.left - margin.right), height: height - margin.top - margin.bottom };
  const spanX = domain.x1 > domain.x0 ? domain.x1 - domain.x0 : 1;
  const x = (step: number): number => margin.left + ((step - domain.x0) / spanX) * inner.width;
  const at = (pixel: number): number => domain.x0 + ((pixel - margin.left) / inner.width) * spanX;
  const share = (value: number): number =>
    log
      ? (Math.log(Math.max(value, domain.low)) - Math.log(domain.low)) / (Math.log(domain.high) - Math.log(domain.low))
      : (value - domain.low) / (domain.high - domain.low);
  const y = (value: number): number => margin.top + (1 - share(value)) * inner.height;

  const path = (steps: readonly number[], values: readonly (number | null)[]): string => {
    let text = "";
    let pen = false;
    for (const [i, value] of values.entries()) {
      const step = steps[i];
      if (value === null || step === undefined || (log && value <= 0)) {
        pen = false;
        continue;
      }
      text += `${pen ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = true;
    }
    return text;
  };
  const band = (line: Line): string => {
    const points = line.steps.flatMap((step, i) => {
      const [low, high] = [line.low?.[i], line.high?.[i]];
      return low === null || high === null || low === undefined || high === undefined ? [] : [{ step, low, high }];
    });
    if (points.length < 2) return "";
    const up = points.map(({ step, high }) => `${x(step).toFixed(1)} ${y(high).toFixed(1)}`);
    const down = points.toReversed().map(({ step, low }) => `${x(step).toFixed(1)} ${y(low).toFixed(1)}`);
    return `M${[...up, ...down].join("L")}Z`;
  };

  const nearest = (line: Line, step: number): number => {
    let [low, high] = [0, line.steps.length - 1];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if ((line.steps[middle] ?? 0) <= step) low = middle;
      else high = middle;
    }
    return Math.abs((line.steps[high] ?? Infinity) - step) < Math.abs((line.steps[low] ?? Infinity) - step) ? high : low;
  };
  const pixelOf = (event: { readonly clientX: number }): number => event.clientX - (surface.current?.getBoundingClientRect().left ?? 0);
  const snapped = (step: number): number => {
    const longest = lines.reduce<Line | null>((best, line) => (best === null || line.steps.length > best.steps.length ? line : best), null);
    return longest === null ? step : (longest.steps[nearest(longest, step)] ?? step);
  };
  const onKey = (event: KeyboardEvent): void => {
    const longest = lines.reduce<Line | null>((best, line) => (best === null || line.steps.length > best.steps.length ? line : best), null);
    if (longest === null || longest.steps.length === 0) return;
    const here = cursor === null ? longest.steps.length - 1 : nearest(longest, cursor);
    const jump = event.shiftKey ? Math.max(1, Math.round(longest.steps.length / 10)) : 1;
    const moves: Record<string, number> = { ArrowLeft: here - jump, ArrowRight: here + jump, Home: 0, End: longest.steps.length - 1 };
    const next = moves[event.key];
    if (next !== undefined) {
      event.preventDefault();
      setCursor(longest.steps[Math.min(longest.steps.length - 1, Math.max(0, next))] ?? null);
    } else if (event.key === "Escape") {
      setCursor(null);
      onRange?.(null);
    } else if (event.key === "Enter" && cursor !== null) onPick?.(cursor);
  };

  const yTicks = log ? logTicks(domain.low, domain.high) : ticks(domain.low, domain.high, Math.max(2, Math.round(inner.height / 44)));
  const xTicks = ticks(domain.x0, domain.x1, Math.max(3, Math.round(inner.width / 75)));
  const readings =
    cursor === null
      ? []
      : lines.flatMap((line) => {
          if (line.steps.length === 0) return [];
          const i = nearest(line, cursor);
          const value = line.values[i];
          return value === null || value === undefined
            ? []
            : [{ line, value, step: line.steps[i] ?? 0, low: line.low?.[i], high: line.high?.[i] }];
        });
  const summary = lines
    .map((line) => {
      const values = given(line.values);
      return values.length === 0
        ? `${line.label}: ${words.noData}`
        : `${line.label}: ${format(values[0] ?? 0)} → ${format(values.at(-1) ?? 0)}`;
    })
    .join("; ");

  return (
    <figure class="chart" aria-labelledby={`${id}t`}>
      <figcaption>
        <h3 id={`${id}t`}>{title}</h3>
        {props.logSwitch === true && (
          <label class="switch">
            <input type="checkbox" checked={log} onChange={(event) => setLog(event.currentTarget.checked)} /> {words.logScale}
          </label>
        )}
        {range !== null && onRange !== undefined && (
          <button type="button" class="quiet" onClick={() => onRange(null)}>
            {words.resetZoom}
          </button>
        )}
        {note !== undefined && <p class="note">{note}</p>}
      </figcaption>
      <div ref={frame} class="plot">
        {width > 0 && (
          <svg
            ref={surface}
            width={width}
            height={height}
            role="application"
            aria-label={`${title}. ${summary}. ${words.chartHelp}`}
            tabIndex={0}
            onKeyDown={onKey}
            onPointerMove={(event) => {
              const pixel = pixelOf(event);
              setCursor(snapped(at(pixel)));
              if (drag !== null) setDrag({ from: drag.from, to: pixel });
            }}
            onPointerLeave={() => {
              setCursor(null);
              setDrag(null);
            }}
            onPointerDown={(event) => {
              if (event.button === 0 && event.pointerType !== "touch") setDrag({ from: pixelOf(event), to: pixelOf(event) });
            }}
            onPointerUp={() => {
              if (drag === null) return;
              setDrag(null);
              const [from, to] = [Math.round(at(Math.min(drag.from, drag.to))), Math.round(at(Math.max(drag.from, drag.to)))];
              if (Math.abs(drag.to - drag.from) < 6) {
                if (cursor !== null) onPick?.(cursor);
              } else if (to > from) onRange?.([Math.max(0, from), to]);
            }}
            onDblClick={() => onRange?.(null)}
          >
            {(domain.empty ? [] : yTicks).map((value) => (
              <g key={value}>
                <line class="grid" x1={margin.left} x2={width - margin.right} y1={y(value)} y2={y(value)} />
                <text class="tick" x={margin.left - 6} y={y(value)} dy="0.32em" text-anchor="end">
                  {format(value)}
                </text>
              </g>
            ))}
            {!domain.empty &&
              xTicks.map((value) => (
                <text key={value} class="tick" x={x(value)} y={height - 8} text-anchor="middle">
                  {xFormat(value)}
                </text>
              ))}
            {(domain.empty ? [] : references).map(({ value, label }) => (
              <g key={label}>
                <line class="reference" x1={margin.left} x2={width - margin.right} y1={y(value)} y2={y(value)} />
                <text class="tick" x={width - margin.right - 4} y={y(value) - 4} text-anchor="end">
                  {label}
                </text>
              </g>
            ))}
            <clipPath id={`${id}c`}>
              <rect x={margin.left - 2} y={0} width={inner.width + 4} height={height - margin.bottom + 2} />
            </clipPath>
            <g clip-path={`url(#${id}c)`}>
              {lines.map((line, i) =>
                line.low === undefined ? null : <path key={i} d={band(line)} fill={lineColor(line.color, dark)} opacity={0.16} />,
              )}
              {lines.map((line, i) => {
                const stroke = lineColor(line.color, dark);
                if (line.points === true)
                  return (
                    <g key={i} stroke={stroke} fill="var(--panel)" stroke-width={1.5}>
                      <path d={path(line.steps, line.values)} fill="none" stroke-width={1} opacity={0.6} />
                      {line.steps.map((step, p) => {
                        const value = line.values[p];
                        const error = line.errors?.[p] ?? 0;
                        return value === null || value === undefined ? null : (
                          <g key={p}>
                            {error > 0 && <line x1={x(step)} x2={x(step)} y1={y(value - error)} y2={y(value + error)} />}
                            <circle cx={x(step)} cy={y(value)} r={3} />
                          </g>
                        );
                      })}
                    </g>
                  );
                return (
                  <path
                    key={i}
                    d={path(line.steps, line.values)}
                    fill="none"
                    stroke={stroke}
                    stroke-width={1.6}
                    stroke-linejoin="round"
                    stroke-dasharray={line.dashed === true ? (dashes[(line.color % (dashes.length - 1)) + 1] ?? "6 3") : ""}
                  />
                );
              })}
            </g>
            {mark !== null && mark !== undefined && mark >= domain.x0 && mark <= domain.x1 && (
              <line class="mark" x1={x(mark)} x2={x(mark)} y1={margin.top} y2={height - margin.bottom} />
            )}
            {cursor !== null && !domain.empty && (
              <line class="cursor" x1={x(cursor)} x2={x(cursor)} y1={margin.top} y2={height - margin.bottom} />
            )}
            {readings.map(({ line, value, step }, i) => (
              <circle key={i} cx={x(step)} cy={y(value)} r={3} fill={lineColor(line.color, dark)} />
            ))}
            {drag !== null && Math.abs(drag.to - drag.from) > 5 && (
              <rect
                class="zoom"
                x={Math.min(drag.from, drag.to)}
                width={Math.abs(drag.to - drag.from)}
                y={margin.top}
                height={inner.height}
              />
            )}
            {domain.empty && (
              <text class="tick" x={width / 2} y={height / 2} text-anchor="middle">
                {words.noData}
              </text>
            )}
          </svg>
        )}
        {readings.length > 0 && cursor !== null && (
          <div class="tip" role="status" data-side={x(cursor) > width / 2 ? "left" : "right"} style={{ left: `${x(cursor)}px` }}>
            <b>
              {props.xLabel ?? words.step} {xFormat(cursor)}
            </b>
            {readings.slice(0, 12).map(({ line, value, low, high }, i) => (
              <div key={i}>
                <i style={{ background: lineColor(line.color, dark) }} />
                <span>{line.label}</span>
                <span class="number">
                  {format(value)}
                  {low !== null && low !== undefined && high !== null && high !== undefined ? ` (${format(low)} – ${format(high)})` : ""}
                </span>
              </div>
            ))}
          </div>
        )}
      </div>
      {lines.length > 1 && (
        <ul class="legend">
          {lines.map((line, i) => (
            <li key={i}>
              <svg width={20} height={8} aria-hidden="true">
                {line.points === true ? (
                  <circle cx={10} cy={4} r={3} fill="none" stroke={lineColor(line.color, dark)} stroke-width={1.5} />
                ) : (
                  <line
                    x1={0}
                    x2={20}
                    y1={4}
                    y2={4}
                    stroke={lineColor(line.color, dark)}
                    stroke-width={2}
                    stroke-dasharray={line.dashed === true ? (dashes[(line.color % (dashes.length - 1)) + 1] ?? "6 3") : ""}
                  />
                )}
              </svg>
              {line.label}
            </li>
          ))}
        </ul>
      )}
    </figure>
  );
}

/** A served model, live: loads of experts, the queue, times to the first and between tokens. */
import { useEffect, useMemo, useState } from "preact/hooks";
import type { JSX } from "preact";
import type { ServerAnswer, ServerReading } from "../../../src/dashboard/api.ts";
import { diverging } from "../colors.ts";
import { live, useAnswer, useLive } from "../data.ts";
import { compact, duration, percent, times, whole } from "../format.ts";
import { Chart, type Line } from "../parts/chart.tsx";
import { Card } from "../parts/controls.tsx";
import { Heatmap } from "../parts/heatmap.tsx";
import { useSettings } from "../words.ts";
import { LoadScale } from "./overview.tsx";

export function Serving(): JSX.Element {
  const { words, dark } = useSettings();
  const history = useAnswer<ServerAnswer>("api/server", 0);
  useEffect(() => {
    if (history.data === null) return;
    const known = live.server?.readings ?? [];
    const first = known[0]?.time ?? Infinity;
    live.server = { ...history.data, ...live.server, readings: [...history.data.readings.filter(({ time }) => time < first), ...known] };
  }, [history.data]);
  const server = useLive((state) => state.server) ?? history.data;
  const [whole_, setWhole] = useState(true);
  const readings = server?.readings ?? [];
  const seconds = readings.map(({ time }) => Math.round((time - (readings.at(-1)?.time ?? 0)) / 1000));
  const ratios = useMemo(() => loads(readings, whole_), [server, whole_]);
  if (server === null) return <p class="note">{history.loading ? "" : words.noServer}</p>;
  const last = readings.at(-1);
  const line = (label: string, of: (reading: ServerReading) => number | null, color: number): Line => ({
    label,
    steps: seconds,
    values: readings.map(of),
    color,
    dashed: color > 0,
  });
  const common = { range: null, fromZero: true, xLabel: "", xFormat: (value: number) => `${value} s` } as const;
  return (
    <>
      {server.error !== null && (
        <p class="banner warning" role="status">
          {server.error}
        </p>
      )}
      <p class="note">{server.url}</p>
      {last !== undefined && (
        <dl class="tiles">
          {(
            [
              [words.running, whole(last.running)],
              [words.waiting, whole(last.waiting)],
              [words.generated, `${compact(last.generatedPerSecond)}/s`],
              [words.ttft, duration(latest(readings, ({ timeToFirstToken }) => timeToFirstToken.p50))],
              [words.itl, duration(latest(readings, ({ interTokenLatency }) => interTokenLatency.p50))],
              [words.cacheUsage, percent(last.cacheUsage)],
            ] as const
          ).map(([name, value]) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd class="number">{value}</dd>
            </div>
          ))}
        </dl>
      )}
      {ratios.length > 0 && (
        <Card
          wide
          title={words.heatmap}
          note={words.heatmapNote}
          side={
            <>
              <label>
                {words.averaged}{" "}
                <select value={whole_ ? "all" : "minute"} onChange={(event) => setWhole(event.currentTarget.value === "all")}>
                  <option value="all">{words.sinceStart}</option>
                  <option value="minute">{words.lastMinute}</option>
                </select>
              </label>
              <LoadScale />
            </>
          }
        >
          <Heatmap
            label={words.heatmap}
            help={words.heatmapHelp}
            values={ratios.map(({ ratios }) => ratios)}
            color={(value) => diverging(value, dark)}
            marked={(value) => value === 0}
            rowName={(r) => String(ratios[r]?.layer ?? "")}
            columnName={String}
            rowTitle={words.layer}
            columnTitle={words.expert}
            tip={(value, r, c) =>
              `${words.layer} ${ratios[r]?.layer ?? ""}, ${words.expert} ${c}: ${value === 0 ? words.dead : times(value)}`
            }
          />
        </Card>
      )}
      <div class="grid2">
        <Chart
          title={words.queue}
          lines={[line(words.running, ({ running }) => running, 0), line(words.waiting, ({ waiting }) => waiting, 1)]}
          {...common}
        />
        <Chart
          title={words.throughput}
          note={words.throughputNote}
          lines={[
            line(words.generated, ({ generatedPerSecond }) => generatedPerSecond, 0),
            line(words.promptTokens, ({ promptPerSecond }) => promptPerSecond, 1),
          ]}
          {...common}
        />
        <Chart
          title={words.ttft}
          lines={[
            line(words.median, ({ timeToFirstToken }) => timeToFirstToken.p50, 0),
            line(words.p95, ({ timeToFirstToken }) => timeToFirstToken.p95, 1),
          ].map((item) => ({ ...item, points: true }))}
          format={duration}
          {...common}
        />
        <Chart
          title={words.itl}
          lines={[
            line(words.median, ({ interTokenLatency }) => interTokenLatency.p50, 0),
            line(words.p95, ({ interTokenLatency }) => interTokenLatency.p95, 1),
          ]}
          format={duration}
          {...common}
        />
      </div>
    </>
  );
}

function latest(readings: readonly ServerReading[], of: (reading: ServerReading) => number | null): number | null {
  for (const reading of readings.toReversed()) {
    const value = of(reading);
    if (value !== null) return value;
  }
  return null;
}

/** Load over fair share: of all tokens, or of those of the last minute's readings. */
function loads(readings: readonly ServerReading[], all: boolean): { layer: number; ratios: (number | null)[] }[] {
  const last = readings.at(-1);
  if (last === undefined) return [];
  const recent = readings.filter(({ time }) => time > last.time - 60_000);
  return last.experts.map(({ layer, total }) => {
    const counts = all
      ? total
      : total.map((_, e) =>
          recent.reduce((sum, reading) => sum + (reading.experts.find((item) => item.layer === layer)?.tokens[e] ?? 0), 0),
        );
    const sum = counts.reduce((a, b) => a + b, 0);
    return { layer, ratios: counts.map((count) => (sum === 0 ? null : (count * counts.length) / sum)) };
  });
}

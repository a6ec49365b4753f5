/** The run at a glance: numbers of the newest step, expert loads of any step, the loss. */
import { useEffect, useMemo, useState } from "preact/hooks";
import type { JSX } from "preact";
import type { ExpertsAnswer, GridAnswer, LoadAnswer, SeriesAnswer } from "../../../src/dashboard/api.ts";
import { diverging } from "../colors.ts";
import { runUrl, useAnswer } from "../data.ts";
import { bytes, compact, percent, times, whole } from "../format.ts";
import { Chart } from "../parts/chart.tsx";
import { Card, LayerSelect } from "../parts/controls.tsx";
import { Heatmap, Scale } from "../parts/heatmap.tsx";
import { filled, useSettings } from "../words.ts";
import { LossChart } from "./training.tsx";
import { chosenLayer, gridLines, useEvaluations, type ViewProps } from "./view.ts";

export function Overview(props: ViewProps): JSX.Element {
  const { main } = props;
  const { words } = useSettings();
  return (
    <>
      <Tiles {...props} />
      {main.detail.layers.length > 0 ? <ExpertLoad {...props} /> : main.detail.index.numSteps > 0 && <p class="note">{words.noExperts}</p>}
      <LossChart {...props} mark={props.place.step} />
    </>
  );
}

function Tiles({ main }: ViewProps): JSX.Element | null {
  const { words } = useSettings();
  const { id, index, config, layers } = main.detail;
  const at = index.lastStep;
  const now = { from: at, to: at, points: 2 };
  const keys = "loss,tokensPerSecond,mfu,peakBytes,learningRate";
  const scalars = useAnswer<SeriesAnswer>(at === null ? null : runUrl(id, "/series", { keys, ...now }), main.version).data;
  const grid = (key: string): string | null => (at === null || layers.length === 0 ? null : runUrl(id, "/grid", { key, ...now }));
  const drops = useAnswer<GridAnswer>(grid("dropRate"), main.version).data;
  const dead = useAnswer<GridAnswer>(grid("deadExperts"), main.version).data;
  const evaluations = useEvaluations([main])[id];
  if (at === null) return null;
  const last = (key: string): number | null => scalars?.series[key]?.mean.at(-1) ?? null;
  const column = (answer: GridAnswer | null): number[] =>
    (answer?.values ?? []).map((row) => row.at(-1) ?? null).filter((value) => value !== null);
  const total =
    typeof config === "object" && config !== null && "numSteps" in config && typeof config.numSteps === "number" ? config.numSteps : null;
  const validation = evaluations?.find(({ loss }) => loss.length > 0);
  const tiles: (readonly [string, string, string?])[] = [
    [words.step, total === null ? whole(at) : `${whole(at)} / ${whole(total)}`],
    [words.loss, compact(last("loss"), 4)],
    ...(validation === undefined
      ? []
      : [
          [`${words.validationLoss}`, `${compact(validation.loss.at(-1), 4)}`, `± ${compact(validation.standardError.at(-1), 2)}`] as const,
        ]),
    [words.throughput, compact(last("tokensPerSecond")), words.throughputNote],
    [words.mfu, percent(last("mfu"))],
    [words.memory, bytes(last("peakBytes"))],
  ];
  if (layers.length > 0) {
    const experts = layers.reduce((sum, { numExperts }) => sum + numExperts, 0);
    tiles.push(
      [
        words.maxDrop,
        percent(
          column(drops).reduce((a, b) => Math.max(a, b), 0),
          2,
        ),
      ],
      [words.deadExperts, `${column(dead).reduce((a, b) => a + b, 0)} / ${experts}`],
    );
  }
  return (
    <dl class="tiles">
      {tiles.map(([name, value, note]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd class="number">
            {value} {note !== undefined && <small>{note}</small>}
          </dd>
        </div>
      ))}
    </dl>
  );
}

const windows = [1, 10, 100, 1000] as const;

function ExpertLoad(props: ViewProps): JSX.Element {
  const { main, place, go } = props;
  const { words, dark } = useSettings();
  const { id, index, layers } = main.detail;
  const first = index.firstStep ?? 0;
  const last = index.lastStep ?? 0;
  const step = Math.min(last, Math.max(first, place.step ?? last));
  const [span, setSpan] = useState<number>(1);
  const [playing, setPlaying] = useState(false);
  const from = span === Infinity ? first : span === 1 ? null : Math.max(first, step - span + 1);
  const to = span === Infinity ? last : step;
  // While the newest step is shown, each that comes is asked for; an older one does not change.
  const version = to === last ? main.version : 0;
  const answer = useAnswer<LoadAnswer>(runUrl(id, "/load", { from, to }), version).data;
  const imbalance = useAnswer<GridAnswer>(runUrl(id, "/grid", { key: "maxOverMeanLoad", points: 240 }), main.version).data;
  const worst = useMemo(
    () =>
      imbalance === null
        ? []
        : gridLines([{ ...main, color: 0 }], { [id]: imbalance }).map((line) => ({
            ...line,
            values: line.high ?? [],
            low: undefined,
            high: undefined,
          })),
    [imbalance, dark],
  );
  useEffect(() => {
    if (!playing) return;
    const stride = Math.max(1, Math.round((last - first) / 120));
    const timer = setInterval(() => {
      const next = (place.step ?? first) + stride;
      if (next >= last) setPlaying(false);
      go({ step: Math.min(last, next) }, false);
    }, 120);
    return () => clearInterval(timer);
  }, [playing, place.step, last]);

  const layer = chosenLayer(props);
  const row = layers.findIndex((shape) => shape.layer === layer);
  const shown = answer?.layers ?? [];
  const ratios = useMemo(() => shown.map(({ load }) => load.map((value) => (value === null ? null : value * load.length))), [answer]);
  const dead = ratios.flat().filter((ratio) => ratio === 0).length;
  const tip = (value: number | null, r: number, c: number): string =>
    `${words.layer} ${shown[r]?.layer ?? ""}, ${words.expert} ${c}: ${value === null ? "–" : value === 0 ? words.dead : `${times(value)} ${words.fairShare} (${percent(shown[r]?.load[c])})`}`;
  return (
    <Card wide title={words.heatmap} note={words.heatmapNote} side={<LoadScale />}>
      <Heatmap
        label={`${words.heatmap}, ${words.step} ${answer?.to ?? step}`}
        help={words.heatmapHelp}
        values={ratios}
        color={(value) => diverging(value, dark)}
        marked={(value) => value === 0}
        rowName={(r) => String(shown[r]?.layer ?? "")}
        columnName={String}
        rowTitle={words.layer}
        columnTitle={words.expert}
        tip={tip}
        selectedRow={row}
        onPick={(r) => go({ layer: shown[r]?.layer ?? null }, false)}
      />
      <div class="scrubber">
        <button
          type="button"
          aria-pressed={playing}
          onClick={() => {
            if (!playing && step >= last) go({ step: first }, false);
            setPlaying(!playing);
          }}
        >
          {playing ? words.pause : words.play}
        </button>
        <label class="slider">
          <span>
            {words.scrubber}{" "}
            <b class="number">
              {answer?.numRecords === 1 || answer?.from === answer?.to
                ? (answer?.to ?? step)
                : `${answer?.from ?? ""} – ${answer?.to ?? ""}`}
            </b>
            {dead > 0 ? ` · ${dead} ${words.dead}` : ""}
          </span>
          <input
            type="range"
            id="scrubber"
            min={first}
            max={last}
            value={step}
            disabled={span === Infinity}
            aria-valuetext={`${words.step} ${step}`}
            onInput={(event) => {
              const next = Number(event.currentTarget.value);
              go({ step: next >= last ? null : next }, false);
            }}
          />
        </label>
        <label>
          {words.averaged}{" "}
          <select value={String(span)} onChange={(event) => setSpan(Number(event.currentTarget.value))}>
            {windows
              .filter((size) => size === 1 || size < last - first)
              .map((size) => (
                <option key={size} value={String(size)}>
                  {size === 1 ? words.oneStep : `${size} ${words.steps}`}
                </option>
              ))}
            <option value="Infinity">{words.everything}</option>
          </select>
        </label>
        <button type="button" class="quiet" disabled={place.step === null} onClick={() => go({ step: null }, false)}>
          {words.newest}
        </button>
      </div>
      <Chart
        title={words.maxOverMeanLoad}
        note={words.imbalance}
        lines={worst}
        format={times}
        range={null}
        mark={step}
        height={110}
        onPick={(picked) => go({ step: picked }, false)}
        references={one}
      />
      <LayerDetail {...props} layer={layer} step={step} />
    </Card>
  );
}
const one = [{ value: 1, label: "1×" }];

export function LoadScale(): JSX.Element {
  const { words, dark } = useSettings();
  const color = useMemo(() => (at: number) => diverging(2 ** (4 * at - 2), dark), [dark]);
  const stops = [
    { at: 0, name: "≤ ¼" },
    { at: 0.25, name: "½" },
    { at: 0.5, name: "1" },
    { at: 0.75, name: "2" },
    { at: 1, name: "≥ 4 ×" },
  ];
  return <Scale color={color} stops={stops} label={`${words.fairShare}: ¼, ½, 1, 2, 4`} />;
}

/** Experts of one layer over all steps. */
function LayerDetail({
  main,
  place,
  go,
  layer,
  step,
}: ViewProps & { readonly layer: number | null; readonly step: number }): JSX.Element | null {
  const { words, dark } = useSettings();
  const query = { layer, points: 200, ...(place.range === null ? {} : { from: place.range[0], to: place.range[1] }) };
  const answer = useAnswer<ExpertsAnswer>(layer === null ? null : runUrl(main.detail.id, "/experts", query), main.version).data;
  const ratios = useMemo(
    () => (answer?.load ?? []).map((row, _, all) => row.map((value) => (value === null ? null : value * all.length))),
    [answer],
  );
  if (layer === null || answer === null) return null;
  const column = answer.steps.findIndex((last) => last >= step);
  return (
    <>
      <div class="head">
        <h3>{filled(words.layerDetail, layer)}</h3>
        <LayerSelect layer={layer} main={main} go={go} />
      </div>
      <Heatmap
        label={filled(words.layerDetail, layer)}
        help={words.heatmapHelp}
        values={ratios}
        color={(value) => diverging(value, dark)}
        marked={(value) => value === 0 && answer.steps.length < 60}
        rowName={String}
        columnName={(c) => compact(answer.steps[c])}
        rowTitle={words.expert}
        columnTitle={words.step}
        tip={(value, r, c) => `${words.expert} ${r}, ${words.step} ${whole(answer.steps[c])}: ${value === 0 ? words.dead : times(value)}`}
        selectedColumn={column}
        onPick={(_, c) => go({ step: answer.steps[c] ?? null }, false)}
        rowHeight={[4, 16]}
        maxHeight={220}
      />
    </>
  );
}

/** Balance: a layer's drop rate beside its coefficient, and every layer over steps. */
import { useMemo, useState } from "preact/hooks";
import type { JSX } from "preact";
import type { GridAnswer } from "../../../src/dashboard/api.ts";
import { sequential } from "../colors.ts";
import { runUrl, useAnswer } from "../data.ts";
import { compact, percent, times, whole } from "../format.ts";
import { Chart, type Line } from "../parts/chart.tsx";
import { Card, LayerSelect } from "../parts/controls.tsx";
import { Heatmap, Scale } from "../parts/heatmap.tsx";
import { filled, useSettings, type Words } from "../words.ts";
import { chosenLayer, rangeQuery, scalarLines, useLayer, type ViewProps } from "./view.ts";

const gridKeys = [
  "dropRate",
  "coefficient",
  "maxOverMeanLoad",
  "deadExperts",
  "loadEntropy",
  "auxiliaryLoss",
  "zLoss",
  "gateEntropy",
] as const;
type GridKey = (typeof gridKeys)[number];

function nameOf(key: GridKey, words: Words): string {
  const names: Record<GridKey, string> = {
    dropRate: words.dropRate,
    coefficient: words.coefficient,
    maxOverMeanLoad: words.maxOverMeanLoad,
    deadExperts: words.deadExperts,
    loadEntropy: words.loadEntropy,
    auxiliaryLoss: words.auxiliaryLoss,
    zLoss: words.zLoss,
    gateEntropy: words.gateEntropy,
  };
  return names[key];
}
function formatOf(key: GridKey): (value: number | null) => string {
  if (key === "dropRate") return (value) => percent(value, 2);
  return key === "maxOverMeanLoad" ? times : (value) => compact(value);
}

export function Balance(props: ViewProps): JSX.Element {
  const { runs, main, place, go } = props;
  const { words } = useSettings();
  const layer = chosenLayer(props);
  const answers = useLayer(runs, layer, ["dropRate", "coefficient", "maxOverMeanLoad", "loadEntropy"], place.range);
  if (layer === null) return <p class="note">{words.noExperts}</p>;
  const lines = (key: string, label: string): Line[] => scalarLines(runs, answers, key, label);
  const both = [
    ...lines("dropRate", words.dropRate),
    ...lines("coefficient", words.coefficient).map((line) => ({ ...line, color: runs.length === 1 ? 1 : line.color, dashed: true })),
  ];
  const common = { range: place.range, onRange: (range: typeof place.range) => go({ range }, false) };
  const layerName = `${words.layer} ${layer}`;
  return (
    <>
      <Card wide side={<LayerSelect layer={layer} main={main} go={go} />} title={words.balance}>
        <Chart
          title={filled(words.dropAndCoefficient, layer)}
          note={words.dropAndCoefficientNote}
          lines={both}
          height={260}
          fromZero
          logSwitch
          {...common}
        />
        <div class="grid2">
          <Chart
            title={words.maxOverMeanLoad}
            note={layerName}
            lines={lines("maxOverMeanLoad", "")}
            format={times}
            references={one}
            {...common}
          />
          <Chart
            title={words.loadEntropy}
            note={words.loadEntropyNote}
            lines={lines("loadEntropy", "")}
            references={plainOne}
            {...common}
          />
        </div>
      </Card>
      <LayerGrid {...props} />
    </>
  );
}
const one = [{ value: 1, label: "1×" }];
const plainOne = [{ value: 1, label: "1" }];

/** A metric of all layers over steps. */
function LayerGrid({ main, place, go }: ViewProps): JSX.Element {
  const { words, dark } = useSettings();
  const [key, setKey] = useState<GridKey>("dropRate");
  const keys = gridKeys.filter((name) => main.detail.layerMetrics.includes(name));
  const answer = useAnswer<GridAnswer>(
    runUrl(main.detail.id, "/grid", { key, points: 200, ...rangeQuery(place.range) }),
    main.version,
  ).data;
  const format = formatOf(key);
  const { low, high } = useMemo(() => {
    const values = (answer?.values ?? []).flat().filter((value) => value !== null);
    return { low: values.reduce((a, b) => Math.min(a, b), Infinity), high: values.reduce((a, b) => Math.max(a, b), -Infinity) };
  }, [answer]);
  const share = (value: number): number => (high > low ? (value - low) / (high - low) : 0.5);
  return (
    <Card
      wide
      title={words.allLayers}
      side={
        <label>
          {words.metric}{" "}
          <select value={key} onChange={(event) => setKey(event.currentTarget.value as GridKey)}>
            {keys.map((name) => (
              <option key={name} value={name}>
                {nameOf(name, words)}
              </option>
            ))}
          </select>
        </label>
      }
    >
      {answer !== null && answer.key === key && (
        <>
          <Heatmap
            label={`${nameOf(key, words)}, ${words.allLayers}`}
            help={words.heatmapHelp}
            values={answer.values}
            color={(value) => sequential(share(value))}
            rowName={(r) => String(answer.layers[r] ?? "")}
            columnName={(c) => compact(answer.steps[c])}
            rowTitle={words.layer}
            columnTitle={words.step}
            tip={(value, r, c) => `${words.layer} ${answer.layers[r] ?? ""}, ${words.step} ${whole(answer.steps[c])}: ${format(value)}`}
            selectedRow={answer.layers.indexOf(place.layer ?? -1)}
            onPick={(r) => go({ layer: answer.layers[r] ?? null }, false)}
            rowHeight={[6, 26]}
            maxHeight={460}
          />
          {Number.isFinite(low) && (
            <Scale
              key={String(dark)}
              color={sequential}
              label={`${format(low)} – ${format(high)}`}
              stops={[
                { at: 0, name: format(low) },
                { at: 1, name: format(high) },
              ]}
            />
          )}
        </>
      )}
    </Card>
  );
}

/** What gates say: how far the first stands above the second, how sure a token is, how its probability is spread. */
import { useMemo } from "preact/hooks";
import type { JSX } from "preact";
import type { SimilarityMatrix } from "../../../src/dashboard/api.ts";
import { runUrl, useAnswer } from "../data.ts";
import { compact, percent } from "../format.ts";
import { Chart, type Line } from "../parts/chart.tsx";
import { Card, LayerSelect, StepSlider } from "../parts/controls.tsx";
import { filled, useSettings } from "../words.ts";
import { chosenLayer, gridLines, scalarLines, useGrids, useLayer, type ViewProps } from "./view.ts";

export function Gates(props: ViewProps): JSX.Element {
  const { runs, main, place, go } = props;
  const { words } = useSettings();
  const layer = chosenLayer(props);
  const one = useGrids(runs, "max1OverMax2", place.range);
  const two = useGrids(runs, "max2OverMax3", place.range);
  const entropy = useGrids(runs, "gateEntropy", place.range);
  const load = useGrids(runs, "loadEntropy", place.range);
  const ofLayer = useLayer(runs, layer, ["max1OverMax2", "max2OverMax3"], place.range);
  const numExperts = main.detail.layers.find((shape) => shape.layer === layer)?.numExperts ?? 0;
  const flat = useMemo(() => (numExperts === 0 ? [] : [{ value: Math.log(numExperts), label: `ln ${numExperts}` }]), [numExperts]);
  if (layer === null) return <p class="note">{words.noExperts}</p>;
  const common = { range: place.range, onRange: (range: typeof place.range) => go({ range }, false) };
  const second = (lines: Line[]): Line[] => lines.map((line) => ({ ...line, color: runs.length === 1 ? 1 : line.color, dashed: true }));
  const ratioFormat = (value: number): string => compact(value);
  return (
    <>
      <div class="grid2">
        <Chart
          title={words.max1OverMax2}
          note={words.ratioNote}
          lines={gridLines(runs, one)}
          format={ratioFormat}
          references={plainOne}
          {...common}
        />
        <Chart
          title={words.max2OverMax3}
          note={words.ratioNote}
          lines={gridLines(runs, two)}
          format={ratioFormat}
          references={plainOne}
          {...common}
        />
        <Chart title={words.gateEntropy} note={words.gateEntropyNote} lines={gridLines(runs, entropy)} references={flat} {...common} />
        <Chart title={words.loadEntropy} note={words.loadEntropyNote} lines={gridLines(runs, load)} references={plainOne} {...common} />
      </div>
      <Card wide title={`${words.layer} ${layer}`} side={<LayerSelect layer={layer} main={main} go={go} />}>
        <Chart
          title={`${words.max1OverMax2}, ${words.max2OverMax3}`}
          note={words.ratioLayerNote}
          lines={[
            ...scalarLines(runs, ofLayer, "max1OverMax2", words.max1OverMax2),
            ...second(scalarLines(runs, ofLayer, "max2OverMax3", words.max2OverMax3)),
          ]}
          references={plainOne}
          logSwitch
          {...common}
        />
        <Distribution {...props} layer={layer} numExperts={numExperts} />
      </Card>
    </>
  );
}
const plainOne = [{ value: 1, label: "1" }];

/** Sorted gate probabilities, at the recorded step nearest before the chosen one. */
function Distribution({
  main,
  place,
  go,
  layer,
  numExperts,
}: ViewProps & { readonly layer: number; readonly numExperts: number }): JSX.Element {
  const { words } = useSettings();
  const { similaritySteps: steps, id } = main.detail;
  const step = steps.findLast((value) => value <= (place.step ?? Infinity)) ?? steps[0] ?? null;
  const answer = useAnswer<SimilarityMatrix>(step === null ? null : runUrl(id, "/similarity/matrix", { step, layer }), 0).data;
  const before = useAnswer<SimilarityMatrix>(
    steps[0] === undefined ? null : runUrl(id, "/similarity/matrix", { step: steps[0], layer }),
    0,
  ).data;
  const gates = answer?.gates ?? [];
  const reference = useMemo(() => (numExperts === 0 ? [] : [{ value: 1 / numExperts, label: words.flatGate }]), [numExperts, words]);
  if (gates.length === 0 || step === null) return <p class="note">{words.noSimilarity}</p>;
  const line = (values: readonly (number | null)[], at: number, color: number): Line => ({
    label: `${words.step} ${at}`,
    steps: values.map((_, i) => i + 1),
    values,
    color,
    points: true,
  });
  const lines = [
    line(gates, step, 0),
    ...(before !== null && before.step !== step && before.gates.length > 0 ? [line(before.gates, before.step, 1)] : []),
  ];
  return (
    <>
      <Chart
        title={words.gateDistribution}
        note={filled(words.gateDistributionNote, step)}
        lines={lines}
        range={null}
        fromZero
        format={(value) => percent(value, 0)}
        references={reference}
        xLabel={words.rank}
        xFormat={(value) => compact(value)}
      />
      <StepSlider steps={steps} step={step} onStep={(next) => go({ step: next }, false)} />
    </>
  );
}

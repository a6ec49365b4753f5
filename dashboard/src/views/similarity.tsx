/** How alike experts are, over steps and pair by pair. */
import { useState } from "preact/hooks";
import type { JSX } from "preact";
import type { SimilarityMatrix, SimilaritySeries } from "../../../src/dashboard/api.ts";
import { sequential } from "../colors.ts";
import { runUrl, useAnswer, useAnswers } from "../data.ts";
import { compact } from "../format.ts";
import { Chart, type Line } from "../parts/chart.tsx";
import { Card, LayerSelect, StepSlider } from "../parts/controls.tsx";
import { Heatmap, Scale } from "../parts/heatmap.tsx";
import { filled, useSettings } from "../words.ts";
import { chosenLayer, lineName, type ViewProps } from "./view.ts";

type What = "weights" | "outputs";

export function Similarity(props: ViewProps): JSX.Element {
  const { runs, main, place, go } = props;
  const { words } = useSettings();
  const layer = chosenLayer(props);
  const urls = Object.fromEntries(
    runs
      .filter(({ detail }) => detail.similaritySteps.length > 0)
      .map(({ detail }) => [detail.id, runUrl(detail.id, "/similarity", { points: 400 })]),
  );
  const answers = useAnswers<SimilaritySeries>(urls, runs.map(({ version }) => version).join());
  const [what, setWhat] = useState<What>("weights");
  const { similaritySteps: steps, id } = main.detail;
  const step = steps.findLast((value) => value <= (place.step ?? Infinity)) ?? steps[0] ?? null;
  const matrix = useAnswer<SimilarityMatrix>(
    step === null || layer === null ? null : runUrl(id, "/similarity/matrix", { step, layer }),
    0,
  ).data;
  if (layer === null) return <p class="note">{words.noExperts}</p>;
  if (Object.keys(urls).length === 0) return <p class="note">{words.noSimilarity}</p>;

  const lines = runs.flatMap((run): Line[] => {
    const answer = answers[run.detail.id];
    if (answer === undefined || answer.layers.length === 0) return [];
    const line = (of: What, dashed: boolean): Line => {
      const columns = answer.steps.map((_, i) => answer.layers.map((item) => item[of][i] ?? null).filter((value) => value !== null));
      const pick = (from: (values: readonly number[]) => number): (number | null)[] =>
        columns.map((values) => (values.length === 0 ? null : from(values)));
      return {
        label: lineName(runs, run, of === "weights" ? words.ofWeights : words.ofOutputs),
        steps: answer.steps,
        values: pick((values) => values.reduce((a, b) => a + b, 0) / values.length),
        low: pick((values) => Math.min(...values)),
        high: pick((values) => Math.max(...values)),
        color: runs.length === 1 && dashed ? 1 : run.color,
        dashed,
      };
    };
    return [line("weights", false), line("outputs", true)];
  });
  const values = matrix?.[what] ?? [];
  const low = values.flat().reduce<number>((least, value) => Math.min(least, value ?? 0), 0);
  return (
    <>
      <Chart
        title={words.similarityOver}
        note={words.similarityNote}
        lines={lines}
        range={place.range}
        onRange={(range) => go({ range }, false)}
        mark={step}
        onPick={(picked) => go({ step: picked }, false)}
        height={260}
      />
      <Card
        wide
        title={filled(words.similarityMatrix, layer, matrix?.step ?? step ?? "")}
        side={
          <>
            <LayerSelect layer={layer} main={main} go={go} />
            <label>
              {words.metric}{" "}
              <select value={what} onChange={(event) => setWhat(event.currentTarget.value as What)}>
                <option value="weights">{words.ofWeights}</option>
                <option value="outputs">{words.ofOutputs}</option>
              </select>
            </label>
          </>
        }
      >
        <div class="matrix">
          <Heatmap
            label={filled(words.similarityMatrix, layer, step ?? "")}
            help={words.heatmapHelp}
            values={values}
            color={(value) => sequential((value - low) / (1 - low))}
            rowName={String}
            columnName={String}
            rowTitle={words.expert}
            columnTitle={words.expert}
            tip={(value, r, c) => `${words.expert} ${r}, ${words.expert} ${c}: ${compact(value, 4)}`}
            square
          />
          <Scale
            color={sequential}
            label={`${compact(low)} – 1`}
            stops={[
              { at: 0, name: compact(low) },
              { at: 1, name: "1" },
            ]}
          />
        </div>
        {step !== null && <StepSlider steps={steps} step={step} onStep={(next) => go({ step: next }, false)} />}
      </Card>
    </>
  );
}

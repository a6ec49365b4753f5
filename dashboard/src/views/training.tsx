/** How training goes: losses, rates, speed and memory, of one run or several. */
import type { JSX } from "preact";
import { bytes, compact, duration, percent } from "../format.ts";
import { Chart, type Line } from "../parts/chart.tsx";
import { useSettings } from "../words.ts";
import { gridLines, lineName, scalarLines, useEvaluations, useGrids, useScalars, type ViewProps } from "./view.ts";

const keys = ["loss", "auxiliaryLoss", "learningRate", "gradNorm", "tokensPerSecond", "mfu", "peakBytes", "seconds"];

export function LossChart(props: ViewProps & { readonly mark?: number | null }): JSX.Element | null {
  const { runs, place, go } = props;
  const { words } = useSettings();
  const scalars = useScalars(runs, ["loss"], place.range);
  const evaluations = useEvaluations(runs);
  const validation = runs.flatMap((run): Line[] =>
    (evaluations[run.detail.id] ?? []).map(({ name, steps, loss, standardError }, i) => ({
      label: lineName(runs, run, evaluations[run.detail.id]?.length === 1 ? words.validationLoss : name),
      steps,
      values: loss,
      errors: standardError,
      points: true,
      color: runs.length === 1 ? i + 1 : run.color,
    })),
  );
  const lines = [...scalarLines(runs, scalars, "loss", words.trainLoss), ...validation];
  if (lines.length === 0) return null;
  return (
    <Chart
      title={words.loss}
      note={words.lossNote}
      lines={lines}
      range={place.range}
      onRange={(range) => go({ range }, false)}
      format={(value) => compact(value, 4)}
      height={260}
      mark={props.mark ?? null}
      logSwitch
      {...(props.mark === undefined ? {} : { onPick: (step: number) => go({ step }, false) })}
    />
  );
}

export function Training(props: ViewProps): JSX.Element {
  const { runs, place, go } = props;
  const { words } = useSettings();
  const scalars = useScalars(runs, keys, place.range);
  const zLoss = useGrids(runs, "zLoss", place.range);
  const common = { range: place.range, onRange: (range: typeof place.range) => go({ range }, false) };
  const lines = (key: string): Line[] => scalarLines(runs, scalars, key);
  const hasExperts = runs.some(({ detail }) => detail.layers.length > 0);
  return (
    <>
      <LossChart {...props} />
      <div class="grid2">
        {hasExperts && (
          <Chart title={words.auxiliaryLoss} note={words.auxiliaryNote} lines={lines("auxiliaryLoss")} logSwitch {...common} />
        )}
        {hasExperts && <Chart title={words.zLoss} note={words.zLossNote} lines={gridLines(runs, zLoss)} {...common} />}
        <Chart title={words.learningRate} lines={lines("learningRate")} fromZero {...common} />
        <Chart title={words.gradNorm} note={words.gradNormNote} lines={lines("gradNorm")} logSwitch {...common} />
        <Chart title={words.throughput} note={words.throughputNote} lines={lines("tokensPerSecond")} fromZero {...common} />
        <Chart title={words.mfu} note={words.mfuNote} lines={lines("mfu")} fromZero format={(value) => percent(value, 0)} {...common} />
        <Chart title={words.memory} note={words.memoryNote} lines={lines("peakBytes")} fromZero format={bytes} {...common} />
        <Chart title={words.stepTime} lines={lines("seconds")} fromZero format={duration} {...common} />
      </div>
    </>
  );
}

/**
 * What a terminal shows of a run while it trains: where it is and how long it takes, the loss as a line of bars, and for each layer with
 * experts the load of every expert, the drop rate and the coefficient. Text from data; `live-panel.ts` puts it on the screen.
 *
 * The bars of a load begin at nothing and reach their full height at twice the fair share: a flat line in the middle is balance. What a
 * layer's numbers mean is in docs/metrics.md.
 */
import type { StepMetrics } from "../train/index.ts";

/** What the panel remembers of a run. */
export interface TrainPanelState {
  readonly label: string;
  readonly numSteps: number;
  /** Of the newest step. */
  readonly metrics: StepMetrics;
  readonly secondsLeft: number;
  /** Losses of the steps so far, oldest first. */
  readonly losses: readonly number[];
  /** Name and loss of the last evaluations. */
  readonly evaluations: ReadonlyMap<string, number>;
}

const bars = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"] as const;
const progressColumns = 24;
/** Lines above those of the layers. */
const headLines = 4;
/** Experts shown of a layer, at most; those in between are averaged. */
const mostExperts = 32;

/** A bar for each value, from `low` (least bar) to `high` (full). Values that are not finite are a cross. */
export function sparkline(values: readonly number[], low: number, high: number): string {
  const span = high - low;
  return values
    .map((value) => {
      if (!Number.isFinite(value)) return "x";
      const share = span > 0 && Number.isFinite(span) ? (value - low) / span : 0.5;
      return bars[Math.min(bars.length - 1, Math.max(0, Math.floor(share * bars.length)))] ?? "";
    })
    .join("");
}

/** At most `count` means of consecutive values, in order. */
export function condensed(values: readonly number[], count: number): number[] {
  if (values.length <= count) return [...values];
  return Array.from({ length: count }, (_, i) => {
    const part = values.slice(Math.floor((i * values.length) / count), Math.floor(((i + 1) * values.length) / count));
    return part.reduce((sum, value) => sum + value, 0) / part.length;
  });
}

/** `90` as `1 min 30 s`. */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "?";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** The panel's lines, for a terminal of this size. */
export function trainPanel(state: TrainPanelState, columns: number, rows: number): string[] {
  return [progressLine(state), lossLine(state, columns), evaluationLine(state), ...layerLines(state, rows)];
}

function progressLine({ label, numSteps, metrics, secondsLeft }: TrainPanelState): string {
  const { step, tokensPerSecond, mfu, forcedBalance } = metrics;
  const done = Math.round((progressColumns * step) / Math.max(1, numSteps));
  const bar = "█".repeat(done) + "░".repeat(progressColumns - done);
  const parts = [
    `${label} ${bar} ${step}/${numSteps}`,
    `${tokensPerSecond.toFixed(0)} tokens/s`,
    ...(mfu === null ? [] : [`MFU ${(100 * mfu).toFixed(0)}%`]),
    `${duration(secondsLeft)} left`,
    ...(forcedBalance === true ? ["FORCED BALANCE"] : []),
  ];
  return parts.join("   ");
}

function lossLine({ metrics, losses }: TrainPanelState, columns: number): string {
  const { loss, learningRate, gradNorm } = metrics;
  const tail = `   gradient ${gradNorm.toPrecision(3)}   rate ${learningRate.toExponential(1)}`;
  const head = `loss ${loss.toFixed(4)}  `;
  const shown = condensed(losses, Math.max(8, columns - head.length - tail.length));
  const finite = shown.filter(Number.isFinite);
  return head + sparkline(shown, Math.min(...finite), Math.max(...finite)) + tail;
}

function evaluationLine({ metrics, evaluations }: TrainPanelState): string {
  const sets = [...evaluations].map(([name, loss]) => `${name} ${loss.toFixed(4)}`);
  const auxiliary = metrics.layers.length === 0 ? [] : [`auxiliary ${metrics.auxiliaryLoss.toExponential(2)}`];
  const memory = `memory ${(metrics.peakBytes / 2 ** 20).toFixed(0)} MiB`;
  return [...sets, ...auxiliary, memory].join("   ");
}

function layerLines({ metrics }: TrainPanelState, rows: number): string[] {
  const { layers } = metrics;
  if (layers.length === 0) return [];
  const room = Math.max(1, rows - headLines - 2);
  // Where not all fit: the worst balanced, in order.
  const shown =
    layers.length <= room
      ? layers
      : [...layers]
          .sort((a, b) => b.maxOverMeanLoad - a.maxOverMeanLoad)
          .slice(0, room)
          .sort((a, b) => a.layer - b.layer);
  const width = Math.max("experts' load".length, ...shown.map(({ load }) => Math.min(load.length, mostExperts)));
  const head = `layer  ${"experts' load".padEnd(width)}  max/mean  dropped  coefficient  dead`;
  const line = ({ layer, load, maxOverMeanLoad, dropRate, coefficient, deadExperts }: (typeof layers)[number]): string =>
    [
      String(layer).padStart(5),
      sparkline(condensed(load, mostExperts), 0, 2 / load.length).padEnd(width),
      maxOverMeanLoad.toFixed(2).padStart(8),
      `${(100 * dropRate).toFixed(1)}%`.padStart(7),
      coefficient.toPrecision(3).padStart(11),
      String(deadExperts).padStart(4),
    ].join("  ");
  const hidden = layers.length - shown.length;
  return [head, ...shown.map((layer) => line(layer)), ...(hidden > 0 ? [`       ${hidden} layers in better balance`] : [])];
}

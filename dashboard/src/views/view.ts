/** What every view of runs is given, and questions that several ask. */
import type { EvaluationSeries, GridAnswer, RunDetail, SeriesAnswer } from "../../../src/dashboard/api.ts";
import { runUrl, useAnswers } from "../data.ts";
import type { Line } from "../parts/chart.tsx";
import type { Go, Place } from "../place.ts";

export interface OpenRun {
  readonly detail: RunDetail;
  readonly name: string;
  /** Index of its color. */
  readonly color: number;
  readonly version: number;
}
export interface ViewProps {
  readonly runs: readonly OpenRun[];
  readonly main: OpenRun;
  readonly place: Place;
  readonly go: Go;
}

export const points = 500;

export function rangeQuery(range: Place["range"]): { from?: number; to?: number } {
  return range === null ? {} : { from: range[0], to: range[1] };
}
function versionOf(runs: readonly OpenRun[]): string {
  return runs.map(({ version }) => version).join();
}

/** Scalars of all runs, by run. */
export function useScalars(
  runs: readonly OpenRun[],
  keys: readonly string[],
  range: Place["range"],
  numPoints = points,
): Readonly<Record<string, SeriesAnswer>> {
  const urls = Object.fromEntries(
    runs.map(({ detail }) => [detail.id, runUrl(detail.id, "/series", { keys: keys.join(","), points: numPoints, ...rangeQuery(range) })]),
  );
  return useAnswers<SeriesAnswer>(urls, versionOf(runs));
}
/** Metrics of one layer of all runs that have it. */
export function useLayer(
  runs: readonly OpenRun[],
  layer: number | null,
  keys: readonly string[],
  range: Place["range"],
): Readonly<Record<string, SeriesAnswer>> {
  const having = layer === null ? [] : runs.filter(({ detail }) => detail.layers.some((shape) => shape.layer === layer));
  const urls = Object.fromEntries(
    having.map(({ detail }) => [detail.id, runUrl(detail.id, "/layer", { layer, keys: keys.join(","), points, ...rangeQuery(range) })]),
  );
  return useAnswers<SeriesAnswer>(urls, versionOf(runs));
}
/** One per-layer metric of all runs. */
export function useGrids(
  runs: readonly OpenRun[],
  key: string,
  range: Place["range"],
  numPoints = 240,
): Readonly<Record<string, GridAnswer>> {
  const having = runs.filter(({ detail }) => detail.layerMetrics.includes(key));
  const urls = Object.fromEntries(
    having.map(({ detail }) => [detail.id, runUrl(detail.id, "/grid", { key, points: numPoints, ...rangeQuery(range) })]),
  );
  return useAnswers<GridAnswer>(urls, versionOf(runs));
}
export function useEvaluations(runs: readonly OpenRun[]): Readonly<Record<string, readonly EvaluationSeries[]>> {
  const having = runs.filter(({ detail }) => detail.evaluations.length > 0);
  const urls = Object.fromEntries(having.map(({ detail }) => [detail.id, runUrl(detail.id, "/evaluations", { points: 400 })]));
  return useAnswers<readonly EvaluationSeries[]>(urls, versionOf(runs));
}

/** Name of a line: the run's where several are compared. */
export function lineName(runs: readonly OpenRun[], run: OpenRun, what: string): string {
  return runs.length === 1 ? what : what === "" ? run.name : `${run.name} · ${what}`;
}

/** A line a run of one scalar. */
export function scalarLines(runs: readonly OpenRun[], answers: Readonly<Record<string, SeriesAnswer>>, key: string, label = ""): Line[] {
  return runs.flatMap((run): Line[] => {
    const answer = answers[run.detail.id];
    const series = answer?.series[key];
    if (answer === undefined || series === undefined || series.mean.every((value) => value === null)) return [];
    return [
      { label: lineName(runs, run, label), steps: answer.steps, values: series.mean, low: series.min, high: series.max, color: run.color },
    ];
  });
}

/** Mean over layers, with a band from the least to the greatest layer. */
export function gridLines(
  runs: readonly OpenRun[],
  answers: Readonly<Record<string, GridAnswer>>,
  label = "",
  { dashed = false } = {},
): Line[] {
  return runs.flatMap((run): Line[] => {
    const answer = answers[run.detail.id];
    if (answer === undefined || answer.layers.length === 0) return [];
    const columns = answer.steps.map((_, i) => answer.values.map((row) => row[i] ?? null).filter((value) => value !== null));
    const of = (pick: (values: readonly number[]) => number): (number | null)[] =>
      columns.map((values) => (values.length === 0 ? null : pick(values)));
    if (columns.every((values) => values.length === 0)) return [];
    return [
      {
        label: lineName(runs, run, label),
        steps: answer.steps,
        values: of((values) => values.reduce((a, b) => a + b, 0) / values.length),
        low: of((values) => values.reduce((a, b) => Math.min(a, b))),
        high: of((values) => values.reduce((a, b) => Math.max(a, b))),
        color: run.color,
        dashed,
      },
    ];
  });
}

/** The layer that is looked at: the chosen one where the run has it, otherwise the first. */
export function chosenLayer({ main, place }: ViewProps): number | null {
  const { layers } = main.detail;
  return layers.find(({ layer }) => layer === place.layer)?.layer ?? layers[0]?.layer ?? null;
}

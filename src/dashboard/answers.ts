/** From an index to what a page asks for: a few hundred buckets of a span of steps, however long the run is. */
import type { EvaluationSeries, ExpertsAnswer, GridAnswer, LoadAnswer, MaybeNumber, SeriesAnswer, SimilaritySeries } from "./api.ts";
import { bucketBounds, bucketSeries, rounded, type Column } from "./columns.ts";
import type { LayerMetricKey, MetricsIndex } from "./metrics-index.ts";

/** Steps, both included, and how many buckets at most. */
export interface Span {
  readonly from: number;
  readonly to: number;
  readonly points: number;
}

/** Last step of each bucket. */
function stepsOf(steps: Column, bounds: readonly number[]): number[] {
  return bounds.slice(1).map((end) => steps.get(end - 1));
}

export function scalarSeries(index: MetricsIndex, keys: readonly string[], span: Span): SeriesAnswer {
  const bounds = bucketBounds(...index.rowsBetween(span.from, span.to), span.points);
  const series = keys.flatMap((key) => {
    const column = index.scalars.get(key);
    return column === undefined ? [] : [[key, bucketSeries(column, bounds)] as const];
  });
  return { steps: stepsOf(index.steps, bounds), series: Object.fromEntries(series) };
}

/** Metrics of one layer. */
export function layerSeries(index: MetricsIndex, layer: number, keys: readonly LayerMetricKey[], span: Span): SeriesAnswer {
  const bounds = bucketBounds(...index.rowsBetween(span.from, span.to), span.points);
  const place = index.place(layer);
  const series = keys.flatMap((key) => {
    const column = place === null ? undefined : index.layerMetrics.get(key)?.[place.index];
    return column === undefined ? [] : [[key, bucketSeries(column, bounds)] as const];
  });
  return { steps: stepsOf(index.steps, bounds), series: Object.fromEntries(series) };
}

/** One metric of all layers: means of buckets. */
export function layerGrid(index: MetricsIndex, key: LayerMetricKey, span: Span): GridAnswer {
  const bounds = bucketBounds(...index.rowsBetween(span.from, span.to), span.points);
  const columns = index.layerMetrics.get(key) ?? [];
  return {
    key,
    steps: stepsOf(index.steps, bounds),
    layers: index.layers.map(({ layer }) => layer),
    values: index.layers.map((_, i) => {
      const column = columns[i];
      return bounds.slice(1).map((end, b) => (column === undefined ? null : rounded(column.summary(bounds[b] ?? 0, end).mean)));
    }),
  };
}

/** Loads at the record at or before step `to`, or their mean over all records from `from` to `to`. */
export function expertLoads(index: MetricsIndex, { from, to }: { readonly from: number | null; readonly to: number }): LoadAnswer {
  const table = index.loads;
  const [, end] = index.loadRowsBetween(0, to);
  const first = from === null ? end - 1 : Math.min(index.loadRowsBetween(from, to)[0], end - 1);
  if (table === null || end === 0) return { from: null, to: null, numRecords: 0, layers: [] };
  const means = table.means(first, end);
  return {
    from: index.loadSteps.get(first),
    to: index.loadSteps.get(end - 1),
    numRecords: end - first,
    layers: index.layers.map(({ layer, numExperts }) => {
      const offset = index.place(layer)?.offset ?? 0;
      return { layer, load: Array.from(means.subarray(offset, offset + numExperts), rounded) };
    }),
  };
}

/** Loads of one layer's experts over steps. Null for a layer without experts. */
export function layerExperts(index: MetricsIndex, layer: number, span: Span): ExpertsAnswer | null {
  const [table, place] = [index.loads, index.place(layer)];
  if (table === null || place === null) return null;
  const bounds = bucketBounds(...index.loadRowsBetween(span.from, span.to), span.points);
  const columns = bounds.slice(1).map((end, b) => table.meansOf(place.offset, place.numExperts, bounds[b] ?? 0, end));
  const load = Array.from({ length: place.numExperts }, (_, expert) => columns.map((means) => rounded(means[expert] ?? Number.NaN)));
  return { layer, steps: stepsOf(index.loadSteps, bounds), load };
}

/** All of the evaluations, thinned evenly to `points` a set, the last kept. */
export function evaluationSeries(index: MetricsIndex, points: number): EvaluationSeries[] {
  return [...index.evaluations].map(([name, all]) => {
    const kept = thinned(all, points);
    return {
      name,
      steps: kept.map(({ step }) => step),
      loss: kept.map(({ loss }) => rounded(loss)),
      standardError: kept.map(({ standardError }) => rounded(standardError)),
    };
  });
}

export function similaritySeries(index: MetricsIndex, points: number): SimilaritySeries {
  const kept = thinned(index.similarity, points);
  const layers = [...new Set(kept.flatMap((point) => point.layers.map(({ layer }) => layer)))].toSorted((a, b) => a - b);
  const of = (layer: number, what: "weights" | "outputs"): MaybeNumber[] =>
    kept.map((point) => rounded(point.layers.find((item) => item.layer === layer)?.[what] ?? Number.NaN));
  return {
    steps: kept.map(({ step }) => step),
    layers: layers.map((layer) => ({ layer, weights: of(layer, "weights"), outputs: of(layer, "outputs") })),
  };
}

function thinned<T>(all: readonly T[], points: number): readonly T[] {
  if (all.length <= points) return all;
  return Array.from({ length: points }, (_, i) => all[Math.round(((i + 1) * all.length) / points) - 1]).filter(
    (item) => item !== undefined,
  );
}

/**
 * What a planner must beat: predictors of iteration times that know the same columns and nothing of how a device works.
 *
 * - **one constant**: all products and attention (recomputation included) at one fraction of the peak, times the pipeline's (m + p - 1) / m.
 *   That is the usual back-of-the-envelope formula, with its one number fitted.
 * - **nearest neighbours**: of the three nearest rows (log of every column, each scaled to deviation 1), the mean fraction of the peak
 *   in the same formula. Neighbours of the time itself are far worse.
 * - **regression**: ridge on the log of the time over the log of every column, the formula's log among them; `quadratic` has
 *   all squares and products too. Penalty 1e-3 and 1e-1 on standardized features.
 */
import type { PreparedRow } from "../src/plan/calibrate.ts";
import { recomputeOf } from "../src/plan/memory.ts";

/** Fitted on some rows, predicts the seconds of another. */
export type Predictor = (row: PreparedRow) => number;
export type Fit = (rows: readonly PreparedRow[]) => Predictor;

/** Seconds at the peak of 312 TFLOP/s. */
function idealSeconds({ workload, layout, stages }: PreparedRow): number {
  const { hiddenSize: H, ffnSize: F, ffnMatrices, vocabSize: V, numLayers: L } = workload.model;
  const S = workload.sequenceLength;
  const [first] = stages;
  const passes = first !== undefined && recomputeOf(first, 0) === "full" ? 4 : 3;
  const layer = 2 * (4 * H * H + ffnMatrices * H * F + 2 * S * H);
  const flops = workload.batchSequences * S * (passes * L * layer + 3 * 2 * V * H);
  const microBatches = workload.batchSequences / (layout.dp * layout.microBatch);
  return ((flops / (layout.pp * layout.dp * layout.tp) / 312e12) * (microBatches + layout.pp - 1)) / microBatches;
}

export const oneConstant: Fit = (rows) => {
  const ratios = rows.map((row) => row.seconds / idealSeconds(row)).toSorted((a, b) => a - b);
  // The constant with the least mean of |c * ideal / measured - 1|: the median weighted by 1 / ratio.
  const total = ratios.reduce((sum, ratio) => sum + 1 / ratio, 0);
  let [seen, constant] = [0, 0];
  for (const ratio of ratios) {
    seen += 1 / ratio;
    constant = ratio;
    if (seen >= total / 2) break;
  }
  return (row) => constant * idealSeconds(row);
};

function logFeatures(row: PreparedRow): number[] {
  const { workload, layout } = row;
  const { model, batchSequences, sequenceLength } = workload;
  const values = [
    layout.tp * layout.dp * layout.pp,
    batchSequences,
    layout.microBatch,
    model.hiddenSize,
    model.numHeads,
    model.numLayers,
    sequenceLength,
    layout.tp,
    layout.dp,
    layout.pp,
  ];
  return values.map(Math.log);
}

interface Scale {
  readonly mean: readonly number[];
  readonly deviation: readonly number[];
}
function scaleOf(points: readonly (readonly number[])[]): Scale {
  const mean = (points[0] ?? []).map((_, j) => points.reduce((sum, x) => sum + (x[j] ?? 0), 0) / points.length);
  const deviation = mean.map((m, j) => Math.sqrt(points.reduce((sum, x) => sum + ((x[j] ?? 0) - m) ** 2, 0) / points.length));
  return { mean, deviation };
}
/** Columns that never change become 0. */
function scaled(x: readonly number[], { mean, deviation }: Scale): number[] {
  return x.map((value, j) => ((deviation[j] ?? 0) < 1e-12 ? 0 : (value - (mean[j] ?? 0)) / (deviation[j] ?? 1)));
}

export const nearestNeighbours: Fit = (rows) => {
  const scale = scaleOf(rows.map(logFeatures));
  const known = rows.map((row) => ({ x: scaled(logFeatures(row), scale), ratio: row.seconds / idealSeconds(row) }));
  return (row) => {
    const x = scaled(logFeatures(row), scale);
    const near = known
      .map((other) => ({ ...other, distance: x.reduce((sum, value, j) => sum + (value - (other.x[j] ?? 0)) ** 2, 0) }))
      .toSorted((a, b) => a.distance - b.distance)
      .slice(0, 3);
    return (idealSeconds(row) * near.reduce((sum, { ratio }) => sum + ratio, 0)) / near.length;
  };
};

/** Ridge regression on standardized features of `logFeatures`. */
export function regression(kind: "linear" | "quadratic"): Fit {
  const penalty = kind === "linear" ? 1e-3 : 1e-1;
  const features = (row: PreparedRow): number[] => {
    const x = [...logFeatures(row), Math.log(idealSeconds(row))];
    return kind === "linear" ? x : [...x, ...x.flatMap((a, i) => x.slice(i).map((b) => a * b))];
  };
  return (rows) => {
    const scale = scaleOf(rows.map(features));
    const X = rows.map((row) => scaled(features(row), scale));
    const y = rows.map((row) => Math.log(row.seconds));
    const middle = y.reduce((sum, value) => sum + value, 0) / y.length;
    const weights = solveRidge(
      X,
      y.map((value) => value - middle),
      penalty * rows.length,
    );
    return (row) => Math.exp(middle + scaled(features(row), scale).reduce((sum, value, j) => sum + value * (weights[j] ?? 0), 0));
  };
}

/** (X^T X + penalty I) w = X^T y by Cholesky's method. */
function solveRidge(X: readonly (readonly number[])[], y: readonly number[], penalty: number): number[] {
  const n = X[0]?.length ?? 0;
  const factor = Array.from({ length: n }, (_, i) =>
    Array.from({ length: n }, (_2, j) => X.reduce((sum, x) => sum + (x[i] ?? 0) * (x[j] ?? 0), i === j ? penalty : 0)),
  );
  const at = (i: number, j: number): number => factor[i]?.[j] ?? 0;
  for (const [i, row] of factor.entries()) {
    for (let j = 0; j <= i; j++) {
      let sum = at(i, j);
      for (let k = 0; k < j; k++) sum -= at(i, k) * at(j, k);
      row[j] = i === j ? Math.sqrt(sum) : sum / at(j, j);
    }
  }
  const w = Array.from({ length: n }, (_, i) => X.reduce((sum, x, r) => sum + (x[i] ?? 0) * (y[r] ?? 0), 0));
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < i; k++) w[i] = (w[i] ?? 0) - at(i, k) * (w[k] ?? 0);
    w[i] = (w[i] ?? 0) / at(i, i);
  }
  for (let i = n - 1; i >= 0; i--) {
    for (let k = i + 1; k < n; k++) w[i] = (w[i] ?? 0) - at(k, i) * (w[k] ?? 0);
    w[i] = (w[i] ?? 0) / at(i, i);
  }
  return w;
}

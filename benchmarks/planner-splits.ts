/**
 * The planner against measured iteration times: the data, how it is split, and errors of ours and of the baselines on each split.
 *
 * - **halves**: fit on a random half, predict the other, for five seeds.
 * - **leave one size out**: fit on all rows but those of one model size (hidden size and layers), predict these, for every size.
 * - **leave one hidden size out** (single node): as before for all models of a hidden size at once.
 * - **single to multi**: fit on one node, take the network from its specification, predict every multi-node row.
 *
 * Every fit starts from the same round numbers (`usualEfficiency`), which nobody fitted to these rows.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { findClusterPreset } from "../src/config/cluster.ts";
import type { ClusterConfig, EfficiencyConfig } from "../src/config/cluster.ts";
import { fitEfficiency, predictRows, prepareRow, type PreparedRow } from "../src/plan/calibrate.ts";
import { parseMeasurements } from "../src/plan/measurements.ts";
import { softwarePresets } from "../src/plan/software.ts";
import { Random } from "../src/util/random.ts";
import { nearestNeighbours, oneConstant, regression, type Fit } from "./planner-baselines.ts";

export const files = {
  /** One node of A100: everything is kept, nothing recomputed (a micro-batch fits; runs of unequal stages agree). */
  single: { path: "vtrain-single.csv", recompute: "none" },
  /** 64 to 512 A100: full recomputation (without it the larger models do not fit by far). */
  multi: { path: "vtrain-multi.csv", recompute: "full" },
} as const;
export type FileName = keyof typeof files;

/** A100 of 80 GB in nodes of 8, 800 Gb/s a node, with round efficiencies. */
export const startCluster: ClusterConfig = findClusterPreset("a100-80");
export const software = softwarePresets["megatron-deepspeed"];

export function dataFolder(): string {
  return join(process.env["MOE_SHARED_DATA"] ?? join(import.meta.dirname, "..", "..", "shared", "data"), "planner");
}

/** Rows of a file, or null where it is not here. */
export function loadRows(name: FileName): PreparedRow[] | null {
  const { path, recompute } = files[name];
  const whole = join(dataFolder(), path);
  if (!existsSync(whole)) return null;
  return parseMeasurements(readFileSync(whole, "utf8"), path).map((row) => prepareRow(row, software, recompute));
}

/** Our model as a predictor; what it fitted comes out through `onFit`. */
export function ours(onFit?: (efficiency: EfficiencyConfig) => void): Fit {
  return (rows) => {
    const efficiency = fitEfficiency(rows, { cluster: startCluster, minimizer: { restarts: 3, iterations: 400 } });
    onFit?.(efficiency);
    const cluster = { ...startCluster, efficiency };
    return (row) => predictRows([row], cluster)[0] ?? Number.NaN;
  };
}

export const predictors = {
  ours: ours(),
  "one constant": oneConstant,
  "nearest neighbours": nearestNeighbours,
  regression: regression("linear"),
  "quadratic regression": regression("quadratic"),
} as const satisfies Record<string, Fit>;
export type PredictorName = keyof typeof predictors;
export const predictorNames = Object.keys(predictors) as PredictorName[];

export interface Split {
  readonly label: string;
  readonly fit: readonly PreparedRow[];
  readonly test: readonly PreparedRow[];
}

/** Five random halves, from seeds 1 to 5. */
export function halves(rows: readonly PreparedRow[]): Split[] {
  return [1, 2, 3, 4, 5].map((seed) => {
    const order = [...rows];
    new Random(seed).shuffle(order);
    const middle = order.length >> 1;
    return { label: `half ${seed}`, fit: order.slice(0, middle), test: order.slice(middle) };
  });
}

/** One split for every value of `keyOf`: its rows are predicted, the others fitted. */
export function leaveOut(rows: readonly PreparedRow[], keyOf: (row: PreparedRow) => string): Split[] {
  return [...new Set(rows.map(keyOf))].map((key) => ({
    label: key,
    fit: rows.filter((row) => keyOf(row) !== key),
    test: rows.filter((row) => keyOf(row) === key),
  }));
}
export function modelSize({ workload: { model } }: PreparedRow): string {
  return `hidden ${model.hiddenSize}, ${model.numLayers} layers`;
}
export function hiddenSize({ workload: { model } }: PreparedRow): string {
  return `hidden ${model.hiddenSize}`;
}

/** |predicted / measured - 1| of every row of the test set. */
export function errorsOf(fit: Fit, split: Split): number[] {
  const predict = fit(split.fit);
  return split.test.map((row) => Math.abs(predict(row) / row.seconds - 1));
}

export function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
/** The value below which a fraction `q` of all lies. */
export function quantile(values: readonly number[], q: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? Number.NaN;
}

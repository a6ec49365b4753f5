/**
 * The planner against our own trainer, from what was measured last (`planner-runtime.csv`, the machine in `planner-runtime.json`): the cluster's
 * constants are calibrated, by what `moe plan calibrate` calls, on some of the runs, and predict the others, layouts that the calibration has not seen.
 *
 * Nothing here is timed: the page and a test read the same files.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseClusterConfig, type ClusterConfig } from "../src/config/cluster.ts";
import { calibrateCluster, prepareRow, type CalibrationReport, type PreparedRow } from "../src/plan/calibrate.ts";
import { createCostModel } from "../src/plan/cost.ts";
import { parseMeasurements, type Measurement } from "../src/plan/measurements.ts";
import { simulateStep } from "../src/plan/simulate.ts";
import { softwarePresets } from "../src/plan/software.ts";
import { CachedCosts, stageTimes, stepTime } from "../src/plan/step-time.ts";
import { runtimeCases } from "./planner-runtime-cases.ts";

const software = softwarePresets["moe.ts"];

export interface Machine {
  readonly processor: string;
  readonly date: string;
  /** Of each case, of which the rows are the medians. */
  readonly samples: number;
  /** Before the calibration: the preset `cpu`, with this machine's peak. */
  readonly cluster: ClusterConfig;
}
/** A machine and what was measured on it. */
export interface MeasuredRuns {
  readonly machine: Machine;
  /** As `moe plan calibrate` takes it. */
  readonly csv: string;
}

export interface PredictedRun {
  readonly name: string;
  readonly measured: Measurement;
  readonly seconds: number;
  readonly bubbleFraction: number;
}
export interface RuntimeScore {
  readonly machine: Machine;
  readonly calibration: CalibrationReport;
  /** Rows that the calibration saw. */
  readonly fitted: readonly PredictedRun[];
  readonly predicted: readonly PredictedRun[];
}

const files = { rows: "planner-runtime.csv", machine: "planner-runtime.json" } as const;

function pathOf(name: keyof typeof files): string {
  return join(import.meta.dirname, files[name]);
}

/** What was measured last, or null. */
export function savedRuns(): MeasuredRuns | null {
  if (!existsSync(pathOf("rows")) || !existsSync(pathOf("machine"))) return null;
  const { cluster, ...machine } = JSON.parse(readFileSync(pathOf("machine"), "utf8")) as Machine;
  return { machine: { ...machine, cluster: parseClusterConfig(cluster, files.machine) }, csv: readFileSync(pathOf("rows"), "utf8") };
}
export function saveRuns({ machine, csv }: MeasuredRuns): void {
  writeFileSync(pathOf("rows"), csv);
  writeFileSync(pathOf("machine"), `${JSON.stringify(machine, null, 2)}\n`);
}

/** Step and bubble of a row under plain 1F1B. */
export function predictRun(measured: Measurement, { workload, layout, stages }: PreparedRow, cluster: ClusterConfig): PredictedRun {
  const cost = createCostModel({ workload, cluster, layout });
  const costs = new CachedCosts(cost);
  const times = stages.map((stage) => stageTimes(costs, stage));
  const { bubbleFraction } = simulateStep({
    schedule: { name: "1f1b", numRanks: layout.pp, numMicroBatches: cost.numMicroBatches },
    stages: times.map(({ forward, backward }) => ({ forward, backwardInput: backward, backwardWeight: 0 })),
    messageSeconds: cost.boundary().seconds,
    overlapMessages: false,
  });
  return { name: measured.name, measured, seconds: stepTime(cost, stages, costs).seconds, bubbleFraction };
}

/** Calibrates on the rows of that role, predicts all. */
export function scoreRuns({ machine, csv }: MeasuredRuns): RuntimeScore {
  const rows = parseMeasurements(csv, files.rows);
  const isFit = ({ name }: Measurement): boolean => runtimeCases.find((one) => one.name === name)?.role === "fit";
  const calibration = calibrateCluster(rows.filter(isFit), { cluster: machine.cluster, software, recompute: "none" });
  const predict = (row: Measurement): PredictedRun => predictRun(row, prepareRow(row, software, "none"), calibration.cluster);
  return {
    machine,
    calibration,
    fitted: rows.filter(isFit).map(predict),
    predicted: rows.filter((row) => !isFit(row)).map(predict),
  };
}

export function errorOf({ measured, seconds }: PredictedRun): number {
  return Math.abs(seconds / measured.seconds - 1);
}
/** In parts of the pipeline's time: a percentage point is 0.01. */
export function bubbleErrorOf({ measured, bubbleFraction }: PredictedRun): number {
  return Math.abs(bubbleFraction - (measured.bubbleFraction ?? Number.NaN));
}

/**
 * Fits a cluster's efficiency to measured iteration times.
 *
 * Every row is predicted by the same cost model and schedule that plan (`cost.ts`, `step-time.ts`); the constants are those of
 * `EfficiencyConfig`, the same for all rows. Fractions are fitted between 0 and 1, seconds on a logarithmic scale. The objective is
 * the mean absolute error relative to the measured time, which is what is reported; a few rows that a cluster ran badly do not pull
 * it. The minimizer starts from the cluster's own constants and is deterministic.
 */
import type { ClusterConfig, EfficiencyConfig } from "../config/cluster.ts";
import { MoeError } from "../util/errors.ts";
import { createCostModel } from "./cost.ts";
import type { Measurement } from "./measurements.ts";
import { minimize, type MinimizeOptions } from "./minimize.ts";
import { plainRouting } from "../config/model.ts";
import { paddedVocabulary } from "./megatron-arguments.ts";
import { gptShape } from "./shape.ts";
import { CachedCosts, evenStages, stepTime } from "./step-time.ts";
import type { ModelShape, PlanLayout, Recompute, Software, StagePlan, Workload } from "./types.ts";

export type EfficiencyKey = keyof EfficiencyConfig;
/** Constants that are fractions of a peak. */
const fractions: ReadonlySet<EfficiencyKey> = new Set(["gemm", "memory", "intraLink", "interLink", "overlap", "attention", "together"]);
/**
 * The constants that rows can tell apart: those of the device and the host; the latency of collectives inside a node where a row has any; the
 * network's share where a row's groups span nodes; of cores, fused attention's speed, and what they leave each other where rows show it. Link bandwidths inside a node and the other constants stay what the cluster says, because measured steps hardly depend on them.
 */
export function fittedKeys(rows: readonly PreparedRow[], { nodes }: ClusterConfig): EfficiencyKey[] {
  const perNode = nodes[0]?.devicesPerNode ?? 1;
  const sizes = new Set(rows.map(({ layout: { tp, dp, pp } }) => tp * dp * pp));
  const isHost = nodes[0]?.device.isHost === true;
  // What a core spends on launching cannot be told from what an operation takes besides its work.
  const keys: EfficiencyKey[] = ["gemm", "memory", "kernelSeconds", ...(isHost ? [] : (["hostSeconds"] as const))];
  if (rows.some(({ layout }) => layout.tp > 1)) keys.push("intraStepSeconds");
  if ([...sizes].some((size) => size > perNode)) keys.push("interLink");
  if (isHost && rows.some(({ workload }) => workload.software.attention === "flash")) keys.push("attention");
  if (isHost && sizes.size > 1) keys.push("together");
  return keys;
}
/** What a constant on a logarithmic scale starts from where it is 0. */
const smallest = 1e-7;

/**
 * Weight of how far constants move from where they start (squares of logarithms, of log-odds for fractions), beside an error of about 0.05:
 * what the rows do not tell stays where it was instead of running away.
 */
const priorWeight = 0.002;

export interface CalibrationOptions {
  readonly cluster: ClusterConfig;
  /** Constants to fit; the others stay the cluster's. Default: `fittedKeys` of the rows. */
  readonly keys?: readonly EfficiencyKey[];
  readonly minimizer?: MinimizeOptions;
}

/** A row in the planner's words. */
export interface PreparedRow {
  readonly workload: Workload;
  readonly layout: PlanLayout;
  readonly stages: readonly StagePlan[];
  readonly seconds: number;
  /** Rows with the same key have layers, embeddings and heads of the same cost, where devices of a node do not slow each other down. */
  readonly key: string;
}

export function prepareRow(row: Measurement, software: Software, recompute: Recompute): PreparedRow {
  const { tp, dp, pp, ep, etp, zero, microBatch, numLayers, hiddenSize, numHeads, numKvHeads, ffnSize, sequenceLength, numExperts, topK } =
    row;
  const gpt = gptShape({ numLayers, hiddenSize, numHeads, vocabSize: paddedVocabulary(row.vocabSize, tp) });
  const model: ModelShape =
    ffnSize === null
      ? { ...gpt, numKvHeads }
      : {
          ...gpt,
          numKvHeads,
          ffnSize,
          ffnMatrices: 3,
          style: "llama",
          tiedEmbeddings: false,
          moe: numExperts === 0 ? null : { ...plainRouting, numExperts, topK, expertFfnSize: ffnSize },
        };
  const choice = row.recompute ?? recompute;
  const sizes = [hiddenSize, numHeads, numKvHeads, model.vocabSize, ffnSize, numExperts, topK, sequenceLength];
  const layout: PlanLayout = { pp, dp, tp, ep, etp, microBatch, interleave: 1, sequenceParallel: row.sequenceParallel, zero };
  return {
    workload: { model, sequenceLength, batchSequences: row.batchSequences, software },
    layout,
    stages: stagesOfRow(row, choice),
    seconds: row.seconds,
    key: [...sizes, tp, ep, etp, microBatch, row.sequenceParallel, choice].join(),
  };
}

/** As even as can be, unless the row says. */
export function stagesOfRow(
  { numLayers, pp, stageLayers, recomputedLayers }: Pick<Measurement, "numLayers" | "pp" | "stageLayers" | "recomputedLayers">,
  choice: Recompute,
): StagePlan[] {
  let firstLayer = 0;
  return evenStages(numLayers, pp, choice).map((even, s) => {
    const layers = stageLayers?.[s] ?? even.numLayers;
    const full = recomputedLayers?.[s] ?? (choice === "full" ? layers : 0);
    const selective = recomputedLayers === null && choice === "selective" ? layers : 0;
    const stage = { ...even, firstLayer, numLayers: layers, fullRecompute: full, selectiveRecompute: selective };
    firstLayer += layers;
    return stage;
  });
}

/** Predicted seconds of each row, in their order. */
export function predictRows(rows: readonly PreparedRow[], cluster: ClusterConfig): number[] {
  const shared = new Map<string, CachedCosts>();
  const alike = cluster.efficiency.together === 1;
  return rows.map(({ workload, layout, stages, key: sizes }) => {
    const cost = createCostModel({ workload, cluster, layout });
    // Devices that slow each other down are as fast as the layout lets the others compute.
    const key = alike ? sizes : [sizes, layout.pp, layout.dp, cost.numMicroBatches].join();
    let costs = shared.get(key);
    if (costs === undefined) shared.set(key, (costs = new CachedCosts(cost)));
    return stepTime(cost, stages, costs).seconds;
  });
}

/** Mean of |predicted / measured - 1|. */
export function meanError(predicted: readonly number[], rows: readonly { readonly seconds: number }[]): number {
  return predicted.reduce((sum, seconds, i) => sum + Math.abs(seconds / (rows[i]?.seconds ?? 1) - 1), 0) / predicted.length;
}

/** The efficiency that fits the rows best, found from the cluster's own. */
export function fitEfficiency(rows: readonly PreparedRow[], options: CalibrationOptions): EfficiencyConfig {
  const { cluster, keys = fittedKeys(rows, cluster) } = options;
  const decode = (x: readonly number[]): EfficiencyConfig => {
    const fitted = keys.map((key, i) => [key, fractions.has(key) ? 1 / (1 + Math.exp(-(x[i] ?? 0))) : Math.exp(x[i] ?? 0)]);
    return { ...cluster.efficiency, ...Object.fromEntries(fitted) };
  };
  const start = keys.map((key) => {
    const value = cluster.efficiency[key];
    if (!fractions.has(key)) return Math.log(Math.max(smallest, value));
    const inside = Math.min(0.99, Math.max(0.01, value));
    return Math.log(inside / (1 - inside));
  });
  const objective = (x: readonly number[]): number => {
    const away = x.reduce((sum, value, i) => sum + (value - (start[i] ?? 0)) ** 2, 0);
    return meanError(predictRows(rows, { ...cluster, efficiency: decode(x) }), rows) + priorWeight * away;
  };
  return decode(minimize(objective, start, options.minimizer).x);
}

export interface CalibrateClusterOptions {
  readonly cluster: ClusterConfig;
  readonly software: Software;
  /** Recomputation of rows that do not say. */
  readonly recompute: Recompute;
  readonly minimizer?: MinimizeOptions;
}

export interface CalibrationReport {
  /** With the fitted efficiency. */
  readonly cluster: ClusterConfig;
  readonly fitted: readonly EfficiencyKey[];
  readonly numRows: number;
  /** With the cluster's own constants. */
  readonly meanErrorBefore: number;
  readonly meanError: number;
  /** Of rows that were not fitted: five folds, every fifth row each. Null below ten rows. */
  readonly heldOutError: number | null;
  /** Up to five, the worst first. */
  readonly worst: readonly { readonly line: number; readonly measuredSeconds: number; readonly predictedSeconds: number }[];
}

const numFolds = 5;

/** Fits and judges: what `moe plan calibrate` does. Throws `configuration` for a cluster of several kinds of nodes, and where its device does not compute in the software's type. */
export function calibrateCluster(measurements: readonly Measurement[], options: CalibrateClusterOptions): CalibrationReport {
  const { cluster, software, recompute, minimizer = { restarts: 3, iterations: 300 } } = options;
  if (cluster.nodes.length > 1) {
    const names = cluster.nodes.map(({ device }) => device.name).join(", ");
    throw new MoeError(
      "configuration",
      `cluster ${cluster.name}: rows do not say which of its kinds of nodes they ran on (${names}); calibrate one kind at a time`,
    );
  }
  const rows = measurements.map((row) => prepareRow(row, software, recompute));
  const keys = fittedKeys(rows, cluster);
  const fitOptions = { cluster, keys, minimizer };
  const fitted = { ...cluster, efficiency: fitEfficiency(rows, fitOptions) };
  const predicted = predictRows(rows, fitted);
  const worst = measurements
    .map(({ line, seconds }, i) => ({ line, measuredSeconds: seconds, predictedSeconds: predicted[i] ?? 0 }))
    .toSorted((a, b) => Math.abs(b.predictedSeconds / b.measuredSeconds - 1) - Math.abs(a.predictedSeconds / a.measuredSeconds - 1));
  return {
    cluster: fitted,
    fitted: keys,
    numRows: rows.length,
    meanErrorBefore: meanError(predictRows(rows, cluster), rows),
    meanError: meanError(predicted, rows),
    heldOutError: rows.length < 2 * numFolds ? null : heldOutError(rows, { ...fitOptions, minimizer: { restarts: 2, iterations: 150 } }),
    worst: worst.slice(0, 5),
  };
}

/** Every fold starts from the cluster's own constants: nothing of the rows that it predicts. */
function heldOutError(rows: readonly PreparedRow[], options: CalibrationOptions): number {
  let sum = 0;
  for (let fold = 0; fold < numFolds; fold++) {
    const held = rows.filter((_, i) => i % numFolds === fold);
    const efficiency = fitEfficiency(
      rows.filter((_, i) => i % numFolds !== fold),
      options,
    );
    sum += meanError(predictRows(held, { ...options.cluster, efficiency }), held) * held.length;
  }
  return sum / rows.length;
}

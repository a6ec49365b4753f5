/**
 * Rows `planner.runtime.<case>`: error of the planner's time of a step of our own trainer, of layouts that its calibration has not seen; `.mean`: of all;
 * `planner.runtime.bubble.<case>`: error of the pipeline's idle share, 0.01 a percentage point.
 *
 * `--only planner.runtime` measures, and keeps what it measured unless it is `--quick`; other runs of the theme take what was kept.
 */
import { cpus } from "node:os";
import { findClusterPreset, type ClusterConfig } from "../src/config/cluster.ts";
import { wanted, type Context } from "./context.ts";
import { efforts, median, type Row } from "./measure.ts";
import { runtimeCases } from "./planner-runtime-cases.ts";
import { measureCases, measurementsCsv, stepsOfTurn } from "./planner-runtime-measure.ts";
import { bubbleErrorOf, errorOf, savedRuns, saveRuns, scoreRuns, type MeasuredRuns, type PredictedRun } from "./planner-runtime-score.ts";
import type { Roof } from "./process.ts";

const bars = { time: 0.1, bubble: 0.05 } as const;
const prefix = "planner.runtime";

export async function* runtimeRows(context: Context): AsyncGenerator<Row> {
  const names = wanted(context, rowNames());
  if (names.length === 0) return;
  const runs = context.only.startsWith(prefix) ? await measureRuns(context) : savedRuns();
  if (runs === null) {
    const note = `nothing was measured yet: npm run bench -- planner --only ${prefix}`;
    for (const name of names) yield { name, ours: [], rival: [], unit: "share", bar: null, note };
    return;
  }
  const all = rowsOf(scoreRuns(runs).predicted);
  for (const name of names) yield* all.filter((one) => one.name === name);
}

function rowNames(): string[] {
  const predicted = runtimeCases.filter(({ role }) => role !== "fit");
  const piped = predicted.filter(({ layout }) => (layout.pp ?? 1) > 1);
  return [...predicted.map(({ name }) => `${prefix}.${name}`), `${prefix}.mean`, ...piped.map(({ name }) => `${prefix}.bubble.${name}`)];
}

function rowsOf(predicted: readonly PredictedRun[]): Row[] {
  const row = (name: string, error: number, bar: number, note: string): Row => ({
    name: `${prefix}.${name}`,
    ours: [error],
    rival: [],
    unit: "share",
    bar,
    note,
  });
  const ms = (seconds: number): string => `${(1000 * seconds).toFixed(1)} ms`;
  const percent = (share: number): string => `${(100 * share).toFixed(1)}%`;
  const errors = predicted.map(errorOf);
  const mean = errors.reduce((sum, error) => sum + error, 0) / errors.length;
  return [
    ...predicted.flatMap((run): Row[] => {
      const { name, measured, seconds, bubbleFraction } = run;
      const time = row(name, errorOf(run), bars.time, `${ms(seconds)} predicted, ${ms(measured.seconds)} measured`);
      if (measured.bubbleFraction === null) return [time];
      const note = `${percent(bubbleFraction)} of the pipeline's time predicted, ${percent(measured.bubbleFraction)} measured`;
      return [time, row(`bubble.${name}`, bubbleErrorOf(run), bars.bubble, note)];
    }),
    row("mean", mean, bars.time, `of ${errors.length} layouts; median ${percent(median(errors))}`),
  ];
}

async function measureRuns({ effort, roof, log }: Context): Promise<MeasuredRuns> {
  const cluster = await thisCluster(roof);
  const rounds = Math.min(5, effort.samples);
  const csv = measurementsCsv(await measureCases({ rounds, log }));
  const processor = cpus()[0]?.model ?? "unknown";
  const runs = { machine: { processor, date: new Date().toISOString().slice(0, 10), samples: stepsOfTurn * rounds, cluster }, csv };
  if (effort.samples < efforts.full.samples) log("few samples: not kept");
  else saveRuns(runs);
  return runs;
}

/** This machine as a cluster of one node: the preset `cpu` with the peak that its roof has on one core. */
async function thisCluster(roof: Pick<Roof, "sample">): Promise<ClusterConfig> {
  const preset = findClusterPreset("cpu");
  const [node] = preset.nodes;
  if (node === undefined) throw new Error("the preset has no nodes");
  let peak = 0;
  for (let i = 0; i < 5; i++) peak = Math.max(peak, await roof.sample("fma", 1));
  const device = { ...node.device, name: "core", peakFlops: { f32: Math.round(peak) * 1e9 } };
  return { ...preset, name: "this machine", nodes: [{ ...node, device }] };
}

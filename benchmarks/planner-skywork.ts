/**
 * What is published of Skywork-13B's and Skywork-MoE's training, against the planner: six layouts of one model (arXiv 2310.19341), the
 * 1536-device run and the uneven pipeline of arXiv 2406.06563.
 */
import { findClusterPreset, withNumDevices, type ClusterConfig, type EfficiencyConfig } from "../src/config/cluster.ts";
import { forwardFlopsPerToken, numActiveParams } from "../src/config/model-counts.ts";
import { modelPresets } from "../src/config/model-presets.ts";
import { fitEfficiency, type PreparedRow } from "../src/plan/calibrate.ts";
import { createCostModel } from "../src/plan/cost.ts";
import { planTraining, type PlanReport } from "../src/plan/plan.ts";
import { oneForwardOneBackwardSeconds, pipelineScratch } from "../src/plan/pipeline-time.ts";
import { shapeOf } from "../src/plan/shape.ts";
import { softwarePresets } from "../src/plan/software.ts";
import { evenStages, stepTime } from "../src/plan/step-time.ts";
import type { PlanLayout, Workload } from "../src/plan/types.ts";

const dense = modelPresets["skywork-13b"];
const moe = modelPresets["skywork-moe"];
const software = softwarePresets.megatron;
const one: PlanLayout = { pp: 1, dp: 1, tp: 1, ep: 1, etp: 1, microBatch: 1, interleave: 1, sequenceParallel: false, zero: 1 };

/** 512 A800, 4096 sequences of 4096 tokens, micro-batch 1, ZeRO-1; tokens a GPU and second, 0: out of memory. */
export const skywork13b = [
  { layout: { ...one, dp: 256, pp: 2 }, measured: 1873 },
  { layout: { ...one, dp: 256, tp: 2 }, measured: 1775 },
  { layout: { ...one, dp: 128, tp: 2, pp: 2 }, measured: 1776 },
  { layout: { ...one, dp: 128, pp: 4 }, measured: 1828 },
  { layout: { ...one, dp: 128, tp: 4 }, measured: 1417 },
  { layout: { ...one, dp: 512 }, measured: 0 },
] as const satisfies readonly { readonly layout: PlanLayout; readonly measured: number }[];

const tokens13b = 4096 * 4096;
const workload13b: Workload = { model: shapeOf(dense), sequenceLength: 4096, batchSequences: 4096, software };
export const a800 = withNumDevices(findClusterPreset("a800"), 512);
/** What the calibration on Skywork-13B's rows fits. */
export const fittedOnSkywork = ["gemm", "intraStepSeconds", "interLink"] as const;

const rows13b: PreparedRow[] = skywork13b
  .filter(({ measured }) => measured > 0)
  .map(({ layout, measured }) => ({
    workload: workload13b,
    layout,
    stages: evenStages(dense.numLayers, layout.pp, "none"),
    seconds: tokens13b / 512 / measured,
    key: JSON.stringify([layout.tp, layout.pp]),
  }));

/** One calibration for all rows; or without the row `except`. */
export function calibrate13b(except?: number): EfficiencyConfig {
  return fitEfficiency(
    rows13b.filter((_, i) => i !== except),
    { cluster: a800, keys: fittedOnSkywork },
  );
}

export interface Prediction13b {
  readonly tokensPerGpuPerSecond: number;
  /** Of the fullest stage. */
  readonly memoryBytes: number;
}

export function predict13b(layout: PlanLayout, efficiency: EfficiencyConfig): Prediction13b {
  const cost = createCostModel({ workload: workload13b, cluster: { ...a800, efficiency }, layout });
  const stages = evenStages(dense.numLayers, layout.pp, "none");
  const memory = stages.map((stage, s) => cost.stageMemory(stage, Math.min(layout.pp - s, cost.numMicroBatches)).total);
  return { tokensPerGpuPerSecond: tokens13b / 512 / stepTime(cost, stages).seconds, memoryBytes: Math.max(...memory) };
}

/** The 1536 devices of Skywork-MoE's run, calibrated on Skywork-13B's. */
export function moeCluster(efficiency: EfficiencyConfig): ClusterConfig {
  return withNumDevices({ ...a800, efficiency }, 1536);
}
export const moeSequenceLength = 8192;
export const reportedMoe = { tokensPerGpuPerSecond: 690, mfu: 0.38 };

/** The run's layout with `batchSequences`; `found`: any layout. */
export function planMoe(cluster: ClusterConfig, batchSequences: number, which: "reported" | "found"): PlanReport {
  const fixed =
    which === "reported" ? { pp: 12, dp: 32, tp: 4, ep: 4, etp: 1, microBatch: 1, interleave: 1, zero: 1, sequenceParallel: false } : {};
  const request = { model: moe, cluster, sequenceLength: moeSequenceLength, batchTokens: batchSequences * moeSequenceLength };
  return planTraining({ ...request, fixed: fixed as Partial<PlanLayout> }).report;
}

/** Utilization at `tokensPerGpuPerSecond` under each usual way of counting FLOPs a token. */
export function utilizations(tokensPerGpuPerSecond: number): { readonly definition: string; readonly mfu: number }[] {
  const active = numActiveParams(moe);
  const { numLayers: L, numHeads, headDim, vocabSize, hiddenSize: H } = moe;
  const S = moeSequenceLength;
  // Scores and weighted values of all S keys of each query, forward and twice backward.
  const fullAttention = 3 * 4 * L * S * numHeads * headDim;
  const counted = 3 * forwardFlopsPerToken(moe, S);
  const ways: [string, number][] = [
    ["6 N: active parameters, embeddings included", 6 * active],
    ["6 N without the input embedding", 6 * (active - vocabSize * H)],
    ["products and causal attention (ours: what `moe plan` prints)", counted],
    ["products and attention over all keys (Megatron's formula)", counted + fullAttention / 2],
    ["the same with a second forward pass (hardware FLOPs under full recomputation)", (4 / 3) * (counted + fullAttention / 2)],
  ];
  return ways.map(([definition, flops]) => ({ definition, mfu: (tokensPerGpuPerSecond * flops) / 312e12 }));
}

/** Makespan of 1F1B in layer-forwards under the report's assumptions: backward = 2 forwards, loss = 2 layer-forwards on the last stage. */
export function reportedExample(
  layers: readonly number[],
  numMicroBatches: number,
): { readonly stageUnits: number[]; readonly units: number } {
  const P = layers.length;
  // The loss is one piece of work of 2; a third of it forward as for layers.
  const loss = (s: number): number => (s === P - 1 ? 2 : 0);
  const forward = Float64Array.from(layers, (n, s) => n + loss(s) / 3);
  const backward = Float64Array.from(layers, (n, s) => 2 * n + (2 * loss(s)) / 3);
  const units = oneForwardOneBackwardSeconds(forward, backward, new Float64Array(P), P, numMicroBatches, pipelineScratch(P));
  return { stageUnits: layers.map((n, s) => 3 * n + loss(s)), units };
}

/**
 * What choosing layers and recomputation stage by stage brings, end to end: Skywork-MoE's 52 layers on 12 stages (DP 32, TP = EP 4, 64
 * micro-batches), against the best that even counts and one recompute count for all stages can do (what Megatron's flags say). "Even" is every
 * arrangement of eight stages of 4 and four of 5 layers, the best of them; both sides have the embedding and the loss in their costs, and
 * the same memory limit.
 */
import type { ClusterConfig } from "../src/config/cluster.ts";
import { modelPresets } from "../src/config/model-presets.ts";
import { createCostModel } from "../src/plan/cost.ts";
import { partitionLayers, type LayerPartition } from "../src/plan/partition.ts";
import { shapeOf } from "../src/plan/shape.ts";
import { softwarePresets } from "../src/plan/software.ts";
import { StageCosts, type RecomputeCounts } from "../src/plan/stage-costs.ts";

const [P, L, M] = [12, 52, 64];

export interface Gain {
  readonly memoryBytes: number;
  /** Null: nothing even fits. */
  readonly even: { readonly layers: readonly number[]; readonly recompute: number; readonly seconds: number } | null;
  readonly ours: { readonly layers: readonly number[]; readonly recompute: readonly number[]; readonly seconds: number } | null;
}

/** Both splits under a limit of `memoryBytes` a device. */
export function partitionGain(cluster: ClusterConfig, memoryBytes: number): Gain {
  const workload = {
    model: shapeOf(modelPresets["skywork-moe"]),
    sequenceLength: 8192,
    batchSequences: 32 * M,
    software: softwarePresets.megatron,
  };
  const layout = { pp: P, dp: 32, tp: 4, ep: 4, etp: 1, microBatch: 1, interleave: 1, sequenceParallel: false, zero: 1 } as const;
  const costs = new StageCosts(createCostModel({ workload, cluster, layout }), memoryBytes);
  const message = costs.model.boundary().seconds;
  const split = (choose: (stage: number, first: number, n: number) => RecomputeCounts | null): LayerPartition | null =>
    partitionLayers({
      numStages: P,
      numLayers: L,
      numMicroBatches: M,
      maxNodes: 200_000,
      candidate(stage, first, n) {
        const counts = choose(stage, first, n);
        if (counts === null) return null;
        const time = costs.time(first, n, counts);
        const end = costs.stepEnd(first, n);
        return {
          forward: time.forward + (stage < P - 1 ? message : 0),
          backward: time.backwardInput + time.backwardWeight + (stage > 0 ? message : 0),
          gradients: end.gradientSeconds,
          optimizer: end.optimizerSeconds,
        };
      },
    });
  let even: Gain["even"] = null;
  for (let full = 0; full <= Math.ceil(L / P); full++) {
    const found = split((stage, first, n) => {
      const counts = { full: Math.min(full, n), selective: 0 };
      const isEven = n === Math.floor(L / P) || n === Math.ceil(L / P);
      return isEven && costs.bytes(first, n, counts, P - stage) <= memoryBytes ? counts : null;
    });
    if (found !== null && (even === null || found.seconds < even.seconds))
      even = { layers: found.layers, recompute: full, seconds: found.seconds };
  }
  const found = split((stage, first, n) => costs.recompute(first, n, P - stage, "auto"));
  if (found === null) return { memoryBytes, even, ours: null };
  let first = 0;
  const recompute = found.layers.map((n, stage) => {
    const counts = costs.recompute(first, n, P - stage, "auto");
    first += n;
    return counts?.full ?? 0;
  });
  return { memoryBytes, even, ours: { layers: found.layers, recompute, seconds: found.seconds } };
}

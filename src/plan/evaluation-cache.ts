/** What is asked of an evaluation, and what the evaluations of one workload on one cluster share. */
import type { ClusterConfig } from "../config/cluster.ts";
import { MoeError } from "../util/errors.ts";
import type { PipelineScheduleName, PipelineScheduleOptions } from "../util/pipeline-schedule.ts";
import { createCostModel } from "./cost.ts";
import { usableBytes } from "./device-time.ts";
import { PartitionScratch } from "./partition.ts";
import { compileSchedule, type CompiledSchedule } from "./simulate.ts";
import { StageCosts, type RecomputePolicy } from "./stage-costs.ts";
import type { PlanLayout, Workload } from "./types.ts";

export interface EvaluateOptions {
  readonly workload: Workload;
  readonly cluster: ClusterConfig;
  /** Default `auto`: the least that fits. A list says how many layers of each stage are recomputed wholly. */
  readonly recompute?: RecomputePolicy | readonly number[];
  /** Layers of each stage. Default: the best. */
  readonly layers?: readonly number[];
  /** Default: interleaved where a rank has several stages, else 1f1b. */
  readonly schedule?: PipelineScheduleName;
  /** Share of a device's memory that is left to the driver, libraries and fragmentation: at least 0, below 1. */
  readonly memoryReserve: number;
  /** Of the partition's search tree. */
  readonly maxNodes?: number;
  /** Splits of interleaved stages that are simulated in search of a better one. Default 0. */
  readonly moves?: number;
}

/** What evaluations of one workload on one cluster share: costs of stages do not depend on the interleaving or on what is recomputed. */
export class EvaluationCache {
  readonly #stageCosts = new Map<string, StageCosts>();
  readonly #schedules = new Map<string, CompiledSchedule>();
  readonly scratch = new PartitionScratch();

  stageCosts(layout: PlanLayout, nodeGroup: number, { workload, cluster, memoryReserve }: EvaluateOptions): StageCosts {
    const device = cluster.nodes[nodeGroup]?.device;
    if (device === undefined) throw new MoeError("internal", `costs of stages: cluster ${cluster.name} has no nodes ${nodeGroup}`);
    const plain = { ...layout, interleave: 1 };
    const key = JSON.stringify([nodeGroup, plain]);
    let costs = this.#stageCosts.get(key);
    if (costs === undefined) {
      const memoryBytes = usableBytes(device, memoryReserve);
      const exposed = { ...cluster, efficiency: { ...cluster.efficiency, overlap: 0 } };
      const sharded = plain.zero < 2 ? null : createCostModel({ workload, cluster: exposed, layout: { ...plain, zero: 3 }, nodeGroup });
      costs = new StageCosts(createCostModel({ workload, cluster, layout: plain, nodeGroup }), memoryBytes, sharded);
      this.#stageCosts.set(key, costs);
    }
    return costs;
  }

  schedule(options: PipelineScheduleOptions): CompiledSchedule {
    const key = JSON.stringify(options);
    let compiled = this.#schedules.get(key);
    if (compiled === undefined) this.#schedules.set(key, (compiled = compileSchedule(options)));
    return compiled;
  }
}

/** Kinds of devices of each pipeline rank: rank r has the devices r * dp * tp to (r + 1) * dp * tp - 1, in the order of the cluster. */
export function stageCostsOfRanks(layout: PlanLayout, options: EvaluateOptions, cache: EvaluationCache): StageCosts[][] {
  const perRank = layout.dp * layout.tp;
  let total = 0;
  const groups = options.cluster.nodes.map(({ devicesPerNode, numNodes }, index) => {
    const start = total;
    total += devicesPerNode * numNodes;
    return { index, start, end: total };
  });
  return Array.from({ length: layout.pp }, (_, rank) =>
    groups
      .filter(({ start, end }) => end > rank * perRank && start < (rank + 1) * perRank)
      .map(({ index }) => cache.stageCosts(layout, index, options)),
  );
}

/** What a simulated step is made of: seconds by what they are spent on, bytes that each pipeline rank holds. */
import type { SimulatedStep } from "./simulate.ts";
import { countsOf, type StageCosts } from "./stage-costs.ts";
import type { StageMemory, StagePlan } from "./types.ts";

/** Seconds of a step by what they are spent on, along the rank with the most work; they add up to the step. */
export interface StepTerms {
  readonly compute: number;
  /** Collectives inside layers. */
  readonly communication: number;
  readonly recompute: number;
  /** What micro-batches take besides their layers (`microBatchSeconds` of the cluster's efficiency). */
  readonly overhead: number;
  /** Messages between stages that the sender waits for. */
  readonly messages: number;
  /** Waiting for other stages. */
  readonly bubble: number;
  /** Exchange of gradients (and weights) over data-parallel ranks that nothing hides. */
  readonly gradients: number;
  readonly optimizer: number;
  readonly step: number;
}

/** A step and what it was simulated from. */
export interface StepParts {
  /** In the order of the model; stage s runs on pipeline rank s mod P. */
  readonly stages: readonly StagePlan[];
  readonly simulated: SimulatedStep;
  /** Of the kinds of devices of each pipeline rank, one at least. */
  readonly ranks: readonly (readonly StageCosts[])[];
  readonly numMicroBatches: number;
}

/** Of one device of each pipeline rank. */
export function rankMemory({ stages, simulated, ranks }: StepParts): StageMemory[] {
  return ranks.map(([costs], rank) => {
    const own = costs === undefined ? [] : stagesOf(stages, rank, ranks.length);
    const held = own.flatMap((stage) => costs?.model.stageMemory(stage, 0) ?? []);
    const sum = (of: (memory: StageMemory) => number): number => held.reduce((total, memory) => total + of(memory), 0);
    const parts = { weights: sum((m) => m.weights), gradients: sum((m) => m.gradients), optimizer: sum((m) => m.optimizer) };
    const activations = simulated.peakActivationBytes[rank] ?? 0;
    const workspace = Math.max(...own.map((stage) => costs?.workspaceBytes(stage.firstLayer, stage.numLayers, countsOf(stage)) ?? 0));
    const total = parts.weights + parts.gradients + parts.optimizer + activations + workspace;
    return { ...parts, activations, workspace, total };
  });
}

/** Along the rank with the most work. */
export function stepTerms({ stages, simulated, ranks, numMicroBatches }: StepParts): StepTerms {
  const { seconds, busySeconds, sendSeconds, pipelineSeconds } = simulated;
  const work = busySeconds.map((busy, r) => busy + (sendSeconds[r] ?? 0));
  const critical = work.indexOf(work.reduce((a, b) => Math.max(a, b), 0));
  const costs = ranks[critical]?.[0];
  const own = stagesOf(stages, critical, ranks.length).flatMap(
    (stage) => costs?.time(stage.firstLayer, stage.numLayers, countsOf(stage)) ?? [],
  );
  const sum = (of: (time: (typeof own)[number]) => number): number => numMicroBatches * own.reduce((total, time) => total + of(time), 0);
  const parts = {
    communication: sum((t) => t.communicationSeconds),
    recompute: sum((t) => t.recomputeSeconds),
    overhead: sum((t) => t.overheadSeconds),
    messages: sendSeconds[critical] ?? 0,
  };
  const step = ranks[0]?.[0]?.model.stepSeconds ?? 0;
  const optimizer = Math.max(
    ...ranks.flatMap((kinds, rank) => {
      const ofRank = stagesOf(stages, rank, ranks.length);
      return kinds.map((kind) => ofRank.reduce((total, s) => total + kind.stepEnd(s.firstLayer, s.numLayers).optimizerSeconds, 0));
    }),
  );
  return {
    // What a slower kind of device than the first takes is computing, too.
    compute: (busySeconds[critical] ?? 0) - parts.communication - parts.recompute - parts.overhead,
    ...parts,
    bubble: pipelineSeconds - (work[critical] ?? 0),
    gradients: seconds - pipelineSeconds - optimizer - step,
    optimizer,
    step,
  };
}

function stagesOf(stages: readonly StagePlan[], rank: number, numRanks: number): StagePlan[] {
  return stages.filter((_, s) => s % numRanks === rank);
}

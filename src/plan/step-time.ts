/**
 * Seconds of a training step under plain 1F1B, from the cost model: stages' passes, the pipeline's longest path, the end of the step.
 *
 * Interleaved and zero-bubble schedules, overlapped messages and timelines are `simulate.ts`; this is the quick form that calibration
 * evaluates a million times.
 */
import { equalCounts } from "../util/partition.ts";
import { expertsOf } from "./shape.ts";
import { recomputeOf } from "./memory.ts";
import { oneForwardOneBackwardSeconds, pipelineScratch } from "./pipeline-time.ts";
import type { CostModel, LayerCost, Recompute, StagePlan } from "./types.ts";

/** A micro-batch's passes on a stage: messages not included, what a micro-batch takes besides layers included. */
export interface StageTimes {
  readonly forward: number;
  readonly backward: number;
}

/** Answers of a cost model, each computed once: layers of the same kind cost the same. */
export class CachedCosts {
  readonly cost: CostModel;
  readonly #layers = new Map<string, LayerCost>();
  #embedding: LayerCost | null = null;
  #head: LayerCost | null = null;

  constructor(cost: CostModel) {
    this.cost = cost;
  }
  layer(layer: number, recompute: Recompute): LayerCost {
    const { model } = this.cost.workload;
    const window = model.slidingWindow !== null && layer >= model.slidingWindow.firstLayer;
    const key = `${recompute} ${expertsOf(model, layer) === null} ${window}`;
    let known = this.#layers.get(key);
    if (known === undefined) this.#layers.set(key, (known = this.cost.layer(layer, recompute)));
    return known;
  }
  get embedding(): LayerCost {
    return (this.#embedding ??= this.cost.embedding());
  }
  get head(): LayerCost {
    return (this.#head ??= this.cost.head());
  }
}

/** Seconds of one micro-batch's passes on `stage`. */
export function stageTimes(costs: CachedCosts, stage: StagePlan): StageTimes {
  let forward = costs.cost.microBatchSeconds / 2;
  let backward = forward;
  const add = (part: LayerCost): void => {
    forward += part.forward.seconds;
    backward += part.backward.seconds + part.recompute.seconds;
  };
  for (let i = 0; i < stage.numLayers; i++) add(costs.layer(stage.firstLayer + i, recomputeOf(stage, i)));
  if (stage.embedding) add(costs.embedding);
  if (stage.head) add(costs.head);
  return { forward, backward };
}

/** Stages of as equal numbers of layers as can be (the first ones get one more), all layers recomputed alike. */
export function evenStages(numLayers: number, pp: number, recompute: Recompute): StagePlan[] {
  let firstLayer = 0;
  return equalCounts(numLayers, pp).map((layers, s) => {
    const stage = {
      firstLayer,
      numLayers: layers,
      fullRecompute: recompute === "full" ? layers : 0,
      selectiveRecompute: recompute === "selective" ? layers : 0,
      embedding: s === 0,
      head: s === pp - 1,
    };
    firstLayer += layers;
    return stage;
  });
}

export interface StepTime {
  readonly seconds: number;
  /** Until the last stage's last backward pass. */
  readonly pipelineSeconds: number;
  /** Of the slowest stages. */
  readonly gradientSeconds: number;
  readonly optimizerSeconds: number;
}

/**
 * A step of `stages` (one for each pipeline rank) under plain 1F1B; the sender of a message waits until it has arrived. `costs` may come
 * from another cost model whose layers cost the same.
 */
export function stepTime(cost: CostModel, stages: readonly StagePlan[], costs = new CachedCosts(cost)): StepTime {
  const P = stages.length;
  const message = cost.boundary().seconds;
  const [forward, backward, gradients] = [new Float64Array(P), new Float64Array(P), new Float64Array(P)];
  let [gradientSeconds, optimizerSeconds] = [0, 0];
  for (const [s, stage] of stages.entries()) {
    const times = stageTimes(costs, stage);
    forward[s] = times.forward + (s < P - 1 ? message : 0);
    backward[s] = times.backward + (s > 0 ? message : 0);
    const end = cost.stepEnd(stage);
    gradients[s] = end.gradientSeconds;
    gradientSeconds = Math.max(gradientSeconds, end.gradientSeconds);
    optimizerSeconds = Math.max(optimizerSeconds, end.optimizerSeconds);
  }
  const scratch = pipelineScratch(P);
  const withGradients = oneForwardOneBackwardSeconds(forward, backward, gradients, P, cost.numMicroBatches, scratch);
  const pipelineSeconds = oneForwardOneBackwardSeconds(forward, backward, new Float64Array(P), P, cost.numMicroBatches, scratch);
  return { seconds: withGradients + optimizerSeconds + cost.stepSeconds, pipelineSeconds, gradientSeconds, optimizerSeconds };
}

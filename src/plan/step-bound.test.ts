import fc from "fast-check";
import { expect, test } from "vitest";
import { findClusterPreset } from "../config/cluster.ts";
import { modelPresets } from "../config/model-presets.ts";
import { plainRouting } from "../config/model.ts";
import type { PipelineScheduleName } from "../util/pipeline-schedule.ts";
import { layerKind } from "./cost.ts";
import { firstLayers } from "./interleaved.ts";
import { shapeOf } from "./shape.ts";
import { simulateStep } from "./simulate.ts";
import { softwarePresets } from "./software.ts";
import { noRecompute, StageCosts } from "./stage-costs.ts";
import { stepBound } from "./step-bound.ts";
import type { CostModel, LayerCost, PlanLayout, StagePlan, Workload } from "./types.ts";

const passes = { communicationSeconds: 0, flops: 0, sentBytes: { tp: 0, ep: 0, pp: 0, dp: 0 } };

/** Often the least or the most: bounds that hold for layers alike fail where one rank has all the work and another all the exchange. */
const extreme = (min: number, max: number): fc.Arbitrary<number> =>
  fc.oneof({ weight: 2, arbitrary: fc.constantFrom(min, max) }, { weight: 1, arbitrary: fc.integer({ min, max }) });

/** What one kind of device takes: seconds of each of the four kinds of layers, of embedding and head, of exchange and update. */
const anyDevice = fc.record({
  layers: fc.array(fc.record({ forward: extreme(1, 30), backward: extreme(1, 30), exchange: extreme(0, 100) }), {
    minLength: 4,
    maxLength: 4,
  }),
  embedding: extreme(0, 20),
  head: extreme(0, 60),
  latency: extreme(0, 3),
  update: extreme(0, 3),
});
type Device = typeof anyDevice extends fc.Arbitrary<infer T> ? T : never;

/** A cost model whose times are those of `device`, and whose bytes tell stages apart. */
function costModel(device: Device, workload: Workload, layout: PlanLayout, numMicroBatches: number): CostModel {
  const cost = (forward: number, backward: number): LayerCost => ({
    forward: { ...passes, seconds: forward },
    backward: { ...passes, seconds: backward },
    recompute: { ...passes, seconds: 0 },
    activationBytes: 0,
    parameters: 0,
    expertParameters: 0,
  });
  const kindsOf = ({ firstLayer, numLayers }: StagePlan): number[] =>
    Array.from({ length: numLayers }, (_, i) => layerKind(workload, firstLayer + i));
  const of = (kind: number): Device["layers"][number] => device.layers[kind] ?? { forward: 0, backward: 0, exchange: 0 };
  return {
    workload,
    cluster: findClusterPreset("a800"),
    layout,
    numMicroBatches,
    layer: (layer) => cost(of(layerKind(workload, layer)).forward, of(layerKind(workload, layer)).backward),
    embedding: () => cost(device.embedding, device.embedding),
    head: () => cost(device.head, device.head),
    boundary: () => ({ seconds: 0, bytes: 0 }),
    microBatchSeconds: 0,
    stageMemory: (stage) => {
      const weights =
        kindsOf(stage).reduce((sum, kind) => sum + 16 ** kind, 0) + (stage.embedding ? 2 ** 20 : 0) + (stage.head ? 2 ** 21 : 0);
      return { weights, gradients: 0, optimizer: 0, activations: 0, workspace: 0, total: weights };
    },
    stepEnd: (stage) => ({
      gradientSeconds: device.latency + kindsOf(stage).reduce((sum, kind) => sum + of(kind).exchange, 0),
      optimizerSeconds: device.update * stage.numLayers,
      sentBytes: 0,
    }),
    stepSeconds: 0,
  };
}

const anyStep = fc
  .record({
    schedule: fc.constantFrom<PipelineScheduleName>("1f1b", "interleaved", "zeroBubble"),
    P: fc.integer({ min: 2, max: 4 }),
    V: fc.integer({ min: 2, max: 3 }),
    M: fc.integer({ min: 1, max: 8 }),
    layersOfStages: fc.oneof(
      fc.constant(new Array<number>(12).fill(1)),
      fc.array(fc.integer({ min: 1, max: 3 }), { minLength: 12, maxLength: 12 }),
    ),
    kindsOfLayers: fc.constantFrom(1, 2, 4),
    devices: fc.array(anyDevice, { minLength: 1, maxLength: 3 }),
  })
  .map(({ V, schedule, layersOfStages, P, ...rest }) => {
    const stagesPerRank = schedule === "interleaved" ? V : 1;
    return { ...rest, P, schedule, V: stagesPerRank, layers: layersOfStages.slice(0, P * stagesPerRank) };
  });

test("no step is below the bound of its layout, whatever layers cost, devices are good at and the split is", () => {
  fc.assert(
    fc.property(anyStep, ({ schedule, P, V, M, layers, kindsOfLayers, devices }) => {
      const numLayers = layers.reduce((a, b) => a + b, 0);
      // Layers with experts and without, with a window and without; or all alike.
      const moe = { ...plainRouting, numExperts: 2, topK: 1, expertFfnSize: 64, layerInterval: kindsOfLayers === 1 ? 1 : 2 };
      const slidingWindow = kindsOfLayers < 4 ? null : { size: 8, firstLayer: Math.ceil(numLayers / 2) };
      const model = { ...modelPresets["mixtral-8x7b"], numLayers, moe, slidingWindow };
      const workload = { model: shapeOf(model), sequenceLength: 64, batchSequences: M, software: softwarePresets.megatron };
      const layout: PlanLayout = { pp: P, dp: 1, tp: 1, ep: 1, etp: 1, microBatch: 1, interleave: V, sequenceParallel: false, zero: 0 };
      const kinds = devices.map((device) => new StageCosts(costModel(device, workload, layout, M), Infinity));
      // Ranks take devices in turn.
      const costsOf = (stage: number): StageCosts | undefined => kinds[(stage % P) % kinds.length];
      const starts = firstLayers(layers);
      const none = { forward: 0, backwardInput: 0, backwardWeight: 0 };
      const ends = layers.map((n, s) => costsOf(s)?.stepEnd(starts[s] ?? 0, n) ?? { gradientSeconds: 0, optimizerSeconds: 0 });
      const ofRank = (rank: number, part: "gradientSeconds" | "optimizerSeconds"): number =>
        ends.reduce((sum, end, s) => sum + (s % P === rank ? end[part] : 0), 0);
      const { seconds } = simulateStep({
        schedule: { name: schedule, numRanks: P, numMicroBatches: M, stagesPerRank: V },
        stages: layers.map((n, s) => costsOf(s)?.time(starts[s] ?? 0, n, noRecompute) ?? none),
        messageSeconds: 0,
        overlapMessages: schedule !== "1f1b",
        stepEnd: Array.from({ length: P }, (_, r) => ({
          gradientSeconds: ofRank(r, "gradientSeconds"),
          optimizerSeconds: ofRank(r, "optimizerSeconds"),
        })),
      });
      expect(stepBound({ layout, schedule, numMicroBatches: M, kinds })).toBeLessThanOrEqual(seconds * (1 + 1e-12));
    }),
    { numRuns: 5000 },
  );
});

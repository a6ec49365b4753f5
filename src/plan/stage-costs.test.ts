import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { findClusterPreset } from "../config/cluster.ts";
import { modelPresets } from "../config/model-presets.ts";
import { plainRouting, type ModelConfig } from "../config/model.ts";
import { createCostModel } from "./cost.ts";
import { softwarePresets } from "./software.ts";
import { shapeOf } from "./shape.ts";
import { StageCosts, type RecomputeCounts } from "./stage-costs.ts";
import type { CostModel, PlanLayout, Software } from "./types.ts";

const layout: PlanLayout = { pp: 4, dp: 2, tp: 2, ep: 2, etp: 1, microBatch: 1, interleave: 1, sequenceParallel: true, zero: 1 };
/** Every second layer has experts, and the later ones a window: four kinds of layers. */
const mixed: ModelConfig = {
  ...modelPresets["mixtral-8x7b"],
  numLayers: 12,
  slidingWindow: { size: 512, firstLayer: 6 },
  moe: { ...plainRouting, numExperts: 8, topK: 2, expertFfnSize: 14_336, layerInterval: 2 },
};
function costModel(model: ModelConfig, differs: Partial<Software> = {}): CostModel {
  const software = { ...softwarePresets.megatron, attention: "materialized", ...differs } as const;
  return createCostModel({
    workload: { model: shapeOf(model), sequenceLength: 2048, batchSequences: 64, software },
    cluster: findClusterPreset("a800"),
    layout,
  });
}

const models = {
  mixed: costModel(mixed),
  skywork: costModel(modelPresets["skywork-moe"]),
  flash: costModel(modelPresets["skywork-13b"], { attention: "flash" }),
  freeing: costModel(modelPresets["skywork-13b"], { freesInBackward: true }),
  freeingMixed: costModel(mixed, { freesInBackward: true }),
};
const anyStage = fc.record({
  name: fc.constantFrom(...(Object.keys(models) as (keyof typeof models)[])),
  a: fc.nat(),
  b: fc.nat(),
  full: fc.nat(),
  selective: fc.nat(),
  inFlight: fc.integer({ min: 0, max: 12 }),
});

function stageOf(
  costs: StageCosts,
  { a, b, full, selective }: { a: number; b: number; full: number; selective: number },
): {
  first: number;
  n: number;
  counts: RecomputeCounts;
} {
  const first = a % costs.numLayers;
  const n = 1 + (b % (costs.numLayers - first));
  const f = full % (n + 1);
  return { first, n, counts: { full: f, selective: selective % (n - f + 1) } };
}

describe("costs of a stage in constant time", () => {
  test("bytes are those of the cost model, and never below them, for any stage and recomputation", () => {
    fc.assert(
      fc.property(anyStage, (drawn) => {
        const model = models[drawn.name];
        const costs = new StageCosts(model, Infinity);
        const { first, n, counts } = stageOf(costs, drawn);
        const memory = model.stageMemory(costs.stagePlan(first, n, counts), drawn.inFlight);
        const { workspace, total } = memory;
        const without = costs.bytes(first, n, counts, drawn.inFlight) - costs.workspaceBytes(first, n, counts);
        expect(without / (total - workspace)).toBeCloseTo(1, 9);
        // The workspace is that of the largest layer of the model: an upper bound where layers differ, exact where they do not.
        const ratio = costs.workspaceBytes(first, n, counts) / workspace;
        expect(ratio).toBeGreaterThanOrEqual(1 - 1e-12);
        if (costs.uniform) expect(ratio).toBeCloseTo(1, 9);
      }),
      { numRuns: 300 },
    );
  });

  test("times are the sums of the layers', and both halves of the backward pass are all of it", () => {
    fc.assert(
      fc.property(anyStage, (drawn) => {
        const model = models[drawn.name];
        const costs = new StageCosts(model, Infinity);
        const { first, n, counts } = stageOf(costs, drawn);
        let [forward, backward] = [model.microBatchSeconds / 2, model.microBatchSeconds / 2];
        for (let i = 0; i < n; i++) {
          const choice = i < counts.full ? "full" : i < counts.full + counts.selective ? "selective" : "none";
          const cost = model.layer(first + i, choice);
          forward += cost.forward.seconds;
          backward += cost.backward.seconds + (choice === "none" ? 0 : cost.recompute.seconds);
        }
        for (const end of [...(first === 0 ? [model.embedding()] : []), ...(first + n === costs.numLayers ? [model.head()] : [])]) {
          forward += end.forward.seconds;
          backward += end.backward.seconds;
        }
        const time = costs.time(first, n, counts);
        expect(time.forward / forward).toBeCloseTo(1, 9);
        expect((time.backwardInput + time.backwardWeight) / backward).toBeCloseTo(1, 9);
        const { computeSeconds, communicationSeconds, recomputeSeconds, overheadSeconds } = time;
        expect((computeSeconds + communicationSeconds + recomputeSeconds + overheadSeconds) / (forward + backward)).toBeCloseTo(1, 9);
      }),
      { numRuns: 200 },
    );
  });

  test("recomputation is the cheapest of all combinations that fit", () => {
    fc.assert(
      fc.property(anyStage, fc.double({ min: 0.2, max: 1.1, noNaN: true }), (drawn, share) => {
        const model = models[drawn.name];
        const free = new StageCosts(model, Infinity);
        const { first, n } = stageOf(free, drawn);
        const inFlight = 1 + (drawn.inFlight % 8);
        const costs = new StageCosts(model, share * free.bytes(first, n, { full: 0, selective: 0 }, inFlight));
        let least = Infinity;
        for (let full = 0; full <= n; full++) {
          for (let selective = 0; selective <= n - full; selective++) {
            if (costs.bytes(first, n, { full, selective }, inFlight) > costs.memoryBytes) continue;
            least = Math.min(least, costs.time(first, n, { full, selective }).recomputeSeconds);
          }
        }
        const found = costs.recompute(first, n, inFlight, "auto");
        if (least === Infinity) expect(found).toBeNull();
        else expect(costs.time(first, n, found ?? { full: 0, selective: 0 }).recomputeSeconds).toBeCloseTo(least, 12);
      }),
      { numRuns: 200 },
    );
  });

  test("the end of the step is the cost model's", () => {
    const costs = new StageCosts(models.mixed, Infinity);
    for (const [first, n] of [
      [0, 3],
      [3, 4],
      [7, 5],
      [0, 12],
    ] as const)
      expect(costs.stepEnd(first, n)).toEqual(models.mixed.stepEnd(costs.stagePlan(first, n, { full: 0, selective: 0 })));
  });
});

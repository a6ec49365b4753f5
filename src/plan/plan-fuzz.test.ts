/** Requests at random: every one is refused with a reason or answered without a contradiction. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { findClusterPreset, withNumDevices, type ClusterConfig } from "../config/cluster.ts";
import { modelPresets } from "../config/model-presets.ts";
import { MoeError } from "../util/errors.ts";
import { planTraining, type PlanRequest, type PlanResult } from "./plan.ts";
import { softwarePresets } from "./software.ts";

/** Most often nothing: what is fixed soon contradicts the rest. */
const seldom = <T>(weight: number, values: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> =>
  fc.oneof({ weight, arbitrary: fc.constant(undefined) }, { weight: 1, arbitrary: values });
const degree = seldom(6, fc.constantFrom(1, 2, 3, 4, 8));
const optional = <T>(values: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> => seldom(3, values);
function without<T extends object>(value: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(value).filter(([, entry]) => entry !== undefined)) as {
    [K in keyof T]: Exclude<T[K], undefined>;
  };
}

/** A cluster of one kind of device, or of two, the second slower and smaller. */
function clusterOf(name: string, nodes: number, slower: boolean): ClusterConfig {
  const preset = findClusterPreset(name);
  const group = preset.nodes[0];
  if (group === undefined) throw new Error("preset without nodes");
  const slow = {
    ...group.device,
    name: "slow",
    memoryBandwidth: group.device.memoryBandwidth / 3,
    memoryBytes: group.device.memoryBytes / 2,
  };
  return slower
    ? {
        ...preset,
        nodes: [
          { ...group, numNodes: nodes },
          { ...group, numNodes: nodes, device: slow },
        ],
      }
    : withNumDevices(preset, nodes * group.devicesPerNode);
}

const anyRequest = fc
  .record({
    model: fc.constantFrom(...Object.values(modelPresets)),
    numLayers: fc.integer({ min: 1, max: 24 }),
    cluster: fc.constantFrom("a800", "rtx-4090", "cpu", "h200"),
    nodes: fc.integer({ min: 1, max: 3 }),
    slower: fc.boolean(),
    sequenceLength: fc.constantFrom(64, 512),
    sequences: fc.constantFrom(1, 7, 16, 48, 96),
    fixed: fc.record({ pp: degree, dp: degree, tp: degree, ep: degree, microBatch: degree, interleave: degree }),
    objective: optional(fc.constantFrom("time", "memory", "cost")),
    schedule: optional(fc.constantFrom("1f1b", "interleaved", "zeroBubble")),
    recompute: optional(fc.constantFrom("none", "full", "selective")),
    software: fc.constantFrom(...Object.values(softwarePresets)),
  })
  .map(({ model, numLayers, cluster, nodes, slower, sequences, fixed, objective, schedule, recompute, ...rest }): PlanRequest => {
    return {
      ...rest,
      model: { ...model, numLayers },
      cluster: clusterOf(cluster, nodes, slower),
      batchTokens: sequences * rest.sequenceLength,
      fixed: without(fixed),
      ...(without({ objective, schedule, recompute }) as Partial<PlanRequest>),
    };
  });

test("a plan is a refusal with a reason, or its numbers agree with each other", () => {
  let answered = 0;
  fc.assert(
    fc.property(anyRequest, (request) => {
      let result: PlanResult;
      try {
        result = planTraining(request);
      } catch (error) {
        expect(error).toBeInstanceOf(MoeError);
        expect((error as MoeError).kind).toBe("configuration");
        expect((error as MoeError).message).not.toMatch(/NaN|undefined/);
        return;
      }
      answered++;
      const { report } = result;
      expect(JSON.stringify(report)).not.toMatch(/null,null|NaN/);
      expect(report.search.lowerBoundMs).toBeLessThanOrEqual(report.stepTimeMs * (1 + 1e-9));
      for (const plan of [report.plan, report.byMemory, report.byCost, ...report.pareto, ...report.runnersUp]) {
        expect(plan.lowerBoundMs).toBeLessThanOrEqual(plan.stepTimeMs * (1 + 1e-9));
        const terms = Object.values(plan.termsMs) as number[];
        expect(terms.reduce((a, b) => a + b, 0) / plan.stepTimeMs).toBeCloseTo(1, 6);
        expect(Math.min(...terms)).toBeGreaterThan(-1e-6);
        expect(plan.layout.stages.reduce((a, b) => a + b, 0)).toBe(request.model.numLayers);
        expect(plan.layout.pp * plan.layout.dp * plan.layout.tp).toBe(plan.numDevices);
        for (const [key, value] of Object.entries(request.fixed ?? {})) expect(plan.layout[key as "pp"]).toBe(value);
        if (request.schedule !== undefined) expect(plan.layout.schedule).toBe(request.schedule);
      }
    }),
    { numRuns: 120 },
  );
  // Most requests contradict themselves; enough must not.
  expect(answered).toBeGreaterThan(20);
});

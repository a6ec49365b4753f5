import { describe, expect, test } from "vitest";
import { findClusterPreset, withNumDevices, type ClusterConfig } from "../config/cluster.ts";
import { numParams } from "../config/model-counts.ts";
import { modelPresets, type ModelPresetName } from "../config/model-presets.ts";
import { isFeasible, LayoutEvaluation } from "./evaluate.ts";
import { EvaluationCache } from "./evaluation-cache.ts";
import { fewestDevices } from "./fewest-devices.ts";
import { layoutsOf } from "./layouts.ts";
import { searchLayouts, type SearchOptions } from "./search.ts";
import { shapeOf } from "./shape.ts";
import { softwarePresets } from "./software.ts";

const a800 = findClusterPreset("a800");
const cards = findClusterPreset("rtx-4090");

function optionsFor(name: ModelPresetName, numLayers: number, cluster: ClusterConfig, more: Partial<SearchOptions> = {}): SearchOptions {
  const model = { ...modelPresets[name], numLayers };
  const workload = { model: shapeOf(model), sequenceLength: 2048, batchSequences: 96, software: softwarePresets.megatron };
  return { workload, cluster, memoryReserve: 0.05, slack: 0, lean: false, ...more };
}
/** What the search itself says of each number, from the smallest. */
function firstFound(options: SearchOptions, counts: readonly number[]): number | null {
  const fits = (count: number): boolean => {
    try {
      return typeof searchLayouts({ ...options, cluster: withNumDevices(options.cluster, count) }) !== "string";
    } catch {
      return false;
    }
  };
  return counts.find(fits) ?? null;
}
const nodesOf = (perNode: number, most: number): number[] => [
  ...Array.from({ length: perNode - 1 }, (_, i) => i + 1),
  ...Array.from({ length: most }, (_, i) => perNode * (i + 1)),
];

describe("the smallest number of devices that fits", () => {
  test.each<[ModelPresetName, number, ClusterConfig, Partial<SearchOptions>]>([
    ["mixtral-8x7b", 32, a800, {}],
    ["mixtral-8x7b", 4, a800, {}],
    ["mixtral-8x7b", 8, cards, {}],
    ["skywork-13b", 12, cards, { recompute: "none" }],
    ["skywork-13b", 20, cards, { fixed: { tp: 2 }, memoryReserve: 0.4 }],
    ["skywork-moe", 10, a800, { fixed: { interleave: 2 } }],
    ["skywork-moe", 10, a800, { schedule: "zeroBubble", fixed: { pp: 5 } }],
  ])("of %s with %i layers is the first of all numbers that the search finds a layout for", (name, numLayers, cluster, more) => {
    const options = optionsFor(name, numLayers, cluster, more);
    const expected = firstFound(options, nodesOf(8, 16));
    expect(expected).not.toBeNull();
    expect(fewestDevices(options, cluster, numParams({ ...modelPresets[name], numLayers }))).toBe(expected);
  });

  test("goes through all kinds of nodes, in their order", () => {
    const [big, small] = [a800.nodes[0], cards.nodes[0]];
    if (big === undefined || small === undefined) throw new Error("preset without nodes");
    const mixed: ClusterConfig = {
      ...a800,
      nodes: [
        { ...small, numNodes: 1 },
        { ...big, numNodes: 2 },
      ],
    };
    const options = optionsFor("mixtral-8x7b", 12, mixed);
    const expected = firstFound(options, nodesOf(8, 8));
    expect(expected).toBeGreaterThan(8);
    expect(fewestDevices(options, mixed, numParams({ ...modelPresets["mixtral-8x7b"], numLayers: 12 }))).toBe(expected);
  });

  test("is that of the whole cluster's nodes, whatever part of a node was asked for", () => {
    const options = optionsFor("mixtral-8x7b", 32, withNumDevices(a800, 4));
    const count = fewestDevices(options, a800, numParams(modelPresets["mixtral-8x7b"])) ?? 0;
    expect(searchLayouts({ ...options, cluster: withNumDevices(a800, count) })).toBeTypeOf("object");
  });
});

test("a layout fits where its evaluation finds a split", () => {
  const results = { fits: 0, not: 0 };
  for (const [name, numLayers, numDevices] of [
    ["mixtral-8x7b", 6, 16],
    ["skywork-13b", 7, 8],
  ] as const) {
    for (const recompute of ["auto", "none", "selective"] as const) {
      const options = optionsFor(name, numLayers, withNumDevices(cards, numDevices), { recompute, maxNodes: 1 });
      const cache = new EvaluationCache();
      for (const layout of layoutsOf({ workload: options.workload, numDevices, devicesPerNode: 8, fixed: {} })) {
        const evaluation = new LayoutEvaluation(layout, options, cache);
        const fits = isFeasible(evaluation.evaluate());
        expect(evaluation.fits()).toBe(fits);
        results[fits ? "fits" : "not"]++;
      }
    }
  }
  expect(Math.min(results.fits, results.not)).toBeGreaterThan(50);
});

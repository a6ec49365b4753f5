import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { findClusterPreset, parseClusterConfig, withNumDevices, type ClusterConfig } from "../config/cluster.ts";
import { modelPresets } from "../config/model-presets.ts";
import type { ModelConfig } from "../config/model.ts";
import { isFeasible, LayoutEvaluation, type EvaluatedLayout } from "./evaluate.ts";
import { EvaluationCache } from "./evaluation-cache.ts";
import { layoutsOf } from "./layouts.ts";
import { softwarePresets } from "./software.ts";
import { lossesOf, paretoOf, searchLayouts, type SearchOptions, type SearchResult } from "./search.ts";
import { shapeOf } from "./shape.ts";
import type { Software } from "./types.ts";

function optionsFor(model: ModelConfig, cluster: ClusterConfig, batchSequences: number, sequenceLength = 2048): SearchOptions {
  return {
    workload: { model: shapeOf(model), sequenceLength, batchSequences, software: softwarePresets.megatron },
    cluster,
    memoryReserve: 0.05,
  };
}
function found(result: SearchResult | string): SearchResult {
  if (typeof result === "string") throw new Error(result);
  return result;
}

const small: ModelConfig = { ...modelPresets["mixtral-8x7b"], numLayers: 12 };
const smallOptions = optionsFor(small, withNumDevices(findClusterPreset("a800"), 16), 64);

describe("search over layouts", () => {
  test("finds what evaluating every layout finds, and no bound is above the step of its layout", () => {
    const { workload, cluster } = smallOptions;
    const all = layoutsOf({ workload, numDevices: 16, devicesPerNode: 8, fixed: {} }).map(
      (layout) => new LayoutEvaluation(layout, smallOptions),
    );
    const results = all.map((evaluation) => ({ bound: evaluation.bound(), result: evaluation.evaluate() }));
    const feasible: EvaluatedLayout[] = [];
    for (const { bound, result } of results) {
      if (!isFeasible(result)) continue;
      feasible.push(result);
      expect(bound).toBeLessThanOrEqual(result.seconds * (1 + 1e-12));
      expect(result.lowerBoundSeconds).toBeLessThanOrEqual(result.seconds);
    }
    const search = found(searchLayouts(smallOptions));
    expect(cluster.nodes).toHaveLength(1);
    expect(search.numLayouts).toBe(all.length);
    expect(search.numEvaluated).toBeLessThan(all.length);
    // The search looks at the first ones once more, so it may find a better split of interleaved stages, never a worse one.
    const best = Math.min(...feasible.map(({ seconds }) => seconds));
    expect(search.fastest.seconds).toBeLessThanOrEqual(best * (1 + 1e-12));
    expect(search.fastest.seconds).toBeGreaterThan(0.97 * best);
    const plain = found(searchLayouts({ ...smallOptions, fixed: { interleave: 1 } })).fastest.seconds;
    expect(plain).toBeCloseTo(Math.min(...feasible.flatMap(({ layout, seconds }) => (layout.interleave === 1 ? seconds : []))), 9);
    expect(search.lowerBoundSeconds).toBeLessThanOrEqual(search.fastest.seconds);
    expect(search.leanest.peakMemoryBytes).toBeLessThanOrEqual(Math.min(...feasible.map(({ peakMemoryBytes }) => peakMemoryBytes)));
  });

  test.each<[string, Partial<SearchOptions>]>([
    ["nothing recomputed", { recompute: "none" }],
    ["attention recomputed", { recompute: "selective" }],
    ["everything recomputed", { recompute: "full" }],
    ["recomputation as needed", {}],
    ["two stages a rank", { fixed: { interleave: 2 } }],
    ["an interleaved schedule and nothing recomputed", { schedule: "interleaved", recompute: "none" }],
    ["zero bubble", { schedule: "zeroBubble" }],
  ])("the leanest plan with %s holds no more than any layout, and no bound is above what its layout holds", (_, more) => {
    const options = { ...smallOptions, ...more };
    const { workload, fixed = {}, schedule, recompute = "full" } = options;
    const layouts = layoutsOf({ workload, numDevices: 16, devicesPerNode: 8, fixed, ...(schedule === undefined ? {} : { schedule }) });
    const cache = new EvaluationCache();
    let least = Infinity;
    for (const layout of layouts) {
      const evaluation = new LayoutEvaluation(layout, { ...options, recompute, maxNodes: 1000 }, cache);
      const result = evaluation.evaluate();
      if (!isFeasible(result)) continue;
      expect(evaluation.memoryBound()).toBeLessThanOrEqual(result.peakMemoryBytes);
      least = Math.min(least, result.peakMemoryBytes);
    }
    expect(found(searchLayouts(options)).leanest.peakMemoryBytes).toBeLessThanOrEqual(least);
  });

  test.each<[string, Partial<SearchOptions>, Partial<Software>]>([
    ["nothing recomputed", { recompute: "none" }, {}],
    ["everything recomputed", { recompute: "full" }, {}],
    ["recomputation as needed", {}, {}],
    ["recomputation as needed that takes the place of what was freed", {}, { freesInBackward: true }],
    ["zero bubble", { schedule: "zeroBubble" }, {}],
  ])("the leanest split with %s holds no more than any split and recomputation of the layout", (_, more, differs) => {
    const software = { ...softwarePresets.megatron, ...differs };
    const { workload } = optionsFor({ ...small, numLayers: 7 }, smallOptions.cluster, 64);
    const options = { ...smallOptions, ...more, workload: { ...workload, software } };
    const layout = { pp: 4, tp: 4, dp: 1, ep: 4, etp: 1, microBatch: 1, interleave: 1, sequenceParallel: true, zero: 0 } as const;
    const cache = new EvaluationCache();
    const leanest = new LayoutEvaluation(layout, options, cache).leanest();
    let least = Infinity;
    const counts = [1, 2, 3, 4];
    for (const a of counts) {
      for (const b of counts) {
        for (const c of counts) {
          const layers = [a, b, c, 7 - a - b - c];
          if ((layers[3] ?? 0) < 1) continue;
          // As many of each stage as it has, or fewer.
          const free = options.recompute === undefined ? [0, 1, 2, 3, 4] : [0];
          for (const fewer of free) {
            const recompute = options.recompute ?? layers.map((n) => Math.max(0, n - fewer));
            const result = new LayoutEvaluation(layout, { ...options, layers, recompute }, cache).evaluate();
            if (isFeasible(result)) least = Math.min(least, result.peakMemoryBytes);
          }
        }
      }
    }
    expect(least).toBeLessThan(Infinity);
    expect(isFeasible(leanest) ? leanest.peakMemoryBytes : Infinity).toBeLessThanOrEqual(least * (1 + 1e-6));
  });

  test("every plan's terms add up to its step, its layers to the model's, and its memory is within the limit", () => {
    const search = found(searchLayouts(smallOptions));
    for (const plan of [...search.ranked, search.leanest, ...search.pareto]) {
      const sum = Object.values(plan.terms).reduce((a: number, b: number) => a + b, 0);
      expect(sum / plan.seconds).toBeCloseTo(1, 9);
      for (const [term, seconds] of Object.entries(plan.terms)) expect(seconds, term).toBeGreaterThanOrEqual(-1e-9);
      expect(plan.stages.reduce((sum, { numLayers }) => sum + numLayers, 0)).toBe(12);
      expect(plan.stages).toHaveLength(plan.layout.pp * plan.layout.interleave);
      for (const [rank, memory] of plan.memory.entries()) expect(memory.total).toBeLessThanOrEqual(plan.memoryLimits[rank] ?? 0);
      expect(plan.memory).toHaveLength(plan.layout.pp);
    }
  });

  test("the Pareto table has no plan that another beats, and every evaluated plan is beaten by one of it or in it", () => {
    const search = found(searchLayouts(smallOptions));
    const front = search.pareto;
    expect(front.length).toBeGreaterThan(1);
    expect(front[0]?.seconds).toBe(search.fastest.seconds);
    for (const [i, plan] of front.entries()) {
      const next = front[i + 1];
      if (next !== undefined) expect(next.peakMemoryBytes).toBeLessThan(plan.peakMemoryBytes);
    }
    for (const plan of search.ranked)
      expect(front.some((p) => p.seconds <= plan.seconds * (1 + 1e-9) && p.peakMemoryBytes <= plan.peakMemoryBytes)).toBe(true);
    expect(paretoOf([])).toEqual([]);
  });

  test("the order of plans whose times differ in the tenth digit does not depend on the order in which they came", () => {
    const { fastest } = found(searchLayouts({ ...smallOptions, lean: false }));
    // Each equals its neighbours and the ends differ, while pp says the opposite: a tolerance has no order of these.
    const plans = [0, 1, 2, 3].map((i) => ({
      ...fastest,
      seconds: fastest.seconds * (1 + 0.7e-9 * i),
      peakMemoryBytes: fastest.peakMemoryBytes - i,
      layout: { ...fastest.layout, pp: 9 - i },
    }));
    const first = paretoOf(plans);
    for (const order of [
      [3, 2, 1, 0],
      [1, 3, 0, 2],
      [2, 0, 3, 1],
      [1, 0, 3, 2],
      [3, 1, 0, 2],
    ])
      expect(paretoOf(order.flatMap((i) => plans[i] ?? []))).toEqual(first);
  });

  test("the same question has the same answer", () => {
    expect(found(searchLayouts(smallOptions))).toEqual(found(searchLayouts(smallOptions)));
  });

  test("a runner-up's losses and gains add up to the difference", () => {
    const { fastest, ranked } = found(searchLayouts(smallOptions));
    for (const other of ranked.slice(1, 6)) {
      const sum = lossesOf(fastest, other).reduce((total, { seconds }) => total + seconds, 0);
      expect(sum).toBeCloseTo(other.seconds - fastest.seconds, 9);
    }
  });

  test("what does not fit says which stage and which bytes, and they exceed the device", () => {
    const options = optionsFor(modelPresets["skywork-13b"], withNumDevices(findClusterPreset("rtx-4090"), 8), 32);
    const message = searchLayouts(options);
    expect(message).toMatch(
      /^none of \d+ layouts fits; nearest: pp \d+ x dp \d+ x tp \d+.*, where stage \d+ with \d+ layers?, everything recomputed, needs/,
    );
    const [, needed, limit] =
      /needs ([\d.]+) of ([\d.]+) GiB \(weights [\d.]+, gradients [\d.]+, optimizer [\d.]+, activations [\d.]+, workspace [\d.]+\)/.exec(
        String(message),
      ) ?? [];
    expect(Number(needed)).toBeGreaterThan(Number(limit));
    expect(Number(limit)).toBe(22.8);
  });

  describe("with less memory", () => {
    const fixed = { pp: 4, tp: 1, dp: 4, ep: 4, etp: 1, microBatch: 2, interleave: 1 };
    const base = smallOptions.cluster;
    const cluster = (memoryBytes: number): ClusterConfig => ({
      ...base,
      nodes: base.nodes.map((group) => ({ ...group, device: { ...group.device, memoryBytes } })),
    });
    const least = (recompute: "none" | "full", layers?: readonly number[]): number => {
      const options = { ...smallOptions, cluster: cluster(1e15), fixed, recompute, memoryReserve: 0, lean: false };
      return found(searchLayouts(layers === undefined ? options : { ...options, layers })).fastest.peakMemoryBytes;
    };

    test("the same layout recomputes more and is slower, until it fits no more", () => {
      const [all, none] = [least("none"), least("full")];
      const results = [1.01, 0.9, 0.7, 0.5, 0.3, 0.1, 0.02].map((share) =>
        searchLayouts({ ...smallOptions, cluster: cluster(none + share * (all - none)), fixed, slack: 0, lean: false, memoryReserve: 0 }),
      );
      const impossible = searchLayouts({ ...smallOptions, cluster: cluster(0.8 * none), fixed, lean: false, memoryReserve: 0 });
      expect(impossible).toMatch(/^none of 1 layouts fits/);
      const plans = results.map((result) => found(result).fastest);
      const times = plans.map(({ seconds }) => seconds);
      expect(times).toEqual(times.toSorted((a, b) => a - b));
      const recomputed = plans.map(({ stages }) => stages.reduce((sum, { fullRecompute }) => sum + fullRecompute, 0));
      expect(recomputed[0]).toBe(0);
      expect(recomputed.at(-1)).toBeGreaterThan(6);
      for (const plan of plans) expect(plan.peakMemoryBytes).toBeLessThanOrEqual((plan.memoryLimits[0] ?? 0) * (1 + 1e-12));
    });

    test("early stages, which hold more micro-batches, recompute at least as much as late ones of as many layers", () => {
      const layers = [3, 3, 3, 3];
      const [all, none] = [least("none", layers), least("full", layers)];
      const options = { ...smallOptions, cluster: cluster(none + 0.4 * (all - none)), fixed, layers, memoryReserve: 0, lean: false };
      const counts = found(searchLayouts(options)).fastest.stages.map(({ fullRecompute }) => fullRecompute);
      expect(counts).toEqual(counts.toSorted((a, b) => b - a));
      expect(counts[0]).toBeGreaterThan(counts[3] ?? 0);
    });
  });
});

describe("unequal devices", () => {
  const base = findClusterPreset("a800");
  const group = base.nodes[0];
  if (group === undefined) throw new Error("preset without nodes");
  /** Two nodes, the second with half the peak and the bandwidth. */
  const cluster = parseClusterConfig({
    ...base,
    name: "mixed",
    nodes: [
      { ...group, numNodes: 1 },
      {
        ...group,
        numNodes: 1,
        device: {
          ...group.device,
          name: "half",
          peakFlops: { f32: 78e12, bf16: 156e12, f16: 156e12 },
          memoryBandwidth: group.device.memoryBandwidth / 2,
        },
      },
    ],
  });

  test("the slower devices get fewer layers, and the split is proven", () => {
    const fixed = { pp: 2, tp: 8, dp: 1, ep: 8, etp: 1, microBatch: 1, interleave: 1 };
    const { fastest } = found(searchLayouts({ ...optionsFor(small, cluster, 64), fixed }));
    const [fast, slow] = fastest.stages.map(({ numLayers }) => numLayers);
    expect(fast).toBeGreaterThan(slow ?? 0);
    expect(fastest.optimal).toBe(true);
  });

  test("a rank with devices of both kinds holds no more than the smaller one, whichever recomputation either needs", () => {
    const fixed = { pp: 1, tp: 8, dp: 2, microBatch: 1, interleave: 1, zero: 1 as const };
    const software = { ...softwarePresets.megatron, attention: "materialized" } as const;
    // Attention is most of a layer, so with less memory the cheapest choice turns from 1 whole layer and 2 attentions to 4 attentions, and back.
    const sizes = { hiddenSize: 256, numHeads: 8, numKvHeads: 8, headDim: 32, ffnSize: 64, maxPositions: 8192 };
    const { workload } = optionsFor({ ...modelPresets["skywork-13b"], numLayers: 6, ...sizes }, cluster, 64, 8192);
    const withMemory = (first: number, second: number): SearchOptions => ({
      workload: { ...workload, software },
      cluster: {
        ...cluster,
        nodes: cluster.nodes.map((nodes, i) => ({ ...nodes, device: { ...nodes.device, memoryBytes: i === 0 ? first : second } })),
      },
      memoryReserve: 0,
      fixed,
      lean: false,
    });
    const holds = (recompute: "none" | "full"): number =>
      found(searchLayouts({ ...withMemory(1e15, 1e15), recompute })).fastest.peakMemoryBytes;
    const [full, none] = [holds("full"), holds("none")];
    const at = (share: number): number => full + share * (none - full);
    for (let i = 0; i <= 20; i++) {
      for (let j = 0; j <= 20; j++) {
        const { peakMemoryBytes } = found(searchLayouts(withMemory(at(i / 20), at(j / 20)))).fastest;
        expect(peakMemoryBytes).toBeLessThanOrEqual(Math.min(at(i / 20), at(j / 20)));
      }
    }
  });

  test("a rank with devices of both kinds is as slow as the slower one", () => {
    const fixed = { pp: 1, tp: 8, dp: 2, ep: 8, etp: 1, microBatch: 1, interleave: 1, zero: 1 as const };
    const mixed = found(searchLayouts({ ...optionsFor(small, cluster, 64), fixed, lean: false })).fastest;
    const slowOnly = parseClusterConfig({ ...cluster, nodes: [{ ...cluster.nodes[1], numNodes: 2 }] });
    const slow = found(searchLayouts({ ...optionsFor(small, slowOnly, 64), fixed, lean: false })).fastest;
    expect(mixed.seconds).toBeCloseTo(slow.seconds, 9);
  });
});

describe("schedules", () => {
  test("zero bubble waits less than 1F1B on the same split and holds more", () => {
    const fixed = { pp: 4, tp: 2, dp: 2, ep: 2, etp: 1, microBatch: 1, interleave: 1 };
    const plain = found(searchLayouts({ ...smallOptions, fixed, layers: [3, 3, 3, 3], recompute: "none" })).fastest;
    const zero = found(searchLayouts({ ...smallOptions, fixed, layers: [3, 3, 3, 3], recompute: "none", schedule: "zeroBubble" })).fastest;
    expect(zero.schedule).toBe("zeroBubble");
    expect(zero.bubbleFraction).toBeLessThan(plain.bubbleFraction);
    expect(zero.memory[3]?.activations).toBeGreaterThan(plain.memory[3]?.activations ?? 0);
  });

  test("the bound of a given zero-bubble split is not above another split's step", () => {
    const fixed = { pp: 4, tp: 2, dp: 2, ep: 2, etp: 1, microBatch: 1, interleave: 1 };
    // So few micro-batches that 1F1B waits for long: its bound is above what zero bubble takes.
    const options = { ...smallOptions, workload: { ...smallOptions.workload, batchSequences: 8 }, fixed, schedule: "zeroBubble" as const };
    const given = found(searchLayouts({ ...options, layers: [1, 3, 3, 5], lean: false })).fastest;
    const free = found(searchLayouts({ ...options, lean: false })).fastest;
    expect(given.lowerBoundSeconds).toBeLessThanOrEqual(free.seconds);
  });

  test("interleaved stages are simulated, and their bubble is smaller", () => {
    const fixed = { pp: 4, tp: 2, dp: 2, ep: 2, etp: 1, microBatch: 1 };
    const plain = found(searchLayouts({ ...smallOptions, fixed: { ...fixed, interleave: 1 }, recompute: "none" })).fastest;
    const interleaved = found(searchLayouts({ ...smallOptions, fixed: { ...fixed, interleave: 3 }, recompute: "none" })).fastest;
    expect(interleaved.stages).toHaveLength(12);
    expect(interleaved.bubbleFraction).toBeLessThan(plain.bubbleFraction);
  });
});

test("layouts of any cluster use all devices and divide the batch, experts and ranks", () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 12 }), fc.constantFrom(1, 2, 4, 8), fc.integer({ min: 1, max: 96 }), (nodes, perNode, batch) => {
      const numDevices = nodes * perNode;
      const workload = { ...smallOptions.workload, batchSequences: batch };
      let layouts;
      try {
        layouts = layoutsOf({ workload, numDevices, devicesPerNode: perNode, fixed: {} });
      } catch (error) {
        expect(String(error)).toMatch(/no layout: a batch of \d+ sequences does not divide/);
        return;
      }
      for (const { pp, dp, tp, ep, etp, microBatch, interleave, zero } of layouts) {
        expect(pp * dp * tp).toBe(numDevices);
        expect(batch % (dp * microBatch)).toBe(0);
        expect((dp * tp) % (ep * etp)).toBe(0);
        expect(8 % ep).toBe(0);
        expect(pp * interleave).toBeLessThanOrEqual(12);
        expect(pp === 1 || zero <= 1).toBe(true);
      }
      expect(new Set(layouts.map((layout) => JSON.stringify(layout))).size).toBe(layouts.length);
    }),
    { numRuns: 60 },
  );
});

test("sharding gradients costs time where there are several micro-batches, sharding weights more, and both hold less", () => {
  const dense = modelPresets["skywork-13b"];
  const options = optionsFor(dense, withNumDevices(findClusterPreset("a800"), 64), 256, 4096);
  const fixed = { pp: 1, tp: 2, dp: 32, microBatch: 1 };
  const [one, two, three] = ([1, 2, 3] as const).map(
    (zero) => found(searchLayouts({ ...options, fixed: { ...fixed, zero }, recompute: "full", lean: false })).fastest,
  );
  expect(two?.seconds).toBeGreaterThan(one?.seconds ?? Infinity);
  expect(three?.seconds).toBeGreaterThan(two?.seconds ?? Infinity);
  expect(two?.peakMemoryBytes).toBeLessThan(one?.peakMemoryBytes ?? 0);
  expect(three?.peakMemoryBytes).toBeLessThan(two?.peakMemoryBytes ?? 0);
});

test("52 layers on 12 stages: the exact split and recomputation by stage beat every even split, most where memory is short", () => {
  const cluster = withNumDevices(findClusterPreset("a800"), 1536);
  const options = optionsFor(modelPresets["skywork-moe"], cluster, 2048, 8192);
  const layout = { pp: 12, dp: 32, tp: 4, ep: 4, etp: 1, microBatch: 2, interleave: 1, sequenceParallel: true, zero: 1 } as const;
  const cache = new EvaluationCache();
  const seconds = (more: Partial<SearchOptions>): number => {
    const result = new LayoutEvaluation(layout, { ...options, ...more }, cache).evaluate();
    return isFeasible(result) ? result.seconds : Infinity;
  };
  const exact = new LayoutEvaluation(layout, options, cache).evaluate();
  if (!isFeasible(exact)) throw new Error(exact.reason);
  expect(exact.optimal).toBe(true);
  let [byStage, alike] = [Infinity, Infinity];
  // All ways in which 4 of the 12 stages have 5 layers, the others 4.
  for (let mask = 0; mask < 2 ** 12; mask++) {
    const layers = Array.from({ length: 12 }, (_, s) => 4 + ((mask >> s) & 1));
    if (layers.reduce((a, b) => a + b, 0) !== 52) continue;
    byStage = Math.min(byStage, seconds({ layers }));
    // As Megatron does it: the same number on every stage, the least that fits.
    for (let k = 0; k <= 5; k++) {
      const same = seconds({ layers, recompute: layers.map((n) => Math.min(n, k)) });
      if (same === Infinity) continue;
      alike = Math.min(alike, same);
      break;
    }
  }
  expect(exact.seconds).toBeLessThanOrEqual(byStage * (1 + 1e-12));
  expect(byStage).toBeLessThanOrEqual(alike * (1 + 1e-12));
  expect(exact.seconds).toBeLessThan(alike);
});

import { describe, expect, test } from "vitest";
import { findClusterPreset, parseClusterConfig, withNumDevices } from "../config/cluster.ts";
import { modelPresets } from "../config/model-presets.ts";
import { flopsPerToken } from "../config/model-counts.ts";
import { escapeHtml, ticks } from "./charts.ts";
import { LayoutEvaluation } from "./evaluate.ts";
import { planPage } from "./page.ts";
import { describeDevices, objectives, planTraining, type PlanRequest } from "./plan.ts";
import { chromeTrace } from "./trace.ts";

const a800 = findClusterPreset("a800");
const request: PlanRequest = {
  model: { ...modelPresets["mixtral-8x7b"], numLayers: 16 },
  cluster: withNumDevices(a800, 32),
  sequenceLength: 4096,
  batchTokens: 64 * 4096,
};

describe("a plan", () => {
  test("has the best layout, its time, its memory by stage, and a lower bound", () => {
    const { report } = planTraining(request);
    const { best, stepTimeMs, tokensPerGpuPerSecond, memoryBytesPerStage, lowerBoundMs } = report;
    expect(best.pp * best.dp * best.tp).toBe(32);
    expect(best.stages.reduce((a, b) => a + b, 0)).toBe(16);
    expect(best.stages).toHaveLength(best.pp * best.interleave);
    expect(best.recompute).toHaveLength(best.stages.length);
    expect(memoryBytesPerStage).toHaveLength(best.pp);
    expect(lowerBoundMs).toBeGreaterThan(0);
    expect(lowerBoundMs).toBeLessThanOrEqual(stepTimeMs);
    expect(tokensPerGpuPerSecond).toBeCloseTo((64 * 4096) / (stepTimeMs / 1e3) / 32, 6);
    expect(report.plan.mfu).toBeCloseTo((flopsPerToken(request.model, 4096) * tokensPerGpuPerSecond) / 312e12, 9);
    expect(report.byTime.stepTimeMs).toBe(stepTimeMs);
    expect(report.byMemory.peakMemoryBytes).toBeLessThanOrEqual(report.plan.peakMemoryBytes);
  });

  test("by memory and by cost is the one that holds least and the one that a token costs least on", () => {
    const memory = planTraining({ ...request, objective: "memory" }).report;
    expect(memory.plan.peakMemoryBytes).toBe(memory.byMemory.peakMemoryBytes);
    expect(memory.plan.peakMemoryBytes).toBeLessThan(memory.byTime.peakMemoryBytes);
    const { report, cluster } = planTraining({ ...request, objective: "cost" });
    expect(report.plan.deviceSecondsPerMillionTokens).toBeLessThanOrEqual(report.byTime.deviceSecondsPerMillionTokens);
    expect(cluster.nodes[0]?.numNodes).toBe(report.plan.numDevices / 8);
  });

  test("by cost is the cheapest of all, half and a quarter of the devices, whatever is asked for", () => {
    // An eighth, 4 devices, cannot hold the model.
    const each = [32, 16, 8].map((count) => planTraining({ ...request, cluster: withNumDevices(a800, count) }).report.byTime);
    const least = Math.min(...each.map(({ deviceSecondsPerMillionTokens }) => deviceSecondsPerMillionTokens));
    // Otherwise this says nothing: the cheapest is not on all devices.
    expect(least).toBeLessThan(0.99 * (each[0]?.deviceSecondsPerMillionTokens ?? 0));
    for (const objective of [undefined, ...objectives]) {
      const { byCost } = planTraining({ ...request, ...(objective === undefined ? {} : { objective }) }).report;
      expect(byCost.deviceSecondsPerMillionTokens / least).toBeCloseTo(1, 6);
    }
  });

  test.each(objectives)("by %s comes before its runners-up, on the same devices, and the differences add up", (objective) => {
    const { plan, runnersUp } = planTraining({ ...request, objective }).report;
    expect(runnersUp.length).toBeGreaterThan(2);
    let last = -Infinity;
    for (const other of runnersUp) {
      const size = objective === "memory" ? other.peakMemoryBytes : other.stepTimeMs;
      expect(size).toBeGreaterThanOrEqual(last * (1 - 1e-9));
      last = size;
      expect(other.numDevices).toBe(plan.numDevices);
      expect(other.layout).not.toEqual(plan.layout);
      expect(other.losses.reduce((sum, { ms }) => sum + ms, 0)).toBeCloseTo(other.stepTimeMs - plan.stepTimeMs, 6);
      expect(other.excesses.reduce((sum, { bytes }) => sum + bytes, 0) / other.peakMemoryBytes).toBeCloseTo(
        (other.peakMemoryBytes - plan.peakMemoryBytes) / other.peakMemoryBytes,
        6,
      );
    }
    const first = objective === "memory" ? plan.peakMemoryBytes : plan.stepTimeMs;
    expect(first).toBeLessThanOrEqual(Math.min(...runnersUp.map((r) => (objective === "memory" ? r.peakMemoryBytes : r.stepTimeMs))));
  });

  test("of a run: steps, days, device hours and cost follow from the step", () => {
    const { report } = planTraining({ ...request, objective: "time", targetTokens: 1e12, pricePerHour: 1.5 });
    const steps = Math.ceil(1e12 / (64 * 4096));
    const hours = (steps * report.stepTimeMs) / 3.6e6;
    expect(report.run).toEqual({
      tokens: 1e12,
      steps,
      days: hours / 24,
      deviceHours: 32 * hours,
      cost: expect.closeTo(48 * hours, 6) as number,
    });
    expect(planTraining({ ...request, objective: "time", targetTokens: 1e12 }).report.run?.cost).toBeNull();
  });

  test("a price that is asked for comes before those of the devices, and a price of nothing leaves the choice to their time", () => {
    const nodes = request.cluster.nodes.map((group) => ({ ...group, device: { ...group.device, pricePerHour: 3 } }));
    const fixed = { tp: 4, ep: 8, microBatch: 1 };
    const priced = { ...request, fixed, cluster: { ...request.cluster, nodes }, targetTokens: 1e12 };
    const hours = planTraining(priced).report.run?.deviceHours ?? 0;
    expect(planTraining(priced).report.run?.cost).toBeCloseTo(3 * hours, 3);
    expect(planTraining({ ...priced, pricePerHour: 2 }).report.run?.cost).toBeCloseTo(2 * hours, 3);
    const free = planTraining({ ...priced, pricePerHour: 0 }).report;
    expect(free.run?.cost).toBe(0);
    expect(free.byCost).toEqual(planTraining({ ...priced, pricePerHour: 2 }).report.byCost);
  });

  test("with everything fixed is that layout, evaluated", () => {
    const fixed = { pp: 4, dp: 2, tp: 4, ep: 4, etp: 1, microBatch: 1, interleave: 1 };
    const { report } = planTraining({ ...request, objective: "time", fixed, layers: [4, 4, 4, 4], recompute: [2, 1, 0, 0] });
    expect(report.search.numLayouts).toBe(1);
    expect(report.best).toMatchObject({ ...fixed, stages: [4, 4, 4, 4], recompute: [2, 1, 0, 0], zero: 1, sequenceParallel: true });
  });

  test("searches the 146B model on 1536 devices, layouts, splits, memory and cost, in under 5 s", () => {
    // Time of this process: others share the machine.
    const start = process.cpuUsage();
    const { report } = planTraining({
      model: modelPresets["skywork-moe"],
      cluster: withNumDevices(a800, 1536),
      sequenceLength: 8192,
      batchTokens: 1024 * 8192,
    });
    const { user, system } = process.cpuUsage(start);
    expect((user + system) / 1e6).toBeLessThan(5);
    expect(report.search.numLayouts).toBeGreaterThan(1000);
    expect(report.best.pp * report.best.dp * report.best.tp).toBe(1536);
  });
});

test("devices of several kinds are told with their numbers", () => {
  const [group] = a800.nodes;
  const [card] = findClusterPreset("rtx-4090").nodes;
  if (group === undefined || card === undefined) throw new Error("preset without nodes");
  const nodes = [
    { ...group, numNodes: 1 },
    { ...card, numNodes: 2 },
    { ...group, numNodes: 1 },
  ];
  const { report } = planTraining({ ...request, cluster: { ...a800, nodes }, model: { ...request.model, numLayers: 4 }, fixed: { tp: 8 } });
  expect(report.cluster.devices).toEqual([
    { name: "A800", count: 16 },
    { name: card.device.name, count: 16 },
  ]);
  expect(describeDevices(report.cluster.devices)).toBe(`16 x A800, 16 x ${card.device.name}`);
});

describe("what makes no sense is refused in one line that says what would", () => {
  test.each([
    [
      "a batch that is no whole number of sequences",
      { batchTokens: 100_000 },
      /100000 tokens is not a whole number of sequences of 4096; nearest: 98304 or 102400 tokens/,
    ],
    [
      "a batch that no data-parallel size divides",
      { batchTokens: 7 * 4096, fixed: { pp: 1, tp: 1 } },
      /batch of 7 sequences does not divide over any data-parallel size of 32 devices \(32\); nearest: 32 sequences/,
    ],
    [
      "a batch that the given size does not divide",
      { fixed: { dp: 8, microBatch: 3 } },
      /dp 8 \* microBatch 3 = 24 does not divide the batch of 64 sequences; nearest: 48 or 72/,
    ],
    ["degrees that do not divide the devices", { fixed: { pp: 5 } }, /pp 5 = 5 does not divide 32 devices/],
    ["degrees that are not all devices", { fixed: { pp: 2, dp: 4, tp: 2 } }, /pp 2 \* dp 4 \* tp 2 = 16, but there are 32 devices/],
    ["more stages than layers", { fixed: { pp: 32 } }, /32 stages \(pp 32 \* interleave 1\) for 16 layers/],
    ["more expert ranks than experts", { fixed: { ep: 16 } }, /ep 16 is above the 8 experts/],
    ["layers that do not add up", { layers: [4, 4, 4, 3] }, /layers \[4, 4, 4, 3\] add up to 15, the model has 16/],
    ["an empty stage", { layers: [8, 0, 4, 4] }, /stage 1 has no layer/],
    ["more recomputed than there is", { layers: [4, 4, 4, 4], recompute: [5, 0, 0, 0] }, /recompute 5 of stage 0, which has 4 layers/],
    ["recomputation by stage without stages", { recompute: [1, 0] }, /needs the layers of each stage/],
    ["sequences beyond the model", { sequenceLength: 65_536, batchTokens: 2 ** 22 }, /65536 tokens exceed the model's 32768 positions/],
    ["a reserve of all memory", { memoryReserve: 1 }, /memory reserve: expected a share of at least 0 and below 1, got 1/],
    ["a reserve below nothing", { memoryReserve: -0.1 }, /memory reserve: expected a share of at least 0 and below 1, got -0.1/],
    ["experts of a model without any", { model: modelPresets["skywork-13b"], fixed: { ep: 4 } }, /the model has no experts/],
  ] as const)("%s", (_, change, message) => {
    expect(() => planTraining({ ...request, ...(change as Partial<PlanRequest>) })).toThrow(message);
  });

  test("a model that fits nowhere: the nearest layout, its stage and bytes, and the smallest number of devices that does", () => {
    const cluster = findClusterPreset("rtx-4090");
    const small = { ...request, model: modelPresets["skywork-moe"], cluster };
    let message = "";
    try {
      planTraining(small);
    } catch (error) {
      message = String(error);
    }
    expect(message).toMatch(/none of \d+ layouts fits; nearest: pp \d+ .* needs [\d.]+ of 22.8 GiB \(weights/);
    const count = Number(/the smallest number of them that fits is (\d+)/.exec(message)?.[1]);
    // It does fit there.
    expect(planTraining({ ...small, cluster: withNumDevices(cluster, count) }).report.plan.peakMemoryBytes).toBeLessThan(24 * 2 ** 30);
  });

  test("a model that no number of devices holds says so", () => {
    const tiny = parseClusterConfig({
      ...a800,
      nodes: a800.nodes.map((group) => ({ ...group, device: { ...group.device, memoryBytes: 1e7 } })),
    });
    expect(() => planTraining({ ...request, model: modelPresets["skywork-moe"], cluster: withNumDevices(tiny, 8) })).toThrow(
      /no number of A800 up to 4096 nodes fits it, either/,
    );
  });
});

describe("pictures of a plan", () => {
  const { report, best, options } = planTraining({ ...request, targetTokens: 1e12 });
  const { timeline } = new LayoutEvaluation(best.layout, options).simulate(best.stages, { timeline: true });
  const page = planPage({
    title: 'a <b> & "c"',
    report,
    timeline,
    memory: best.memory,
    memoryLimits: best.memoryLimits,
    notes: ["a note"],
  });

  test("the page needs nothing from anywhere, runs nothing, and has both colour schemes", () => {
    expect(page).not.toMatch(/https?:|src=|@import|url\(|<script/);
    expect(page).toContain("prefers-color-scheme:dark");
    expect(page).toContain("a &lt;b&gt; &amp; &quot;c&quot; on 32 x A800");
    expect(page.match(/<svg /g)).toHaveLength(3);
    for (const part of ["rank 0", "weights", "activations", "step, ms", "1.00e+12", "a note"]) expect(page).toContain(part);
    expect(page).not.toMatch(/NaN|undefined|Infinity/);
  });

  test("the trace has every pass of every micro-batch once, in microseconds", () => {
    const { traceEvents } = chromeTrace(timeline);
    const passes = traceEvents.filter(({ cat }) => cat === "forward" || cat === "backward");
    expect(passes).toHaveLength(2 * best.numMicroBatches * best.stages.length);
    const end = Math.max(...traceEvents.map(({ ts, dur }) => Number(ts ?? 0) + Number(dur ?? 0)));
    expect(end).toBeLessThanOrEqual(report.stepTimeMs * 1e3 + 1e-3);
    expect(traceEvents.filter(({ ph }) => ph === "M").length).toBeGreaterThanOrEqual(best.layout.pp);
  });

  test("text is escaped, and axes have round numbers", () => {
    expect(escapeHtml(`<&>"`)).toBe("&lt;&amp;&gt;&quot;");
    expect(ticks(0, 70)).toEqual([0, 20, 40, 60]);
    expect(ticks(0.11, 0.49)).toEqual([0.2, 0.3, 0.4]);
  });
});

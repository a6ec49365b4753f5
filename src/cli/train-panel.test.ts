/** What the panel says of a run, on terminals of several sizes. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { LayerMetrics, StepMetrics } from "../train/index.ts";
import { condensed, duration, sparkline, trainPanel, type TrainPanelState } from "./train-panel.ts";

function layer(number: number, load: readonly number[]): LayerMetrics {
  const maxOverMeanLoad = Math.max(...load) * load.length;
  const losses = { auxiliaryLoss: 0.1, switchLoss: null, sequenceLoss: null, zLoss: 1 };
  const gate = { max1OverMax2: 2, max2OverMax3: 1.5, gateEntropy: 1 };
  const deadExperts = load.filter((share) => share === 0).length;
  return {
    layer: number,
    load,
    maxOverMeanLoad,
    deadExperts,
    loadEntropy: 0.9,
    ...losses,
    ...gate,
    dropRate: 0.0123,
    numDropped: 5,
    coefficient: 0.0091,
  };
}
function state(layers: readonly LayerMetrics[]): TrainPanelState {
  const metrics: StepMetrics = {
    step: 30,
    loss: 2.5,
    auxiliaryLoss: 0.002,
    learningRate: 3e-4,
    gradNorm: 1.25,
    tokens: 1000,
    seconds: 1,
    tokensPerSecond: 1234.4,
    mfu: 0.31,
    peakBytes: 5 * 2 ** 20,
    layers,
  };
  return { label: "training", numSteps: 120, metrics, secondsLeft: 95, losses: [4, 3, 2.5], evaluations: new Map([["book", 2.75]]) };
}

describe("the panel of a run", () => {
  test("says where the run is, its loss, and of each layer the load of every expert", () => {
    expect(trainPanel(state([layer(0, [0.25, 0.25, 0.25, 0.25]), layer(1, [0.5, 0.25, 0.25, 0])]), 90, 24)).toEqual([
      "training ██████░░░░░░░░░░░░░░░░░░ 30/120   1234 tokens/s   MFU 31%   1 min 35 s left",
      "loss 2.5000  █▃▁   gradient 1.25   rate 3.0e-4",
      "book 2.7500   auxiliary 2.00e-3   memory 5 MiB",
      "layer  experts' load  max/mean  dropped  coefficient  dead",
      "    0  ▅▅▅▅               1.00     1.2%      0.00910     0",
      "    1  █▅▅▁               2.00     1.2%      0.00910     1",
    ]);
  });
  test("shows the worst balanced layers where not all fit, and says how many are not shown", () => {
    const layers = Array.from({ length: 52 }, (_, i) => layer(i, i === 7 || i === 40 ? [1, 0] : [0.5, 0.5]));
    const lines = trainPanel(state(layers), 80, 8);
    expect(lines).toHaveLength(7);
    expect(lines.slice(4).map((line) => line.trim().split(" ")[0])).toEqual(["7", "40", "50"]);
  });
  test("has nothing of experts for a dense model, and a mark for a loss that is not finite", () => {
    const dense = { ...state([]), losses: [1, Number.NaN, 2] };
    const lines = trainPanel(dense, 80, 24);
    expect(lines).toHaveLength(3);
    expect(lines[1]).toContain("▁x█");
  });
});

describe("parts", () => {
  test("a line of bars has a bar for each value, within the eight heights", () => {
    fc.assert(
      fc.property(fc.array(fc.double(), { maxLength: 50 }), fc.double(), fc.double(), (values, low, high) => {
        expect(sparkline(values, low, high)).toMatch(new RegExp(`^[▁▂▃▄▅▆▇█x]{${values.length}}$`));
      }),
    );
    expect(sparkline([0, 0.5, 1], 0, 1)).toBe("▁▅█");
    expect(sparkline([3, 3], 3, 3)).toBe("▅▅");
  });
  test("condensing keeps the order, the count and, where it divides, the mean", () => {
    expect(condensed([1, 3, 5, 7], 2)).toEqual([2, 6]);
    expect(condensed([1, 2], 5)).toEqual([1, 2]);
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: 9 }), { minLength: 1 }), fc.integer({ min: 1, max: 9 }), (values, count) => {
        const means = condensed(values, count);
        expect(means).toHaveLength(Math.min(values.length, count));
        for (const mean of means) expect(mean >= Math.min(...values) && mean <= Math.max(...values)).toBe(true);
      }),
    );
  });
  test("durations are in two units at most", () => {
    expect([0, 59.4, 90, 3599.6, 86_400, Number.NaN].map(duration)).toEqual(["0 s", "59 s", "1 min 30 s", "1 h 0 min", "24 h 0 min", "?"]);
  });
});

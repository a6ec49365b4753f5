/**
 * The planner's step times against those of our own trainer, as they were measured (`benchmarks/planner-runtime.csv`): nothing is timed here, so the
 * machine that runs this does not matter. And what turns spans and cases into rows.
 */
import { describe, expect, test } from "vitest";
import { numRanksOf, runtimeCases } from "../../benchmarks/planner-runtime-cases.ts";
import { bubbleOfSpans, measurementsCsv } from "../../benchmarks/planner-runtime-measure.ts";
import { bubbleErrorOf, errorOf, savedRuns, scoreRuns } from "../../benchmarks/planner-runtime-score.ts";
import { parseMeasurements } from "../../src/plan/measurements.ts";
import type { TraceSpan } from "../../src/util/chrome-trace.ts";

describe("steps of our own trainer", () => {
  const runs = savedRuns();
  if (runs === null) throw new Error("benchmarks/planner-runtime.csv is missing");
  const { calibration, predicted } = scoreRuns(runs);

  test.each(["seen", "unseen"])("of %s layouts are predicted within 10% on average, nine of ten of them each", (role) => {
    const errors = predicted.filter(({ name }) => runtimeCases.find((one) => one.name === name)?.role === role).map(errorOf);
    expect(errors.length).toBeGreaterThanOrEqual(10);
    expect(errors.reduce((sum, error) => sum + error, 0) / errors.length).toBeLessThan(0.1);
    expect(errors.filter((error) => error < 0.1).length / errors.length).toBeGreaterThanOrEqual(0.9);
    expect(Math.max(...errors)).toBeLessThan(0.2);
  });
  test.each(predicted.filter(({ measured }) => measured.bubbleFraction !== null).map((run) => [run.name, run] as const))(
    "of %s have the predicted bubble within 5 percentage points",
    (_, run) => {
      expect(bubbleErrorOf(run)).toBeLessThan(0.05);
    },
  );

  test("are at least ten layouts of two ranks that the calibration has not seen, and it fits at most twelve constants", () => {
    expect(predicted.length).toBeGreaterThanOrEqual(10);
    expect(predicted.every(({ measured }) => measured.numDevices === 2)).toBe(true);
    const fits = runtimeCases.filter(({ role }) => role === "fit").map(({ layout }) => JSON.stringify(layout));
    const others = runtimeCases.filter(({ role, layout }) => role !== "fit" && !fits.includes(JSON.stringify(layout)));
    expect(others.length).toBeGreaterThanOrEqual(8);
    expect(calibration.fitted.length).toBeLessThanOrEqual(12);
  });
});

test("a row says all of its case", () => {
  const rows = parseMeasurements(measurementsCsv(runtimeCases.map(() => ({ seconds: 0.5, bubbleFraction: null }))), "rows");
  expect(rows.map(({ name, numDevices }) => [name, numDevices])).toEqual(runtimeCases.map((one) => [one.name, numRanksOf(one)]));
  const of = (name: string): unknown => rows.find((row) => row.name === name);
  expect(of("tp2.edp")).toMatchObject({ tp: 2, ep: 2, numExperts: 8, topK: 2, ffnSize: 512 });
  expect(of("pp2.uneven")).toMatchObject({ pp: 2, stageLayers: [5, 3], recomputedLayers: null });
  expect(of("dp2.zero1")).toMatchObject({ dp: 2, zero: 1, numExperts: 0, ep: 1 });
});

test("the bubble of spans is what neither passes nor sends fill until the last pass ends", () => {
  const span = (rank: number, track: string, name: string, startUs: number, durationUs: number): TraceSpan => ({
    rank,
    track,
    category: track,
    name,
    startUs,
    durationUs,
  });
  const spans = [
    span(0, "compute", "forward 0.0", 100, 10),
    span(0, "communication", "send pp", 110, 2),
    span(1, "communication", "recv pp", 100, 12),
    span(1, "compute", "forward 1.0", 112, 10),
    span(1, "compute", "backward 1.0", 122, 20),
    span(0, "communication", "recv pp", 112, 30),
    span(0, "compute", "backward 0.0", 142, 18),
    span(0, "compute", "optimizer", 160, 50),
  ];
  // Two ranks of 60 us: 28 + 2 and 30 of them are used.
  expect(bubbleOfSpans(spans)).toBeCloseTo(0.5, 12);
});

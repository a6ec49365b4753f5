import fc from "fast-check";
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { learningRateAt, parseSchedule, type Schedule } from "./schedule.ts";

// Written by test/golden/optim/make.py with the schedules of transformers, as factors of a peak rate of 1.
const golden: Readonly<Record<string, number[]>> = JSON.parse(
  readFileSync(new URL("../../test/golden/optim/schedules.json", import.meta.url), "utf8"),
);

const wsd = { name: "wsd", learningRate: 1, minLearningRate: 0.2, warmupSteps: 3, decaySteps: 8, totalSteps: 18 } as const;
const schedules: Readonly<Record<string, Schedule>> = {
  linear: { name: "linear", learningRate: 1, minLearningRate: 0, warmupSteps: 4, totalSteps: 18 },
  cosine: { name: "cosine", learningRate: 1, minLearningRate: 0.1, warmupSteps: 4, totalSteps: 20 },
  wsdCosine: { ...wsd, decay: "cosine" },
  wsdLinear: { ...wsd, decay: "linear" },
  wsdSqrt: { ...wsd, decay: "sqrt" },
};

describe("learningRateAt", () => {
  it.each(Object.entries(schedules))("has the rates of transformers from the end of warm-up on: %s", (name, schedule) => {
    const expected = golden[name] ?? [];
    expect(expected.length).toBe(20);
    for (let step = schedule.warmupSteps; step < 20; step++) expect(learningRateAt(schedule, step)).toBeCloseTo(expected[step] ?? NaN, 12);
  });
  // Their wsd warms up from the minimum rather than from 0.
  it.each(["linear", "cosine"])("warms up to the peak one step ahead of transformers, whose first rate is 0: %s", (name) => {
    const schedule = parseSchedule(schedules[name]);
    for (let step = 0; step < schedule.warmupSteps; step++) {
      expect(learningRateAt(schedule, step)).toBeCloseTo(golden[name]?.[step + 1] ?? NaN, 12);
    }
  });
  it("follows the formulas", () => {
    const base = { learningRate: 3e-4, minLearningRate: 3e-5, warmupSteps: 0, totalSteps: 100 };
    expect(learningRateAt({ name: "constant", learningRate: 3e-4, warmupSteps: 10 }, 1e6)).toBe(3e-4);
    expect(learningRateAt({ name: "linear", ...base }, 50)).toBeCloseTo(1.65e-4, 12);
    expect(learningRateAt({ name: "cosine", ...base }, 25)).toBeCloseTo(3e-5 + 2.7e-4 * 0.5 * (1 + Math.SQRT1_2), 12);
    expect(learningRateAt({ name: "wsd", ...base, decaySteps: 20, decay: "sqrt" }, 85)).toBeCloseTo(
      3e-5 + 2.7e-4 * (1 - Math.sqrt(5 / 20)),
      12,
    );
    expect(learningRateAt({ name: "wsd", ...base, decaySteps: 0, decay: "sqrt" }, 99)).toBe(3e-4);
    expect(learningRateAt({ name: "wsd", ...base, decaySteps: 0, decay: "sqrt" }, 100)).toBe(3e-5);
  });
  it("stays between the minimum and the peak, rises during warm-up and never afterwards", () => {
    const counts = fc.record({ warmupSteps: fc.nat(20), stable: fc.nat(20), decaySteps: fc.nat(20), step: fc.nat(70) });
    fc.assert(
      fc.property(counts, fc.constantFrom("linear", "cosine", "sqrt"), ({ warmupSteps, stable, decaySteps, step }, decay) => {
        const totalSteps = warmupSteps + stable + decaySteps + 1;
        const schedule: Schedule = { name: "wsd", learningRate: 2, minLearningRate: 0.5, warmupSteps, decaySteps, totalSteps, decay };
        const [rate, next] = [learningRateAt(schedule, step), learningRateAt(schedule, step + 1)];
        if (step + 1 < warmupSteps) expect(next).toBeGreaterThan(rate);
        else expect(next).toBeLessThanOrEqual(rate);
        expect(rate).toBeLessThanOrEqual(2);
        expect(rate).toBeGreaterThanOrEqual(step < warmupSteps ? 2 / warmupSteps - 1e-12 : 0.5);
      }),
    );
  });
});

describe("parseSchedule", () => {
  it("gives back what is right", () => {
    for (const schedule of [...Object.values(schedules), { name: "constant", learningRate: 0, warmupSteps: 0 }])
      expect(parseSchedule({ ...schedule })).toEqual(schedule);
  });
  it.each([
    [{ name: "cosin" }, 'schedule.name: expected one of constant, linear, cosine, wsd, got "cosin" (did you mean "cosine"?)'],
    [{ name: "toString" }, "schedule.name: expected one of"],
    [[], "schedule: expected an object, got []"],
    [null, "schedule: expected an object, got null"],
    [{ name: "constant", learningRate: 1, warmupStep: 1 }, 'schedule: unknown field warmupStep of constant (did you mean "warmupSteps"?)'],
    [{ name: "constant", learningRate: 1, warmupSteps: 1, totalSteps: 5 }, "schedule: unknown field totalSteps of constant"],
    [{ name: "constant", learningRate: 1 }, "schedule: constant needs warmupSteps"],
    [{ ...wsd, decay: "exp" }, 'schedule.decay: expected one of linear, cosine, sqrt, got "exp"'],
    [{ name: "constant", learningRate: -1, warmupSteps: 1 }, "schedule.learningRate: expected a finite number of at least 0, got -1"],
    [{ name: "constant", learningRate: 1, warmupSteps: 1.5 }, "schedule.warmupSteps: expected an integer of at least 0, got 1.5"],
    [{ ...schedules["cosine"], totalSteps: 0 }, "schedule.totalSteps: expected an integer of at least 1, got 0"],
    [{ ...schedules["cosine"], minLearningRate: 2 }, "schedule: minLearningRate 2 is above learningRate 1"],
    [{ ...schedules["cosine"], warmupSteps: 21 }, "schedule: warmupSteps 21 is more than totalSteps 20"],
    [{ ...wsd, decay: "cosine", decaySteps: 16 }, "schedule: warmupSteps 3 + decaySteps 16 is more than totalSteps 18"],
  ])("says what is wrong with %j", (value, message) => {
    expect(() => parseSchedule(value)).toThrow(message);
  });
});

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { minimize } from "./minimize.ts";

describe("minimize", () => {
  test("finds the minimum of Rosenbrock's valley", () => {
    const { x, value } = minimize(([a = 0, b = 0]) => (1 - a) ** 2 + 100 * (b - a * a) ** 2, [-1.2, 1], { restarts: 8, tolerance: 1e-12 });
    expect(value).toBeLessThan(1e-9);
    expect(x[0]).toBeCloseTo(1, 4);
    expect(x[1]).toBeCloseTo(1, 4);
  });

  test("finds the middle of sums of absolute values, the same every time", () => {
    fc.assert(
      fc.property(fc.array(fc.double({ min: -5, max: 5, noNaN: true }), { minLength: 1, maxLength: 5 }), (target) => {
        const f = (x: readonly number[]): number => x.reduce((sum, value, i) => sum + (i + 1) * Math.abs(value - (target[i] ?? 0)), 1);
        const start = target.map(() => 0);
        const found = minimize(f, start, { restarts: 8 });
        expect(found.value).toBeLessThan(1.05);
        expect(minimize(f, start, { restarts: 8 })).toEqual(found);
        expect(found.value).toBeLessThanOrEqual(f(start));
      }),
      { numRuns: 30 },
    );
  });

  test("walks around what is not a number, and without coordinates answers the start", () => {
    const { x } = minimize(([a = 0]) => (a < 0 ? Number.NaN : (a - 0.1) ** 2), [2]);
    expect(x[0]).toBeCloseTo(0.1, 2);
    expect(minimize(() => 7, [])).toEqual({ x: [], value: 7 });
  });
});

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { planTokens } from "./plan.ts";

describe("a step's plan", () => {
  test("gives every decoding sequence its token, whatever the prompts want and the budget is", () => {
    expect(planTokens([1, 900, 1, 1], 100)).toEqual([1, 97, 1, 1]);
    expect(planTokens([1, 1, 1, 50], 2)).toEqual([1, 1, 1, 0]);
  });
  test("reads prompts in order of arrival, in parts where they do not fit", () => {
    expect(planTokens([300, 300], 512)).toEqual([300, 212]);
    expect(planTokens([1000], 512)).toEqual([512]);
  });
  test("leaves half of a step to those behind a prompt that would fill it, and no token unused", () => {
    expect(planTokens([10_000, 20], 512)).toEqual([492, 20]);
    expect(planTokens([10_000, 5000, 20], 512)).toEqual([364, 128, 20]);
  });
  test("uses the whole budget where there is work for it, never more, and always lets the oldest go on", () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 1, max: 3000 }), { minLength: 1, maxLength: 20 }),
        fc.integer({ min: 1, max: 600 }),
        (remaining, budget) => {
          const plan = planTokens(remaining, budget);
          const sum = plan.reduce((a, b) => a + b, 0);
          const decoding = remaining.filter((count) => count === 1).length;
          expect(sum).toBe(
            Math.max(
              decoding,
              Math.min(
                budget,
                remaining.reduce((a, b) => a + b, 0),
              ),
            ),
          );
          for (const [i, count] of plan.entries()) expect(count).toBeLessThanOrEqual(remaining[i] ?? 0);
          const oldest = remaining.findIndex((count) => count > 1);
          if (oldest >= 0 && decoding < budget) expect(plan[oldest]).toBeGreaterThan(0);
        },
      ),
    );
  });
});

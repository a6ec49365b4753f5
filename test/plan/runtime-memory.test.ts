/**
 * Peak memory of our own trainer against what the planner says of the same layout (`benchmarks/planner-memory.ts`): a few layouts are run here, all of
 * them with `MOE_LONG`; what was measured of the others is compared.
 */
import { describe, expect, test } from "vitest";
import { measurePeak, memoryBar, memoryCaseName, memoryCases, predictPeak, savedPeaks } from "../../benchmarks/planner-memory.ts";

const few = new Set(["dense: tp 2", "dense: pp 2, recompute [4, 4]", "sparse: tp 2, strategy EDP"]);
const run = process.env["MOE_LONG"] === "1" ? memoryCases : memoryCases.filter((one) => few.has(memoryCaseName(one)));

describe("peak memory of a rank", () => {
  const named = (cases: typeof memoryCases): (readonly [string, (typeof memoryCases)[number]])[] =>
    cases.map((one) => [memoryCaseName(one), one] as const);

  test.each(named(memoryCases))("as measured of %s is within 5%% of the planner's", (name, one) => {
    expect(Math.abs(predictPeak(one) / (savedPeaks()?.[name] ?? Number.NaN) - 1)).toBeLessThan(memoryBar);
  });
  test("some of them are run here", () => expect(run.length).toBeGreaterThanOrEqual(few.size));
  test.each(named(run))(
    "of %s, run now, is within 5%% of the planner's",
    async (_, one) => {
      expect(Math.abs(predictPeak(one) / (await measurePeak(one)) - 1)).toBeLessThan(memoryBar);
    },
    240_000,
  );
});

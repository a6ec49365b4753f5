import { expect, test } from "vitest";
import { withEngine } from "../../../test/gradcheck.ts";
import { router } from "../../tensor/index.ts";
import { compareRouting, selectionScores } from "./compare.ts";

const scores = Float32Array.of(0.5, 0.3, 0.2, 0.375, 0.25, 0.25);

test("runs that chose the same experts, in whatever order, have no flips", () => {
  const a = { indices: Int32Array.of(0, 1, 0, 1), scores };
  const b = { indices: Int32Array.of(1, 0, 0, 1), scores };
  expect(compareRouting(a, b, 2)).toEqual({ numTokens: 2, flips: [], largestMargin: 0 });
});

test("a flip is told with the experts of each run and the larger of the two runs' margins", () => {
  const other = Float32Array.of(0.5, 0.3, 0.2, 0.375, 0.25, 0.3125);
  const a = { indices: Int32Array.of(0, 1, 0, 1), scores };
  const b = { indices: Int32Array.of(0, 1, 0, 2), scores: other };
  // In the first run the two are level, in the second they are 1/16 apart.
  expect(compareRouting(a, b, 2)).toEqual({
    numTokens: 2,
    flips: [{ token: 1, onlyA: [1], onlyB: [2], margin: 0.0625 }],
    largestMargin: 0.0625,
  });
});

test("a token that takes part in one run only is no near tie", () => {
  const a = { indices: Int32Array.of(0, 1), scores: scores.subarray(0, 3) };
  const b = { indices: Int32Array.of(-1, -1), scores: scores.subarray(0, 3) };
  expect(compareRouting(a, b, 2).largestMargin).toBe(Infinity);
});

test.each(["softmax", "softmaxOfTopK", "sigmoid"] as const)("selection scores are what the router chose by: %s", (scoring) => {
  withEngine((engine) =>
    engine.scope(() => {
      const logits = engine.from([0.2, 1.4, -0.3, 0.8, 1.1, -2, 0.4, 0.1], [2, 4], "f32");
      const bias = Float32Array.of(0, -0.4, 0.3, 0);
      const normalization = { lambda: 1.5, epsilon: 1e-6, unbiased: true };
      const { probs, indices } = router(logits, { topK: 2, scoring, normalization, bias: engine.from(bias, [4], "f32") });
      const settings = { scoring, normalization: { lambda: 1.5, eps: 1e-6, unbiased: true } };
      const byScore = selectionScores({ probs_TE: probs, logits_TE: logits }, settings, bias);
      for (let t = 0; t < 2; t++) {
        const row = byScore.subarray(4 * t, 4 * t + 4);
        const best = [0, 1, 2, 3].toSorted((a, b) => (row[b] ?? 0) - (row[a] ?? 0)).slice(0, 2);
        expect([...indices.toInt32Array().subarray(2 * t, 2 * t + 2)]).toEqual(best);
      }
    }),
  );
});

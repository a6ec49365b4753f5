import { expect, test } from "vitest";
import { aggregate, meanStandardError, passAtK, pooledStandardError, weightedMean } from "./metrics.ts";

test("accuracy is a mean, its error the sample deviation over the root of n", () => {
  // 1, 0, 0, 1: mean 1/2, sample variance 1/3, error sqrt(1/3)/2.
  expect(aggregate("mean", [1, 0, 0, 1])).toEqual({ value: 0.5, standardError: Math.sqrt(1 / 3) / 2 });
  expect(meanStandardError([1])).toBe("N/A");
});

test("perplexities weigh documents by their counts", () => {
  const { value, standardError } = aggregate("weighted_perplexity", [
    [-3, 1],
    [-5, 3],
  ]);
  expect(value).toBeCloseTo(Math.exp(2), 12);
  expect(standardError).toBe("N/A");
  expect(aggregate("bits_per_byte", [[-8 * Math.LN2, 4]]).value).toBeCloseTo(2, 12);
});

test("a group's score weighs tasks by samples; its error is that of the pooled variance", () => {
  expect(weightedMean([0.5, 0.2], [10, 30])).toBeCloseTo(0.275, 12);
  // Parts [0, 1] and [0, 0, 1, 1]: variances 1/2 and 1/3, pooled (1 * 1/2 + 3 * 1/3) / 4 = 0.375, over 6.
  const errors = [meanStandardError([0, 1]), meanStandardError([0, 0, 1, 1])];
  expect(pooledStandardError(errors, [2, 4])).toBeCloseTo(Math.sqrt(0.375 / 6), 12);
  expect(pooledStandardError([0.1, "N/A"], [2, 1])).toBe("N/A");
});

test("pass@k is the chance that k draws hold a success", () => {
  expect([passAtK(1, 1, 1), passAtK(1, 0, 1)]).toEqual([1, 0]);
  // 1 - C(3,2)/C(5,2) = 0.7
  expect(passAtK(5, 2, 2)).toBeCloseTo(0.7, 12);
  expect(passAtK(3, 2, 2)).toBe(1);
});

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Random } from "../util/random.ts";
import { argmax, checkSamplingOptions, greedy, sampleToken } from "./sampler.ts";

const logits = Float32Array.from([0, 3, 1, 2]);
const frequencies = (options: Parameters<typeof sampleToken>[1], draws = 4000): number[] => {
  const counts = [0, 0, 0, 0];
  const random = new Random(7);
  for (let i = 0; i < draws; i++) {
    const id = sampleToken(logits, options, random);
    counts[id] = (counts[id] ?? 0) + 1 / draws;
  }
  return counts;
};

describe("sampler", () => {
  test("takes the largest logit at temperature 0, the lower id on a tie", () => {
    expect(sampleToken(logits, greedy, new Random(1))).toBe(1);
    expect(argmax(Float32Array.from([1, 5, 5]))).toBe(1);
  });
  test("draws in proportion to the softmax", () => {
    const weights = [...logits].map((x) => Math.exp(x));
    const sum = weights.reduce((a, b) => a + b);
    for (const [i, p] of frequencies({ ...greedy, temperature: 1 }).entries()) expect(p).toBeCloseTo((weights[i] ?? 0) / sum, 1);
  });
  test("keeps only the top k", () => {
    const [a, b, c, d] = frequencies({ ...greedy, temperature: 1, topK: 2 });
    expect([a, c]).toEqual([0, 0]);
    expect((b ?? 0) + (d ?? 0)).toBeCloseTo(1, 6);
  });
  test("keeps only the nucleus", () => {
    // softmax is about [0.032, 0.644, 0.087, 0.237]: the first two reach 0.85
    const [a, , c] = frequencies({ ...greedy, temperature: 1, topP: 0.85 });
    expect([a, c]).toEqual([0, 0]);
  });
  test("penalizes tokens seen before", () => {
    expect(sampleToken(logits, { ...greedy, repetitionPenalty: 10 }, new Random(1), [1])).toBe(3);
  });
  test("gives the same tokens for the same seed and never one outside the vocabulary", () => {
    fc.assert(
      fc.property(
        fc.float32Array({ minLength: 1, maxLength: 50, noNaN: true, noDefaultInfinity: true, min: -50, max: 50 }),
        fc.integer({ min: 0 }),
        fc.double({ min: 0.1, max: 3, noNaN: true }),
        fc.double({ min: 0.01, max: 1, noNaN: true }),
        (row, seed, temperature, topP) => {
          const options = { ...greedy, temperature, topP };
          const first = sampleToken(row, options, new Random(seed));
          expect(first).toBe(sampleToken(row, options, new Random(seed)));
          expect(first).toBeLessThan(row.length);
        },
      ),
    );
  });
  test("keeps the top k in the order of a plain sort: ties to the lower id, -0 like 0, never -infinity", () => {
    const value = fc.constantFrom(-3, -0.5, -0, 0, 1e-40, 0.5, 0.5000001, 2, Number.NEGATIVE_INFINITY);
    fc.assert(
      fc.property(
        fc.array(value, { minLength: 1, maxLength: 30 }),
        fc.integer({ min: 1, max: 5 }),
        fc.integer({ min: 0 }),
        (row, topK, seed) => {
          fc.pre(row.some(Number.isFinite));
          const ids = [...row.keys()].filter((id) => Number.isFinite(row[id]));
          const float = Float32Array.from(row);
          const allowed = ids.sort((a, b) => (float[b] ?? 0) - (float[a] ?? 0) || a - b).slice(0, topK);
          const random = new Random(seed);
          const drawn = Array.from({ length: 40 }, () => sampleToken(float, { ...greedy, temperature: 5, topK }, random));
          expect(allowed).toEqual(expect.arrayContaining(drawn));
          expect(sampleToken(float, { ...greedy, temperature: 5, topK: 1 }, random)).toBe(allowed[0]);
        },
      ),
    );
  });
  test("says so when the logits are not numbers, greedy or not, and looks past a single NaN", () => {
    for (const temperature of [0, 1]) {
      for (const row of [[Number.NaN, Number.NaN], [1, Number.POSITIVE_INFINITY], [Number.NEGATIVE_INFINITY]]) {
        expect(() => sampleToken(Float32Array.from(row), { ...greedy, temperature }, new Random(1))).toThrow(/expected finite logits/);
      }
    }
    expect(sampleToken(Float32Array.from([Number.NaN, 1, 2]), greedy, new Random(1))).toBe(2);
  });
  test("refuses values that make no sense", () => {
    expect(() => checkSamplingOptions({ ...greedy, topP: 0 })).toThrow(/top-p: expected a number above 0/);
    expect(() => checkSamplingOptions({ ...greedy, temperature: Number.NaN })).toThrow(/temperature/);
    expect(() => checkSamplingOptions({ ...greedy, topK: 1.5 })).toThrow(/top-k/);
  });
});

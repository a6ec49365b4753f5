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
  test("keeps what is at least min-p times as probable as the best", () => {
    // The logits are 3 (best), 2, 1, 0: e^-1 = 0.368 and e^-2 = 0.135 of its probability.
    const [a, , c, d] = frequencies({ ...greedy, temperature: 1, minP: 0.2 });
    expect([a, c]).toEqual([0, 0]);
    expect(d).toBeGreaterThan(0.1);
  });
  test("takes frequency and presence penalties from what was generated, not from the prompt, and adds the bias", () => {
    expect(sampleToken(logits, { ...greedy, frequencyPenalty: 0.6 }, new Random(1), [1, 1, 1], [1])).toBe(1);
    expect(sampleToken(logits, { ...greedy, frequencyPenalty: 0.6 }, new Random(1), [], [1, 1])).toBe(3);
    expect(sampleToken(logits, { ...greedy, presencePenalty: 0.9 }, new Random(1), [], [1, 1, 1])).toBe(1);
    expect(sampleToken(logits, { ...greedy, presencePenalty: 1.1 }, new Random(1), [], [1])).toBe(3);
    expect(sampleToken(logits, { ...greedy, logitBias: new Map([[0, 10]]) }, new Random(1))).toBe(0);
    expect([...logits]).toEqual([0, 3, 1, 2]);
  });
  test("draws as if all ids were sorted", () => {
    // The definition, without the shortcut: everything sorted, then filters, then the draw.
    const plain = (row: Float32Array, { temperature, topK, topP, minP }: typeof greedy, random: Random): number => {
      const top = Math.max(...row);
      const ids = [...row.keys()].filter((id) => Number.isFinite(row[id])).sort((a, b) => (row[b] ?? 0) - (row[a] ?? 0) || a - b);
      let kept = ids.map((id) => ({ id, p: Math.exp(((row[id] ?? 0) - top) / temperature) })).filter(({ p }) => p >= minP);
      if (topK > 0) kept = kept.slice(0, topK);
      const total = kept.reduce((sum, { p }) => sum + p, 0);
      let sum = 0;
      if (topP < 1) kept = kept.filter(({ p }) => (sum += p) - p < topP * total);
      let at = random.uniform() * kept.reduce((s, { p }) => s + p, 0);
      return kept.find(({ p }) => (at -= p) < 0)?.id ?? -1;
    };
    const random = new Random(5);
    const options = fc.record({
      temperature: fc.constantFrom(0.01, 0.3, 1, 5),
      topK: fc.constantFrom(0, 1, 3, 200),
      topP: fc.constantFrom(0.1, 0.9, 1),
      minP: fc.constantFrom(0, 0.05, 0.5),
    });
    fc.assert(
      fc.property(fc.array(fc.integer({ min: -400, max: 400 }), { minLength: 1, maxLength: 60 }), options, (row, choice) => {
        const values = Float32Array.from(row, (x) => x / 8);
        const state = random.state;
        const expected = plain(values, { ...greedy, ...choice }, new Random(state));
        expect(sampleToken(values, { ...greedy, ...choice }, new Random(state))).toBe(expected);
        random.uniform();
      }),
    );
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
    expect(() => checkSamplingOptions({ ...greedy, minP: 1.5 })).toThrow(/min-p: expected a number from 0 to 1, got 1.5/);
    expect(() => checkSamplingOptions({ ...greedy, presencePenalty: Number.NaN })).toThrow(/presence penalty/);
    expect(() => checkSamplingOptions({ ...greedy, repetitionPenalty: 1e-30 })).toThrow(/repetition penalty: expected a number from 0.01/);
    expect(() => checkSamplingOptions({ ...greedy, logitBias: new Map([[3, 1e30]]) })).toThrow(/logit bias of token 3/);
    expect(() => checkSamplingOptions({ ...greedy, frequencyPenalty: Number.POSITIVE_INFINITY })).toThrow(/frequency penalty/);
    expect(() => checkSamplingOptions({ ...greedy, logitBias: new Map([[5, Number.NaN]]) })).toThrow(/logit bias of token 5/);
  });
});

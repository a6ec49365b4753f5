import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Coefficients } from "./coefficients.ts";
import { layerMetrics, loadMetrics, updatedBias, type LayerSettings, type MicroRouting } from "./routing.ts";

const settings: LayerSettings = { layer: 3, numExperts: 2, topK: 1, numScored: 2, capacityFactor: null, coefficient: 0.5, numSequences: 4 };
/** Groups of `[expert 0, expert 1]` assignments, top-1, with losses that add up. */
function micro(groups: readonly (readonly [number, number])[], changes: Partial<MicroRouting> = {}): MicroRouting {
  const numTokens = groups.map(([a, b]) => a + b);
  const sums = { auxiliaryLoss: 0.25 * groups.length, switchLoss: null, sequenceLoss: null, zLoss: 3 };
  const ratios = { max1OverMax2: 2, max2OverMax3: 0, gateEntropy: 1 };
  return { layer: 0, counts: Int32Array.from(groups.flat()), numTokens, ...sums, ...ratios, ...changes };
}

describe("metrics of a layer", () => {
  test("do not depend on which micro-batch a balance group is in", () => {
    const pair = fc.tuple(fc.integer({ min: 0, max: 9 }), fc.integer({ min: 1, max: 9 }));
    fc.assert(
      fc.property(
        fc.array(pair, { minLength: 2, maxLength: 8 }),
        fc.double({ min: 0.1, max: 3, noNaN: true }),
        (groups, capacityFactor) => {
          const of = (cut: readonly (readonly (readonly [number, number])[])[]): object => {
            const {
              zLoss: _,
              max1OverMax2: __,
              gateEntropy: ___,
              ...rest
            } = layerMetrics(
              cut.map((g) => micro(g)),
              { ...settings, capacityFactor },
            );
            return rest;
          };
          expect(of(groups.map((group) => [group]))).toEqual(of([groups]));
        },
      ),
    );
  });
  test("count drops by group: what one group has to spare is no use to another", () => {
    const groups = [
      [4, 0],
      [0, 4],
    ] as const;
    // Capacity ceil(1 * 1 * 4 / 2) = 2 in each group of 4; of both as one group it would be 4, and nothing dropped.
    const tight = layerMetrics([micro(groups)], { ...settings, capacityFactor: 1 });
    expect([tight.numDropped, tight.dropRate]).toEqual([4, 0.5]);
    expect(layerMetrics([micro([[4, 4]])], { ...settings, capacityFactor: 1 }).numDropped).toBe(0);
    expect(layerMetrics([micro(groups)], settings).dropRate).toBe(0);
  });
  test("divide sums over groups, sequences and tokens by their numbers in the whole batch", () => {
    const metrics = layerMetrics(
      [
        micro(
          [
            [1, 1],
            [2, 0],
          ],
          { switchLoss: 3, sequenceLoss: 6 },
        ),
        micro([[0, 2]], { switchLoss: 0, sequenceLoss: 2 }),
      ],
      settings,
    );
    expect(metrics).toMatchObject({ layer: 3, coefficient: 0.5, auxiliaryLoss: 0.25, switchLoss: 1, sequenceLoss: 2, zLoss: 1 });
    expect(metrics).toMatchObject({ max1OverMax2: 4 / 6, gateEntropy: 2 / 6, max2OverMax3: null, load: [0.5, 0.5] });
  });
  test("of a load: perfect balance, one expert with all, and nothing at all", () => {
    expect(loadMetrics([5, 5, 5, 5])).toEqual({ load: [0.25, 0.25, 0.25, 0.25], loadEntropy: 1, maxOverMeanLoad: 1, deadExperts: 0 });
    expect(loadMetrics([0, 7, 0, 0])).toEqual({ load: [0, 1, 0, 0], loadEntropy: 0.25, maxOverMeanLoad: 4, deadExperts: 3 });
    const half = loadMetrics([3, 3, 0, 0]);
    expect(half.loadEntropy).toBeCloseTo(0.5, 14);
    for (const value of Object.values(loadMetrics([0, 0])).flat()) expect(value).toBeTypeOf("number");
    expect(loadMetrics([0, 0]).load).toEqual([0, 0]);
  });
});

describe("the coefficient", () => {
  const adaptive = { type: "adaptive", xi: 0.2, alphaMax: 0.01, beta: 0.99, alpha0: null } as const;
  test("follows drops as the report's formula says, capped at alphaMax", () => {
    const coefficients = new Coefficients(adaptive, 2, null);
    expect(coefficients.values).toEqual([0.01, 0.01]);
    coefficients.update([0, 0.9]);
    expect(coefficients.values[0]).toBeCloseTo(0.0099, 15);
    expect(coefficients.values[1]).toBeCloseTo(0.01, 15);
    coefficients.update([0.01, 0]);
    expect(coefficients.values[0]).toBeCloseTo(0.99 * 0.0099 + 0.01 * 0.002, 15);
  });
  test("settles where the drops are: at xi * d below the cap, at alphaMax above it", () => {
    const drops = fc.double({ min: 0, max: 1, noNaN: true });
    fc.assert(
      fc.property(drops, drops, (d, alpha0) => {
        const coefficients = new Coefficients({ ...adaptive, alpha0, beta: 0.5 }, 1, null);
        const target = Math.min(0.2 * d, 0.01);
        for (let i = 0; i < 60; i++) coefficients.update([d]);
        expect(Math.abs((coefficients.values[0] ?? Number.NaN) - target)).toBeLessThan(1e-15);
      }),
    );
  });
  test("goes on from a checkpoint with the same bits, and not from one of another model", () => {
    const whole = new Coefficients(adaptive, 1, null);
    whole.update([0.0123]);
    const resumed = new Coefficients(adaptive, 1, JSON.parse(JSON.stringify(whole.state)) as number[]);
    for (const { values } of [whole, resumed]) expect(values).toEqual(whole.values);
    whole.update([0.3]);
    resumed.update([0.3]);
    expect(resumed.values).toEqual(whole.values);
    expect(() => new Coefficients(adaptive, 2, [0.1])).toThrow(/expected 2 \(layers with experts\), got 1/);
  });
  test("that is fixed stays, and keeps nothing in checkpoints", () => {
    const coefficients = new Coefficients({ type: "fixed", value: 0.3 }, 2, [0.1, 0.1]);
    coefficients.update([1, 1]);
    expect(coefficients.values).toEqual([0.3, 0.3]);
    expect(coefficients.state).toBeNull();
  });
});

test("a selection bias rises for experts below the mean load, falls above it, and rests on it", () => {
  expect([...updatedBias(Float32Array.of(0, 0.5, 1), [2, 4, 6], 0.25)]).toEqual([0.25, 0.5, 0.75]);
  expect([...updatedBias(Float32Array.of(0, 0), [3, 3], 1)]).toEqual([0, 0]);
});

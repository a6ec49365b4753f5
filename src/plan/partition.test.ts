import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { partitionLayers, partitionSeconds, type PartitionProblem } from "./partition.ts";
import { simulateStep } from "./simulate.ts";

/** Of problems of both kinds. */
const sizes = {
  P: fc.integer({ min: 1, max: 5 }),
  M: fc.integer({ min: 1, max: 14 }),
  speeds: fc.array(fc.integer({ min: 1, max: 3 }), { minLength: 5, maxLength: 5 }),
  head: fc.integer({ min: 0, max: 12 }),
};

/** Layers all alike, an end of the model on the first and the last stage, stages of several speeds. */
const uniformProblem = fc
  .record({
    ...sizes,
    more: fc.integer({ min: 0, max: 9 }),
    most: fc.integer({ min: 2, max: 12 }),
  })
  .map(({ P, more, M, speeds, most, head }): PartitionProblem => {
    const L = P + more;
    return {
      numStages: P,
      numLayers: L,
      numMicroBatches: M,
      candidate(s, first, n) {
        if (n > most) return null;
        const forward = (3 * n + (first === 0 ? 1 : 0) + (first + n === L ? head : 0)) / (speeds[s] ?? 1);
        return { forward, backward: 2 * forward, gradients: n + (first === 0 ? 5 : 0), optimizer: n };
      },
    };
  });

/** All ways to write `total` as `parts` counts of at least 1. */
function* splits(total: number, parts: number): Generator<number[]> {
  if (parts === 1) {
    yield [total];
    return;
  }
  for (let first = 1; first <= total - parts + 1; first++) for (const rest of splits(total - first, parts - 1)) yield [first, ...rest];
}

/** Unequal layers on unequal devices, head and embedding as work, memory limits that make recomputation necessary or a run impossible. */
const anyProblem = fc
  .record({
    ...sizes,
    more: fc.integer({ min: 0, max: 6 }),
    layers: fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 11, maxLength: 11 }),
    memory: fc.array(fc.integer({ min: 4, max: 40 }), { minLength: 5, maxLength: 5 }),
    message: fc.integer({ min: 0, max: 3 }),
    gradients: fc.integer({ min: 0, max: 4 }),
  })
  .map(({ P, more, M, layers, speeds, memory, head, message, gradients }): PartitionProblem => {
    const L = P + more;
    return {
      numStages: P,
      numLayers: L,
      numMicroBatches: M,
      candidate(s, first, n) {
        const inFlight = Math.min(P - s, M);
        const run = layers.slice(first, first + n);
        const kept = run.map((size) => size * inFlight);
        // Recompute the first r layers: the fewest that fit.
        const limit = (memory[s] ?? 0) * 4;
        let r = 0;
        const held = (): number => kept.reduce((sum, bytes, i) => sum + (i < r ? inFlight : bytes), 0) + 2 * n;
        while (held() > limit && r < n) r++;
        if (held() > limit) return null;
        const speed = speeds[s] ?? 1;
        const forward = (run.reduce((a, b) => a + b, 0) + (first + n === L ? head : 0) + (first === 0 ? 1 : 0)) / speed;
        const recompute = run.slice(0, r).reduce((a, b) => a + b, 0) / speed;
        return {
          forward: forward + (s < P - 1 ? message : 0),
          backward: 2 * forward + recompute + (s > 0 ? message : 0),
          gradients: gradients * n,
          optimizer: n / 2,
        };
      },
    };
  });

describe("partition of layers over stages", () => {
  test("is as good as the best of all splits, and no split is below the lower bound", () => {
    fc.assert(
      fc.property(anyProblem, (problem) => {
        const all = [...splits(problem.numLayers, problem.numStages)].flatMap((layers) => partitionSeconds(problem, layers) ?? []);
        const found = partitionLayers(problem);
        if (all.length === 0) {
          expect(found).toBeNull();
          return;
        }
        expect(found?.optimal).toBe(true);
        expect(found?.seconds).toBeCloseTo(Math.min(...all), 9);
        expect(partitionSeconds(problem, found?.layers ?? [])).toBe(found?.seconds);
        expect(found?.lowerBoundSeconds).toBeLessThanOrEqual(Math.min(...all) + 1e-9);
        expect(found?.layers.reduce((a, b) => a + b, 0)).toBe(problem.numLayers);
      }),
      { numRuns: 500 },
    );
  });

  test("where all layers are alike is the same, asked once for each number of layers of a stage", () => {
    fc.assert(
      fc.property(uniformProblem, (problem) => {
        let asked = 0;
        const candidate: PartitionProblem["candidate"] = (s, first, n) => {
          asked++;
          return problem.candidate(s, first, n);
        };
        expect(partitionLayers({ ...problem, candidate, uniform: true })).toEqual(partitionLayers(problem));
        const { numStages: P, numLayers: L } = problem;
        // Each count of each stage, and an even split before.
        expect(asked).toBeLessThanOrEqual(P * (L - P + 1) + P);
      }),
      { numRuns: 300 },
    );
  });

  test("a thousand layers over 512 stages are split where they are alike, and refused with their number where they are not", () => {
    const problem: PartitionProblem = {
      numStages: 512,
      numLayers: 1024,
      numMicroBatches: 8,
      maxNodes: 1,
      candidate: (s, _first, n) => ({ forward: n + (s === 511 ? 1 : 0), backward: 2 * n, gradients: 0, optimizer: 0 }),
    };
    const { layers = [], seconds = 0, lowerBoundSeconds = 0 } = partitionLayers({ ...problem, uniform: true }) ?? {};
    expect(layers.reduce((a, b) => a + b, 0)).toBe(1024);
    expect(seconds).toBeLessThan(1.05 * lowerBoundSeconds);
    expect(() => partitionLayers(problem)).toThrow(
      "1024 layers of several kinds over 512 stages are 134742528 candidates, at most 33554432",
    );
  });

  test("its time is that of the simulation, operation by operation", () => {
    fc.assert(
      fc.property(anyProblem, (problem) => {
        const found = partitionLayers(problem);
        if (found === null) return;
        let first = 0;
        const stages = found.layers.map((n, s) => {
          const candidate = problem.candidate(s, first, n);
          first += n;
          return candidate ?? { forward: 0, backward: 0, gradients: 0, optimizer: 0 };
        });
        const { seconds } = simulateStep({
          schedule: { name: "1f1b", numRanks: problem.numStages, numMicroBatches: problem.numMicroBatches },
          stages: stages.map(({ forward, backward }) => ({ forward, backwardInput: backward, backwardWeight: 0 })),
          messageSeconds: 0,
          overlapMessages: false,
          stepEnd: stages.map(({ gradients, optimizer }) => ({ gradientSeconds: gradients, optimizerSeconds: optimizer })),
        });
        expect(seconds).toBeCloseTo(found.seconds, 9);
      }),
      { numRuns: 100 },
    );
  });

  describe("the report's example: 24 layers, a backward pass of two forward passes, a loss of two layers' forward passes", () => {
    const on = (numStages: number, numMicroBatches: number): PartitionProblem => ({
      numStages,
      numLayers: 24,
      numMicroBatches,
      candidate: (_s, first, n) => ({ forward: n, backward: 2 * n + (first + n === 24 ? 2 : 0), gradients: 0, optimizer: 0 }),
    });

    test("[5, 5, 5, 5, 4] is the best split over 5 stages, and [6, 6, 6, 6] over 4", () => {
      for (const M of [16, 64, 256]) {
        expect(partitionLayers(on(5, M))?.seconds).toBe(partitionSeconds(on(5, M), [5, 5, 5, 5, 4]));
        expect(partitionLayers(on(4, M))?.seconds).toBe(partitionSeconds(on(4, M), [6, 6, 6, 6]));
      }
    });

    test("at equal device count 5 stages save at most 6%, not a quarter", () => {
      const deviceTime = (P: number): number => (P * (partitionLayers(on(P, 10_000))?.seconds ?? 0)) / 10_000;
      expect(deviceTime(4)).toBeCloseTo(80, 0);
      expect(deviceTime(5)).toBeCloseTo(75, 0);
    });
  });

  test("the bound is tight where stages can be equal: no tree is searched beyond the first descent", () => {
    const found = partitionLayers({
      numStages: 8,
      numLayers: 64,
      numMicroBatches: 32,
      candidate: (_s, _first, n) => ({ forward: n, backward: 2 * n, gradients: 0, optimizer: 0 }),
    });
    expect(found).toMatchObject({
      layers: [8, 8, 8, 8, 8, 8, 8, 8],
      seconds: 39 * 24,
      lowerBoundSeconds: 39 * 24,
      optimal: true,
      numNodes: 8,
    });
  });

  test("with a limit on nodes the answer is a split, its bound holds, and it does not claim to be optimal", () => {
    const problem: PartitionProblem = {
      numStages: 12,
      numLayers: 52,
      numMicroBatches: 13,
      candidate(s, first, n) {
        const forward = n + (first + n === 52 ? 2 : 0) + (s < 11 ? 0.05 : 0);
        return { forward, backward: 2 * forward, gradients: 0.5 * n, optimizer: 0.1 * n };
      },
    };
    const best = partitionLayers(problem);
    const quick = partitionLayers({ ...problem, maxNodes: 20 });
    expect(best?.optimal).toBe(true);
    expect(quick?.optimal).toBe(false);
    expect(quick?.lowerBoundSeconds).toBe(best?.lowerBoundSeconds);
    expect(quick?.seconds).toBeGreaterThanOrEqual(best?.seconds ?? Infinity);
    expect(quick?.seconds).toBeLessThan(1.05 * (best?.seconds ?? 0));
  });

  test("more stages than layers and counts that are none are refused", () => {
    const candidate = (): null => null;
    expect(() => partitionLayers({ numStages: 5, numLayers: 4, numMicroBatches: 1, candidate })).toThrow("5 stages for 4 layers");
    expect(() => partitionLayers({ numStages: 0, numLayers: 4, numMicroBatches: 1, candidate })).toThrow("numStages of at least 1, got 0");
  });
});

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { PipelineScheduleName } from "../util/pipeline-schedule.ts";
import { Random } from "../util/random.ts";
import { oneForwardOneBackwardSeconds, pipelineScratch } from "./pipeline-time.ts";
import { simulateStep, type SimulationOptions, type StageSeconds } from "./simulate.ts";

const even = (count: number, forward: number, input: number, weight: number): StageSeconds[] =>
  Array.from({ length: count }, () => ({ forward, backwardInput: input, backwardWeight: weight }));

/** Any schedule, unequal stages, replicas of unequal ranks. Times are small whole numbers: sums are exact, and ties are many. */
const anySimulation = fc
  .record({
    name: fc.constantFrom<PipelineScheduleName>("1f1b", "interleaved", "zeroBubble"),
    P: fc.integer({ min: 1, max: 6 }),
    M: fc.integer({ min: 1, max: 12 }),
    V: fc.integer({ min: 2, max: 3 }),
    D: fc.integer({ min: 1, max: 3 }),
    overlapMessages: fc.boolean(),
    messageSeconds: fc.integer({ min: 0, max: 4 }),
    times: fc.array(fc.integer({ min: 0, max: 9 }), { minLength: 80, maxLength: 80 }),
  })
  .map(({ name, P, M, V, D, overlapMessages, messageSeconds, times }): SimulationOptions => {
    const stagesPerRank = name === "interleaved" ? V : 1;
    const at = (i: number): number => times[i % times.length] ?? 0;
    return {
      schedule: { name, numRanks: P, numMicroBatches: M, stagesPerRank },
      stages: Array.from({ length: P * stagesPerRank }, (_, s) => ({
        forward: at(3 * s),
        backwardInput: at(3 * s + 1),
        backwardWeight: at(3 * s + 2),
      })),
      messageSeconds,
      overlapMessages,
      replicas: Array.from({ length: D }, (_, d) => Array.from({ length: P }, (_, r) => 1 + at(d * P + r))),
      stepEnd: Array.from({ length: P }, (_, r) => ({ gradientSeconds: at(r), optimizerSeconds: at(r + 7) })),
      activationBytes: Array.from({ length: P * stagesPerRank }, (_, s) => 100 + s),
      timeline: true,
    };
  });

describe("simulation of a step", () => {
  test("equal stages under 1F1B take (M + P - 1) forward and backward passes, and the bubble is (P - 1) / (M + P - 1)", () => {
    const { seconds, bubbleFraction, busySeconds } = simulateStep({
      schedule: { name: "1f1b", numRanks: 4, numMicroBatches: 8 },
      stages: even(4, 1, 1, 1),
      messageSeconds: 0,
      overlapMessages: true,
    });
    expect(seconds).toBe((8 + 3) * 3);
    expect(bubbleFraction).toBeCloseTo(3 / 11, 12);
    expect([...busySeconds]).toEqual([24, 24, 24, 24]);
  });

  test("interleaving divides the bubble by the stages of a rank", () => {
    const { seconds } = simulateStep({
      schedule: { name: "interleaved", numRanks: 4, numMicroBatches: 8, stagesPerRank: 2 },
      stages: even(8, 0.5, 0.5, 0.5),
      messageSeconds: 0,
      overlapMessages: true,
    });
    expect(seconds).toBeCloseTo(8 * 3 + (3 * 3) / 2, 12);
  });

  test("zero bubble H1 with equal halves wastes a third of what 1F1B wastes", () => {
    const { seconds } = simulateStep({
      schedule: { name: "zeroBubble", numRanks: 4, numMicroBatches: 8 },
      stages: even(4, 1, 1, 1),
      messageSeconds: 0,
      overlapMessages: true,
    });
    // (P - 1) (f + b - 2 w), arXiv 2401.10241, table 2, with b the input half: 3 * (1 + 1 - 1) where f = b = w.
    expect(seconds).toBe(8 * 3 + 3);
  });

  test("the reported example: [6, 6, 6, 6] to [5, 5, 5, 5, 4], backward = 2 forwards and loss = 2 layers' forwards, paces 20 and 15", () => {
    const pace = (layers: readonly number[]): number => {
      const stages = layers.map((n, s) => ({ forward: n, backwardInput: n, backwardWeight: n + (s === layers.length - 1 ? 2 : 0) }));
      const seconds = (M: number): number =>
        simulateStep({
          schedule: { name: "1f1b", numRanks: layers.length, numMicroBatches: M },
          stages,
          messageSeconds: 0,
          overlapMessages: true,
        }).seconds;
      return seconds(101) - seconds(100);
    };
    expect(pace([6, 6, 6, 6])).toBe(20);
    expect(pace([5, 5, 5, 5, 4])).toBe(15);
  });

  test("does not depend on which rank is looked at first", () => {
    fc.assert(
      fc.property(anySimulation, fc.integer({ min: 0, max: 2 ** 31 - 1 }), (options, seed) => {
        const random = new Random(seed);
        const expected = simulateStep(options);
        const actual = simulateStep({ ...options, pick: (count) => random.integer(count) });
        expect(actual).toEqual(expected);
      }),
      { numRuns: 200 },
    );
  });

  test("every rank is busy for exactly its work, its operations do not overlap, and nothing starts before its input is there", () => {
    fc.assert(
      fc.property(anySimulation, (options) => {
        const { schedule, stages, replicas = [], messageSeconds, stepEnd = [] } = options;
        const { numRanks: P, numMicroBatches: M } = schedule;
        const result = simulateStep(options);
        for (let r = 0; r < P; r++) {
          const work = stages.reduce((sum, t, s) => sum + (s % P === r ? t.forward + t.backwardInput + t.backwardWeight : 0), 0);
          for (const [d, slowness] of replicas.entries())
            expect(result.busySeconds[d * P + r]).toBeCloseTo(M * work * (slowness[r] ?? 0), 9);
        }
        const passes = result.timeline.filter(({ kind }) => kind !== "send" && kind !== "gradients" && kind !== "optimizer");
        for (const [i, entry] of passes.entries()) {
          const before = passes[i - 1];
          if (before?.rank === entry.rank) expect(entry.startSeconds).toBeGreaterThanOrEqual(before.endSeconds);
          const from = entry.kind === "forward" ? entry.stage - 1 : entry.stage + 1;
          if (entry.kind === "backwardWeight" || from < 0 || from >= stages.length) continue;
          const inputs = entry.kind === "forward" ? "forward" : schedule.name === "zeroBubble" ? "backwardInput" : "backward";
          const sent = passes.find((other) => other.kind === inputs && other.stage === from && other.microBatch === entry.microBatch);
          expect(entry.startSeconds).toBeGreaterThanOrEqual((sent?.endSeconds ?? Infinity) + (P === 1 ? 0 : Number(messageSeconds)));
        }
        expect(passes.length).toBeGreaterThan(0);
        const slowest = Math.max(
          ...stepEnd.map((end, r) => end.gradientSeconds + Math.max(...replicas.map((_, d) => result.finishSeconds[d * P + r] ?? 0))),
        );
        expect(result.seconds).toBe(slowest + Math.max(...stepEnd.map(({ optimizerSeconds }) => optimizerSeconds)));
      }),
      { numRuns: 100 },
    );
  });

  test("an early stage holds more micro-batches: P - r under 1F1B, and bytes follow", () => {
    const { peakInFlight, peakActivationBytes } = simulateStep({
      schedule: { name: "1f1b", numRanks: 4, numMicroBatches: 8 },
      stages: even(4, 1, 1, 1),
      messageSeconds: 0,
      overlapMessages: true,
      activationBytes: [10, 20, 30, 40],
    });
    expect([...peakInFlight]).toEqual([4, 3, 2, 1]);
    expect([...peakActivationBytes]).toEqual([40, 60, 60, 40]);
  });

  test("a message that the sender waits for costs it time; one that overlaps only delays the receiver", () => {
    const options = { schedule: { name: "1f1b", numRanks: 2, numMicroBatches: 4 }, stages: even(2, 2, 1, 1), messageSeconds: 1 } as const;
    const waiting = simulateStep({ ...options, overlapMessages: false });
    const overlapped = simulateStep({ ...options, overlapMessages: true });
    expect([...waiting.sendSeconds]).toEqual([4, 4]);
    expect([...overlapped.sendSeconds]).toEqual([0, 0]);
    expect(overlapped.seconds).toBeLessThan(waiting.seconds);
  });

  test("one slow rank in one replica slows the whole step", () => {
    const options: SimulationOptions = {
      schedule: { name: "1f1b", numRanks: 4, numMicroBatches: 16 },
      stages: even(4, 1, 1, 1),
      messageSeconds: 0,
      overlapMessages: true,
      stepEnd: Array.from({ length: 4 }, () => ({ gradientSeconds: 2, optimizerSeconds: 1 })),
    };
    const all = simulateStep({ ...options, replicas: Array.from({ length: 8 }, () => [1, 1, 1, 1]) });
    const straggler = simulateStep({
      ...options,
      replicas: Array.from({ length: 8 }, (_, d) => (d === 5 ? [1, 1.5, 1, 1] : [1, 1, 1, 1])),
    });
    expect(all.seconds).toBe(19 * 3 + 3);
    // Its own work and the stage before it, at least; half more of everything, at most.
    expect(straggler.seconds).toBeGreaterThanOrEqual(16 * 4.5 + 3 + 3);
    expect(straggler.seconds).toBeLessThan(1.5 * all.seconds);
  });

  test("times that make no sense are refused, with what was expected", () => {
    const options: SimulationOptions = {
      schedule: { name: "1f1b", numRanks: 2, numMicroBatches: 2 },
      stages: even(2, 1, 1, 1),
      messageSeconds: 0,
      overlapMessages: true,
    };
    expect(() => simulateStep({ ...options, stages: even(3, 1, 1, 1) })).toThrow("expected times of 2 stages, got 3");
    expect(() => simulateStep({ ...options, stages: even(2, Number.NaN, 1, 1) })).toThrow("finite times");
    expect(() => simulateStep({ ...options, messageSeconds: -1 })).toThrow("not negative, got -1");
    expect(() => simulateStep({ ...options, messageSeconds: [1, 2] })).toThrow("expected times of 1 boundaries, got 2");
    expect(() => simulateStep({ ...options, replicas: [[1]] })).toThrow("a factor for each of 2 ranks");
    const long = { ...options, schedule: { ...options.schedule, numMicroBatches: 2 ** 30 } };
    expect(() => simulateStep(long)).toThrow("2 ranks with 1073741824 micro-batches: 4294967296 passes, at most 33554432 are simulated");
  });
});

describe("makespan of 1F1B in closed form", () => {
  test("is what the simulation finds, for any stages, micro-batches and messages that the sender waits for", () => {
    fc.assert(
      fc.property(anySimulation, (options) => {
        const { numRanks: P, numMicroBatches: M } = options.schedule;
        const stages = options.stages.slice(0, P);
        const message = Number(options.messageSeconds);
        const simulated = simulateStep({
          ...options,
          schedule: { name: "1f1b", numRanks: P, numMicroBatches: M },
          stages,
          overlapMessages: false,
          activationBytes: stages.map(() => 0),
          replicas: [stages.map(() => 1)],
        });
        const seconds = oneForwardOneBackwardSeconds(
          Float64Array.from(stages, ({ forward }, s) => forward + (s < P - 1 ? message : 0)),
          Float64Array.from(stages, ({ backwardInput, backwardWeight }, s) => backwardInput + backwardWeight + (s > 0 ? message : 0)),
          Float64Array.from(options.stepEnd ?? [], ({ gradientSeconds }) => gradientSeconds),
          P,
          M,
          pipelineScratch(P),
        );
        expect(simulated.seconds).toBe(seconds + Math.max(...(options.stepEnd ?? []).map(({ optimizerSeconds }) => optimizerSeconds)));
      }),
      { numRuns: 300 },
    );
  });
});

test("10,240 devices, each by itself, in 160 pipelines of 64 stages are simulated in under a second", () => {
  const [P, M, D] = [64, 128, 160];
  const random = new Random(1);
  const replicas = Array.from({ length: D }, () => Array.from({ length: P }, () => 1 + 0.05 * random.uniform()));
  // Time of this process: others share the machine.
  const start = process.cpuUsage();
  const { seconds, busySeconds, bubbleFraction } = simulateStep({
    schedule: { name: "1f1b", numRanks: P, numMicroBatches: M },
    stages: even(P, 0.01, 0.01, 0.01),
    messageSeconds: 0.001,
    overlapMessages: true,
    replicas,
    stepEnd: Array.from({ length: P }, () => ({ gradientSeconds: 0.1, optimizerSeconds: 0.05 })),
  });
  const { user, system } = process.cpuUsage(start);
  expect((user + system) / 1e6).toBeLessThan(1);
  expect(busySeconds).toHaveLength(10_240);
  expect(seconds).toBeGreaterThan((M + P - 1) * 0.03);
  expect(seconds).toBeLessThan((M + P - 1) * 0.04);
  expect(bubbleFraction).toBeGreaterThan(63 / (128 + 63));
});

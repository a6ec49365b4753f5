import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { findClusterPreset, withNumDevices } from "../config/cluster.ts";
import { modelPresets } from "../config/model-presets.ts";
import type { PipelineScheduleName } from "../util/pipeline-schedule.ts";
import { lengthenStep, simulatedMicroBatches } from "./long-step.ts";
import { planTraining } from "./plan.ts";
import { countedMicroBatches, longSeconds, oneForwardOneBackwardSeconds, pipelineScratch } from "./pipeline-time.ts";
import { compileSchedule, simulateStep, type SimulatedStep } from "./simulate.ts";

const seconds = fc.integer({ min: 1, max: 40 });
const anyStage = fc.record({ forward: seconds, backwardInput: seconds, backwardWeight: seconds });
const anyPipeline = fc
  .record({
    name: fc.constantFrom<PipelineScheduleName>("1f1b", "interleaved", "zeroBubble"),
    P: fc.integer({ min: 1, max: 4 }),
    V: fc.integer({ min: 2, max: 3 }),
    stages: fc.array(anyStage, { minLength: 12, maxLength: 12 }),
    messageSeconds: fc.integer({ min: 0, max: 5 }),
    left: fc.nat(),
  })
  .map(({ name, P, V, stages, messageSeconds, left }) => {
    const stagesPerRank = name === "interleaved" ? V : 1;
    const stepEnd = stages.slice(0, P).map(({ forward, backwardInput }) => ({ gradientSeconds: forward, optimizerSeconds: backwardInput }));
    const options = { stages: stages.slice(0, P * stagesPerRank), messageSeconds, overlapMessages: name !== "1f1b", stepEnd };
    return { name, P, stagesPerRank, options, left: left % P };
  });

describe("a step of very many micro-batches", () => {
  test("is as long as if all were simulated, or by a filling of the pipeline too long", () => {
    let exact = 0;
    fc.assert(
      fc.property(anyPipeline, ({ name, P, stagesPerRank, options, left }) => {
        const of = (numMicroBatches: number): SimulatedStep => {
          const schedule = { name, numRanks: P, numMicroBatches, stagesPerRank };
          return simulateStep({ ...options, schedule }, compileSchedule(schedule));
        };
        const [short, long] = [left + P * 20, left + P * 150];
        const all = of(long);
        const quick = lengthenStep(of(short), of(short - P), P, long - short);
        const filling =
          options.stages.reduce((sum, s) => sum + s.forward + s.backwardInput + s.backwardWeight, 0) + 2 * P * options.messageSeconds;
        expect(quick.seconds).toBeGreaterThanOrEqual(all.seconds * (1 - 1e-9));
        expect(quick.seconds).toBeLessThanOrEqual(all.seconds + 2 * filling);
        if (Math.abs(quick.seconds / all.seconds - 1) < 1e-9) exact++;
        for (const rank of all.busySeconds.keys()) {
          expect(quick.busySeconds[rank]).toBeCloseTo(all.busySeconds[rank] ?? 0, 6);
          expect(quick.sendSeconds[rank]).toBeCloseTo(all.sendSeconds[rank] ?? 0, 6);
        }
        expect(quick.bubbleFraction).toBeCloseTo(all.bubbleFraction, 1);
        expect(quick.peakInFlight).toEqual(all.peakInFlight);
      }),
      { numRuns: 150 },
    );
    expect(exact).toBeGreaterThan(120);
  });

  test("is simulated with as many micro-batches over as it has when divided by the ranks, and a short one wholly", () => {
    const schedule = { name: "interleaved", numRanks: 6, stagesPerRank: 3 } as const;
    expect(simulatedMicroBatches({ ...schedule, numMicroBatches: 1000 })).toBe(1000);
    for (const numMicroBatches of [100_000, 100_003, 999_999]) {
      const fewer = simulatedMicroBatches({ ...schedule, numMicroBatches });
      expect(fewer).toBeLessThan(2000);
      expect(fewer % 6).toBe(numMicroBatches % 6);
    }
  });

  test("of plain 1F1B is exact where all stocks have filled", () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(seconds, seconds), { minLength: 1, maxLength: 6 }), (stages) => {
        const P = stages.length;
        const forward = Float64Array.from(stages, ([f]) => f);
        const backward = Float64Array.from(stages, ([, b]) => b);
        const gradients = new Float64Array(P).fill(3);
        const M = countedMicroBatches(P) + 777;
        const all = oneForwardOneBackwardSeconds(forward, backward, gradients, P, M, pipelineScratch(P));
        expect(longSeconds(forward, backward, gradients, P, M, pipelineScratch(P))).toBeCloseTo(all, 6);
      }),
      { numRuns: 50 },
    );
  });

  test("costs a search no more time than one of some thousand", () => {
    const request = {
      model: { ...modelPresets["mixtral-8x7b"], numLayers: 8 },
      cluster: withNumDevices(findClusterPreset("a800"), 16),
      sequenceLength: 8192,
      fixed: { tp: 8, ep: 8, etp: 1, microBatch: 1 },
    };
    const [million, some] = [2 ** 20, 2 ** 12].map((sequences) => planTraining({ ...request, batchTokens: sequences * 8192 }).report);
    expect(million?.best).toEqual(some?.best);
    expect((million?.tokensPerGpuPerSecond ?? 0) / (some?.tokensPerGpuPerSecond ?? 1)).toBeCloseTo(1, 2);
    expect(million?.lowerBoundMs).toBeLessThanOrEqual(million?.stepTimeMs ?? 0);
    expect(million?.plan.optimal).toBe(false);
  });
});

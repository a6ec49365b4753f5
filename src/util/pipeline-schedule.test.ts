import fc from "fast-check";
import { expect, test } from "vitest";
import {
  operationNeeds,
  peakInFlight,
  pipelineSchedule,
  rankOfStage,
  type PipelineOperation,
  type PipelineOperationKind,
  type PipelineScheduleOptions,
} from "./pipeline-schedule.ts";

const count = (max: number): fc.Arbitrary<number> => fc.integer({ min: 1, max });
const cases: fc.Arbitrary<Required<PipelineScheduleOptions>> = fc
  .record({ numRanks: count(9), numMicroBatches: count(40), stagesPerRank: count(4), splitsBackward: fc.boolean() })
  .map(({ splitsBackward, ...sizes }) => {
    const name = sizes.stagesPerRank > 1 ? "interleaved" : splitsBackward ? "zeroBubble" : "1f1b";
    return { ...sizes, name };
  });

const keyOf = ({ kind, stage, microBatch }: PipelineOperation): string => `${kind} ${stage} ${microBatch}`;

/** End of the step where each kind takes this long and messages no time; Infinity where ranks wait for each other for ever. */
function stepTime(options: Required<PipelineScheduleOptions>, times: Readonly<Record<PipelineOperationKind, number>>): number {
  const runs = pipelineSchedule(options);
  const numStages = options.numRanks * options.stagesPerRank;
  const ends = new Map<string, number>();
  const [next, clock] = [runs.map(() => 0), runs.map(() => 0)];
  for (let moved = true; moved;) {
    moved = false;
    for (const [rank, run] of runs.entries()) {
      for (let operation = run[next[rank] ?? 0]; operation !== undefined; operation = run[next[rank] ?? 0]) {
        const needs = operationNeeds(operation, numStages, options.name).map((need) => ends.get(keyOf(need)));
        if (needs.includes(undefined)) break;
        const end = Math.max(clock[rank] ?? 0, ...needs.map((time) => time ?? 0)) + times[operation.kind];
        clock[rank] = end;
        ends.set(keyOf(operation), end);
        next[rank] = (next[rank] ?? 0) + 1;
        moved = true;
      }
    }
  }
  return runs.every((run, rank) => run.length === next[rank]) ? Math.max(...clock) : Infinity;
}
const thirds = { forward: 1, backward: 2, backwardInput: 1, backwardWeight: 1 };

test("every micro-batch passes every stage once forward and once backward, on the stage's rank, in order", () => {
  fc.assert(
    fc.property(cases, (options) => {
      const { name, numRanks: P, numMicroBatches: M, stagesPerRank: V } = options;
      const kinds: PipelineOperationKind[] =
        name === "zeroBubble" ? ["forward", "backwardInput", "backwardWeight"] : ["forward", "backward"];
      for (const [rank, run] of pipelineSchedule(options).entries()) {
        expect(run.length).toBe(kinds.length * M * V);
        for (const kind of kinds) {
          for (let stage = rank; stage < P * V; stage += P) {
            const microBatches = run.filter((o) => o.kind === kind && o.stage === stage).map(({ microBatch }) => microBatch);
            expect(microBatches).toEqual(Array.from({ length: M }, (_, m) => m));
          }
        }
        for (const { stage } of run) expect(rankOfStage(stage, P)).toBe(rank);
      }
    }),
  );
});

test("no order of a rank waits, through others, for itself", () => {
  fc.assert(
    fc.property(cases, (options) => {
      expect(stepTime(options, thirds)).toBeLessThan(Infinity);
    }),
    { numRuns: 300 },
  );
});

test("under 1F1B rank r holds min(P - r, M) micro-batches, under ZB-H1 every rank at most min(P, M), as rank 0 does", () => {
  fc.assert(
    fc.property(cases, (options) => {
      const { name, numRanks: P, numMicroBatches: M, stagesPerRank: V } = options;
      for (const [rank, run] of pipelineSchedule(options).entries()) {
        const { total, byStage } = peakInFlight(run);
        if (name === "1f1b") expect(total).toBe(Math.min(P - rank, M));
        if (name === "zeroBubble") expect(total).toBeLessThanOrEqual(Math.min(P, M));
        if (name === "interleaved" && M % P === 0) expect(total).toBe(Math.min(2 * (P - rank - 1) + (V - 1) * P + 1, M * V));
        expect(Math.max(...byStage.values())).toBeLessThanOrEqual(total);
      }
    }),
  );
});

test("with equal stages the bubble is P - 1 micro-batches, 1 / V of it interleaved, and a third with a split backward pass", () => {
  fc.assert(
    fc.property(cases, (options) => {
      const { name, numRanks: P, numMicroBatches: M, stagesPerRank: V } = options;
      const bubble = stepTime(options, thirds) - 3 * M * V;
      if (name === "1f1b") expect(bubble).toBe(3 * (P - 1));
      // In units of a chunk, which is 1 / V of a rank's layers. arXiv 2104.04473, section 2.2.2.
      if (name === "interleaved" && M % P === 0) expect(bubble).toBe(3 * (P - 1));
      // (P - 1) (T_F + T_B - T_W), arXiv 2401.10241, table 2.
      if (name === "zeroBubble" && M >= P) expect(bubble).toBe(P - 1);
    }),
  );
});

test("the interleaved order is Megatron's: groups of P micro-batches, a chunk at a time", () => {
  // Megatron-Core's own table for pipeline size 2, 2 chunks, 4 micro-batches (get_schedule_table): virtual ids 0 0 1 1 0 0 1 1,
  // with 2 (P - r - 1) + (V - 1) P = 4 and 2 forward passes before the first backward pass's forward.
  const [first = [], last = []] = pipelineSchedule({ name: "interleaved", numRanks: 2, numMicroBatches: 4, stagesPerRank: 2 });
  const short = (run: readonly PipelineOperation[]): string =>
    run.map(({ kind, stage, microBatch }) => `${kind === "forward" ? "F" : "B"}${stage}.${microBatch}`).join(" ");
  expect(short(first)).toBe("F0.0 F0.1 F2.0 F2.1 F0.2 B2.0 F0.3 B2.1 F2.2 B0.0 F2.3 B0.1 B2.2 B2.3 B0.2 B0.3");
  expect(short(last)).toBe("F1.0 F1.1 F3.0 B3.0 F3.1 B3.1 F1.2 B1.0 F1.3 B1.1 F3.2 B3.2 F3.3 B3.3 B1.2 B1.3");
});

test("counts that make no schedule are refused with their values", () => {
  expect(() => pipelineSchedule({ name: "1f1b", numRanks: 0, numMicroBatches: 4 })).toThrow(/numRanks of at least 1, got 0/);
  expect(() => pipelineSchedule({ name: "zeroBubble", numRanks: 2, numMicroBatches: 1.5 })).toThrow(
    /numMicroBatches of at least 1, got 1.5/,
  );
  expect(() => pipelineSchedule({ name: "interleaved", numRanks: 2, numMicroBatches: 4 })).toThrow(/at least 2, got 1/);
  expect(() => pipelineSchedule({ name: "1f1b", numRanks: 2, numMicroBatches: 4, stagesPerRank: 2 })).toThrow(/interleaved/);
});

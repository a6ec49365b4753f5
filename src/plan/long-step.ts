/**
 * Steps of so many micro-batches that simulating them all would take minutes: a step of fewer, and what more of them add.
 *
 * Once a pipeline runs steadily, every P micro-batches add the same time (ranks that wait for each other's messages are a linear system
 * in the max-plus algebra, whose states end in a period: Baccelli, Cohen, Olsder and Quadrat, "Synchronization and Linearity", 1992).
 * The pace is that of the last P micro-batches, or the work of the busiest rank where that is more: a rank that is slower by little
 * holds the others up only when their stocks have filled. So the time is exact where all stocks have filled, and else at most a filling of
 * the pipeline too long.
 */
import type { PipelineScheduleOptions } from "../util/pipeline-schedule.ts";
import type { SimulatedStep } from "./simulate.ts";

/** Passes of a step up to which it is simulated as it is: a few milliseconds. */
const mostPasses = 2 ** 17;
/** Passes that are simulated of a longer one; micro-batches over P, at least: the pipeline is full and has run for a while. */
const shortPasses = 2 ** 15;
const leastRounds = 16;

/**
 * Micro-batches to simulate for a step of `schedule`: all, or fewer that leave as many over when divided by P, so that the schedule has groups
 * of the same sizes.
 */
export function simulatedMicroBatches({ numRanks: P, numMicroBatches: M, stagesPerRank: V = 1 }: PipelineScheduleOptions): number {
  if (2 * P * V * M <= mostPasses) return M;
  const left = M % P;
  // Interleaved schedules hand what is left over to as many groups of P.
  const rounds = Math.max(leastRounds, V > 1 ? left + 2 : 0, Math.floor(shortPasses / (2 * P * P * V)));
  return Math.min(M, left + P * rounds);
}

/** The step with `more` micro-batches: `before` is the same step with P micro-batches fewer. Its timeline stays that of `step`. */
export function lengthenStep(step: SimulatedStep, before: SimulatedStep, numRanks: number, more: number): SimulatedStep {
  const rate = (of: (step: SimulatedStep) => number): number => (of(step) - of(before)) / numRanks;
  const grown = (of: (step: SimulatedStep) => Float64Array): Float64Array =>
    of(step).map((seconds, rank) => seconds + more * rate((either) => of(either)[rank] ?? 0));
  const [busySeconds, sendSeconds] = [grown((either) => either.busySeconds), grown((either) => either.sendSeconds)];
  const works = step.busySeconds.map((_, rank) =>
    rate(({ busySeconds: busy, sendSeconds: send }) => (busy[rank] ?? 0) + (send[rank] ?? 0)),
  );
  const pace = works.reduce(
    (a, b) => Math.max(a, b),
    rate(({ pipelineSeconds }) => pipelineSeconds),
  );
  const pipelineSeconds = step.pipelineSeconds + more * pace;
  const used = busySeconds.reduce((a, b) => a + b, 0) + sendSeconds.reduce((a, b) => a + b, 0);
  return {
    ...step,
    seconds: step.seconds + more * pace,
    pipelineSeconds,
    busySeconds,
    sendSeconds,
    finishSeconds: step.finishSeconds.map((seconds) => seconds + more * pace),
    bubbleFraction: pipelineSeconds === 0 ? 0 : Math.max(0, 1 - used / (busySeconds.length * pipelineSeconds)),
  };
}

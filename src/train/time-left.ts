/**
 * How long a run still takes: the mean of the last steps for those that are left, and for the evaluations and checkpoints in
 * between what the last one of each took. Before the first evaluation it is guessed from the steps: a forward pass is a
 * third of what a step does with a sequence.
 */
import type { RunConfig } from "../config/run.ts";

const numRecent = 20;

export class TimeLeft {
  readonly #config: RunConfig;
  /** Sequences of one evaluation, over all validation sets. */
  readonly #evaluationSequences: number;
  readonly #recent: number[] = [];
  #evaluation: number | null = null;
  #save = 0;

  constructor(config: RunConfig, validationSizes: readonly number[]) {
    this.#config = config;
    this.#evaluationSequences = validationSizes.reduce((sum, size) => sum + Math.min(size, config.evaluation.maxSequences), 0);
  }
  /** A step took so long. */
  step(seconds: number): void {
    this.#recent.push(seconds);
    if (this.#recent.length > numRecent) this.#recent.shift();
  }
  /** The evaluation of all validation sets took so long. */
  evaluation(seconds: number): void {
    this.#evaluation = seconds;
  }
  save(seconds: number): void {
    this.#save = seconds;
  }

  /** Seconds from the end of `step` (before what is due after it) to the end of the run. After the first step only. */
  after(step: number): number {
    const { numSteps, batchSequences, evaluation, checkpoint } = this.#config;
    const perStep = this.#recent.reduce((a, b) => a + b, 0) / Math.max(1, this.#recent.length);
    const perEvaluation = this.#evaluation ?? (perStep / 3 / batchSequences) * this.#evaluationSequences;
    const evaluations = this.#evaluationSequences === 0 ? 0 : 1 + dueBetween(step, numSteps, evaluation.intervalSteps);
    const saves = 1 + dueBetween(step, numSteps, checkpoint.intervalSteps);
    return perStep * (numSteps - step) + perEvaluation * evaluations + this.#save * saves;
  }
}

/** Multiples of `interval` (0: none) among step..numSteps-1. */
function dueBetween(step: number, numSteps: number, interval: number): number {
  if (interval === 0 || step >= numSteps) return 0;
  return Math.floor((numSteps - 1) / interval) - Math.floor((step - 1) / interval);
}

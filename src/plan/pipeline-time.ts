/**
 * The makespan of plain 1F1B with unequal stages, in O(stages * micro-batches) steps of two additions: what a search evaluates a hundred
 * thousand times. It is the longest path through the operations, the same number that `simulate.ts` finds (a test compares them).
 *
 * Wave i is the forward pass of micro-batch i through all stages, then on every stage s the backward pass that 1F1B puts behind it, that of
 * micro-batch i - (P - s - 1). A stage's backward pass needs what the stage above did a wave before. So one number a stage is
 * enough: when it is free, and when its last backward pass ended.
 *
 * Two bounds that hold for any 1F1B, w_s = f_s + b_s (messages included where the sender waits for them):
 *   through the bottleneck  T >= sum over i < s of w_i + M w_s          (fill before s, all work of s, drain behind it)
 *   through the last stage  T >= sum of all w + (M - 1) b_s + (M - P + s) f_s   for M >= P - s (out, back, and the rest of s's work)
 */

/**
 * Micro-batches up to which `longSeconds` goes through all of them. A search asks a thousand times a layout, and a thousand micro-batches
 * are enough to tell splits apart.
 */
export function countedMicroBatches(numStages: number): number {
  return Math.max(1024, 16 * numStages);
}

/** Working arrays for up to `numStages` stages, reused from call to call. */
export interface PipelineScratch {
  readonly free: Float64Array;
  readonly gradientAt: Float64Array;
}

export function pipelineScratch(numStages: number): PipelineScratch {
  return { free: new Float64Array(numStages), gradientAt: new Float64Array(numStages + 1) };
}

/**
 * Seconds until the last stage's exchange of gradients is over: max over s of (end of s's last backward pass + gradients[s]). `forward` and
 * `backward` are seconds of a micro-batch on each stage, messages included.
 */
export function oneForwardOneBackwardSeconds(
  forward: Float64Array,
  backward: Float64Array,
  gradients: Float64Array,
  numStages: number,
  numMicroBatches: number,
  { free, gradientAt }: PipelineScratch,
): number {
  const [P, M] = [numStages, numMicroBatches];
  free.fill(0, 0, P);
  gradientAt.fill(0, 0, P + 1);
  for (let i = 0; i < M + P - 1; i++) {
    if (i < M) {
      let arrival = 0;
      for (let s = 0; s < P; s++) {
        const start = Math.max(free[s] as number, arrival);
        arrival = start + (forward[s] as number);
        free[s] = arrival;
      }
    }
    // Micro-batch i - P + s + 1 of stage s, from the first to the last: the stage above still has its time of the wave before.
    for (let s = Math.max(0, P - 1 - i); s < P && i - P + s + 1 < M; s++) {
      const end = Math.max(free[s] as number, gradientAt[s + 1] as number) + (backward[s] as number);
      free[s] = end;
      gradientAt[s] = end;
    }
  }
  let last = 0;
  for (let s = 0; s < P; s++) last = Math.max(last, (free[s] as number) + (gradients[s] as number));
  return last;
}

/**
 * The same for any number of micro-batches: those behind `countedMicroBatches` take what the slowest stage takes, which is what a pipeline
 * comes to when the stocks before that stage have filled. Exact from there on, else too long by a filling of the pipeline at most.
 */
export function longSeconds(
  forward: Float64Array,
  backward: Float64Array,
  gradients: Float64Array,
  numStages: number,
  numMicroBatches: number,
  scratch: PipelineScratch,
): number {
  const counted = Math.min(numMicroBatches, countedMicroBatches(numStages));
  const seconds = oneForwardOneBackwardSeconds(forward, backward, gradients, numStages, counted, scratch);
  if (counted === numMicroBatches) return seconds;
  let pace = 0;
  for (let s = 0; s < numStages; s++) pace = Math.max(pace, (forward[s] as number) + (backward[s] as number));
  return seconds + (numMicroBatches - counted) * pace;
}

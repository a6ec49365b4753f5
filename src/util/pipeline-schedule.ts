/**
 * Pipeline schedules: in which order a rank runs the forward and backward passes of its stages. Only the order; times belong to
 * whoever simulates it (`src/plan`), bytes and messages to whoever runs it (`src/parallel/pipeline.ts`). Both take this one list.
 *
 * A model is a row of S = P * V *stages*; stage s runs on rank s mod P, so a rank has V stages ("virtual stages", "chunks").
 * Micro-batch m passes the stages upwards in its forward, downwards in its backward pass.
 *
 * - `1f1b` (V = 1): P - r - 1 forward passes of warm-up on rank r, then one forward, one backward in turn, then the backward passes
 *   left. Rank r holds min(P - r, M) micro-batches at most. PipeDream-Flush, "Memory-Efficient Pipeline-Parallel DNN Training",
 *   arXiv 2006.09503; bubble (P - 1) / M of the work.
 * - `interleaved` (V > 1): Megatron's order, "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM",
 *   arXiv 2104.04473, section 2.2.2: groups of P micro-batches go through one chunk after another, 2 (P - r - 1) + (V - 1) P forward
 *   passes of warm-up. The bubble is 1 / V of the above; more is held. Where M is no multiple of P, groups have as even sizes of at
 *   least P as possible (Megatron allows that for the last one only), and the warm-up counts the largest.
 * - `zeroBubble` (V = 1): ZB-H1, "Zero Bubble Pipeline Parallelism", arXiv 2401.10241, section 2.2: the backward pass is split into
 *   that of the inputs, which the stage before waits for, and that of the weights, which nobody does. Rank r runs r of those late,
 *   in what were bubbles. Every rank holds min(P, M) micro-batches at most, as rank 0 does under `1f1b`.
 */
import { MoeError } from "./errors.ts";
import { equalSpeeds, intervalLength, partition } from "./partition.ts";

export type PipelineScheduleName = "1f1b" | "interleaved" | "zeroBubble";

/** `backward` is both halves at once; `zeroBubble` has the halves instead. */
export type PipelineOperationKind = "forward" | "backward" | "backwardInput" | "backwardWeight";

export interface PipelineOperation {
  readonly kind: PipelineOperationKind;
  /** 0 to P * V - 1, in the order of the model. */
  readonly stage: number;
  /** 0 to M - 1. */
  readonly microBatch: number;
}

export interface PipelineScheduleOptions {
  readonly name: PipelineScheduleName;
  /** P. */
  readonly numRanks: number;
  /** M. */
  readonly numMicroBatches: number;
  /** V: 1 (default) except with `interleaved`, where it is at least 2. */
  readonly stagesPerRank?: number;
}

/** The rank that runs a stage. */
export function rankOfStage(stage: number, numRanks: number): number {
  return stage % numRanks;
}

/**
 * What each rank runs, in order. Throws `configuration` for counts below 1, V = 1 with `interleaved` and V > 1 without.
 *
 * ```ts
 * pipelineSchedule({ name: "1f1b", numRanks: 2, numMicroBatches: 2 })[0]; // forward 0, forward 1, backward 0, backward 1
 * ```
 */
export function pipelineSchedule(options: PipelineScheduleOptions): PipelineOperation[][] {
  const { name, numRanks, numMicroBatches, stagesPerRank = 1 } = options;
  for (const [what, value] of Object.entries({ numRanks, numMicroBatches, stagesPerRank })) {
    if (Number.isSafeInteger(value) && value >= 1) continue;
    throw new MoeError("configuration", `pipeline schedule ${name}: expected ${what} of at least 1, got ${value}`);
  }
  if (stagesPerRank > 1 !== (name === "interleaved")) {
    const expected = name === "interleaved" ? "at least 2" : "1 (more are interleaved)";
    throw new MoeError("configuration", `pipeline schedule ${name}: expected stagesPerRank of ${expected}, got ${stagesPerRank}`);
  }
  return Array.from({ length: numRanks }, (_, rank) => {
    switch (name) {
      case "1f1b":
        return oneForwardOneBackward(rank, numRanks, numMicroBatches);
      case "interleaved":
        return interleaved(rank, numRanks, numMicroBatches, stagesPerRank);
      case "zeroBubble":
        return zeroBubble(rank, numRanks, numMicroBatches);
      default:
        return name satisfies never;
    }
  });
}

function oneForwardOneBackward(rank: number, P: number, M: number): PipelineOperation[] {
  const warmup = Math.min(P - rank - 1, M);
  const run: PipelineOperation[] = [];
  for (let k = 0; k < M + warmup; k++) {
    if (k < M) run.push({ kind: "forward", stage: rank, microBatch: k });
    if (k >= warmup) run.push({ kind: "backward", stage: rank, microBatch: k - warmup });
  }
  return run;
}

function interleaved(rank: number, P: number, M: number, V: number): PipelineOperation[] {
  const groups = partition(M, equalSpeeds(Math.max(1, Math.floor(M / P))));
  // Backward passes go through the same table, chunks from the last.
  const table = groups.flatMap((group) => {
    const size = intervalLength(group);
    return Array.from({ length: V * size }, (_, i) => ({ chunk: Math.floor(i / size), microBatch: group.start + (i % size) }));
  });
  const largest = Math.max(...groups.map(intervalLength));
  const warmup = Math.min(2 * (P - rank - 1) + (V - 1) * largest, table.length);
  const run: PipelineOperation[] = [];
  for (let k = 0; k < table.length + warmup; k++) {
    const forward = table[k];
    const backward = table[k - warmup];
    if (forward !== undefined) run.push({ kind: "forward", stage: forward.chunk * P + rank, microBatch: forward.microBatch });
    if (backward !== undefined) run.push({ kind: "backward", stage: (V - 1 - backward.chunk) * P + rank, microBatch: backward.microBatch });
  }
  return run;
}

function zeroBubble(rank: number, P: number, M: number): PipelineOperation[] {
  const warmup = Math.min(P - rank - 1, M);
  const run: PipelineOperation[] = [];
  let weights = 0;
  for (let k = 0; k < M + warmup; k++) {
    if (k < M) run.push({ kind: "forward", stage: rank, microBatch: k });
    if (k < warmup) continue;
    run.push({ kind: "backwardInput", stage: rank, microBatch: k - warmup });
    // Late by `rank`; once no forward pass is left, the wait for the next rank's gradient is filled with them.
    if (k - warmup >= rank) run.push({ kind: "backwardWeight", stage: rank, microBatch: weights++ });
  }
  for (; weights < M; weights++) run.push({ kind: "backwardWeight", stage: rank, microBatch: weights });
  return run;
}

/** The operations, wherever they run, whose results this one takes. */
export function operationNeeds(
  { kind, stage, microBatch }: PipelineOperation,
  numStages: number,
  name: PipelineScheduleName,
): PipelineOperation[] {
  const inputs = name === "zeroBubble" ? "backwardInput" : "backward";
  switch (kind) {
    case "forward":
      return stage === 0 ? [] : [{ kind: "forward", stage: stage - 1, microBatch }];
    case "backward":
    case "backwardInput": {
      const own: PipelineOperation = { kind: "forward", stage, microBatch };
      return stage === numStages - 1 ? [own] : [own, { kind: inputs, stage: stage + 1, microBatch }];
    }
    case "backwardWeight":
      return [{ kind: "backwardInput", stage, microBatch }];
    default:
      return kind satisfies never;
  }
}

/**
 * Most forward passes whose activations a rank holds at once, by stage of the rank and in sum: from a forward pass until its backward pass
 * (that of the weights, where it is split) is over.
 */
export function peakInFlight(run: readonly PipelineOperation[]): { readonly total: number; readonly byStage: ReadonlyMap<number, number> } {
  const held = new Map<number, number>();
  const byStage = new Map<number, number>();
  let [now, total] = [0, 0];
  for (const { kind, stage } of run) {
    if (kind === "backwardInput") continue;
    const change = kind === "forward" ? 1 : -1;
    const ofStage = (held.get(stage) ?? 0) + change;
    held.set(stage, ofStage);
    byStage.set(stage, Math.max(byStage.get(stage) ?? 0, ofStage));
    now += change;
    total = Math.max(total, now);
  }
  return { total, byStage };
}

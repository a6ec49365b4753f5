/**
 * A training step of a pipeline, operation by operation: when each rank runs what, how long it waits, what it holds. It runs the very
 * lists that the executor runs (`src/util/pipeline-schedule.ts`) over times that somebody else predicts (or measured).
 *
 * Method: every rank takes the operations of its list in order, each as soon as the rank is free and what it needs has arrived.
 * Ranks wait for messages only, each message has one sender and one receiver, and a link carries its sender's messages in their order: such
 * a network of processes has one result, whichever rank is looked at first (Kahn, "The semantics of a simple language for parallel
 * programming", 1974). So there is no queue of events and no tie to break: a rank runs until it waits, and whoever sends what it waits
 * for wakes it. That is O(operations), about 20 ns each. Data-parallel replicas meet at the end of the step only and are run one by one.
 *
 * The end of a step: a stage exchanges its gradients when all its replicas have run their last operation; gradients are clipped by the
 * norm of all, so every rank waits for the last exchange before it updates its weights.
 *
 * Messages: with `overlapMessages` they travel while the sender computes (a link carries one at a time); without, the sender is busy until
 * its message has arrived, as Megatron's plain 1F1B is. Times are seconds from the start of the step; activations are bytes.
 *
 * Not here: what an operation takes (`cost.ts`), and the same makespan for plain 1F1B in the time that a search has (`pipeline-time.ts`).
 */
import { MoeError } from "../util/errors.ts";
import { peakInFlight, pipelineSchedule, type PipelineOperationKind, type PipelineScheduleOptions } from "../util/pipeline-schedule.ts";

/** One pass of one micro-batch through one stage, recomputation and collectives inside the stage included. */
export interface StageSeconds {
  readonly forward: number;
  /** The half of the backward pass that the stage before waits for, with what is recomputed. */
  readonly backwardInput: number;
  /** The half that nobody waits for. */
  readonly backwardWeight: number;
}

/** What a rank does when its last backward pass is over. */
export interface StepEndSeconds {
  readonly gradientSeconds: number;
  readonly optimizerSeconds: number;
}

export interface SimulationOptions {
  readonly schedule: PipelineScheduleOptions;
  /** Of each of the P * V stages. */
  readonly stages: readonly StageSeconds[];
  /** A micro-batch's activations, or their gradient, to the neighbouring stage: seconds. One number, or one for each of the S - 1 boundaries. */
  readonly messageSeconds: number | readonly number[];
  readonly overlapMessages: boolean;
  /** Factor of the computing time of each rank, for each data-parallel replica. Default: one replica, all 1. */
  readonly replicas?: readonly (readonly number[])[];
  /** Of each rank. Default: nothing. */
  readonly stepEnd?: readonly StepEndSeconds[];
  /** Seconds of the step that no rank's work explains. Default 0. */
  readonly stepSeconds?: number;
  /** Bytes that a stage holds for a micro-batch from its forward to the end of its backward pass. Default 0. */
  readonly activationBytes?: readonly number[];
  /** Keep the operations of the first replica. Default false. */
  readonly timeline?: boolean;
  /** Which of `count` ranks that can run is looked at next; the result does not depend on it. Default: the one that became ready last. */
  readonly pick?: (count: number) => number;
}

export type TimelineKind = PipelineOperationKind | "send" | "gradients" | "optimizer";

export interface TimelineEntry {
  readonly kind: TimelineKind;
  readonly rank: number;
  /** -1 for what belongs to no stage's pass. */
  readonly stage: number;
  readonly microBatch: number;
  readonly startSeconds: number;
  readonly endSeconds: number;
}

export interface SimulatedStep {
  /** The whole step. */
  readonly seconds: number;
  /** Until the last operation of the pipeline. */
  readonly pipelineSeconds: number;
  /** Of replica d, rank r at d * P + r: seconds of computing, of sending while nothing else runs, and the end of its last operation. */
  readonly busySeconds: Float64Array;
  readonly sendSeconds: Float64Array;
  readonly finishSeconds: Float64Array;
  /** Share of all ranks' time until `pipelineSeconds` in which they neither compute nor send. */
  readonly bubbleFraction: number;
  /** Of each rank: most micro-batches (counted for each stage that it has) and most bytes that are held at once. */
  readonly peakInFlight: Int32Array;
  readonly peakActivationBytes: Float64Array;
  /** In the order of `rank`, then of time; empty unless it was asked for. */
  readonly timeline: readonly TimelineEntry[];
}

/** Operations of all ranks in a row: a schedule in the form that runs fast, for whoever simulates it often. */
export interface CompiledSchedule {
  readonly P: number;
  readonly M: number;
  readonly S: number;
  /** 0 forward, 1 backward, 2 its input half, 3 its weight half. */
  readonly kinds: Uint8Array;
  readonly stages: Int32Array;
  readonly microBatches: Int32Array;
  /** Operations of rank r are starts[r] to starts[r + 1] - 1. */
  readonly starts: Int32Array;
  /** Of each stage: micro-batches that it holds at most, from their forward to the end of their backward pass. */
  readonly heldByStage: Int32Array;
}

const kindNames = ["forward", "backward", "backwardInput", "backwardWeight"] as const satisfies readonly PipelineOperationKind[];

/**
 * Throws `configuration` for lists whose lengths do not fit the schedule, and for times that are not finite or negative. `schedule`: that of
 * the options, compiled before.
 */
export function simulateStep(options: SimulationOptions, schedule = compileSchedule(options.schedule)): SimulatedStep {
  checkTimes(options, schedule);
  const { P } = schedule;
  const replicas = options.replicas ?? [Array.from({ length: P }, () => 1)];
  const busySeconds = new Float64Array(P * replicas.length);
  const sendSeconds = new Float64Array(P * replicas.length);
  const finishSeconds = new Float64Array(P * replicas.length);
  const timeline: TimelineEntry[] = [];
  const run = new ReplicaRun(schedule, options);
  for (const [d, slowness] of replicas.entries()) {
    const keep = options.timeline === true && d === 0 ? timeline : null;
    const part = (all: Float64Array): Float64Array => all.subarray(d * P, (d + 1) * P);
    run.run(slowness, part(busySeconds), part(sendSeconds), part(finishSeconds), keep);
  }
  const pipelineSeconds = finishSeconds.reduce((a, b) => Math.max(a, b), 0);
  const used = busySeconds.reduce((a, b) => a + b, 0) + sendSeconds.reduce((a, b) => a + b, 0);
  return {
    seconds: endOfStep(options, P, finishSeconds, options.timeline === true ? timeline : null),
    pipelineSeconds,
    busySeconds,
    sendSeconds,
    finishSeconds,
    bubbleFraction: pipelineSeconds === 0 ? 0 : Math.max(0, 1 - used / (finishSeconds.length * pipelineSeconds)),
    ...peaks(schedule, options.activationBytes),
    timeline: timeline.toSorted((a, b) => a.rank - b.rank || a.startSeconds - b.startSeconds),
  };
}

/** Passes of all ranks that a simulation goes through at most: about a second, and a few gigabytes. */
const mostPasses = 2 ** 25;

/** Throws as `pipelineSchedule` does, and `configuration` for more than `mostPasses` passes. */
export function compileSchedule(options: PipelineScheduleOptions): CompiledSchedule {
  const passes = 2 * options.numRanks * options.numMicroBatches * (options.stagesPerRank ?? 1);
  if (passes > mostPasses)
    throw new MoeError(
      "configuration",
      `simulation of ${options.numRanks} ranks with ${options.numMicroBatches} micro-batches: ${passes} passes, at most ${mostPasses} are simulated; fewer or larger micro-batches make fewer`,
    );
  const lists = pipelineSchedule(options);
  const total = lists.reduce((sum, { length }) => sum + length, 0);
  const [kinds, stages, microBatches] = [new Uint8Array(total), new Int32Array(total), new Int32Array(total)];
  const starts = new Int32Array(lists.length + 1);
  let at = 0;
  for (const [rank, list] of lists.entries()) {
    for (const { kind, stage, microBatch } of list) {
      kinds[at] = kindNames.indexOf(kind);
      stages[at] = stage;
      microBatches[at++] = microBatch;
    }
    starts[rank + 1] = at;
  }
  const { numRanks: P, numMicroBatches: M, stagesPerRank: V = 1 } = options;
  const heldByStage = new Int32Array(P * V);
  for (const list of lists) for (const [stage, held] of peakInFlight(list).byStage) heldByStage[stage] = held;
  return { P, M, S: P * V, kinds, stages, microBatches, starts, heldByStage };
}

function checkTimes({ stages, messageSeconds, replicas, stepEnd, activationBytes }: SimulationOptions, { P, S }: CompiledSchedule): void {
  const fail = (what: string): never => {
    throw new MoeError("configuration", `simulation of ${P} ranks with ${S} stages: ${what}`);
  };
  if (stages.length !== S) fail(`expected times of ${S} stages, got ${stages.length}`);
  if (typeof messageSeconds !== "number" && messageSeconds.length !== S - 1)
    fail(`expected times of ${S - 1} boundaries, got ${messageSeconds.length}`);
  const odd = replicas?.find((slowness) => slowness.length !== P);
  if (odd !== undefined || replicas?.length === 0) fail(`expected a factor for each of ${P} ranks, got ${odd?.length ?? 0}`);
  if (stepEnd !== undefined && stepEnd.length !== P) fail(`expected the end of the step of ${P} ranks, got ${stepEnd.length}`);
  if (activationBytes !== undefined && activationBytes.length !== S) fail(`expected bytes of ${S} stages, got ${activationBytes.length}`);
  const times = [
    ...stages.flatMap((stage) => [stage.forward, stage.backwardInput, stage.backwardWeight]),
    ...[messageSeconds].flat(),
    ...(replicas ?? []).flat(),
    ...(stepEnd ?? []).flatMap((end) => [end.gradientSeconds, end.optimizerSeconds]),
  ];
  const bad = times.find((time) => !(Number.isFinite(time) && time >= 0));
  if (bad !== undefined) fail(`expected finite times that are not negative, got ${bad}`);
}

/** One replica's operations; the arrays serve one replica after the other. */
class ReplicaRun {
  readonly #schedule: CompiledSchedule;
  readonly #overlap: boolean;
  readonly #pick: ((count: number) => number) | undefined;
  /** Seconds of kind k on stage s at k * S + s. */
  readonly #durations: Float64Array;
  readonly #messages: Float64Array;
  /** When the input of stage s's forward pass (and, behind S * M, the gradient of its output) is there, at s * M + m; NaN: not yet. */
  readonly #arrivals: Float64Array;
  readonly #next: Int32Array;
  readonly #waitingFor: Int32Array;
  readonly #ready: Int32Array;
  #numReady = 0;

  constructor(schedule: CompiledSchedule, { stages, messageSeconds, overlapMessages, pick }: SimulationOptions) {
    const { P, M, S } = schedule;
    this.#schedule = schedule;
    this.#overlap = overlapMessages;
    this.#pick = pick;
    this.#durations = new Float64Array(4 * S);
    for (const [s, { forward, backwardInput, backwardWeight }] of stages.entries()) {
      for (const [k, seconds] of [forward, backwardInput + backwardWeight, backwardInput, backwardWeight].entries())
        this.#durations[k * S + s] = seconds;
    }
    // Stages of one rank hand over without a message.
    this.#messages = new Float64Array(Math.max(0, S - 1)).map((_, s) =>
      P === 1 ? 0 : typeof messageSeconds === "number" ? messageSeconds : (messageSeconds[s] ?? 0),
    );
    this.#arrivals = new Float64Array(2 * S * M);
    this.#next = new Int32Array(P);
    this.#waitingFor = new Int32Array(P);
    this.#ready = new Int32Array(P);
  }

  run(
    slowness: readonly number[],
    busy: Float64Array,
    sending: Float64Array,
    finish: Float64Array,
    timeline: TimelineEntry[] | null,
  ): void {
    const { P, S, M, starts, microBatches, stages } = this.#schedule;
    this.#arrivals.fill(Number.NaN);
    this.#arrivals.fill(0, 0, M);
    this.#arrivals.fill(0, S * M + (S - 1) * M);
    this.#waitingFor.fill(-1);
    // Until when the link to the rank above (at 2 r) and below (at 2 r + 1) is taken.
    const links = new Float64Array(2 * P);
    this.#numReady = P;
    for (let r = 0; r < P; r++) {
      this.#next[r] = starts[r] ?? 0;
      this.#ready[r] = P - 1 - r;
    }
    while (this.#numReady > 0) {
      const rank = this.#takeReady();
      this.#runUntilItWaits(rank, slowness[rank] ?? 1, { busy, sending, finish, links, timeline });
    }
    for (let r = 0; r < P; r++) {
      const at = this.#next[r] ?? 0;
      if (at < (starts[r + 1] ?? 0))
        throw new MoeError(
          "internal",
          `pipeline schedule: rank ${r} waits for ever before micro-batch ${microBatches[at]} on stage ${stages[at]}`,
        );
    }
  }

  #takeReady(): number {
    const last = --this.#numReady;
    const chosen = this.#pick === undefined ? last : this.#pick(last + 1);
    const rank = this.#ready[chosen] ?? 0;
    this.#ready[chosen] = this.#ready[last] ?? 0;
    return rank;
  }

  #runUntilItWaits(rank: number, slowness: number, state: RunState): void {
    const { S, M, kinds, stages, microBatches, starts } = this.#schedule;
    const { busy, sending, finish, timeline } = state;
    const end = starts[rank + 1] ?? 0;
    let at = this.#next[rank] ?? 0;
    let time = finish[rank] ?? 0;
    for (; at < end; at++) {
      const [kind, stage, m] = [kinds[at] ?? 0, stages[at] ?? 0, microBatches[at] ?? 0];
      if (kind !== 3) {
        const input = (kind === 0 ? stage : S + stage) * M + m;
        const arrival = this.#arrivals[input] ?? 0;
        if (Number.isNaN(arrival)) {
          this.#waitingFor[rank] = input;
          break;
        }
        if (arrival > time) time = arrival;
      }
      const seconds = slowness * (this.#durations[kind * S + stage] ?? 0);
      const done = time + seconds;
      busy[rank] = (busy[rank] ?? 0) + seconds;
      timeline?.push({ kind: kindNames[kind] ?? "forward", rank, stage, microBatch: m, startSeconds: time, endSeconds: done });
      time = done;
      const target = kind === 0 ? stage + 1 : kind === 3 ? -1 : stage - 1;
      if (target < 0 || target >= S) continue;
      const arrival = this.#send(rank, stage, target, m, time, state);
      if (!this.#overlap) {
        sending[rank] = (sending[rank] ?? 0) + arrival - time;
        time = arrival;
      }
    }
    this.#next[rank] = at;
    finish[rank] = time;
  }

  /** Hands a result to the next stage and wakes its rank; returns when it is there. */
  #send(rank: number, stage: number, target: number, m: number, ready: number, { links, timeline }: RunState): number {
    const { P, S, M } = this.#schedule;
    const up = target > stage;
    const seconds = this.#messages[up ? stage : target] ?? 0;
    const link = 2 * rank + (up ? 0 : 1);
    const start = this.#overlap ? Math.max(ready, links[link] ?? 0) : ready;
    const arrival = start + seconds;
    links[link] = arrival;
    if (seconds > 0) timeline?.push({ kind: "send", rank, stage, microBatch: m, startSeconds: start, endSeconds: arrival });
    const input = (up ? target : S + target) * M + m;
    this.#arrivals[input] = arrival;
    const receiver = target % P;
    if (this.#waitingFor[receiver] === input) {
      this.#waitingFor[receiver] = -1;
      this.#ready[this.#numReady++] = receiver;
    }
    return arrival;
  }
}

interface RunState {
  readonly busy: Float64Array;
  readonly sending: Float64Array;
  readonly finish: Float64Array;
  readonly links: Float64Array;
  readonly timeline: TimelineEntry[] | null;
}

/** Exchange of gradients, wait for the slowest, update. */
function endOfStep(
  { stepEnd, stepSeconds = 0 }: SimulationOptions,
  P: number,
  finish: Float64Array,
  timeline: TimelineEntry[] | null,
): number {
  const last = new Float64Array(P);
  for (const [i, seconds] of finish.entries()) last[i % P] = Math.max(last[i % P] ?? 0, seconds);
  const entry = (kind: TimelineKind, rank: number, startSeconds: number, seconds: number): void => {
    if (seconds > 0) timeline?.push({ kind, rank, stage: -1, microBatch: -1, startSeconds, endSeconds: startSeconds + seconds });
  };
  let exchanged = 0;
  for (const [r, seconds] of last.entries()) {
    const { gradientSeconds = 0 } = stepEnd?.[r] ?? {};
    entry("gradients", r, seconds, gradientSeconds);
    exchanged = Math.max(exchanged, seconds + gradientSeconds);
  }
  let updated = 0;
  for (let r = 0; r < P; r++) {
    const { optimizerSeconds = 0 } = stepEnd?.[r] ?? {};
    entry("optimizer", r, exchanged, optimizerSeconds);
    updated = Math.max(updated, optimizerSeconds);
  }
  return exchanged + updated + stepSeconds;
}

/** What a rank holds follows from the order of its operations alone. */
function peaks(
  { P, kinds, stages, starts }: CompiledSchedule,
  bytes: readonly number[] | undefined,
): Pick<SimulatedStep, "peakInFlight" | "peakActivationBytes"> {
  const peakInFlight = new Int32Array(P);
  const peakActivationBytes = new Float64Array(P);
  for (let r = 0; r < P; r++) {
    let [count, held] = [0, 0];
    for (let at = starts[r] ?? 0; at < (starts[r + 1] ?? 0); at++) {
      const kind = kinds[at] ?? 0;
      if (kind === 2) continue;
      const change = kind === 0 ? 1 : -1;
      count += change;
      held += change * (bytes?.[stages[at] ?? 0] ?? 0);
      peakInFlight[r] = Math.max(peakInFlight[r] ?? 0, count);
      peakActivationBytes[r] = Math.max(peakActivationBytes[r] ?? 0, held);
    }
  }
  return { peakInFlight, peakActivationBytes };
}

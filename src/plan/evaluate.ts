/**
 * One parallel layout, evaluated: which layers and how much recomputation each stage gets, how long the step is and on what, what each
 * pipeline rank holds; or why it is impossible, with the stage and its bytes.
 *
 * Plain 1F1B: the split is exact (`partition.ts`); a stage waits while it sends, as Megatron's does. Interleaved 1F1B (`interleaved.ts`) is
 * simulated operation by operation with messages beside the computation; its split is not proven optimal, so its lower bound is that of
 * the work alone. Zero bubble (ZB-H1) takes the split of 1F1B with as many micro-batches in flight on every rank as it needs, and is simulated.
 */
import { MoeError } from "../util/errors.ts";
import { equalCounts } from "../util/partition.ts";
import type { PipelineScheduleName, PipelineScheduleOptions } from "../util/pipeline-schedule.ts";
import { stepBound } from "./step-bound.ts";
import { lengthenStep, simulatedMicroBatches } from "./long-step.ts";
import { partitionLayers, partitionSeconds, type PartitionProblem, type StageCandidate } from "./partition.ts";
import { simulateStep, type CompiledSchedule, type SimulatedStep, type SimulationOptions } from "./simulate.ts";
import { EvaluationCache, stageCostsOfRanks, type EvaluateOptions } from "./evaluation-cache.ts";
import { fullestRank } from "./excess.ts";
import { evenInterleaved, firstLayers, movedLayers, recomputeInterleaved, type InterleavedProblem } from "./interleaved.ts";
import { rankMemory, stepTerms, type StepTerms } from "./step-terms.ts";
import { countsOf, noRecompute, type RecomputeCounts, type RecomputePolicy, type StageCosts } from "./stage-costs.ts";
import type { PlanLayout, StageMemory, StagePlan } from "./types.ts";

export interface EvaluatedLayout {
  readonly layout: PlanLayout;
  readonly schedule: PipelineScheduleName;
  readonly numMicroBatches: number;
  /** The pp * interleave stages in the order of the model. */
  readonly stages: readonly StagePlan[];
  readonly seconds: number;
  /** No split of the layers under this layout and schedule is faster. */
  readonly lowerBoundSeconds: number;
  /** Whether the split was proven to be the fastest. */
  readonly optimal: boolean;
  /** Of one device of each pipeline rank. */
  readonly memory: readonly StageMemory[];
  readonly memoryLimits: readonly number[];
  readonly peakMemoryBytes: number;
  readonly bubbleFraction: number;
  readonly terms: StepTerms;
}

export interface InfeasibleLayout {
  readonly layout: PlanLayout;
  /** Which stage, which bytes. */
  readonly reason: string;
  /** By how much that stage is above its memory. */
  readonly excessBytes: number;
}

export function isFeasible(result: EvaluatedLayout | InfeasibleLayout): result is EvaluatedLayout {
  return "seconds" in result;
}

/** A layout that can be asked for its bound before it is evaluated. */
export class LayoutEvaluation {
  readonly layout: PlanLayout;
  readonly schedule: PipelineScheduleName;
  readonly #options: EvaluateOptions;
  /** Of the kinds of devices of each pipeline rank. */
  readonly #ranks: readonly (readonly StageCosts[])[];
  readonly #M: number;
  readonly #cache: EvaluationCache;
  /** What a device of plain stages may hold besides its own limit, while `leanest` lowers it. */
  #limitBytes = Infinity;

  constructor(layout: PlanLayout, options: EvaluateOptions, cache = new EvaluationCache()) {
    this.layout = layout;
    this.#options = options;
    this.#cache = cache;
    this.schedule = options.schedule ?? (layout.interleave > 1 ? "interleaved" : "1f1b");
    this.#ranks = stageCostsOfRanks(layout, options, cache);
    this.#M = this.#first(0).model.numMicroBatches;
  }

  #schedule(numMicroBatches = this.#M): PipelineScheduleOptions {
    const { pp: numRanks, interleave: stagesPerRank } = this.layout;
    return { name: this.schedule, numRanks, numMicroBatches, stagesPerRank };
  }

  /** Of as many micro-batches as are simulated. */
  #compiled(): CompiledSchedule {
    return this.#cache.schedule(this.#schedule(simulatedMicroBatches(this.#schedule())));
  }

  #first(rank: number): StageCosts {
    const costs = this.#ranks[rank]?.[0];
    if (costs === undefined) throw new MoeError("internal", `layout evaluation: no device for pipeline rank ${rank}`);
    return costs;
  }

  get numLayers(): number {
    return this.#first(0).numLayers;
  }

  /** Seconds below which no step of this layout is, whatever the split. */
  bound(): number {
    const kinds = [...new Set(this.#ranks.flat())];
    return stepBound({ layout: this.layout, schedule: this.schedule, numMicroBatches: this.#M, kinds });
  }

  /** Bytes below which the fullest rank is not, with as much recomputed as may be: the average of what all ranks hold at least. */
  memoryBound(): number {
    const costs = this.#first(0);
    const { recompute = "auto" } = this.#options;
    const counts = {
      full: recompute === "none" || recompute === "selective" ? 0 : this.numLayers,
      selective: recompute === "selective" ? this.numLayers : 0,
    };
    // Every rank has a micro-batch in flight at least.
    const bytes = costs.fixedBytes(0, this.numLayers) + costs.keptBytes(0, this.numLayers, counts);
    return bytes / this.layout.pp;
  }

  /** Whether `evaluate` finds a split that fits, without its time. A run of layers fits wherever a longer one does, so each stage takes all it can. */
  fits(): boolean {
    const { layers } = this.#options;
    const { pp: P } = this.layout;
    if (this.schedule === "interleaved") {
      const problem = this.#interleavedProblem();
      return recomputeInterleaved(problem, layers ?? evenInterleaved(problem)) !== null;
    }
    let first = 0;
    for (let rank = 0; rank < P; rank++) {
      const holds = (n: number): boolean => this.#recompute(rank, rank, first, n, this.#inFlight(rank)) !== null;
      const left = this.numLayers - first;
      let n = layers?.[rank] ?? (rank === P - 1 ? left : 1);
      if (!holds(n)) return false;
      while (layers === undefined && n < left - (P - rank - 1) && holds(n + 1)) n++;
      first += n;
    }
    return true;
  }

  /**
   * The fastest of the splits whose fullest device holds the least, to a millionth, with no more recomputed than that takes. Of interleaved stages:
   * what `evaluate` finds.
   */
  leanest(): EvaluatedLayout | InfeasibleLayout {
    if (this.schedule === "interleaved" || !this.fits()) return this.evaluate();
    let [low, high] = [this.memoryBound(), Math.max(...this.#ranks.flat().map(({ memoryBytes }) => memoryBytes))];
    while (high - low > 1e-6 * high) {
      this.#limitBytes = (low + high) / 2;
      if (this.fits()) high = this.#limitBytes;
      else low = this.#limitBytes;
    }
    this.#limitBytes = high;
    const result = this.evaluate();
    this.#limitBytes = Infinity;
    // What was proven is proven of splits within the limit only.
    return isFeasible(result) ? { ...result, lowerBoundSeconds: Math.min(this.bound(), result.seconds), optimal: false } : result;
  }

  evaluate(): EvaluatedLayout | InfeasibleLayout {
    return this.schedule === "interleaved" ? this.#evaluateInterleaved() : this.#evaluatePlain();
  }

  #policy(stage: number): RecomputePolicy | RecomputeCounts {
    const { recompute = "auto" } = this.#options;
    return typeof recompute === "string" ? recompute : { full: recompute[stage] ?? 0, selective: 0 };
  }

  /** What all kinds of devices of a rank can do: a stage has as many bytes on each, so what fits the smallest; null: too small. */
  #recompute(rank: number, stage: number, first: number, n: number, inFlight: number): RecomputeCounts | null {
    const policy = this.#policy(stage);
    const costs = this.#kinds(rank).reduce((a, b) => (b.memoryBytes < a.memoryBytes ? b : a), this.#first(rank));
    const memoryBytes = Math.min(costs.memoryBytes, this.#limitBytes);
    if (typeof policy === "string") return costs.recompute(first, n, inFlight, policy, memoryBytes);
    return policy.full <= n && costs.bytes(first, n, policy, inFlight) <= memoryBytes ? policy : null;
  }

  #kinds(rank: number): readonly StageCosts[] {
    return this.#ranks[rank] ?? [];
  }

  /** Micro-batches that rank `rank` of a schedule with one stage a rank holds. */
  #inFlight(rank: number): number {
    return Math.min(this.schedule === "zeroBubble" ? this.layout.pp : this.layout.pp - rank, this.#M);
  }

  #problem(): PartitionProblem {
    const P = this.layout.pp;
    const candidate = (rank: number, first: number, n: number): StageCandidate | null => {
      const counts = this.#recompute(rank, rank, first, n, this.#inFlight(rank));
      if (counts === null) return null;
      let [forward, backward, gradients, optimizer] = [0, 0, 0, 0];
      for (const costs of this.#kinds(rank)) {
        const time = costs.time(first, n, counts);
        const message = this.schedule === "1f1b" ? costs.model.boundary().seconds : 0;
        const end = costs.stepEnd(first, n);
        forward = Math.max(forward, time.forward + (rank < P - 1 ? message : 0));
        backward = Math.max(backward, time.backwardInput + time.backwardWeight + (rank > 0 ? message : 0));
        gradients = Math.max(gradients, end.gradientSeconds);
        optimizer = Math.max(optimizer, end.optimizerSeconds);
      }
      return { forward, backward, gradients, optimizer };
    };
    const { maxNodes } = this.#options;
    const problem = {
      numStages: P,
      numLayers: this.numLayers,
      numMicroBatches: this.#M,
      candidate,
      uniform: this.#ranks.flat().every(({ uniform }) => uniform),
      scratch: this.#cache.scratch,
    };
    return maxNodes === undefined ? problem : { ...problem, maxNodes };
  }

  #evaluatePlain(): EvaluatedLayout | InfeasibleLayout {
    const problem = this.#problem();
    const { layers: given } = this.#options;
    if (given !== undefined) {
      if (partitionSeconds(problem, given) === null) return this.#tooLarge(given);
      return this.#evaluated(given, { lowerBoundSeconds: this.#boundOfSplits(problem), optimal: false });
    }
    const found = partitionLayers(problem);
    if (found === null) return this.#tooLarge(equalCounts(this.numLayers, this.layout.pp));
    // The split is that of 1F1B; zero bubble runs it with less waiting, which its bound leaves out.
    const exact = this.schedule === "1f1b";
    return this.#evaluated(found.layers, {
      lowerBoundSeconds: exact ? found.lowerBoundSeconds + this.#first(0).model.stepSeconds : this.bound(),
      optimal: exact && found.optimal,
    });
  }

  /** Seconds below which no split is. The partition's bound is that of 1F1B; with recomputation by stage no other split is known. */
  #boundOfSplits(problem: PartitionProblem): number {
    if (this.schedule !== "1f1b" || typeof this.#options.recompute === "object") return this.bound();
    const free = partitionLayers({ ...problem, maxNodes: 1 });
    return free === null ? this.bound() : free.lowerBoundSeconds + this.#first(0).model.stepSeconds;
  }

  /** Stages, simulation, memory and terms of a split with one stage a rank. */
  #evaluated(layers: readonly number[], proof: Pick<EvaluatedLayout, "lowerBoundSeconds" | "optimal">): EvaluatedLayout {
    const starts = firstLayers(layers);
    const counts = layers.map((n, s) => this.#recompute(s, s, starts[s] ?? 0, n, this.#inFlight(s)) ?? { full: n, selective: 0 });
    return this.#finish(layers, counts, proof);
  }

  #stages(layers: readonly number[], counts: readonly RecomputeCounts[]): StagePlan[] {
    const starts = firstLayers(layers);
    return layers.map((n, s) => this.#first(s % this.layout.pp).stagePlan(starts[s] ?? 0, n, counts[s] ?? noRecompute));
  }

  #finish(
    layers: readonly number[],
    counts: readonly RecomputeCounts[],
    proof: Pick<EvaluatedLayout, "lowerBoundSeconds" | "optimal">,
  ): EvaluatedLayout {
    const stages = this.#stages(layers, counts);
    const simulated = this.simulate(stages);
    const step = { stages, simulated, ranks: this.#ranks, numMicroBatches: this.#M };
    const memory = rankMemory(step);
    return {
      layout: this.layout,
      schedule: this.schedule,
      numMicroBatches: this.#M,
      stages,
      seconds: simulated.seconds,
      lowerBoundSeconds: Math.min(proof.lowerBoundSeconds, simulated.seconds),
      optimal: proof.optimal,
      memory,
      memoryLimits: this.#ranks.map((kinds) => Math.min(...kinds.map(({ memoryBytes }) => memoryBytes))),
      peakMemoryBytes: Math.max(...memory.map(({ total }) => total)),
      bubbleFraction: simulated.bubbleFraction,
      terms: stepTerms(step),
    };
  }

  /** The step of these stages, operation by operation; of very many micro-batches the first ones, and what the others add. */
  simulate(stages: readonly StagePlan[], { timeline = false } = {}): SimulatedStep {
    const options = this.#simulation(stages);
    const { pp: P } = this.layout;
    const compiled = this.#compiled();
    const step = simulateStep({ ...options, timeline }, compiled);
    if (compiled.M === this.#M) return step;
    const before = simulateStep(options, this.#cache.schedule(this.#schedule(compiled.M - P)));
    return lengthenStep(step, before, P, this.#M - compiled.M);
  }

  #simulation(stages: readonly StagePlan[]): SimulationOptions {
    const { pp: P } = this.layout;
    const slowest = <T>(rank: number, of: (costs: StageCosts) => T, size: (value: T) => number): T =>
      this.#kinds(rank)
        .map(of)
        .reduce((a, b) => (size(b) > size(a) ? b : a));
    const times = stages.map((stage, s) =>
      slowest(
        s % P,
        (costs) => costs.time(stage.firstLayer, stage.numLayers, countsOf(stage)),
        (time) => time.forward + time.backwardInput + time.backwardWeight,
      ),
    );
    const stepEnd = Array.from({ length: P }, (_, rank) => {
      const own = stages.filter((_, s) => s % P === rank);
      const ends = this.#kinds(rank).map((costs) => own.map((stage) => costs.stepEnd(stage.firstLayer, stage.numLayers)));
      const most = (of: (end: { gradientSeconds: number; optimizerSeconds: number }) => number): number =>
        Math.max(...ends.map((list) => list.reduce((sum, end) => sum + of(end), 0)));
      return { gradientSeconds: most((end) => end.gradientSeconds), optimizerSeconds: most((end) => end.optimizerSeconds) };
    });
    return {
      schedule: this.#schedule(),
      stages: times,
      messageSeconds: Math.max(...this.#ranks.flat().map(({ model }) => model.boundary().seconds)),
      overlapMessages: this.schedule !== "1f1b",
      stepEnd,
      stepSeconds: this.#first(0).model.stepSeconds,
      activationBytes: stages.map((stage, s) => this.#first(s % P).keptBytes(stage.firstLayer, stage.numLayers, countsOf(stage))),
    };
  }

  #interleavedProblem(): InterleavedProblem {
    return {
      numRanks: this.layout.pp,
      numStages: this.layout.pp * this.layout.interleave,
      numLayers: this.numLayers,
      inFlight: [...this.#compiled().heldByStage],
      kinds: (rank) => this.#kinds(rank),
      policy: (stage) => this.#policy(stage),
    };
  }

  #evaluateInterleaved(): EvaluatedLayout | InfeasibleLayout {
    const problem = this.#interleavedProblem();
    const { layers: given, moves = 0 } = this.#options;
    const start = given ?? evenInterleaved(problem);
    const secondsOf = (layers: readonly number[]): number => {
      const counts = recomputeInterleaved(problem, layers);
      return counts === null ? Infinity : this.simulate(this.#stages(layers, counts)).seconds;
    };
    const split = given === undefined && moves > 0 ? movedLayers(start, secondsOf, moves) : start;
    const counts = recomputeInterleaved(problem, split);
    if (counts === null) return this.#tooLarge(split, problem.inFlight);
    return this.#finish(split, counts, { lowerBoundSeconds: this.bound(), optimal: false });
  }

  #tooLarge(layers: readonly number[], held?: readonly number[]): InfeasibleLayout {
    const worst = fullestRank({
      numRanks: this.layout.pp,
      layers,
      kinds: (rank) => this.#kinds(rank),
      policy: (stage) => this.#policy(stage),
      inFlight: (stage) => held?.[stage] ?? this.#inFlight(stage),
    });
    return { layout: this.layout, reason: worst.text, excessBytes: worst.excessBytes };
  }
}

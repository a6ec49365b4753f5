/**
 * Which layers each stage of a pipeline gets: the split of L layers into P runs of consecutive layers with the shortest step, exactly, and a
 * lower bound that proves it.
 *
 * What a stage costs is the caller's: `candidate` answers for every stage and run of layers, embedding, loss, recomputation, the
 * stage's own device and its own memory limit included (or null, where the run does not fit). Recomputation needs no search of its
 * own: a stage's limit depends on the stage alone, and a step never gets shorter when a stage gets slower, so the caller takes the
 * cheapest recomputation that fits (`stage-costs.ts`).
 *
 * Objective: the makespan of plain 1F1B over M micro-batches with each stage's exchange of gradients behind its last backward pass, the
 * wait of all for the last exchange, and the slowest update:
 *
 *   T = max over s of (end of s + gradients_s) + max over s of optimizer_s
 *
 * where the ends are the longest paths through the operations (`pipeline-time.ts`), not a formula. With w_s = forward_s + backward_s,
 * every 1F1B satisfies, for all s and for all e <= s (fill, the work of s, drain down to stage e and its exchange; or out to the last
 * stage and back, then what is left of s, and the same):
 *
 *   T >= sum over i < s of forward_i + M w_s + sum over e <= i < s of backward_i + gradients_e + max of optimizer
 *   T >= sum of all w + (M - 1) backward_s + max(0, M - P + s) forward_s - sum over i < e of backward_i + gradients_e + max of optimizer
 *
 * Method: dynamic programming from the last stage computes, for every stage and first layer, the least that these can become for the
 * layers that are left, with e among the stages before (`bottleneck`, `back`) and with e = s (`own`). All are additive in what lies
 * before, so the tables are exact for the bounds: at the root they give the
 * **lower bound**, which holds for every split. Runs of layers that work longer than an even split takes are left out: no best split has them. Branch and bound then goes through the stages from the first, the most promising run of
 * layers first, cuts where the bound reaches the best T found, and evaluates T at the leaves. It ends with the optimum, or, where
 * `maxNodes` ends it or micro-batches are too many to count each (`countedMicroBatches`), with the best found and the bound (`optimal` says which). O(P L^2) for the tables at most.
 *
 * The same question as integer program: "AdaPipe: Optimizing Pipeline Parallelism with Adaptive Recomputation and Partitioning"
 * (ASPLOS 2024), which balances the steady phase only.
 */
import { MoeError } from "../util/errors.ts";
import { equalCounts } from "../util/partition.ts";
import { countedMicroBatches, longSeconds, pipelineScratch, type PipelineScratch } from "./pipeline-time.ts";

/** Seconds of a micro-batch on a stage with these layers (messages that the sender waits for included), and of the end of the step. */
export interface StageCandidate {
  readonly forward: number;
  readonly backward: number;
  readonly gradients: number;
  readonly optimizer: number;
}

export interface PartitionProblem {
  readonly numStages: number;
  readonly numLayers: number;
  readonly numMicroBatches: number;
  /** `numLayers` layers from `firstLayer` as stage `stage`; null where they do not fit it. */
  readonly candidate: (stage: number, firstLayer: number, numLayers: number) => StageCandidate | null;
  /**
   * All layers alike: an answer of `candidate` depends on the stage and the number of its layers only (the first stage has the first layer, the
   * last one the last, as always). It is asked once for each, not for every first layer. Default false.
   */
  readonly uniform?: boolean;
  /** Nodes of the search tree that are visited at most. Default 2,000,000. */
  readonly maxNodes?: number;
  readonly scratch?: PartitionScratch;
}

/** Memory of one search, for whoever searches often: it grows to what is needed and is written over each time. */
export class PartitionScratch {
  #values = new Float64Array(0);

  /** `count` arrays of `size` numbers, with whatever was in them. */
  arrays(count: number, size: number): Float64Array[] {
    if (this.#values.length < count * size) this.#values = new Float64Array(count * size);
    return Array.from({ length: count }, (_, i) => this.#values.subarray(i * size, (i + 1) * size));
  }
}

export interface LayerPartition {
  /** Of each stage, at least 1. */
  readonly layers: readonly number[];
  /** T. */
  readonly seconds: number;
  /** No split has a smaller T. */
  readonly lowerBoundSeconds: number;
  /** Whether `seconds` was proven to be the least. */
  readonly optimal: boolean;
  readonly numNodes: number;
}

/** Numbers that candidates take at most: a gigabyte. */
const mostNumbers = 2 ** 27;

/** The best split, or null where none fits. Throws `configuration` for counts that make no sense, and for more candidates than go into a gigabyte. */
export function partitionLayers(problem: PartitionProblem): LayerPartition | null {
  const { numStages, numLayers, numMicroBatches } = problem;
  for (const [what, value] of Object.entries({ numStages, numLayers, numMicroBatches })) {
    if (!Number.isSafeInteger(value) || value < 1)
      throw new MoeError("configuration", `partition of layers: expected ${what} of at least 1, got ${value}`);
  }
  if (numStages > numLayers)
    throw new MoeError("configuration", `partition of layers: ${numStages} stages for ${numLayers} layers, some would have none`);
  const runs = numLayers - numStages + 1;
  const numbers = 4 * numStages * runs * (problem.uniform === true ? 1 : runs);
  if (numbers > mostNumbers)
    throw new MoeError(
      "configuration",
      `partition of layers: ${numLayers} layers of several kinds over ${numStages} stages are ${numbers / 4} candidates, at most ${mostNumbers / 4} are compared; fewer stages or more (--pp) make fewer`,
    );
  return new PartitionSearch(problem).solve();
}

/** T of one split. Null where a stage's layers do not fit it. */
export function partitionSeconds(problem: PartitionProblem, layers: readonly number[]): number | null {
  const P = problem.numStages;
  const [forward, backward, gradients] = [new Float64Array(P), new Float64Array(P), new Float64Array(P)];
  let [first, optimizer] = [0, 0];
  for (const [s, n] of layers.entries()) {
    const candidate = problem.candidate(s, first, n);
    if (candidate === null) return null;
    forward[s] = candidate.forward;
    backward[s] = candidate.backward;
    gradients[s] = candidate.gradients;
    optimizer = Math.max(optimizer, candidate.optimizer);
    first += n;
  }
  return longSeconds(forward, backward, gradients, P, problem.numMicroBatches, pipelineScratch(P)) + optimizer;
}

/**
 * The least that these become for what is left, at stage s with layers from l, row s * (L + 1) + l; Infinity: does not fit. Work; fill, work
 * and drain of a stage; fill, work and exchange of a stage; return path; update.
 */
interface Tables {
  readonly sum: Float64Array;
  readonly bottleneck: Float64Array;
  readonly own: Float64Array;
  readonly back: Float64Array;
  readonly optimizer: Float64Array;
}

/** The stages chosen so far: their sums, and what each bound has become by them. */
interface Branch {
  readonly forward: number;
  readonly backward: number;
  /** Max over e of gradients_e - sum over i < e of backward_i: what the end of a path adds to its drain down to stage 0. */
  readonly tail: number;
  /** Largest bound by fill, work, drain and exchange of a chosen stage. */
  readonly bottleneck: number;
  /** Largest of what a chosen stage adds to the sum of all work on the return path. */
  readonly back: number;
  readonly optimizer: number;
}

class PartitionSearch {
  readonly #P: number;
  readonly #L: number;
  readonly #M: number;
  readonly #uniform: boolean;
  /** Of a stage and a run of layers, at `#at`; forward is Infinity where it does not fit. */
  readonly #forward: Float64Array;
  readonly #backward: Float64Array;
  readonly #gradients: Float64Array;
  readonly #optimizer: Float64Array;
  /** The largest count of a stage and a first layer that may be of use, at `#runs`. */
  readonly #most: Int32Array;
  readonly #tables: Tables;
  readonly #maxNodes: number;
  readonly #stage: { forward: Float64Array; backward: Float64Array; gradients: Float64Array; counts: Int32Array };
  readonly #scratch: PipelineScratch;
  /** Nodes that a leaf counts as: as many as take its time. */
  readonly #leafNodes: number;
  #best: number[] | null = null;
  #bestSeconds = Infinity;
  #numNodes = 0;

  constructor(problem: PartitionProblem) {
    const { numStages: P, numLayers: L, numMicroBatches: M, candidate, uniform = false, maxNodes = 2_000_000 } = problem;
    [this.#P, this.#L, this.#M, this.#uniform, this.#maxNodes] = [P, L, M, uniform, maxNodes];
    const { scratch = new PartitionScratch() } = problem;
    const none = new Float64Array(0);
    [this.#forward = none, this.#backward = none, this.#gradients = none, this.#optimizer = none] = scratch.arrays(
      4,
      P * (L - P + 1) * (uniform ? 1 : L - P + 1),
    );
    this.#forward.fill(Infinity);
    this.#most = new Int32Array(P * (uniform ? 1 : L - P + 1));
    // No stage of the best split works longer than an even split takes in all.
    const enough = (partitionSeconds(problem, equalCounts(L, P)) ?? Infinity) * (1 + 1e-9);
    for (let s = 0; s < P; s++) {
      // Every stage has a layer at least, so a first layer and a count have their ranges.
      for (let first = s; first <= (s === 0 || uniform ? s : L - P + s); first++) {
        const most = L - first - (P - s - 1);
        for (let n = s === P - 1 && !uniform ? most : 1; n <= most; n++) {
          // Of the last stage's counts each has its own first layer.
          const found = candidate(s, uniform && s === P - 1 ? L - n : first, n);
          if (found === null || M * (found.forward + found.backward) > enough) continue;
          const i = this.#at(s, first, n);
          this.#forward[i] = found.forward;
          this.#backward[i] = found.backward;
          this.#gradients[i] = found.gradients;
          this.#optimizer[i] = found.optimizer;
          this.#most[this.#runs(s, first)] = n;
        }
      }
    }
    this.#leafNodes = Math.max(1, Math.floor((P * Math.min(M, countedMicroBatches(P))) / 1000));
    this.#scratch = pipelineScratch(P);
    this.#tables = this.#fillTables();
    this.#stage = {
      forward: new Float64Array(P),
      backward: new Float64Array(P),
      gradients: new Float64Array(P),
      counts: new Int32Array(P),
    };
  }

  /** Every other stage has a layer at least, so that there are as many first layers of a stage, and counts, as layers are left, and one. */
  #at(stage: number, first: number, count: number): number {
    return this.#runs(stage, first) * (this.#L - this.#P + 1) + count - 1;
  }
  #runs(stage: number, first: number): number {
    return this.#uniform ? stage : stage * (this.#L - this.#P + 1) + first - stage;
  }
  /** Counts go up to here. */
  #mostOf(stage: number, first: number): number {
    return Math.min(this.#most[this.#runs(stage, first)] as number, this.#L - first - (this.#P - stage - 1));
  }

  /** (M - 1) backward + max(0, M - P + s) forward: what is left of stage s when the first gradient reaches it, but its first backward pass. */
  #backOf(s: number, i: number): number {
    return (this.#M - 1) * (this.#backward[i] as number) + Math.max(0, this.#M - this.#P + s) * (this.#forward[i] as number);
  }

  #fillTables(): Tables {
    const [P, L, M] = [this.#P, this.#L, this.#M];
    const size = (P + 1) * (L + 1);
    const table = (): Float64Array => new Float64Array(size).fill(Infinity);
    const [sum, bottleneck, own, back, optimizer] = [table(), table(), table(), table(), table()];
    for (const values of [sum, bottleneck, own, back, optimizer]) values[P * (L + 1) + L] = 0;
    for (let s = P - 1; s >= 0; s--) {
      for (let first = s; first <= L - P + s; first++) {
        const here = s * (L + 1) + first;
        const most = this.#mostOf(s, first);
        for (let n = 1; n <= most; n++) {
          const i = this.#at(s, first, n);
          const forward = this.#forward[i] as number;
          if (forward === Infinity) continue;
          const next = here + L + 1 + n;
          const work = forward + (this.#backward[i] as number);
          sum[here] = Math.min(sum[here] as number, work + (sum[next] as number));
          bottleneck[here] = Math.min(bottleneck[here] as number, Math.max(M * work, work + (bottleneck[next] as number)));
          const exchanged = M * work + (this.#gradients[i] as number);
          own[here] = Math.min(own[here] as number, Math.max(exchanged, forward + (own[next] as number)));
          back[here] = Math.min(back[here] as number, Math.max(this.#backOf(s, i), back[next] as number));
          optimizer[here] = Math.min(optimizer[here] as number, Math.max(this.#optimizer[i] as number, optimizer[next] as number));
        }
      }
    }
    return { sum, bottleneck, own, back, optimizer };
  }

  solve(): LayerPartition | null {
    const root: Branch = { forward: 0, backward: 0, tail: 0, bottleneck: 0, back: 0, optimizer: 0 };
    const children = this.#children(0, 0, root);
    const lowerBoundSeconds = children[0]?.bound ?? Infinity;
    if (lowerBoundSeconds === Infinity) return null;
    this.#visit(0, 0, root);
    const optimal = this.#numNodes < this.#maxNodes && this.#M <= countedMicroBatches(this.#P);
    // A split that fits exists, and the first descent reaches one: every table entry that is finite is a split's.
    if (this.#best === null) throw new MoeError("internal", "partition of layers: the search ended without a split");
    return { layers: this.#best, seconds: this.#bestSeconds, lowerBoundSeconds, optimal, numNodes: this.#numNodes };
  }

  /** Choices of stage s that can still lead to a better split, the most promising first. */
  #children(s: number, first: number, branch: Branch): { n: number; bound: number; next: Branch }[] {
    const [L, M, tables] = [this.#L, this.#M, this.#tables];
    const children: { n: number; bound: number; next: Branch }[] = [];
    const most = this.#mostOf(s, first);
    for (let n = 1; n <= most; n++) {
      const i = this.#at(s, first, n);
      const forward = this.#forward[i] as number;
      const rest = (s + 1) * (L + 1) + first + n;
      if (forward === Infinity || (tables.sum[rest] as number) === Infinity) continue;
      const work = forward + (this.#backward[i] as number);
      // The exchange of a stage other than the first counts from where the drain leaves it.
      const tail = Math.max(branch.tail, (this.#gradients[i] as number) - branch.backward);
      const next: Branch = {
        forward: branch.forward + forward,
        backward: branch.backward + (this.#backward[i] as number),
        tail,
        bottleneck: Math.max(branch.bottleneck, branch.forward + branch.backward + M * work + tail),
        back: Math.max(branch.back, this.#backOf(s, i) + tail),
        optimizer: Math.max(branch.optimizer, this.#optimizer[i] as number),
      };
      const sum = next.forward + next.backward;
      const bound =
        Math.max(
          next.bottleneck,
          sum + (tables.bottleneck[rest] as number) + tail,
          next.forward + (tables.own[rest] as number),
          sum + (tables.sum[rest] as number) + Math.max(next.back, (tables.back[rest] as number) + tail),
        ) + Math.max(next.optimizer, tables.optimizer[rest] as number);
      if (bound < this.#bestSeconds * (1 - 1e-12)) children.push({ n, bound, next });
    }
    return children.sort((a, b) => a.bound - b.bound || a.n - b.n);
  }

  #visit(s: number, first: number, branch: Branch): void {
    const { forward, backward, gradients: exchange, counts } = this.#stage;
    if (s === this.#P) {
      this.#numNodes += this.#leafNodes - 1;
      const seconds = longSeconds(forward, backward, exchange, this.#P, this.#M, this.#scratch) + branch.optimizer;
      if (seconds < this.#bestSeconds) [this.#bestSeconds, this.#best] = [seconds, [...counts]];
      return;
    }
    for (const { n, bound, next } of this.#children(s, first, branch)) {
      // The first descent always ends, so that there is a split to return.
      if (this.#best !== null && (bound >= this.#bestSeconds * (1 - 1e-12) || this.#numNodes >= this.#maxNodes)) return;
      this.#numNodes++;
      const i = this.#at(s, first, n);
      forward[s] = this.#forward[i] as number;
      backward[s] = this.#backward[i] as number;
      exchange[s] = this.#gradients[i] as number;
      counts[s] = n;
      this.#visit(s + 1, first + n, next);
    }
  }
}

/**
 * What a stage of any run of layers costs, in constant time: sums over layers of the cost model's answers, the cheapest recomputation
 * that fits the stage's memory, and both halves of the backward pass. The partition and the search ask this a million times.
 *
 * A pipeline rank has dp * tp devices. Where these are of several kinds, the slowest decides the time and the smallest the memory.
 *
 * Recomputation: of a stage's layers the first `full` keep their input only, the next `selective` all but attention's inner part, the
 * others everything. A stage takes the combination with the least added time that fits (`auto`); how many micro-batches it holds is known
 * from its rank, so this needs no search over stages.
 *
 * Under ZeRO-0 to 3 and any schedule a stage's bytes are: weights, gradients and optimizer (sums over its parameters) + what a micro-batch
 * keeps times those in flight + the largest workspace. All but the last are additive in layers, which the tables use; a test compares
 * them with the cost model's `stageMemory`.
 */
import { layerKind } from "./cost.ts";
import { bytesOfType } from "./device-time.ts";
import type { CostModel, LayerCost, Recompute, StageMemory, StagePlan, StepEndCost, Workload } from "./types.ts";

/** Seconds of one micro-batch on one stage, by what they are spent on. */
export interface StageTerms {
  /** Forward and backward passes without collectives. */
  readonly computeSeconds: number;
  /** Collectives inside layers (tensor, expert). */
  readonly communicationSeconds: number;
  readonly recomputeSeconds: number;
  /** What a micro-batch takes besides its layers; what the host takes in layers is in them. */
  readonly overheadSeconds: number;
}

export interface StageTime extends StageTerms {
  readonly forward: number;
  readonly backwardInput: number;
  readonly backwardWeight: number;
}

export interface PassSeconds {
  readonly forward: number;
  readonly backward: number;
}

export type RecomputePolicy = "auto" | "none" | "full" | "selective";

/** Of a stage's layers. */
export interface RecomputeCounts {
  readonly full: number;
  readonly selective: number;
}

/** Sums over the first i layers, at i, of one kind of device. */
interface LayerSums {
  readonly forward: Float64Array;
  readonly backward: Float64Array;
  readonly communication: Float64Array;
  /** Of recomputation, selective and full. */
  readonly again: Readonly<Record<Recompute, Float64Array>>;
  readonly kept: Readonly<Record<Recompute, Float64Array>>;
  /** Weights, gradients and optimizer. */
  readonly fixed: Float64Array;
}

const choices = ["none", "selective", "full"] as const satisfies readonly Recompute[];

/** The costs of one kind of device. */
export class StageCosts {
  readonly model: CostModel;
  readonly memoryBytes: number;
  readonly numLayers: number;
  /** Whether all layers cost the same. */
  readonly uniform: boolean;
  readonly #sharded: CostModel | null;
  readonly #sums: LayerSums;
  readonly #embedding: LayerCost;
  readonly #head: LayerCost;
  /** Bytes of embedding (1), head (2), both (3) without layers, and workspace of a stage with them. */
  readonly #endsFixed: readonly number[];
  readonly #workspace: Readonly<Record<Recompute, readonly number[]>>;
  readonly #selectiveHelps: boolean;
  /** By the bytes of weights, gradients and optimizer, which say how many layers of which kind and which ends a stage has. */
  readonly #stepEnds = new Map<number, StepEndCost>();

  /** `memoryBytes`: what a device may hold. `sharded`: the model with ZeRO-3 and nothing hidden, where micro-batches exchange (ZeRO-2, 3). */
  constructor(model: CostModel, memoryBytes: number, sharded: CostModel | null = null) {
    this.model = model;
    this.#sharded = sharded;
    this.memoryBytes = memoryBytes;
    this.numLayers = model.workload.model.numLayers;
    const kinds = layerKinds(model.workload);
    this.uniform = kinds.firstOf.size === 1;
    this.#sums = sumsOf(model, this.numLayers, kinds);
    this.#embedding = model.embedding();
    this.#head = model.head();
    const ends = [0, 1, 2, 3].map((flags) => ({ embedding: (flags & 1) > 0, head: (flags & 2) > 0 }));
    this.#endsFixed = ends.map((flags) => fixedBytes(model.stageMemory({ ...emptyStage, ...flags }, 0)));
    // Workspace is a maximum: of the stage's layers the largest. Layers differ in kind, hence over all of them.
    this.#workspace = Object.fromEntries(
      choices.map((choice) => [choice, ends.map((flags) => workspaceOf(model, kinds, choice, flags))]),
    ) as Record<Recompute, number[]>;
    const { kept } = this.#sums;
    this.#selectiveHelps = (kept.selective[this.numLayers] ?? 0) < (kept.none[this.numLayers] ?? 0);
  }

  #flags(first: number, n: number): number {
    return (first === 0 ? 1 : 0) + (first + n === this.numLayers ? 2 : 0);
  }

  /** Bytes of a micro-batch that a stage keeps. */
  keptBytes(first: number, n: number, { full, selective }: RecomputeCounts): number {
    const { kept } = this.#sums;
    const flags = this.#flags(first, n);
    const [a, b, end] = [first + full, first + full + selective, first + n];
    return (
      between(kept.full, first, a) +
      between(kept.selective, a, b) +
      between(kept.none, b, end) +
      ((flags & 1) > 0 ? this.#embedding.activationBytes : 0) +
      ((flags & 2) > 0 ? this.#head.activationBytes : 0)
    );
  }

  /** Weights, gradients and optimizer of a stage. */
  fixedBytes(first: number, n: number): number {
    return between(this.#sums.fixed, first, first + n) + (this.#endsFixed[this.#flags(first, n)] ?? 0);
  }

  workspaceBytes(first: number, n: number, { full, selective }: RecomputeCounts): number {
    const flags = this.#flags(first, n);
    const of = (choice: Recompute): number => this.#workspace[choice][flags] ?? 0;
    if (this.model.workload.software.freesInBackward !== true)
      return Math.max(full > 0 ? of("full") : 0, selective > 0 ? of("selective") : 0, full + selective < n ? of("none") : 0);
    // What is recomputed takes the place of what the layers behind it have let go.
    const { kept } = this.#sums;
    const [a, b, end] = [first + full, first + full + selective, first + n];
    const [whole, inner] = [between(kept.none, b, end), between(kept.selective, a, b)];
    return Math.max(of("none"), full > 0 ? of("full") - whole - inner : 0, selective > 0 ? of("selective") - whole : 0);
  }

  bytes(first: number, n: number, counts: RecomputeCounts, inFlight: number): number {
    return this.fixedBytes(first, n) + inFlight * this.keptBytes(first, n, counts) + this.workspaceBytes(first, n, counts);
  }

  /** The recomputation with the least added time that fits into `memoryBytes`, or null where even all of it does not. */
  recompute(first: number, n: number, inFlight: number, policy: RecomputePolicy, memoryBytes = this.memoryBytes): RecomputeCounts | null {
    const fits = (counts: RecomputeCounts): boolean => this.bytes(first, n, counts, inFlight) <= memoryBytes;
    if (policy !== "auto") {
      const counts = { full: policy === "full" ? n : 0, selective: policy === "selective" ? n : 0 };
      return fits(counts) ? counts : null;
    }
    if (fits(noRecompute)) return noRecompute;
    // Nothing keeps less than full recomputation.
    if (this.fixedBytes(first, n) + inFlight * this.keptBytes(first, n, { full: n, selective: 0 }) > memoryBytes) return null;
    if (this.model.workload.software.freesInBackward === true) return this.#leastRecompute(first, n, fits);
    let best: RecomputeCounts | null = null;
    let bestSeconds = Infinity;
    const { again } = this.#sums;
    // More full recomputation needs less of the other: one pass with two pointers.
    let selective = this.#selectiveHelps ? n : 0;
    for (let full = 0; full <= n; full++) {
      selective = Math.min(selective, n - full);
      if (!fits({ full, selective })) continue;
      while (selective > 0 && fits({ full, selective: selective - 1 })) selective--;
      const [a, b] = [first + full, first + full + selective];
      const seconds = between(again.full, first, a) + between(again.selective, a, b);
      if (seconds < bestSeconds) [best, bestSeconds] = [{ full, selective }, seconds];
      if (selective === 0) break;
    }
    return best;
  }

  /**
   * Where what is recomputed takes the place of what was let go, less recomputation can need less memory: of every number of wholly recomputed
   * layers the least selective one that fits, unless it takes longer than what was found.
   */
  #leastRecompute(first: number, n: number, fits: (counts: RecomputeCounts) => boolean): RecomputeCounts | null {
    let best: RecomputeCounts | null = null;
    let bestSeconds = Infinity;
    const { again } = this.#sums;
    for (let full = 0; full <= n; full++) {
      const most = this.#selectiveHelps ? n - full : 0;
      for (let selective = 0; selective <= most; selective++) {
        const [a, b] = [first + full, first + full + selective];
        const seconds = between(again.full, first, a) + between(again.selective, a, b);
        if (seconds >= bestSeconds) break;
        if (!fits({ full, selective })) continue;
        [best, bestSeconds] = [{ full, selective }, seconds];
        break;
      }
    }
    return best;
  }

  time(first: number, n: number, { full, selective }: RecomputeCounts): StageTime {
    const { forward, backward, communication, again } = this.#sums;
    const end = first + n;
    const flags = this.#flags(first, n);
    let [f, b, c] = [between(forward, first, end), between(backward, first, end), between(communication, first, end)];
    for (const [flag, cost] of [
      [1, this.#embedding],
      [2, this.#head],
    ] as const) {
      if ((flags & flag) === 0) continue;
      f += cost.forward.seconds;
      b += cost.backward.seconds;
      c += cost.forward.communicationSeconds + cost.backward.communicationSeconds;
    }
    const recomputeSeconds = between(again.full, first, first + full) + between(again.selective, first + full, first + full + selective);
    const overheadSeconds = this.model.microBatchSeconds;
    const { gather, scatter } = this.#exchange(first, n);
    // Both halves of a product's backward pass are as many FLOPs; collectives and what is recomputed belong to the inputs' half.
    const weight = Math.max(0, b - c / 2) / 2;
    return {
      forward: f + gather + overheadSeconds / 2,
      backwardInput: b - weight + gather + scatter + recomputeSeconds + overheadSeconds / 2,
      backwardWeight: weight,
      computeSeconds: f + b - c,
      communicationSeconds: c + 2 * gather + scatter,
      recomputeSeconds,
      overheadSeconds,
    };
  }

  /**
   * What every micro-batch exchanges under ZeRO-2 (gradients are reduced and scattered at once, and the step's end has the last one's) and
   * ZeRO-3 (weights are gathered before each pass, too), of which `overlap` is hidden as at the step's end. Seconds.
   */
  #exchange(first: number, n: number): { readonly gather: number; readonly scatter: number } {
    if (this.#sharded === null) return noExchange;
    const { layout, numMicroBatches: M, cluster, workload } = this.model;
    const { computeType, exchangeBytes } = workload.software;
    const exposed = 1 - cluster.efficiency.overlap;
    const once = exposed * this.#sharded.stepEnd(this.stagePlan(first, n, noRecompute)).gradientSeconds;
    const gather = layout.zero === 3 ? (once * bytesOfType(computeType)) / exchangeBytes : 0;
    return { gather, scatter: (once * (M - 1)) / M };
  }

  /** The end of the step on a stage: it depends on the parameters alone, so layers of one kind are asked for once. */
  stepEnd(first: number, n: number): StepEndCost {
    const bytes = this.fixedBytes(first, n);
    let end = this.#stepEnds.get(bytes);
    if (end === undefined) this.#stepEnds.set(bytes, (end = this.model.stepEnd(this.stagePlan(first, n, noRecompute))));
    return end;
  }

  stagePlan(first: number, n: number, { full, selective }: RecomputeCounts): StagePlan {
    const flags = this.#flags(first, n);
    return {
      firstLayer: first,
      numLayers: n,
      fullRecompute: full,
      selectiveRecompute: selective,
      embedding: (flags & 1) > 0,
      head: (flags & 2) > 0,
    };
  }

  /** Seconds of a micro-batch in one layer, without recomputation. */
  layerSeconds(layer: number): PassSeconds {
    const { forward, backward } = this.#sums;
    return { forward: between(forward, layer, layer + 1), backward: between(backward, layer, layer + 1) };
  }

  /** Seconds of a micro-batch in the embedding and in the head, forward and backward. */
  endSeconds(): { readonly embedding: number; readonly head: number } {
    const both = ({ forward, backward }: LayerCost): number => forward.seconds + backward.seconds;
    return { embedding: both(this.#embedding), head: both(this.#head) };
  }

  /** Seconds that the exchange of gradients of any `n` layers takes at least: known where all layers are equal. */
  leastExchangeSeconds(n: number): number {
    return this.uniform ? this.model.stepEnd({ ...emptyStage, numLayers: n }).gradientSeconds : 0;
  }
}

const noExchange = { gather: 0, scatter: 0 };
export const noRecompute: RecomputeCounts = { full: 0, selective: 0 };

/** Of a planned stage. */
export function countsOf({ fullRecompute, selectiveRecompute }: StagePlan): RecomputeCounts {
  return { full: fullRecompute, selective: selectiveRecompute };
}
const emptyStage: StagePlan = { firstLayer: 0, numLayers: 0, fullRecompute: 0, selectiveRecompute: 0, embedding: false, head: false };

function between(sums: Float64Array, from: number, to: number): number {
  return (sums[to] ?? 0) - (sums[from] ?? 0);
}

function fixedBytes({ weights, gradients, optimizer }: StageMemory): number {
  return weights + gradients + optimizer;
}

/** The kind of each layer, and the first of each kind: layers of a kind cost the same. */
interface LayerKinds {
  readonly kindOf: Uint8Array;
  readonly firstOf: ReadonlyMap<number, number>;
}

function layerKinds(workload: Workload): LayerKinds {
  const firstOf = new Map<number, number>();
  const kindOf = Uint8Array.from({ length: workload.model.numLayers }, (_, layer) => {
    const kind = layerKind(workload, layer);
    if (!firstOf.has(kind)) firstOf.set(kind, layer);
    return kind;
  });
  return { kindOf, firstOf };
}

function sumsOf(model: CostModel, numLayers: number, { kindOf, firstOf }: LayerKinds): LayerSums {
  const summed = (valueOf: (layer: number) => number): Float64Array => {
    const ofKind = new Float64Array(4);
    for (const [kind, layer] of firstOf) ofKind[kind] = valueOf(layer);
    const sums = new Float64Array(numLayers + 1);
    for (let layer = 0; layer < numLayers; layer++) sums[layer + 1] = (sums[layer] as number) + (ofKind[kindOf[layer] as number] as number);
    return sums;
  };
  const costs = new Map(
    [...firstOf.values()].map((layer) => [
      layer,
      { none: model.layer(layer, "none"), selective: model.layer(layer, "selective"), full: model.layer(layer, "full") },
    ]),
  );
  const costOf = (layer: number, choice: Recompute): LayerCost => costs.get(layer)?.[choice] ?? model.layer(layer, choice);
  const byChoice = (valueOf: (cost: LayerCost, choice: Recompute) => number): Record<Recompute, Float64Array> => ({
    none: summed((layer) => valueOf(costOf(layer, "none"), "none")),
    selective: summed((layer) => valueOf(costOf(layer, "selective"), "selective")),
    full: summed((layer) => valueOf(costOf(layer, "full"), "full")),
  });
  return {
    forward: summed((layer) => costOf(layer, "none").forward.seconds),
    backward: summed((layer) => costOf(layer, "none").backward.seconds),
    communication: summed((layer) => {
      const { forward, backward } = costOf(layer, "none");
      return forward.communicationSeconds + backward.communicationSeconds;
    }),
    fixed: summed((layer) => fixedBytes(model.stageMemory({ ...emptyStage, firstLayer: layer, numLayers: 1 }, 0))),
    again: byChoice(({ recompute }, choice) => (choice === "none" ? 0 : recompute.seconds)),
    kept: byChoice(({ activationBytes }) => activationBytes),
  };
}

function workspaceOf(model: CostModel, { firstOf }: LayerKinds, choice: Recompute, flags: Pick<StagePlan, "embedding" | "head">): number {
  let workspace = 0;
  for (const layer of firstOf.values()) {
    const stage: StagePlan = {
      firstLayer: layer,
      numLayers: 1,
      fullRecompute: choice === "full" ? 1 : 0,
      selectiveRecompute: choice === "selective" ? 1 : 0,
      ...flags,
    };
    workspace = Math.max(workspace, model.stageMemory(stage, 1).workspace);
  }
  return workspace;
}

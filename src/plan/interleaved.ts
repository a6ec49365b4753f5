/**
 * Which layers each stage of an interleaved pipeline gets: S = P * V runs of consecutive layers, run s on rank s mod P.
 *
 * A rank's load is the sum of its V runs, its memory too, and the order of the schedule couples all of them, so no bound of `partition.ts` is
 * additive here. Method: as even as can be, what is left over to the ranks with the least work, single layers from the busiest rank to
 * the idlest while the busiest gets less; then (`movedLayers`) any single layer from one run to another while the simulated step gets shorter.
 * The result is good, not proven.
 */
import type { RecomputeCounts, RecomputePolicy, StageCosts } from "./stage-costs.ts";

export interface InterleavedProblem {
  readonly numRanks: number;
  readonly numStages: number;
  readonly numLayers: number;
  /** Micro-batches that each stage holds at most. */
  readonly inFlight: readonly number[];
  /** Kinds of devices of a rank. */
  readonly kinds: (rank: number) => readonly StageCosts[];
  readonly policy: (stage: number) => RecomputePolicy | RecomputeCounts;
}

/** Index of the first layer of each stage. */
export function firstLayers(layers: readonly number[]): number[] {
  let first = 0;
  return layers.map((n) => {
    first += n;
    return first - n;
  });
}

/** Even runs, and even ranks as far as that goes. */
export function evenInterleaved(problem: InterleavedProblem): number[] {
  const { numRanks: P, numStages: S, numLayers: L } = problem;
  const layers = new Array<number>(S).fill(Math.floor(L / S));
  for (let left = L - S * Math.floor(L / S); left > 0; left--) {
    const loads = loadsOf(problem, layers);
    const chosen = extreme(layers, loads.indexOf(Math.min(...loads)), P, -1);
    layers[chosen] = (layers[chosen] ?? 0) + 1;
  }
  for (let round = 0; round < 4 * P; round++) {
    const loads = loadsOf(problem, layers);
    const most = extreme(layers, loads.indexOf(Math.max(...loads)), P, 1);
    const least = extreme(layers, loads.indexOf(Math.min(...loads)), P, -1);
    if ((layers[most] ?? 0) < 2) return layers;
    const moved = withMoved(layers, most, least);
    if (Math.max(...loadsOf(problem, moved)) >= Math.max(...loads) * (1 - 1e-9)) return layers;
    layers.splice(0, S, ...moved);
  }
  return layers;
}

/** Moves single layers while `secondsOf` gets smaller; at most `moves` splits are tried. */
export function movedLayers(start: readonly number[], secondsOf: (layers: readonly number[]) => number, moves: number): number[] {
  let best = [...start];
  let bestSeconds = secondsOf(best);
  let tried = 0;
  for (let improved = true; improved;) {
    improved = false;
    for (let from = 0; from < best.length; from++) {
      for (let to = 0; to < best.length; to++) {
        if (from === to || (best[from] ?? 0) < 2) continue;
        if (tried++ >= moves) return best;
        const candidate = withMoved(best, from, to);
        const seconds = secondsOf(candidate);
        if (seconds >= bestSeconds * (1 - 1e-9)) continue;
        [best, bestSeconds, improved] = [candidate, seconds, true];
      }
    }
  }
  return best;
}

function withMoved(layers: readonly number[], from: number, to: number): number[] {
  return layers.map((n, s) => n + (s === to ? 1 : 0) - (s === from ? 1 : 0));
}

/** Seconds of a micro-batch on each rank, without recomputation. */
function loadsOf({ numRanks: P, kinds }: InterleavedProblem, layers: readonly number[]): number[] {
  const starts = firstLayers(layers);
  const loads = new Array<number>(P).fill(0);
  for (const [s, n] of layers.entries()) {
    const times = kinds(s % P).map((costs) => costs.time(starts[s] ?? 0, n, { full: 0, selective: 0 }));
    loads[s % P] = (loads[s % P] ?? 0) + Math.max(...times.map((time) => time.forward + time.backwardInput + time.backwardWeight));
  }
  return loads;
}

/** The longest (sign 1) or shortest (-1) run of a rank; of equals the first. */
function extreme(layers: readonly number[], rank: number, P: number, sign: 1 | -1): number {
  let chosen = rank;
  for (let s = rank; s < layers.length; s += P) if (sign * (layers[s] ?? 0) > sign * (layers[chosen] ?? 0)) chosen = s;
  return chosen;
}

/** The least recomputation with which each rank's runs fit, layer by layer where most is in flight; null: too small. */
export function recomputeInterleaved(problem: InterleavedProblem, layers: readonly number[]): RecomputeCounts[] | null {
  const { numRanks: P, inFlight, kinds, policy } = problem;
  const starts = firstLayers(layers);
  const counts = layers.map((n, s): { full: number; selective: number } => {
    const decided = policy(s);
    if (typeof decided !== "string") return { ...decided };
    return { full: decided === "full" ? n : 0, selective: decided === "selective" ? n : 0 };
  });
  for (let rank = 0; rank < P; rank++) {
    const own = layers.map((_, s) => s).filter((s) => s % P === rank);
    const byHeld = own.toSorted((a, b) => (inFlight[b] ?? 0) - (inFlight[a] ?? 0));
    const fits = (): boolean =>
      kinds(rank).every((costs) => bytesOf(costs, { own, starts, layers, counts, inFlight }) <= costs.memoryBytes);
    while (!fits()) {
      const next = byHeld.find((s) => policy(s) === "auto" && (counts[s]?.full ?? 0) < (layers[s] ?? 0));
      const count = next === undefined ? undefined : counts[next];
      if (count === undefined) return null;
      count.full++;
    }
  }
  return counts;
}

function bytesOf(
  costs: StageCosts,
  {
    own,
    starts,
    layers,
    counts,
    inFlight,
  }: {
    readonly own: readonly number[];
    readonly starts: readonly number[];
    readonly layers: readonly number[];
    readonly counts: readonly RecomputeCounts[];
    readonly inFlight: readonly number[];
  },
): number {
  let [bytes, workspace] = [0, 0];
  for (const s of own) {
    const [first, n, count] = [starts[s] ?? 0, layers[s] ?? 0, counts[s] ?? { full: 0, selective: 0 }];
    bytes += costs.fixedBytes(first, n) + (inFlight[s] ?? 0) * costs.keptBytes(first, n, count);
    workspace = Math.max(workspace, costs.workspaceBytes(first, n, count));
  }
  return bytes + workspace;
}

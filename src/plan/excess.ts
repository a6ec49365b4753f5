/** Why a split does not fit: the rank that is furthest above its memory, with as much recomputed as may be, and its bytes by kind. */
import { firstLayers } from "./interleaved.ts";
import type { RecomputeCounts, RecomputePolicy, StageCosts } from "./stage-costs.ts";

export interface TriedSplit {
  readonly numRanks: number;
  readonly layers: readonly number[];
  readonly kinds: (rank: number) => readonly StageCosts[];
  readonly policy: (stage: number) => RecomputePolicy | RecomputeCounts;
  readonly inFlight: (stage: number) => number;
}

export interface RankExcess {
  readonly excessBytes: number;
  /** Which stage, how many layers, how many bytes of what. */
  readonly text: string;
}

export function fullestRank(split: TriedSplit): RankExcess {
  let worst: RankExcess = { excessBytes: -Infinity, text: "" };
  for (let rank = 0; rank < split.numRanks; rank++) {
    for (const costs of split.kinds(rank)) {
      const found = excessOf(split, rank, costs);
      if (found.excessBytes > worst.excessBytes) worst = found;
    }
  }
  return worst;
}

function excessOf({ numRanks: P, layers, policy, inFlight }: TriedSplit, rank: number, costs: StageCosts): RankExcess {
  const starts = firstLayers(layers);
  const parts = { weights: 0, gradients: 0, optimizer: 0, activations: 0, workspace: 0 };
  let [numLayers, numFull] = [0, 0];
  for (const [s, n] of layers.entries()) {
    if (s % P !== rank) continue;
    const counts = mostOf(policy(s), n);
    const memory = costs.model.stageMemory(costs.stagePlan(starts[s] ?? 0, n, counts), inFlight(s));
    for (const part of ["weights", "gradients", "optimizer", "activations"] as const) parts[part] += memory[part];
    parts.workspace = Math.max(parts.workspace, memory.workspace);
    numLayers += n;
    numFull += counts.full;
  }
  const total = Object.values(parts).reduce((a, b) => a + b, 0);
  const bytes = Object.entries(parts).map(([name, value]) => `${name} ${gibibytes(value)}`);
  const how = numFull === numLayers ? ", everything recomputed," : "";
  return {
    excessBytes: total - costs.memoryBytes,
    text: `stage ${rank} with ${numLayers} layer${numLayers === 1 ? "" : "s"}${how} needs ${gibibytes(total)} of ${gibibytes(costs.memoryBytes)} GiB (${bytes.join(", ")})`,
  };
}

/** The most recomputation that is allowed. */
function mostOf(policy: RecomputePolicy | RecomputeCounts, n: number): RecomputeCounts {
  if (typeof policy !== "string") return { full: Math.min(n, policy.full), selective: 0 };
  return { full: policy === "auto" || policy === "full" ? n : 0, selective: policy === "selective" ? n : 0 };
}

/** `20.5`, of bytes. */
export function gibibytes(bytes: number): string {
  const value = bytes / 2 ** 30;
  return value.toFixed(value < 0.1 ? 3 : 1);
}

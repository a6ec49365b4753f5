/**
 * What one rank of a tensor-parallel group has of every layer: intervals, nothing else. All layers are cut alike.
 *
 * Query heads are cut freely. A rank holds the key-value heads that its query heads read; where a cut goes through the group
 * of query heads of one key-value head, that head is on both sides (9 query heads over 3 on 2 ranks: [5, 4] with key-value
 * heads 0..1 and 1..2). The rank with a group's first query head owns its key-value head; only gathering needs to know.
 */
import type { ModelConfig } from "./model.ts";
import { intervalLength, type Interval } from "../util/partition.ts";

/** How experts are cut: whole experts a rank (EDP, arXiv 2406.06563, appendix B), or columns of every expert. */
export type ExpertMode = "experts" | "slices";

export interface RankShare {
  readonly heads: Interval;
  readonly kvHeads: Interval;
  /** Columns of dense feed-forward networks. */
  readonly ffn: Interval;
  /** Columns of the shared expert. */
  readonly sharedFfn: Interval;
  readonly experts: Interval;
  /** Columns of each of these experts. */
  readonly expertColumns: Interval;
  /** Rows of the embedding and of the output head. */
  readonly vocab: Interval;
}

/** Consecutive query heads on consecutive key-value heads, `numHeads / numKvHeads` on each. */
export interface HeadSegment {
  readonly numHeads: number;
  readonly numKvHeads: number;
}

/** Key-value heads that these query heads read. */
export function kvHeadsOf(heads: Interval, config: Pick<ModelConfig, "numHeads" | "numKvHeads">): Interval {
  const group = config.numHeads / config.numKvHeads;
  return intervalLength(heads) === 0 ? { start: 0, end: 0 } : { start: Math.floor(heads.start / group), end: Math.ceil(heads.end / group) };
}
/** Key-value heads that a rank with these query heads owns. */
export function ownedKvHeads(heads: Interval, config: Pick<ModelConfig, "numHeads" | "numKvHeads">): Interval {
  const group = config.numHeads / config.numKvHeads;
  return { start: Math.ceil(heads.start / group), end: Math.ceil(heads.end / group) };
}
/** A rank's query heads as runs that attention can take: part of a group, whole groups, part of a group. At most three. */
export function headSegments(heads: Interval, config: Pick<ModelConfig, "numHeads" | "numKvHeads">): HeadSegment[] {
  const group = config.numHeads / config.numKvHeads;
  const segments: HeadSegment[] = [];
  let at = heads.start;
  while (at < heads.end) {
    const wholeGroups = at % group === 0 ? Math.floor((heads.end - at) / group) : 0;
    const numHeads = wholeGroups > 0 ? wholeGroups * group : Math.min(heads.end, (Math.floor(at / group) + 1) * group) - at;
    segments.push({ numHeads, numKvHeads: Math.max(1, wholeGroups) });
    at += numHeads;
  }
  return segments;
}

/** The share of a rank that is alone. */
export function wholeShare(config: ModelConfig): RankShare {
  const all = (end: number): Interval => ({ start: 0, end });
  return {
    heads: all(config.numHeads),
    kvHeads: all(config.numKvHeads),
    ffn: all(config.ffnSize),
    sharedFfn: all(config.moe?.sharedExpert?.ffnSize ?? 0),
    experts: all(config.moe?.numExperts ?? 0),
    expertColumns: all(config.moe?.expertFfnSize ?? 0),
    vocab: all(config.vocabSize),
  };
}

/**
 * A rank's place in a layout: its communicators by axis, and what it has of every layer. Everything follows from the rank's number, so ranks agree without
 * asking.
 */
import type { ModelConfig } from "../../config/model.ts";
import type { Layout } from "../../config/layout.ts";
import { kvHeadsOf, type RankShare } from "../../config/rank-share.ts";
import type { ModelShard } from "../../model/index.ts";
import { axes, coordinatesOf, groupsOf, TensorGroup, type Axis, type Communicator, type Coordinates } from "../../parallel/index.ts";
import type { Engine } from "../../tensor/index.ts";
import { MoeError } from "../../util/errors.ts";
import { equalSpeeds, partition, type Interval } from "../../util/partition.ts";

export interface RankPlace {
  readonly layout: Layout;
  readonly at: Coordinates;
  readonly world: Communicator;
  /** The group of each axis that this rank is in. */
  readonly axes: Readonly<Record<Axis, Communicator>>;
  /** The two ranks that have a tied embedding's same rows, where this is one of them. */
  readonly tied: Communicator | null;
  /** What it has of every layer; null: all of it. */
  readonly shard: ModelShard | null;
}

/** The place of this rank. All ranks call it alike. Throws `configuration` where the layout is for another number of ranks. */
export function placeRank(engine: Engine, world: Communicator, layout: Layout, config: ModelConfig): RankPlace {
  const { pp, dp, tp } = layout;
  if (pp * dp * tp !== world.size) {
    throw new MoeError(
      "configuration",
      `layout: pp ${pp} * dp ${dp} * tp ${tp} = ${pp * dp * tp} ranks, but there are ${world.size}; change the layout or the number of ranks`,
    );
  }
  const at = coordinatesOf(world.rank, layout);
  const split = (axis: Axis): Communicator => {
    const communicator = world.split(groupsOf(axis, layout), axis);
    if (communicator === null) throw new MoeError("internal", `rank ${world.rank} is in no group of axis ${axis}`);
    return communicator;
  };
  const groups = Object.fromEntries(axes.map((axis) => [axis, split(axis)])) as unknown as Record<Axis, Communicator>;
  const ends = groupsOf("pp", layout).map((ranks) => [ranks[0] ?? 0, ranks.at(-1) ?? 0]);
  const tied = config.tiedEmbeddings && pp > 1 ? world.split(ends, "pp") : null;
  return { layout, at, world, axes: groups, tied, shard: shardOf(engine, groups, layout, config) };
}

function shardOf(engine: Engine, groups: Readonly<Record<Axis, Communicator>>, layout: Layout, config: ModelConfig): ModelShard | null {
  const { tp, ep, etp, sequenceParallel } = layout;
  const cutsExperts = config.moe !== null && ep * etp > 1;
  if (tp === 1 && !cutsExperts) return null;
  const group = new TensorGroup(engine, groups.tp, { sequenceParallel });
  const first = groups.tp.members[0] ?? 0;
  const shares = Array.from({ length: tp }, (_, t) => shareOf(config, layout, coordinatesOf(first + t, layout)));
  if (config.moe === null) return { group, shares, block: null };
  // All ranks of a block see the same tokens, or each has every expert's columns of the same: nothing to exchange.
  const isLocal = groups.block.members.join() === groups.tp.members.join() && (!sequenceParallel || ep === 1);
  if (isLocal) return { group, shares, block: null };
  const held = groups.block.members.map((rank) => shareOf(config, layout, coordinatesOf(rank, layout)).experts);
  return { group, shares, block: { communicator: groups.block, held } };
}

/** What a rank with these coordinates has of every layer. */
export function shareOf(config: ModelConfig, { tp, ep, etp }: Layout, at: Coordinates): RankShare {
  const part = (total: number, ranks: number, index: number): Interval =>
    partition(total, equalSpeeds(ranks), { unit: unitOf(total, ranks) })[index] ?? { start: 0, end: 0 };
  const heads = partition(config.numHeads, equalSpeeds(tp))[at.tp] ?? { start: 0, end: 0 };
  const { moe } = config;
  return {
    heads,
    kvHeads: kvHeadsOf(heads, config),
    ffn: part(config.ffnSize, tp, at.tp),
    sharedFfn: part(moe?.sharedExpert?.ffnSize ?? 0, tp, at.tp),
    experts: partition(moe?.numExperts ?? 0, equalSpeeds(ep))[at.ep] ?? { start: 0, end: 0 },
    expertColumns: part(moe?.expertFfnSize ?? 0, etp, at.etp),
    vocab: part(config.vocabSize, tp, at.tp),
  };
}

/** Products like widths that are multiples of 16, where there are enough. */
function unitOf(total: number, ranks: number): number {
  return total >= 64 * ranks ? 16 : 1;
}

/**
 * Whose gradients make a parameter's whole gradient, and who counts it in the norm. What a rank's backward pass leaves is a part: of other
 * sequences' ranks always, of ranks that saw other tokens or other heads where the parameter is on several ranks of a group.
 *
 * | class | parameters | sum over |
 * | --- | --- | --- |
 * | cut | matrices of attention and dense networks, vocabulary | dp |
 * | shared heads | key and value projections, where a key-value head is on several tp ranks | their holders in tp, dp |
 * | whole | norms, routers: the same gradient on all tp ranks, but for a part each under sequence parallelism | (tp), dp |
 * | part | norms of queries and keys, gate of the shared expert: every tp rank's heads or columns give a part | tp, dp |
 * | expert | stacks of experts | edp |
 */
import type { ModelConfig } from "../../config/model.ts";
import { ownedKvHeads, type RankShare } from "../../config/rank-share.ts";
import { numElements } from "../../tensor/index.ts";
import type { ParameterSpec } from "../../model/index.ts";
import type { Interval } from "../../util/partition.ts";
import type { RankPlace } from "./place.ts";

export interface ParameterClass {
  /** Ranks that hold the same elements, and whose gradients of them are of other tokens. */
  readonly axis: "dp" | "edp";
  /** What tp ranks add up before: nothing, all of it, or the rows of heads that several have. */
  readonly overTp: "nothing" | "all" | "sharedHeads";
  /** Elements that this rank counts in the norm, if it is the first of its axis: of each element, one tp rank does. */
  readonly counted: Interval;
}

/** The class of a parameter of this rank. */
export function classOf(spec: ParameterSpec, config: ModelConfig, place: RankPlace): ParameterClass {
  const size = numElements(spec.shape);
  const [all, none] = [
    { start: 0, end: size },
    { start: 0, end: 0 },
  ];
  const name = spec.name.replace(/^layers\.\d+\./, "");
  const { shard, layout, at } = place;
  if (name.startsWith("moe.experts.")) return { axis: "edp", overTp: "nothing", counted: all };
  if (shard === null || layout.tp === 1) return { axis: "dp", overTp: "nothing", counted: all };
  if (/^attention\.(key|value)\./.test(name)) {
    const own = shard.shares[at.tp];
    const perHead = own === undefined ? 0 : size / Math.max(1, own.kvHeads.end - own.kvHeads.start);
    const owned = own === undefined ? none : ownedKvHeads(own.heads, config);
    const from = own?.kvHeads.start ?? 0;
    const counted = size === 0 ? none : { start: (owned.start - from) * perHead, end: (owned.end - from) * perHead };
    return { axis: "dp", overTp: sharedHeads(shard.shares).length > 0 ? "sharedHeads" : "nothing", counted };
  }
  if (/^(embedding|head)\.|^attention\.(query|output)\.|^feedForward\.|^moe\.shared\.(gate|up|down)\./.test(name))
    return { axis: "dp", overTp: "nothing", counted: all };
  const isPart = /^attention\.(queryNorm|keyNorm)\.|^moe\.shared\.router\./.test(name);
  return { axis: "dp", overTp: isPart || layout.sequenceParallel ? "all" : "nothing", counted: at.tp === 0 ? all : none };
}

/** Key-value heads that several ranks hold, ascending. */
export function sharedHeads(shares: readonly Pick<RankShare, "kvHeads">[]): number[] {
  const holders = new Map<number, number>();
  for (const { kvHeads } of shares)
    for (let head = kvHeads.start; head < kvHeads.end; head++) holders.set(head, (holders.get(head) ?? 0) + 1);
  return [...holders].flatMap(([head, count]) => (count > 1 ? [head] : [])).toSorted((a, b) => a - b);
}

/**
 * The norm of all heads together (OLMoE's of queries and keys) on a rank that has some of the heads: the ranks' columns are gathered,
 * normalized whole, and the rank's own are taken. The bits are those of one rank.
 *
 * Legend: T tokens, L columns of the rank's heads, N columns of all heads.
 */
import type { TensorGroup } from "../parallel/group.ts";
import { columns, type Tensor } from "../tensor/index.ts";
import { intervalLength, type Interval } from "../util/partition.ts";
import type { RmsNorm } from "./norm.ts";

export class GatheredNorm {
  /** Of N features. */
  readonly norm: RmsNorm;
  readonly #group: TensorGroup;
  readonly #held: Interval;
  readonly #owned: readonly Interval[];

  /** `held`: this rank's columns. `owned`: for each rank those that it gives, which together are all, once. */
  constructor(norm: RmsNorm, group: TensorGroup, held: Interval, owned: readonly Interval[]) {
    this.norm = norm;
    this.#group = group;
    this.#held = held;
    this.#owned = owned;
  }
  /** [T, L] from x [T, L]. */
  forward(x_TL: Tensor): Tensor {
    const mine = this.#owned[this.#group.rank] ?? { start: 0, end: 0 };
    const from = intervalLength(mine) === 0 ? 0 : mine.start - this.#held.start;
    const given = columns(x_TL, from, from + intervalLength(mine));
    const all_TN = this.#group.gatherColumns(given, this.#owned.map(intervalLength));
    return columns(this.norm.forward(all_TN), this.#held.start, this.#held.end);
  }
}

/**
 * Seconds below which no step of a layout is, before its layers are split: what a search orders layouts by, in microseconds each.
 *
 * W seconds of work a micro-batch over P ranks and M micro-batches; rank r has w_r of it, f and b are the cheapest layer's forward and
 * backward pass, g_r exchanges of gradients (G in all), o updates. Rank r cannot start before r layers' forward passes, and what it does last
 * is followed by r layers' backward passes and the first rank's exchange, where backward passes are not split. Behind any of these comes the
 * slowest update.
 *
 *   any          T >= r f + M w_r + g_r                         average over ranks: (M W + G) / P + (P - 1) / 2 f
 *   interleaved  T >= r f + M w_r + r b + g_0                   average over ranks: M W / P + (P - 1) / 2 (f + b) + g_0
 *   1F1B         T >= sum over i < s of w_i + M w_s + g_0       the largest is least where all are equal: W / (1 - (1 - 1/M)^P) + g_0
 *   any          some rank has ceil(L / P) layers: M times as many of the cheapest, and their exchange of gradients
 *
 * Ranks may have several kinds of devices, which differ in what they are good at: each layer counts with the kind that is fastest at it.
 */
import type { PipelineScheduleName } from "../util/pipeline-schedule.ts";
import type { StageCosts } from "./stage-costs.ts";
import type { PlanLayout } from "./types.ts";

export interface BoundedLayout {
  readonly layout: PlanLayout;
  readonly schedule: PipelineScheduleName;
  readonly numMicroBatches: number;
  /** Of devices, at least one. */
  readonly kinds: readonly StageCosts[];
}

export function stepBound({ layout, schedule, numMicroBatches: M, kinds }: BoundedLayout): number {
  const { pp: P, interleave: V } = layout;
  const L = kinds[0]?.numLayers ?? 0;
  const least = (of: (costs: StageCosts) => number): number => Math.min(...kinds.map(of));
  const { total: work, forward, backward, layer } = leastSeconds(kinds);
  const exchangeOf = (numLayers: number): number => least((costs) => costs.leastExchangeSeconds(numLayers));
  // Of several kinds each may exchange other parameters sooner, so only those of equal layers can be told.
  const exchange = kinds.length === 1 ? least((costs) => costs.stepEnd(0, L).gradientSeconds) : exchangeOf(L);
  const firstExchange = exchangeOf(V);
  const ranksBefore = (P - 1) / 2;
  const exchanged = (M * work + exchange) / P + ranksBefore * forward;
  const drained = schedule === "interleaved" ? (M * work) / P + ranksBefore * (forward + backward) + firstExchange : 0;
  const filled = schedule === "1f1b" ? work / (1 - (1 - 1 / M) ** P) + firstExchange : 0;
  const most = Math.ceil(L / P);
  const counted = M * most * layer + exchangeOf(most);
  const optimizer = least((costs) => costs.stepEnd(0, L).optimizerSeconds) / P;
  return Math.max(exchanged, drained, filled, counted) + optimizer + least(({ model }) => model.stepSeconds);
}

/** Seconds of a micro-batch, without recomputation and without what stages add. */
interface LeastSeconds {
  /** In all layers, embedding and head, forward and backward. */
  readonly total: number;
  /** In any layer: forward, backward, and both of the same. */
  readonly forward: number;
  readonly backward: number;
  readonly layer: number;
}

function leastSeconds(kinds: readonly StageCosts[]): LeastSeconds {
  const ends = kinds.map((costs) => costs.endSeconds());
  let total = Math.min(...ends.map(({ embedding }) => embedding)) + Math.min(...ends.map(({ head }) => head));
  let [forward, backward, layer] = [Infinity, Infinity, Infinity];
  for (let l = 0; l < (kinds[0]?.numLayers ?? 0); l++) {
    let least = Infinity;
    for (const costs of kinds) {
      const passes = costs.layerSeconds(l);
      forward = Math.min(forward, passes.forward);
      backward = Math.min(backward, passes.backward);
      least = Math.min(least, passes.forward + passes.backward);
    }
    total += least;
    layer = Math.min(layer, least);
  }
  return { total, forward, backward, layer };
}

/**
 * Bytes of a rank between two steps, in closed form: weights, f32 gradients, and AdamW's state, which ZeRO-1 spreads over the ranks that hold a parameter.
 * With w bytes of a weight and n the elements of a rank's part of a parameter:
 *   w n + 4 n + (8 + (w < 4 ? 4 : 0)) n / d,
 * d the ranks that it is spread over: those of its data-parallel group (experts: of theirs) under ZeRO-1 from `smallElements` elements on, otherwise 1.
 */
import { stagesOf, type Layout } from "../../config/layout.ts";
import type { ModelConfig } from "../../config/model.ts";
import { parameterSpecs, shardSpecs, spanSpecs, type ModelDType } from "../../model/index.ts";
import { coordinatesOf } from "../../parallel/mesh.ts";
import { numElements } from "../../tensor/index.ts";
import { equalSpeeds, intervalLength, partition } from "../../util/partition.ts";
import { shareOf } from "./place.ts";
import { smallElements } from "./rank-optimizer.ts";

/** Of a rank of the layout. Buffers of communication and the table of rotations are not in it. */
export function stateBytes(model: ModelConfig, layout: Layout, dtype: ModelDType, rank: number): number {
  const at = coordinatesOf(rank, layout);
  const stages = stagesOf(layout, model.numLayers, 0).filter((_, stage) => stage % layout.pp === at.pp);
  const all = parameterSpecs(model, dtype);
  const share = shareOf(model, layout, at);
  const replicas = (layout.dp * layout.tp) / (layout.ep * layout.etp);
  return stages
    .flatMap(({ firstLayer, numLayers }) =>
      shardSpecs(spanSpecs(all, model, { start: firstLayer, end: firstLayer + numLayers }), model, share),
    )
    .reduce((sum, spec) => {
      const n = numElements(spec.shape);
      const weight = spec.dtype === "f32" ? 4 : 2;
      if (!spec.trains) return sum + weight * n;
      const isExpert = spec.name.includes(".moe.experts.");
      const ranks = isExpert ? replicas : layout.dp;
      const place = isExpert ? at.edp : at.dp;
      const isSharded = layout.zero === 1 && ranks > 1 && n >= smallElements;
      const updated = isSharded ? intervalLength(partition(n, equalSpeeds(ranks))[place] ?? { start: 0, end: 0 }) : n;
      return sum + (weight + 4) * n + (weight === 4 ? 8 : 12) * updated;
    }, 0);
}

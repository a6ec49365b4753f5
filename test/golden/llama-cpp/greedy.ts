/**
 * Greedy decoding of one model compared with what another program decoded: token by token along the other's path, so that
 * every position is compared even after two logits tied and the choice fell differently.
 */
import { KvCache, type Decoder } from "../../../src/model/index.ts";

/** A position where the two choices differ: both candidates' logits, theirs and ours. */
export interface Tie {
  readonly position: number;
  readonly theirs: { readonly id: number; readonly logit: number; readonly ourLogit: number };
  readonly ours: { readonly id: number; readonly logit: number; readonly theirLogit: number };
  /** Larger of the two distances between the candidates, over the largest logit. */
  readonly relativeGap: number;
}
export interface Comparison {
  readonly ties: readonly Tie[];
  /** Largest difference between their five largest logits and ours, over the largest logit. */
  readonly relativeError: number;
}

/** `ids` is what the other program chose after `promptIds`, and `top` its largest logits at each choice. */
export function compareGreedy(
  model: Decoder,
  promptIds: readonly number[],
  ids: readonly number[],
  top: readonly (readonly (readonly [id: number, logit: number])[])[],
): Comparison {
  using cache = new KvCache(model.engine, model.config, { numSequences: 1, capacity: promptIds.length + ids.length, dtype: "f32" });
  const ties: Tie[] = [];
  let relativeError = 0;
  let step = promptIds;
  for (const [position, id] of ids.entries()) {
    const logits = logitsAfter(model, cache, step);
    const candidates = new Map(top[position]);
    const largest = Math.max(...[...candidates.values()].map(Math.abs));
    for (const [candidate, logit] of candidates) relativeError = Math.max(relativeError, Math.abs(logit - (logits[candidate] ?? Number.NaN)) / largest);
    const chosen = logits.indexOf(Math.max(...logits));
    if (chosen !== id) {
      const theirs = { id, logit: candidates.get(id) ?? Number.NaN, ourLogit: logits[id] ?? Number.NaN };
      const ours = { id: chosen, logit: logits[chosen] ?? Number.NaN, theirLogit: candidates.get(chosen) ?? Number.NaN };
      const relativeGap = Math.max(theirs.logit - ours.theirLogit, ours.logit - theirs.ourLogit) / largest;
      ties.push({ position, theirs, ours, relativeGap });
    }
    step = [id];
  }
  return { ties, relativeError };
}

function logitsAfter(model: Decoder, cache: KvCache, ids: readonly number[]): Float32Array {
  return model.engine.scope(() => {
    const { hidden_TH } = model.forwardHidden(cache.extend([{ slot: 0, ids }]), { cache });
    return model.logits(hidden_TH.rows(ids.length - 1, ids.length)).toFloat32Array();
  });
}

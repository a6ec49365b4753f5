/**
 * Does the upcycled model compute what the dense one did? The largest absolute difference of logits over the largest
 * absolute logit, on the same tokens. Copies with combine weights that sum to 1 differ only by rounding.
 */
import { batchOfDocuments, type Decoder } from "../model/index.ts";
import { MoeError } from "../util/errors.ts";

export interface UpcycleGap {
  /** Largest absolute difference of logits over the largest absolute logit of the dense model. */
  readonly maxGap: number;
  /** Mean absolute difference over the same. */
  readonly meanGap: number;
  readonly numTokens: number;
}

/** Compares two models with the same vocabulary on `ids`. Both should be in f32. */
export function upcycleGap(dense: Decoder, moe: Decoder, ids: ArrayLike<number>): UpcycleGap {
  const [a, b] = [logitsOf(dense, ids), logitsOf(moe, ids)];
  if (a.length !== b.length) throw new MoeError("shape", `upcycle gap: ${a.length} logits of the dense model, ${b.length} of the other`);
  let largest = 0;
  let maxDifference = 0;
  let sum = 0;
  for (let i = 0; i < a.length; i++) {
    const difference = Math.abs((a[i] ?? 0) - (b[i] ?? 0));
    largest = Math.max(largest, Math.abs(a[i] ?? 0));
    // A NaN must not pass as "no difference".
    maxDifference = Math.max(maxDifference, Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference);
    sum += difference;
  }
  return { maxGap: maxDifference / largest, meanGap: sum / a.length / largest, numTokens: ids.length };
}

function logitsOf(model: Decoder, ids: ArrayLike<number>): Float32Array {
  return model.engine.scope(() => {
    const batch = batchOfDocuments(model.engine, [ids], { vocabSize: model.config.vocabSize });
    return model.logits(model.forwardHidden(batch).hidden_TH).toFloat32Array();
  });
}

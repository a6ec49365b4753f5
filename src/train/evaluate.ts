/**
 * Validation loss: mean cross-entropy in nats a token over the first sequences of a data set, with its standard error.
 * Evaluation is dropless and records nothing. The error treats sequences as independent and tokens within one as not: it is
 * that of a ratio of sums over sequences (linearized), which is honest for packed text.
 */
import type { Dataset, TokenBatch } from "../data/dataset.ts";
import type { Decoder } from "../model/index.ts";
import { MoeError } from "../util/errors.ts";
import { toModelBatch } from "./batch.ts";

export interface Evaluation {
  /** Nats a token. */
  readonly loss: number;
  readonly standardError: number;
  readonly numTokens: number;
  readonly numSequences: number;
}

export interface EvaluateOptions {
  /** Sequences used, at most those of the data set. */
  readonly maxSequences: number;
  /** Sequences of one forward pass. Does not change the result. */
  readonly batchSequences: number;
}

/** Cross-entropy of each token of a batch, f32 [T], 0 where it bears no loss. Dropless. */
export function tokenLosses(model: Decoder, batch: TokenBatch): Float32Array {
  return model.engine.scope(() => {
    const { batch: modelBatch, targets } = toModelBatch(model.engine, batch);
    return model.loss(modelBatch, targets, { scale: 1 }).perToken.toFloat32Array();
  });
}

/** Evaluates `model` on the first sequences of `dataset` (which should not shuffle). Throws `file` where no token bears loss. */
export function evaluate(model: Decoder, dataset: Dataset, options: EvaluateOptions): Evaluation {
  return evaluateWith((batches) => batches.map((batch) => tokenLosses(model, batch)), dataset, options);
}

/** `evaluate` for a model that may be spread over ranks: `losses` is `tokenLosses` of each batch. */
export function evaluateWith(
  losses: (batches: readonly TokenBatch[]) => readonly Float32Array[],
  dataset: Dataset,
  { maxSequences, batchSequences }: EvaluateOptions,
): Evaluation {
  const numSequences = Math.min(maxSequences, dataset.numSequences);
  const batches = Array.from({ length: Math.ceil(numSequences / batchSequences) }, (_, i) => {
    const first = i * batchSequences;
    return dataset.batch(first, Math.min(batchSequences, numSequences - first));
  });
  const sums: number[] = [];
  const counts: number[] = [];
  for (const [i, perToken] of losses(batches).entries()) {
    const batch = batches[i];
    if (batch === undefined) break;
    for (let b = 0; b < batch.numSequences; b++) {
      const from = b * batch.sequenceLength;
      const to = from + batch.sequenceLength;
      sums.push(perToken.subarray(from, to).reduce((a, x) => a + x, 0));
      counts.push(batch.targets.subarray(from, to).reduce((n, target) => n + (target >= 0 ? 1 : 0), 0));
    }
  }
  const numTokens = counts.reduce((a, b) => a + b, 0);
  if (numTokens === 0)
    throw new MoeError("file", `${dataset.file.path}: expected tokens that bear loss in the first ${numSequences} sequences, got none`);
  const loss = sums.reduce((a, b) => a + b, 0) / numTokens;
  const residuals = sums.map((sum, i) => sum - loss * (counts[i] ?? 0));
  const variance = residuals.reduce((a, r) => a + r * r, 0) * (numSequences / Math.max(1, numSequences - 1));
  return { loss, standardError: Math.sqrt(variance) / numTokens, numTokens, numSequences };
}

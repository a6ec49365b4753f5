/**
 * Top-k softmax router, in f32: probabilities over all experts, the k largest, and their weights divided by their sum.
 * With `normalization`, logits are standardized first, z~ = lambda * (z - mean(z)) / sqrt(variance(z) + epsilon), which
 * keeps gates from drifting to a flat distribution (Skywork-MoE, arXiv 2406.06563, section 4.1).
 *
 * Legend: T tokens, E experts, k choices.
 */
import type { Tensor } from "../tensor.ts";
import { expectTensor, shapeError } from "./check.ts";

export interface LogitNormalization {
  readonly lambda: number;
  /** Added to the variance. */
  readonly epsilon: number;
  /** Variance over n - 1 rather than n. */
  readonly unbiased: boolean;
}

export interface RouterOptions {
  readonly topK: number;
  readonly normalization: LogitNormalization | null;
}

export interface RouterOutput {
  /** f32 [T, E], rows sum to 1: what balance losses see. Differentiable. */
  readonly probs: Tensor;
  /** f32 [T, k], rows sum to 1, in descending order. Differentiable. */
  readonly weights: Tensor;
  /** i32 [T, k]: the experts chosen, ties to the lower index. */
  readonly indices: Tensor;
}

/** Routes by logits [T, E] f32. Gradients come back from `probs` and `weights` together. Throws `shape`. */
export function router(logits: Tensor, { topK, normalization }: RouterOptions): RouterOutput {
  expectTensor("router", "logits", logits, [null, null], ["f32"]);
  const [T, E] = [logits.dim(0), logits.dim(1)];
  if (!(Number.isSafeInteger(topK) && topK >= 1 && topK <= E))
    throw shapeError("router", "topK", `1 to ${E} for ${E} experts`, String(topK));
  const { engine } = logits;
  const { kernels } = engine.backend;
  const normalize = normalization === null ? 0 : 1;
  const { lambda, epsilon, unbiased } = normalization ?? { lambda: 1, epsilon: 0, unbiased: false };
  const probs = engine.empty([T, E], "f32");
  const weights = engine.empty([T, topK], "f32");
  const indices = engine.empty([T, topK], "i32");
  kernels.routerForward(probs.ptr, weights.ptr, indices.ptr, logits.ptr, T, E, topK, normalize, Number(unbiased), lambda, epsilon);
  const { tape } = engine;
  tape?.recordMany(
    [logits],
    [probs, weights],
    [probs, weights, indices, logits],
    ([dProbs, dWeights], [savedProbs, savedWeights, savedIndices, savedLogits]) => {
      const dLogits = engine.empty([T, E], "f32");
      const dChosen = dWeights ?? engine.zeros([T, topK], "f32");
      kernels.routerBackward(
        dLogits.ptr,
        dChosen.ptr,
        dProbs?.ptr ?? 0,
        savedProbs.ptr,
        savedWeights.ptr,
        savedIndices.ptr,
        savedLogits.ptr,
        T,
        E,
        topK,
        normalize,
        Number(unbiased),
        lambda,
        epsilon,
      );
      tape.addGrad(logits, dLogits);
    },
  );
  return { probs, weights, indices };
}

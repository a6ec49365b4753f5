/**
 * The choice of k experts a token, in f32: from logits to scores, from scores to a choice and its weights.
 *
 * 1. With `normalization`, z = lambda * (x - mean(x)) / sqrt(variance(x) + epsilon), which keeps gates from drifting to a flat
 *    distribution (Skywork-MoE, arXiv 2406.06563, section 4.1); otherwise z is the logits.
 * 2. Scores: softmax of z; or sigmoid of each z; or z itself, whose softmax over the chosen is taken afterwards.
 * 3. The k largest of scores + `bias` are chosen (the bias is for choosing only: arXiv 2408.15664), with `groups` among the
 *    experts of the best groups only (DeepSeek-V3, arXiv 2412.19437). Ties go to the lower index; NaN comes after every number.
 * 4. Weights are the chosen scores, divided by their sum with `renormalize` (a sum of 0 gives weights of 0), times `scale`.
 *
 * Legend: T tokens, E experts, k choices.
 */
import { routerScorings } from "../../backend/kernels.ts";
import type { Tensor } from "../tensor.ts";
import { expectTensor, shapeError } from "./check.ts";

export interface LogitNormalization {
  readonly lambda: number;
  /** Added to the variance. */
  readonly epsilon: number;
  /** Variance over n - 1 rather than n. */
  readonly unbiased: boolean;
}

export type RouterScoring = keyof typeof routerScorings;

/** Experts as `numGroups` equal runs, of which the `topGroups` with the largest sum of their two best scores may be chosen from. */
export interface ExpertGroups {
  readonly numGroups: number;
  readonly topGroups: number;
}

export interface RouterOptions {
  readonly topK: number;
  readonly normalization: LogitNormalization | null;
  /** Default: softmax. */
  readonly scoring?: RouterScoring;
  /** Default: true. Without effect on softmaxOfTopK, whose weights sum to 1 already. */
  readonly renormalize?: boolean;
  /** Factor of the weights. Default: 1. */
  readonly scale?: number;
  readonly groups?: ExpertGroups | null;
  /** f32 [E]. No gradient reaches it. */
  readonly bias?: Tensor | null;
  /** i32 [T]: 0 for tokens that take no part, which get indices -1, weights and probs 0, and no gradient. */
  readonly valid?: Tensor | null;
  /** Forced balance, for benchmarks: token t chooses experts (t * k + j) mod E, with their own scores as weights. */
  readonly forced?: boolean;
}

export interface RouterOutput {
  /**
   * f32 [T, E]: what balance losses see. Differentiable. softmax: over all experts. softmaxOfTopK: over the chosen, 0 elsewhere.
   * sigmoid: scores over their sum. Rows sum to 1.
   */
  readonly probs: Tensor;
  /** f32 [T, k], in the order of `indices`. Differentiable. */
  readonly weights: Tensor;
  /** i32 [T, k]: the experts chosen, by descending score with bias. */
  readonly indices: Tensor;
}

/** Routes by logits [T, E] f32. Gradients come back from `probs` and `weights` together. Throws `shape`. */
export function router(logits: Tensor, options: RouterOptions): RouterOutput {
  expectTensor("router", "logits", logits, [null, null], ["f32"]);
  const [T, E] = [logits.dim(0), logits.dim(1)];
  checkOptions(options, T, E);
  const { topK, bias = null, valid = null, groups = null } = options;
  const { engine } = logits;
  const { scoring, normalize, unbiased, renormalize, lambda, epsilon, factor } = numbersOf(options);
  const probs = engine.empty([T, E], "f32");
  const weights = engine.empty([T, topK], "f32");
  const indices = engine.empty([T, topK], "i32");
  engine.backend.kernels.routerForward(
    probs.ptr,
    weights.ptr,
    indices.ptr,
    logits.ptr,
    bias?.ptr ?? 0,
    valid?.ptr ?? 0,
    T,
    E,
    topK,
    groups?.numGroups ?? 1,
    groups?.topGroups ?? 1,
    scoring,
    normalize,
    unbiased,
    renormalize,
    Number(options.forced ?? false),
    lambda,
    epsilon,
    factor,
  );
  const output = { probs, weights, indices };
  recordBackward(logits, output, options);
  return output;
}

/** The options as kernels take them. */
function numbersOf({ normalization, scoring = "softmax", renormalize = true, scale = 1 }: RouterOptions) {
  const { lambda, epsilon, unbiased } = normalization ?? { lambda: 1, epsilon: 0, unbiased: false };
  return {
    scoring: routerScorings[scoring],
    normalize: Number(normalization !== null),
    unbiased: Number(unbiased),
    renormalize: Number(renormalize),
    lambda,
    epsilon,
    factor: scale,
  };
}

function recordBackward(logits: Tensor, { probs, weights, indices }: RouterOutput, options: RouterOptions): void {
  const { engine } = logits;
  const { tape } = engine;
  const [T, E, topK] = [logits.dim(0), logits.dim(1), options.topK];
  const { scoring, normalize, unbiased, renormalize, lambda, epsilon, factor } = numbersOf(options);
  tape?.recordMany(
    [logits],
    [probs, weights],
    [probs, weights, indices, logits],
    ([dProbs, dWeights], [savedProbs, savedWeights, savedIndices, savedLogits]) => {
      const dLogits = engine.empty([T, E], "f32");
      const dChosen = dWeights ?? engine.zeros([T, topK], "f32");
      engine.backend.kernels.routerBackward(
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
        scoring,
        normalize,
        unbiased,
        renormalize,
        lambda,
        epsilon,
        factor,
      );
      tape.addGrad(logits, dLogits);
    },
  );
}

function checkOptions({ topK, groups = null, bias = null, valid = null }: RouterOptions, T: number, E: number): void {
  if (!(Number.isSafeInteger(topK) && topK >= 1 && topK <= E))
    throw shapeError("router", "topK", `1 to ${E} for ${E} experts`, String(topK));
  if (bias !== null) expectTensor("router", "bias", bias, [E], ["f32"]);
  if (valid !== null) expectTensor("router", "valid", valid, [T], ["i32"]);
  if (groups === null) return;
  const { numGroups, topGroups } = groups;
  const fits =
    [numGroups, topGroups].every((n) => Number.isSafeInteger(n) && n >= 1) &&
    topGroups <= numGroups &&
    E % numGroups === 0 &&
    topK <= topGroups * (E / numGroups);
  if (fits) return;
  const expected = `numGroups dividing ${E} experts and topGroups groups of at least ${topK} experts`;
  throw shapeError("router", "groups", expected, JSON.stringify(groups));
}

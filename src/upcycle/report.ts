/**
 * What a receipt says beside where tensors came from: expected memory, the cost rule, and warnings about routing. Arithmetic
 * only; each number's definition is its comment.
 */
import { flopsPerToken } from "../config/model-counts.ts";
import type { ModelConfig } from "../config/model.ts";
import { numElements } from "../tensor/index.ts";
import { parameterSpecs, type ModelDType } from "../model/index.ts";
import type { LayerRouting } from "./probe.ts";

/** Bytes of state that one process needs; activations, buffers and the KV cache come on top. */
export interface ExpectedMemory {
  /** Weights, f32 gradients, both f32 moments of AdamW. */
  readonly trainingF32Bytes: number;
  /** The same with matrices in bf16, and their f32 masters. */
  readonly trainingBf16Bytes: number;
  /**
   * Matrices of attention and experts in FP8 (e4m3) with an f32 scale each (one for gate and up together, as in the
   * release), everything else in bf16.
   */
  readonly servingFp8Bytes: number;
}

/** Expected memory of a model's state. */
export function expectedMemory(config: ModelConfig): ExpectedMemory {
  const training = (dtype: ModelDType): number =>
    parameterSpecs(config, dtype).reduce((sum, spec) => sum + numElements(spec.shape) * (spec.dtype === "f32" ? 16 : 18), 0);
  let serving = 0;
  for (const { name, shape } of parameterSpecs(config, "bf16")) {
    const isQuantized = /(attention\.(query|key|value|output)\.weight|experts\.|shared\.(gate|up|down)|feedForward\.(gate|up|down))/.test(
      name,
    );
    if (!isQuantized) serving += 2 * numElements(shape);
    // Scales of gate matrices are those of up matrices.
    else serving += numElements(shape) + (/\.gate/.test(name) ? 0 : 4 * (shape.length === 3 ? (shape[0] ?? 1) : 1));
  }
  return { trainingF32Bytes: training("f32"), trainingBf16Bytes: training("bf16"), servingFp8Bytes: serving };
}

/** The rule of the Skywork-MoE report (arXiv 2406.06563, section 3): upcycle far below the dense cost, from scratch from twice on. */
export interface CostRule {
  /** Training FLOPs of a token (forward and backward, at 2048 positions). */
  readonly denseFlopsPerToken: number;
  readonly moeFlopsPerToken: number;
  readonly denseTokens: number | null;
  readonly budgetTokens: number | null;
  /** Cost of the MoE's training over that of the dense model; null where either is not known. */
  readonly budgetOverDenseCost: number | null;
  readonly advice: string;
}

export function costRule(dense: ModelConfig, moe: ModelConfig, denseTokens: number | null, budgetTokens: number | null): CostRule {
  const positions = Math.min(2048, dense.maxPositions);
  const [denseFlops, moeFlops] = [flopsPerToken(dense, positions), flopsPerToken(moe, positions)];
  const ratio = denseTokens === null || budgetTokens === null ? null : (budgetTokens * moeFlops) / (denseTokens * denseFlops);
  const equalCost = denseFlops / moeFlops;
  return {
    denseFlopsPerToken: denseFlops,
    moeFlopsPerToken: moeFlops,
    denseTokens,
    budgetTokens,
    budgetOverDenseCost: ratio,
    advice: advice(ratio, denseTokens, equalCost),
  };
}
function advice(ratio: number | null, denseTokens: number | null, equalCost: number): string {
  if (ratio !== null) {
    const cost = `the budget is ${ratio.toPrecision(2)} times the dense model's training cost`;
    if (ratio >= 2) return `${cost}: at 2 or more, the report trains from scratch`;
    return ratio <= 0.5
      ? `${cost}: far below it, the report upcycles`
      : `${cost}: between the report's two cases (upcycle far below 1, from scratch from 2 on)`;
  }
  const tokens =
    denseTokens === null
      ? `${equalCost.toPrecision(3)} tokens for each token that the dense model was trained on`
      : `${(equalCost * denseTokens).toPrecision(3)} tokens`;
  return `this MoE's training costs as much as the dense model's did after ${tokens}: upcycle for a budget far below that, train from scratch for twice that or more`;
}

/** What a person should know of the routers as they are. */
export function routingWarnings(routing: readonly LayerRouting[], numExperts: number): string[] {
  const warnings: string[] = [];
  const symmetric = routing.filter(({ symmetricExperts }) => symmetricExperts.length > 0);
  const [first] = symmetric;
  if (first !== undefined) {
    const groups = first.symmetricExperts.map((group) => group.join("=")).join(", ");
    warnings.push(
      `symmetric experts in ${symmetric.length} of ${routing.length} layers (layer ${first.layer}: ${groups}): equal weights and equal router rows; only the order of ties tells them apart`,
    );
  }
  const identical = routing.filter(({ numDistinctExperts }) => numDistinctExperts < numExperts);
  if (identical.length > 0) {
    const distinct = identical[0]?.numDistinctExperts ?? 0;
    warnings.push(
      `identical experts in ${identical.length} of ${routing.length} layers (${distinct} distinct of ${numExperts}): they grow apart only by the tokens that the router sends them; noise or drop starts them apart`,
    );
  }
  const dead = routing.filter(({ load }) => load.includes(0)).length;
  if (dead > 0) warnings.push(`${dead} of ${routing.length} layers have experts without a token of the probe text`);
  const worst = routing.reduce((max, { load }) => Math.max(max, maxOverMean(load)), 0);
  if (worst > 4) warnings.push(`the busiest expert of a layer gets ${worst.toPrecision(2)} times its share of the probe text`);
  return warnings;
}
function maxOverMean(load: readonly number[]): number {
  const total = load.reduce((a, b) => a + b, 0);
  return total === 0 ? 0 : (Math.max(...load) * load.length) / total;
}

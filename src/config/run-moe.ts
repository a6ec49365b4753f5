/**
 * The `moe` part of a run's configuration: how tokens are routed while training, and what keeps experts in balance. What the
 * model itself is (number of experts, scoring, groups of experts) is `model.ts`; how each number is used is `src/train`, and
 * what comes of it is in `docs/metrics.md`.
 *
 * Every loss has a coefficient of its own, because their scales differ. With layers l and the balance groups of a step,
 *   total = cross-entropy + sum over l of ( alpha_l * mean over groups of equation 4
 *         + switchLossCoefficient * mean over groups of the Switch loss
 *         + sequenceLossCoefficient * mean over sequences of the same form + zLossCoefficient * mean over tokens of z ).
 */
import { z } from "zod";
import { MoeError } from "../util/errors.ts";
import type { ModelConfig } from "./model.ts";

const fixed = z.strictObject({ type: z.literal("fixed"), value: z.number().nonnegative() });

/**
 * One coefficient a layer that follows the layer's drop rate d (Skywork-MoE, arXiv 2406.06563, sections 2.2 and 4.2):
 * target = min(xi * d, alphaMax), alpha <- beta * alpha + (1 - beta) * target, after every step.
 */
const adaptive = z.strictObject({
  type: z.literal("adaptive"),
  /** Coefficient that a unit of drop rate asks for. */
  xi: z.number().positive().default(0.2),
  /** The largest target. */
  alphaMax: z.number().positive().default(0.01),
  /** What one step keeps of the coefficient. */
  beta: z.number().min(0).lt(1).default(0.99),
  /** The coefficient of the first step; null: alphaMax. */
  alpha0: z.number().nonnegative().nullable().default(null),
});
const coefficientForms = z.discriminatedUnion("type", [fixed, adaptive]);

export type AuxiliaryLossCoefficient = Readonly<z.output<typeof coefficientForms>>;
export type AdaptiveCoefficient = Readonly<z.output<typeof adaptive>>;

/** A number stands for a fixed coefficient. */
const coefficient = z.preprocess(
  (value) => (typeof value === "number" ? { type: "fixed", value } : value),
  coefficientForms,
) as unknown as z.ZodType<AuxiliaryLossCoefficient, number | z.input<typeof coefficientForms>>;

export const moeTrainingSchema = z.strictObject({
  /** Of equation 4 (arXiv 2406.06563), in each layer: a number, `{type: "fixed", value}` or `{type: "adaptive", ...}`. */
  auxiliaryLossCoefficient: coefficient.prefault(0.01),
  /** Of the Switch loss (arXiv 2101.03961) of each balance group. */
  switchLossCoefficient: z.number().nonnegative().default(0),
  /** Of the same form over each sequence (arXiv 2412.19437). */
  sequenceLossCoefficient: z.number().nonnegative().default(0),
  /** Of the mean squared logsumexp of the router's logits (arXiv 2202.08906). */
  zLossCoefficient: z.number().nonnegative().default(0),
  /** Loss-free balancing (arXiv 2408.15664): what one step adds to or takes from each expert's selection bias. 0: it stays. */
  biasUpdateRate: z.number().nonnegative().default(0),
  /** Tokens an expert takes per balance group, as a multiple of its fair share; null: dropless. */
  capacityFactor: z.number().positive().nullable().default(null),
  /** Dropless training: the capacity factor whose drops would have been the drop rate of metrics and coefficients. */
  virtualCapacityFactor: z.number().positive().nullable().default(null),
  /** Which assignments beyond capacity go. */
  dropBy: z.enum(["probability", "position"]).default("probability"),
  /** Every expert gets exactly its capacity in rows, missing ones zero: products of one shape, for the same result. */
  padToCapacity: z.boolean().default(false),
  /**
   * Consecutive whole sequences of the global batch over which capacity, drops and the losses that are not linear in the
   * batch are computed; they are averaged over such groups. Divides `microBatchSequences`, which is what null stands for.
   */
  balanceGroupSequences: z.int().positive().nullable().default(null),
  /** The router's input is multiplied by uniform noise from 1 - this to 1 + this. 0: none. */
  jitterEpsilon: z.number().min(0).lt(1).default(0),
  /** For benchmarks only: token t goes to experts t * k + j (mod E), whatever the router says. */
  forcedBalance: z.boolean().default(false),
  /** Steps between measurements of how alike the experts are. 0: never. */
  similarityInterval: z.int().nonnegative().default(0),
});

export type MoeTraining = Readonly<z.output<typeof moeTrainingSchema>>;
/** As a parsed run has it. */
export type CompleteMoeTraining = MoeTraining & { readonly balanceGroupSequences: number };

/** Checks what the fields say of each other and fills in the balance group. Throws `configuration`. */
export function completeMoeTraining(moe: MoeTraining, microBatchSequences: number, what: string): CompleteMoeTraining {
  const balanceGroupSequences = moe.balanceGroupSequences ?? microBatchSequences;
  const refuse = (problem: string): never => {
    throw new MoeError("configuration", `${what}: ${problem}`);
  };
  if (microBatchSequences % balanceGroupSequences !== 0) {
    const remedy = "a micro-batch holds whole balance groups";
    refuse(`moe.balanceGroupSequences ${balanceGroupSequences} does not divide microBatchSequences ${microBatchSequences}: ${remedy}`);
  }
  if (moe.auxiliaryLossCoefficient.type === "adaptive" && moe.capacityFactor === null && moe.virtualCapacityFactor === null) {
    refuse(
      "moe.auxiliaryLossCoefficient adaptive follows a drop rate: give moe.capacityFactor, or moe.virtualCapacityFactor for dropless training",
    );
  }
  return { ...moe, balanceGroupSequences };
}

/**
 * Checks the `moe` part against the model that is trained: throws `configuration` for what contradicts it, returns a warning
 * for every option that has no effect.
 */
export function checkMoeTraining(moe: CompleteMoeTraining, model: ModelConfig, sequenceLength: number): string[] {
  if (model.moe === null) return withoutExperts(moe);
  if (moe.biasUpdateRate > 0 && !model.moe.selectionBias) {
    throw new MoeError(
      "configuration",
      `run configuration: moe.biasUpdateRate ${moe.biasUpdateRate} needs a model with a selection bias (moe.selectionBias true), got one without`,
    );
  }
  const warnings: string[] = [];
  if (moe.capacityFactor === null) {
    if (moe.dropBy !== "probability") warnings.push(`moe.dropBy "${moe.dropBy}" has no effect without moe.capacityFactor`);
    if (moe.padToCapacity) warnings.push("moe.padToCapacity has no effect without moe.capacityFactor");
  } else if (moe.virtualCapacityFactor !== null) {
    warnings.push(`moe.virtualCapacityFactor ${moe.virtualCapacityFactor} has no effect: moe.capacityFactor ${moe.capacityFactor} drops`);
  }
  const factor = moe.capacityFactor ?? moe.virtualCapacityFactor;
  const share = ((factor ?? 0) * model.moe.topK * moe.balanceGroupSequences * sequenceLength) / model.moe.numExperts;
  if (factor !== null && share < 1) {
    warnings.push(`a capacity factor of ${factor} is ${share.toPrecision(2)} tokens an expert and balance group: each takes one`);
  }
  if (moe.forcedBalance)
    warnings.push("moe.forcedBalance is on: tokens go to experts in turn, whatever the router says; for benchmarks only");
  return warnings;
}

function withoutExperts(moe: CompleteMoeTraining): string[] {
  const defaults = moeTrainingSchema.parse({});
  return Object.entries(moe).flatMap(([name, value]) => {
    if (name === "balanceGroupSequences" || JSON.stringify(value) === JSON.stringify(defaults[name as keyof MoeTraining])) return [];
    return [`moe.${name} ${typeof value === "object" ? JSON.stringify(value) : String(value)} has no effect: the model has no experts`];
  });
}

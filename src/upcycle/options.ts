/**
 * What an upcycling can be asked for: one strict schema, read from a file (`moe upcycle --config`), from flags, or given as an
 * object. Unknown keys are errors. What depends on the dense model is checked in `target.ts`.
 */
import { z } from "zod";
import { parseStrict } from "../config/strict.ts";
import { MoeError } from "../util/errors.ts";

/** Families that an upcycled model can be written as. */
export const upcycleTargets = ["skywork_moe", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe"] as const;
export type UpcycleTarget = (typeof upcycleTargets)[number];

const count = z.int().min(1);

/** How an expert starts, from the dense feed-forward network (or its shard). */
const methodSchema = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("copy") }),
  /** Every weight plus a normal of `std` times the standard deviation of its matrix. */
  z.strictObject({ type: z.literal("noise"), std: z.number().min(0).max(100) }),
  /**
   * Drop-Upcycling (arXiv 2502.19261): in each expert, `ratio` of the intermediate dimensions, chosen anew for each expert, are
   * drawn again from a normal with the mean and standard deviation of the dropped part of each matrix.
   */
  z.strictObject({ type: z.literal("drop"), ratio: z.number().min(0).max(1) }),
]);

const routerSchema = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("normal"), std: z.number().positive().default(0.02) }),
  z.strictObject({ type: z.literal("zero") }),
  /**
   * One list of prompts for each copy of the network (experts / granularity). A row is the mean, over the prompts, of the mean over
   * each prompt's tokens of what enters the feed-forward network of the layer; less the mean over all rows (which changes no
   * probability), at length `norm`.
   */
  z.strictObject({
    type: z.literal("prompts"),
    prompts: z.array(z.array(z.string().min(1)).min(1)).min(1),
    norm: z.number().positive().default(1),
  }),
]);

const sharedExpertSchema = z.strictObject({
  /**
   * Part of the dense network's output that the shared expert starts with; the routed experts have the rest. With 0 its
   * down-projection is zero. Above 0 it is a copy of the whole dense network.
   */
  share: z.number().min(0).lt(1).default(0),
  /** Width; null: the dense network's. */
  ffnSize: count.nullable().default(null),
  /** Whether it has a sigmoid gate (which starts at 1/2). Default: where the target has it always (`qwen2_moe`). */
  gate: z.boolean().optional(),
});

const upcycleSchema = z.strictObject({
  /** Experts of a layer, shards included: any number. */
  numExperts: count,
  /** Experts that a token goes through, shards included. */
  topK: count,
  target: z.enum(upcycleTargets).default("skywork_moe"),
  /**
   * Fine-grained experts (arXiv 2410.07524): the network is cut into this many shards of its width, expert e is shard e mod G of
   * copy floor(e / G), and the shards of one copy share a router row.
   */
  granularity: count.default(1),
  sharedExpert: sharedExpertSchema.nullable().default(null),
  method: methodSchema.default({ type: "copy" }),
  router: routerSchema.default({ type: "normal", std: 0.02 }),
  /** Dense models of the same architecture that copies are taken from, in turn (copy c from c mod n). Empty: the dense model itself. */
  expertSources: z.array(z.string().min(1)).default([]),
  /** Experts in layers l (from 0) with (l + 1) a multiple of this. */
  layerInterval: count.default(1),
  /** Gating logit normalization (arXiv 2406.06563, section 4.1). Default: for `skywork_moe`, where two rows can differ. */
  gateNormalization: z.boolean().optional(),
  /** Combine weights divided by their sum over the chosen. */
  renormalize: z.boolean().default(true),
  /** Moments of a training checkpoint: every expert gets those of what it copies, or none are written. */
  optimizer: z.enum(["reset", "carry"]).default("reset"),
  seed: z.int().min(0).default(1),
  /**
   * Element type of matrices in the output. Default: the one that keeps the source's values exactly, bf16 for bf16 and f32 for
   * everything else (f16, quantized).
   */
  dtype: z.enum(["f32", "bf16"]).optional(),
  /** Largest sum of tensor bytes of one file. */
  maxShardBytes: count.default(5e9),
  /** Tokens that the dense model was trained on, for the cost rule; read from a training checkpoint where it is one. */
  denseTokens: z.number().positive().nullable().default(null),
  /** Tokens that the MoE shall be trained on, for the cost rule. */
  budgetTokens: z.number().positive().nullable().default(null),
});

export type UpcycleOptions = Readonly<z.input<typeof upcycleSchema>>;
/** Options with every default that needs no dense model. */
export type CheckedOptions = Readonly<z.output<typeof upcycleSchema>>;

/**
 * Checks and completes options. Throws `configuration` that names every problem, unknown keys with the nearest known one, and
 * values that contradict each other.
 */
export function parseUpcycleOptions(value: unknown, what = "upcycle"): CheckedOptions {
  const options = parseStrict(upcycleSchema, value, what);
  const { numExperts, topK, granularity, router, sharedExpert } = options;
  const copies = Math.ceil(numExperts / granularity);
  const broken = [
    topK > numExperts && `topK ${topK} is above numExperts ${numExperts}`,
    granularity > numExperts && `granularity ${granularity} is above numExperts ${numExperts}: some shards would be nowhere`,
    router.type === "prompts" &&
      router.prompts.length !== copies &&
      `router.prompts: expected a list of prompts for each of ${copies} copies (numExperts ${numExperts} / granularity ${granularity}), got ${router.prompts.length}`,
    sharedExpert !== null &&
      sharedExpert.share > 0 &&
      sharedExpert.ffnSize !== null &&
      `sharedExpert.ffnSize ${sharedExpert.ffnSize} with sharedExpert.share ${sharedExpert.share}: a share is a copy of the whole network (write null)`,
  ].filter((text) => text !== false);
  if (broken.length > 0) throw new MoeError("configuration", `${what}: ${broken.join("; ")}`);
  return options;
}

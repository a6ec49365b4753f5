/**
 * What a model is: one plain, readonly object from which parameters, FLOPs and memory follow (`model-counts.ts`) and which
 * `src/model` builds. It says nothing of training (capacity, coefficients, precision) and nothing of files.
 *
 * `parseModelConfig` reads our own form, where an unknown key is an error. Hugging Face's `config.json` is read and written
 * by `model-huggingface.ts`.
 */
import * as z from "zod";
import { didYouMean } from "../util/nearest.ts";
import { MoeError } from "../util/errors.ts";

/**
 * What a router does beside its choice in the plain case, Mixtral's: softmax, top-k, weights that sum to 1, nothing else. To be
 * spread into a `MoeConfig` that says only where it differs.
 */
export const plainRouting = {
  layerInterval: 1,
  gateNormalization: null,
  scoring: "softmax",
  renormalize: true,
  routedScale: 1,
  groups: null,
  gateLayers: 1,
  selectionBias: false,
  inputScale: 1,
  sharedExpert: null,
} as const satisfies Partial<MoeConfig>;

/** Families we build. `skywork` is Skywork-13B (Llama under another name); SmolLM2 is a `llama` with tied embeddings. */
export const architectures = [
  "llama",
  "mistral",
  "qwen2",
  "qwen3",
  "skywork",
  "mixtral",
  "skywork_moe",
  "qwen2_moe",
  "qwen3_moe",
  "olmoe",
] as const;
export type Architecture = (typeof architectures)[number];

const count = z.int().min(1);
const positive = z.number().positive();

const ropeScalingSchema = z.discriminatedUnion("type", [
  /** All frequencies divided by `factor`. */
  z.strictObject({ type: z.literal("linear"), factor: positive }),
  /** The base grows with the sequence beyond `maxPositions` ("dynamic NTK"). */
  z.strictObject({ type: z.literal("dynamic"), factor: positive }),
  /** Llama 3.1: long wavelengths divided, short ones kept, a ramp between. */
  z.strictObject({
    type: z.literal("llama3"),
    factor: positive,
    lowFreqFactor: positive,
    highFreqFactor: positive,
    originalMaxPositions: count,
  }),
  /** YaRN (arXiv 2309.00071). `attentionFactor` null: 0.1 ln(factor) + 1. */
  z.strictObject({
    type: z.literal("yarn"),
    factor: positive,
    originalMaxPositions: count,
    attentionFactor: positive.nullable(),
    betaFast: positive,
    betaSlow: positive,
    truncate: z.boolean(),
  }),
]);

const gateNormalizationSchema = z.strictObject({
  /** Standard deviation of the normalized logits (Skywork-MoE: 1). */
  lambda: positive,
  /** Added to the variance: 0 for the released weights, 1e-6 when training. */
  eps: z.number().min(0),
  /** Variance over n - 1 (true, the release) or over n. */
  unbiased: z.boolean(),
});

const groupsSchema = z.strictObject({ numGroups: count, topGroups: count });
const sharedExpertSchema = z.strictObject({
  ffnSize: count,
  /** Its output is multiplied by sigmoid(x . w), w a learned vector (Qwen2-MoE). */
  gate: z.boolean(),
  /** Its output is multiplied by this. */
  scale: positive,
});
const moeSchema = z.strictObject({
  numExperts: count,
  topK: count,
  /** FFN width of one expert. */
  expertFfnSize: count,
  /** Layers l (from 0) with (l + 1) a multiple of this have experts; the others have a dense FFN of `ffnSize`. */
  layerInterval: count,
  /** Gating logit normalization (arXiv 2406.06563, section 4.1), or null. */
  gateNormalization: gateNormalizationSchema.nullable(),
  /**
   * Scores of the experts from the (normalized) logits: the softmax over all of them, over the chosen ones only, or a sigmoid of
   * each. Combine weights are the chosen experts' scores.
   */
  scoring: z.enum(["softmax", "softmaxOfTopK", "sigmoid"]),
  /** Combine weights are divided by their sum over the chosen (`norm_topk_prob`). */
  renormalize: z.boolean(),
  /** Factor of the combine weights after that (`routed_scaling_factor`): 1 almost everywhere. */
  routedScale: positive,
  /**
   * Group-limited routing (DeepSeek-V3, arXiv 2412.19437): the experts are `numGroups` equal runs, and a token chooses among those of
   * the `topGroups` best groups only. A group's score is the sum of its two best experts' (of one, where it has one).
   */
  groups: groupsSchema.nullable(),
  /** 1: one matrix. 2: Linear(H, 8E), tanh, Linear(8E, E), without biases (`moe_2layer_gate`). */
  gateLayers: z.union([z.literal(1), z.literal(2)]),
  /** A number an expert that is added to its score for choosing only (loss-free balancing, arXiv 2408.15664). No gradient. */
  selectionBias: z.boolean(),
  /** The experts' input is multiplied by this: 1, or top-k (`moe_feature_no_mul_topk: false`). */
  inputScale: positive,
  /** An expert that every token uses, besides the chosen. */
  sharedExpert: sharedExpertSchema.nullable(),
});

const modelSchema = z.strictObject({
  architecture: z.enum(architectures),
  vocabSize: count,
  hiddenSize: count,
  /** Width of a dense FFN. */
  ffnSize: count,
  numLayers: count,
  numHeads: count,
  /** Key-value heads; divides `numHeads`. */
  numKvHeads: count,
  headDim: count,
  /** Epsilon of every RMSNorm. */
  normEps: z.number().min(0),
  ropeTheta: positive,
  ropeScaling: ropeScalingSchema.nullable(),
  /** Longest sequence that the model was made for. */
  maxPositions: count,
  tiedEmbeddings: z.boolean(),
  /** Biases of the query, key and value projections. */
  qkvBias: z.boolean(),
  /** RMSNorm of queries and keys before the rotation: of each head by itself (Qwen3), or of all heads together (OLMoE). */
  qkNorm: z.enum(["none", "head", "all"]),
  /** In layers from `firstLayer` on, a query sees its own key and the `size - 1` before it. */
  slidingWindow: z.strictObject({ size: count, firstLayer: z.int().min(0) }).nullable(),
  moe: moeSchema.nullable(),
  /** Standard deviation of the initial weights. */
  initStd: positive,
  bosTokenId: z.int().min(0).nullable(),
  eosTokenIds: z.array(z.int().min(0)).readonly(),
  padTokenId: z.int().min(0).nullable(),
});

export type RopeScaling = Readonly<z.infer<typeof ropeScalingSchema>>;
export type GateNormalization = Readonly<z.infer<typeof gateNormalizationSchema>>;
export type ExpertGroups = Readonly<z.infer<typeof groupsSchema>>;
export type SharedExpertConfig = Readonly<z.infer<typeof sharedExpertSchema>>;
export type MoeConfig = Readonly<z.infer<typeof moeSchema>>;
export type ModelConfig = Readonly<z.infer<typeof modelSchema>>;

/**
 * Checks a model configuration in our own form and returns it. Throws `configuration` for an unknown key (with the nearest
 * known one), a missing or mistyped value, and values that contradict each other (all of them printed).
 */
export function parseModelConfig(value: unknown): ModelConfig {
  const parsed = modelSchema.safeParse(value);
  if (!parsed.success) throw new MoeError("configuration", parsed.error.issues.map(issueText).join("; "));
  return checkModelConfig(parsed.data);
}

function issueText(issue: z.core.$ZodIssue): string {
  const where = issue.path.length === 0 ? "model configuration" : `model configuration, ${issue.path.join(".")}`;
  if (issue.code !== "unrecognized_keys") return `${where}: ${issue.message}`;
  const known = knownKeys(issue.path);
  return issue.keys.map((key) => `${where}: unknown key "${key}"${didYouMean(key, known)}`).join("; ");
}
/** Keys allowed in the object at `path`. */
function knownKeys(path: readonly PropertyKey[]): string[] {
  const nested: Readonly<Record<string, readonly string[]>> = {
    moe: Object.keys(moeSchema.shape),
    "moe.groups": Object.keys(groupsSchema.shape),
    "moe.sharedExpert": Object.keys(sharedExpertSchema.shape),
    "moe.gateNormalization": Object.keys(gateNormalizationSchema.shape),
    slidingWindow: ["size", "firstLayer"],
    ropeScaling: ropeScalingSchema.options.flatMap((option) => Object.keys(option.shape)),
  };
  return [...(nested[path.join(".")] ?? Object.keys(modelSchema.shape))];
}

/** Returns `config` if its values agree with each other; otherwise throws `configuration` with the values of each broken rule. */
export function checkModelConfig(config: ModelConfig): ModelConfig {
  const broken = [...attentionRules(config), ...tokenRules(config), ...(config.moe === null ? [] : moeRules(config.moe, config))]
    .filter(([holds]) => !holds)
    .map(([, message]) => message);
  if (broken.length > 0) throw new MoeError("configuration", `model configuration (${config.architecture}): ${broken.join("; ")}`);
  return config;
}

type Rule = readonly [holds: boolean, message: string];

function attentionRules(c: ModelConfig): Rule[] {
  return [
    [c.numHeads % c.numKvHeads === 0, `numHeads ${c.numHeads} is not a multiple of numKvHeads ${c.numKvHeads}`],
    [c.headDim % 2 === 0, `headDim ${c.headDim} is odd: rotary embedding turns pairs`],
    [
      c.slidingWindow === null || c.slidingWindow.firstLayer < c.numLayers,
      `slidingWindow.firstLayer ${c.slidingWindow?.firstLayer} with numLayers ${c.numLayers}: no layer has the window (write null)`,
    ],
    [
      c.ropeScaling?.type !== "llama3" || c.ropeScaling.lowFreqFactor < c.ropeScaling.highFreqFactor,
      `ropeScaling ${JSON.stringify(c.ropeScaling)}: lowFreqFactor must be below highFreqFactor`,
    ],
  ];
}
function tokenRules(c: ModelConfig): Rule[] {
  const ids = { bosTokenId: c.bosTokenId, eosTokenIds: c.eosTokenIds, padTokenId: c.padTokenId };
  return Object.entries(ids).map(([key, value]) => [
    [value].flat().every((id) => id === null || id < c.vocabSize),
    `${key} ${JSON.stringify(value)} is not below vocabSize ${c.vocabSize}`,
  ]);
}
/** Beyond any model, and little enough to list: what a damaged or hostile file claims must not fill the memory with names. */
const mostExperts = 1 << 20;

function moeRules(moe: MoeConfig, c: ModelConfig): Rule[] {
  return [
    [
      moe.numExperts * c.numLayers <= mostExperts,
      `moe.numExperts ${moe.numExperts} in numLayers ${c.numLayers} are more than ${mostExperts} experts together`,
    ],
    [moe.topK <= moe.numExperts, `moe.topK ${moe.topK} is above moe.numExperts ${moe.numExperts}`],
    [moe.layerInterval <= c.numLayers, `moe.layerInterval ${moe.layerInterval} with numLayers ${c.numLayers}: no layer has experts`],
    [
      moe.gateNormalization === null || moe.numExperts > 1,
      `moe.gateNormalization with moe.numExperts ${moe.numExperts}: one logit has no standard deviation`,
    ],
    [
      moe.scoring !== "softmaxOfTopK" || moe.renormalize,
      "moe.scoring softmaxOfTopK with moe.renormalize false: a softmax over the chosen sums to 1 (write true)",
    ],
    ...(moe.groups === null ? [] : groupRules(moe.groups, moe)),
  ];
}
function groupRules({ numGroups, topGroups }: ExpertGroups, { numExperts, topK }: MoeConfig): Rule[] {
  const reachable = (topGroups * numExperts) / numGroups;
  return [
    [numExperts % numGroups === 0, `moe.numExperts ${numExperts} is not a multiple of moe.groups.numGroups ${numGroups}`],
    [topGroups <= numGroups, `moe.groups.topGroups ${topGroups} is above moe.groups.numGroups ${numGroups}`],
    [
      topK <= reachable,
      `moe.topK ${topK} is above the ${reachable} experts of moe.groups.topGroups ${topGroups} groups of ${numExperts / numGroups}`,
    ],
  ];
}

/** Whether layer `layer` (from 0) has experts rather than one dense FFN. */
export function hasExperts(config: ModelConfig, layer: number): boolean {
  return config.moe !== null && (layer + 1) % config.moe.layerInterval === 0;
}
/** Keys that a query of layer `layer` sees at most, or 0 where it sees all. */
export function windowOfLayer(config: ModelConfig, layer: number): number {
  const window = config.slidingWindow;
  return window !== null && layer >= window.firstLayer ? window.size : 0;
}

/**
 * From a dense configuration and options to the configuration of the upcycled model, and how exactly it starts as the dense one.
 * Everything that a target cannot do is refused here, with the name of the check, before a byte is written.
 */
import { toHuggingFaceConfig } from "../config/model-huggingface.ts";
import { checkModelConfig, plainRouting, type ModelConfig } from "../config/model.ts";
import { MoeError } from "../util/errors.ts";
import { parseUpcycleOptions, type CheckedOptions, type UpcycleOptions } from "./options.ts";
import { keepsWindow, pairFindings, targetTraits, type Verdict } from "./pairs.ts";

/** Width of a shared expert that nobody asked for but the target always has. */
const placeholderWidth = 64;

export interface Exactness {
  readonly verdict: Exclude<Verdict, "impossible">;
  /** Why, each reason in a sentence. */
  readonly reasons: readonly string[];
}

/** What an upcycling makes: the configuration, the options with every default, and how exact it is. */
export interface UpcycleTargetPlan {
  readonly config: ModelConfig;
  readonly options: CheckedOptions & { readonly gateNormalization: boolean };
  /** Shared expert: part of the dense output, 0 with a zero down-projection. */
  readonly share: number;
  readonly exactness: Exactness;
}

/**
 * Configuration of the upcycled model. Throws `configuration` for options or models that cannot be, with the failing check
 * (`attention.qkNorm`, `router.zero`, ...) and every value.
 */
export function upcycledConfig(dense: ModelConfig, options: UpcycleOptions): ModelConfig {
  return planTarget(dense, options).config;
}

export function planTarget(dense: ModelConfig, given: UpcycleOptions): UpcycleTargetPlan {
  const checked = parseUpcycleOptions(given);
  const { target } = checked;
  const impossible = pairFindings(dense, target).filter(({ verdict }) => verdict === "impossible");
  if (impossible.length > 0) {
    const text = impossible.map(({ check, reason }) => `check ${check} failed: ${reason}`).join("; ");
    throw new MoeError("configuration", `upcycle: ${dense.architecture} to ${target} is impossible: ${text}`);
  }
  const numDistinctRows = Math.ceil(checked.numExperts / checked.granularity);
  const options = { ...checked, gateNormalization: checked.gateNormalization ?? (target === "skywork_moe" && numDistinctRows > 1) };
  const broken = optionProblems(dense, options, numDistinctRows);
  if (broken.length > 0) {
    throw new MoeError("configuration", `upcycle: ${broken.map(([check, reason]) => `check ${check} failed: ${reason}`).join("; ")}`);
  }
  const config = checkModelConfig(configOf(dense, options));
  toHuggingFaceConfig(config, "float32");
  return { config, options, share: options.sharedExpert?.share ?? 0, exactness: exactnessOf(dense, options) };
}

type Options = UpcycleTargetPlan["options"];

function optionProblems(dense: ModelConfig, options: Options, numDistinctRows: number): [check: string, reason: string][] {
  const { target, granularity: G, sharedExpert, router, layerInterval, gateNormalization } = options;
  const traits = targetTraits[target];
  const problems: ([string, string] | false)[] = [
    dense.ffnSize % G !== 0 && ["granularity.width", `ffnSize ${dense.ffnSize} is not a multiple of granularity ${G}`],
    gateNormalization && !traits.gateNormalization && ["target.gateNormalization", `${target} has no gating logit normalization`],
    gateNormalization &&
      router.type === "zero" && [
        "router.zero",
        "a router of zeros with gating logit normalization: equal logits have no standard deviation",
      ],
    gateNormalization &&
      numDistinctRows < 2 && [
        "router.rows",
        `gateNormalization with ${numDistinctRows} distinct router row (numExperts ${options.numExperts}, granularity ${G}): equal logits have no standard deviation`,
      ],
    layerInterval > dense.numLayers && [
      "layerInterval",
      `layerInterval ${layerInterval} with numLayers ${dense.numLayers}: no layer has experts`,
    ],
    layerInterval !== 1 &&
      !traits.layerInterval && ["target.layerInterval", `${target} has experts in every layer, layerInterval is ${layerInterval}`],
    sharedExpert !== null && traits.sharedExpert === "never" && ["target.sharedExpert", `${target} has no shared expert`],
    sharedExpert?.gate === false && traits.sharedGate === "always" && ["target.sharedGate", `${target}'s shared expert always has a gate`],
    !options.renormalize && !traits.unnormalized && ["target.renormalize", `${target} always divides the combine weights by their sum`],
  ];
  return problems.filter((problem) => problem !== false);
}

function configOf(dense: ModelConfig, options: Options): ModelConfig {
  const { target, numExperts, topK, granularity, layerInterval } = options;
  const traits = targetTraits[target];
  const expertFfnSize = dense.ffnSize / granularity;
  const { sharedExpert: asked } = options;
  const hasShared = asked !== null || traits.sharedExpert === "always";
  const sharedSize = asked === null ? Math.min(placeholderWidth, dense.ffnSize) : (asked.ffnSize ?? dense.ffnSize);
  return {
    ...dense,
    architecture: target,
    // Where no layer is dense, the width of a dense network is nowhere: what the family's file calls it is the experts'.
    ffnSize: layerInterval === 1 && target !== "qwen2_moe" && target !== "qwen3_moe" ? expertFfnSize : dense.ffnSize,
    qkvBias: traits.qkvBias,
    qkNorm: traits.qkNorm,
    slidingWindow: keepsWindow(dense, target) ? dense.slidingWindow : null,
    moe: {
      ...plainRouting,
      numExperts,
      topK,
      expertFfnSize,
      layerInterval,
      gateNormalization: options.gateNormalization ? { lambda: 1, eps: 1e-6, unbiased: true } : null,
      renormalize: options.renormalize,
      sharedExpert: hasShared ? { ffnSize: sharedSize, gate: asked?.gate ?? traits.sharedGate === "always", scale: 1 } : null,
    },
  };
}

/** Whether, and why, the upcycled model computes what the dense one does. */
function exactnessOf(dense: ModelConfig, options: Options): Exactness {
  const { numExperts: E, topK: K, granularity: G, method } = options;
  // Weights that sum to 1 without being divided: all experts are chosen.
  const sumsToOne = options.renormalize || K === E;
  const losses: (string | false)[] = [
    ...pairFindings(dense, options.target).map(({ check, reason }) => `${check}: ${reason}`),
    method.type === "noise" && method.std > 0 && `method: noise of ${method.std} times each matrix's standard deviation`,
    method.type === "drop" && method.ratio > 0 && `method: ${method.ratio} of the intermediate dimensions of each expert are drawn anew`,
    options.expertSources.length > 0 && "expertSources: experts are copies of other dense models, compared with the first",
    !sumsToOne && `renormalize: false with topK ${K} of ${E}: the combine weights sum to less than 1`,
    G > 1 && E % G !== 0 && `granularity: numExperts ${E} is not a multiple of ${G}, so one copy lacks shards`,
    G > 1 && K % G !== 0 && `granularity: topK ${K} is not a multiple of ${G}, so a token misses shards`,
  ];
  const found = losses.filter((text) => text !== false);
  if (found.length > 0) return { verdict: "approximate", reasons: found };
  const whole =
    G === 1
      ? "every expert is the dense network"
      : `a token's ${K} experts are whole copies in ${G} shards with equal weights, down-projections times ${G}`;
  return { verdict: "exact", reasons: [`${whole}, and the combine weights sum to 1`] };
}

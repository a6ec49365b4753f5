/**
 * Which dense families can become which MoE families: the rules, and the table that follows from them.
 *
 * A rule compares what the dense model computes outside its feed-forward network with what the target's code always computes.
 * The verdict is exact (equal logits up to rounding), approximate (something is left out, and the reason says what) or
 * impossible (the target computes something else for every input; refused). What options do to exactness is in `target.ts`.
 *
 * The table is data, one cell for each pair; tests compare every cell with the rules, with the documentation and with the logits
 * of a small random model.
 */
import type { ModelConfig } from "../config/model.ts";
import type { UpcycleTarget } from "./options.ts";

export type Verdict = "exact" | "approximate" | "impossible";

/** What the code of a family does whatever its configuration says, as far as it matters here. */
export interface TargetTraits {
  readonly qkvBias: boolean;
  readonly qkNorm: ModelConfig["qkNorm"];
  /** Where a sliding window can be: in every layer, or nowhere. */
  readonly window: "all" | "none";
  /** The head's size is hidden / heads, and nothing else. */
  readonly evenHeads: boolean;
  readonly gateNormalization: boolean;
  readonly layerInterval: boolean;
  readonly sharedExpert: "always" | "optional" | "never";
  /** `sharedExpert.gate` of a family that has one: always there, or as asked. */
  readonly sharedGate: "always" | "optional";
  /** Whether combine weights can be left as they are. */
  readonly unnormalized: boolean;
  /** What else a reader should know. */
  readonly note: string;
}

export const targetTraits: Readonly<Record<UpcycleTarget, TargetTraits>> = {
  skywork_moe: {
    qkvBias: false,
    qkNorm: "none",
    window: "none",
    evenHeads: false,
    gateNormalization: true,
    layerInterval: true,
    sharedExpert: "optional",
    sharedGate: "optional",
    unnormalized: true,
    note: "shared experts and unnormalized weights are extra moe_* keys of ours",
  },
  mixtral: {
    qkvBias: false,
    qkNorm: "none",
    window: "all",
    evenHeads: false,
    gateNormalization: false,
    layerInterval: false,
    sharedExpert: "never",
    sharedGate: "optional",
    unnormalized: false,
    note: "always divides the combine weights by their sum",
  },
  qwen2_moe: {
    qkvBias: true,
    qkNorm: "none",
    window: "none",
    evenHeads: false,
    gateNormalization: false,
    layerInterval: true,
    sharedExpert: "always",
    sharedGate: "always",
    unnormalized: true,
    note: "always has biases (zero where the dense model has none) and a gated shared expert (down-projection zero unless asked for)",
  },
  qwen3_moe: {
    qkvBias: false,
    qkNorm: "head",
    window: "all",
    evenHeads: false,
    gateNormalization: false,
    layerInterval: true,
    sharedExpert: "never",
    sharedGate: "optional",
    unnormalized: true,
    note: "norm_topk_prob true is written",
  },
  olmoe: {
    qkvBias: false,
    qkNorm: "all",
    window: "none",
    evenHeads: true,
    gateNormalization: false,
    layerInterval: false,
    sharedExpert: "never",
    sharedGate: "optional",
    unnormalized: true,
    note: "norm_topk_prob true is written",
  },
};

/** A rule that did not simply hold. */
export interface Finding {
  /** Name of the check. */
  readonly check: "source.dense" | "attention.qkvBias" | "attention.qkNorm" | "attention.headDim" | "attention.slidingWindow";
  readonly verdict: Exclude<Verdict, "exact">;
  readonly reason: string;
}

/** The sliding window that can make a difference: one that is shorter than the longest sequence. */
function bitingWindow({ slidingWindow, maxPositions }: ModelConfig): ModelConfig["slidingWindow"] {
  return slidingWindow !== null && slidingWindow.size < maxPositions ? slidingWindow : null;
}

/** Whether the target can have this model's window. */
export function keepsWindow(dense: ModelConfig, target: UpcycleTarget): boolean {
  return dense.slidingWindow !== null && targetTraits[target].window === "all" && dense.slidingWindow.firstLayer === 0;
}

/** Norm of queries and keys that the target needs is one that the dense model has; with one head, "head" and "all" are the same. */
function normFits(dense: ModelConfig, target: UpcycleTarget): boolean {
  const wanted = targetTraits[target].qkNorm;
  if (dense.qkNorm === wanted) return true;
  return dense.qkNorm !== "none" && wanted !== "none" && dense.numHeads === 1 && dense.numKvHeads === 1;
}

const normText: Readonly<Record<ModelConfig["qkNorm"], string>> = {
  none: "does not normalize queries and keys",
  head: "normalizes queries and keys head by head",
  all: "normalizes queries and keys over all heads together",
};

/** Everything about `dense` that `target` cannot compute as it is, the worst first. Empty: the pair is exact. */
export function pairFindings(dense: ModelConfig, target: UpcycleTarget): Finding[] {
  const traits = targetTraits[target];
  const findings: (Finding | false)[] = [
    dense.moe !== null && {
      check: "source.dense",
      verdict: "impossible",
      reason: `expected a dense model, got ${dense.architecture} with ${dense.moe.numExperts} experts`,
    },
    dense.qkvBias &&
      !traits.qkvBias && {
        check: "attention.qkvBias",
        verdict: "impossible",
        reason: `${dense.architecture} has biases of queries, keys and values, ${target} has none`,
      },
    !normFits(dense, target) && {
      check: "attention.qkNorm",
      verdict: "impossible",
      reason: `${dense.architecture} ${normText[dense.qkNorm]}, ${target} ${normText[traits.qkNorm]}`,
    },
    traits.evenHeads &&
      dense.headDim * dense.numHeads !== dense.hiddenSize && {
        check: "attention.headDim",
        verdict: "impossible",
        reason: `${target} has heads of hiddenSize / numHeads, the dense model has ${dense.numHeads} of ${dense.headDim} with hiddenSize ${dense.hiddenSize}`,
      },
    bitingWindow(dense) !== null &&
      !keepsWindow(dense, target) && {
        check: "attention.slidingWindow",
        verdict: "approximate",
        reason: `${target} has no such sliding window: it is left out, and only positions up to ${dense.slidingWindow?.size} are equal`,
      },
  ];
  const found = findings.filter((finding) => finding !== false);
  return [...found.filter(({ verdict }) => verdict === "impossible"), ...found.filter(({ verdict }) => verdict !== "impossible")];
}

/** Rows of the table: dense families, and the same with a sliding window shorter than the context. */
export const pairSources = [
  "llama",
  "skywork",
  "mistral",
  "mistral with a window",
  "qwen2",
  "qwen2 with a window",
  "qwen3",
  "qwen3 with a window",
] as const;
export type PairSource = (typeof pairSources)[number];

export interface Pair {
  readonly source: PairSource;
  readonly target: UpcycleTarget;
  readonly verdict: Verdict;
  /** The check that fails first; null for exact pairs. */
  readonly check: Finding["check"] | null;
  /** Why, in a few words. */
  readonly why: string;
}

const exact = (source: PairSource, target: UpcycleTarget, why: string): Pair => ({ source, target, verdict: "exact", check: null, why });
const windowless = (source: PairSource, target: UpcycleTarget): Pair => ({
  source,
  target,
  verdict: "approximate",
  check: "attention.slidingWindow",
  why: "the window is left out: equal up to its length",
});
const biased = (source: PairSource, target: UpcycleTarget): Pair => ({
  source,
  target,
  verdict: "impossible",
  check: "attention.qkvBias",
  why: "nowhere to put the biases of queries, keys and values",
});
const normed = (source: PairSource, target: UpcycleTarget, why: string): Pair => ({
  source,
  target,
  verdict: "impossible",
  check: "attention.qkNorm",
  why,
});
const same = "same attention";
const zeros = "zero biases; shared expert with a zero down-projection";
const headNorm = "the target normalizes each query and key head";
const allNorm = "the target normalizes all heads together";
const noNorm = "the target has no norm of queries and keys";
/** One-headed models have one norm whatever it is called: then exact. */
const allNotHead = "the target normalizes all heads together, not each (exact with one head)";

/** Every pair of a row and a target, in the order of the documentation. */
export const upcyclePairs: readonly Pair[] = [
  ...(["llama", "skywork", "mistral"] as const).flatMap((source) => [
    exact(source, "skywork_moe", same),
    exact(source, "mixtral", same),
    exact(source, "qwen2_moe", zeros),
    normed(source, "qwen3_moe", headNorm),
    normed(source, "olmoe", allNorm),
  ]),
  windowless("mistral with a window", "skywork_moe"),
  exact("mistral with a window", "mixtral", "same attention, window kept"),
  windowless("mistral with a window", "qwen2_moe"),
  normed("mistral with a window", "qwen3_moe", headNorm),
  normed("mistral with a window", "olmoe", allNorm),
  biased("qwen2", "skywork_moe"),
  biased("qwen2", "mixtral"),
  exact("qwen2", "qwen2_moe", "same attention; shared expert with a zero down-projection"),
  biased("qwen2", "qwen3_moe"),
  biased("qwen2", "olmoe"),
  biased("qwen2 with a window", "skywork_moe"),
  biased("qwen2 with a window", "mixtral"),
  windowless("qwen2 with a window", "qwen2_moe"),
  biased("qwen2 with a window", "qwen3_moe"),
  biased("qwen2 with a window", "olmoe"),
  ...(["qwen3", "qwen3 with a window"] as const).flatMap((source) => [
    normed(source, "skywork_moe", noNorm),
    normed(source, "mixtral", noNorm),
    normed(source, "qwen2_moe", noNorm),
    source === "qwen3" ? exact(source, "qwen3_moe", same) : exact(source, "qwen3_moe", "same attention, window kept (if in every layer)"),
    normed(source, "olmoe", allNotHead),
  ]),
];

/** The table as Markdown, as it stands in the documentation. */
export function pairTableMarkdown(): string {
  const targets = [...new Set(upcyclePairs.map(({ target }) => target))];
  const rows = pairSources.map((source) => {
    const cells = targets.map((target) => {
      const pair = upcyclePairs.find((candidate) => candidate.source === source && candidate.target === target);
      if (pair === undefined) return "";
      return `**${pair.verdict}**${pair.check === null ? "" : ` (\`${pair.check}\`)`}: ${pair.why}`;
    });
    return `| ${[source, ...cells].join(" | ")} |`;
  });
  return [
    `| dense | ${targets.map((target) => `\`${target}\``).join(" | ")} |`,
    `| ${["---", ...targets.map(() => "---")].join(" | ")} |`,
    ...rows,
  ].join("\n");
}

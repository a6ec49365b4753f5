/**
 * How a training run is spread over ranks: the `layout` part of a run's configuration, which is also what `moe train --layout` reads and
 * what a planner writes. Sizes only; which rank is where is `src/parallel/mesh.ts`.
 *
 * A run has pp * dp * tp ranks. The dp * tp ranks of a pipeline rank hold the same layers, and are factored twice: attention, dense networks and
 * vocabulary over (dp, tp), experts over (edp, ep, etp), edp * ep * etp = dp * tp. ep: ranks that the experts are spread over, whole ones each; etp: ranks that
 * the columns of each expert are cut over; edp: replicas of an expert. The strategies are points of this:
 *
 * | strategy | ep | etp | |
 * | --- | --- | --- | --- |
 * | EDP | tp | 1 | whole experts over the ranks that share attention's heads (Skywork-MoE, arXiv 2406.06563, appendix B) |
 * | EP | dp * tp, or a divisor of it | 1 | experts over data-parallel ranks too: tokens go to where their experts are |
 * | ETP | dp | tp | experts over data-parallel ranks, each cut over tp |
 * | TP | 1 | tp | every rank has the same columns of all experts |
 *
 * The model is a row of pp * interleave stages of consecutive layers; stage s runs on pipeline rank s mod pp.
 */
import { z } from "zod";
import { MoeError } from "../util/errors.ts";
import { equalCounts } from "../util/partition.ts";
import type { ModelConfig } from "./model.ts";
import { parseStrict } from "./strict.ts";

const degree = z.int().positive();

export const expertStrategies = ["EDP", "EP", "ETP", "TP"] as const;
export type ExpertStrategy = (typeof expertStrategies)[number];

export const layoutSchema = z.strictObject({
  /** Ranks of the pipeline. */
  pp: degree.default(1),
  /** Stages of a pipeline rank: more than 1 with schedule "interleaved" only. */
  interleave: degree.default(1),
  schedule: z.enum(["1f1b", "interleaved", "zeroBubble"]).default("1f1b"),
  /** Layers of each of the pp * interleave stages, in the order of the model; null: as even as can be. */
  layers: z.array(z.int().nonnegative()).nullable().default(null),
  /** Of each stage, how many of its layers (the first ones) are recomputed in the backward pass; null: `recomputeLayers` of the run, counted from the model's first. */
  recompute: z.array(z.int().nonnegative()).nullable().default(null),
  /** Ranks that different sequences go to. */
  dp: degree.default(1),
  /** Ranks that heads, columns and vocabulary are cut over. */
  tp: degree.default(1),
  strategy: z.enum(expertStrategies).default("EDP"),
  /** Null: what the strategy says. */
  ep: degree.nullable().default(null),
  etp: degree.nullable().default(null),
  /** Norms and residuals hold a part of the tokens on each tp rank: sums become reduce-scatter and all-gather. */
  sequenceParallel: z.boolean().default(false),
  /** Two halves of a micro-batch (whole balance groups each) take turns, so that one's exchange of tokens runs beside the other's computation. */
  overlap: z.boolean().default(false),
  /** 1: optimizer states and f32 masters are sharded over the ranks that hold a parameter (ZeRO-1, arXiv 1910.02054). */
  zero: z.union([z.literal(0), z.literal(1)]).default(0),
  /** Sequences of one forward and backward pass of one data-parallel rank; null: the run's `microBatchSequences`. */
  microBatchSequences: degree.nullable().default(null),
});

export type LayoutInput = z.input<typeof layoutSchema>;
type ParsedLayout = Readonly<z.output<typeof layoutSchema>>;

/** With what the strategy says filled in. */
export interface Layout extends Omit<ParsedLayout, "ep" | "etp" | "layers" | "recompute" | "microBatchSequences"> {
  readonly ep: number;
  readonly etp: number;
  readonly layers: readonly number[] | null;
  readonly recompute: readonly number[] | null;
}

/** Checks a layout file. Throws `configuration`. */
export function parseLayout(value: unknown, what = "layout"): ParsedLayout {
  return parseStrict(layoutSchema, value, what);
}

/** What is a layout of one rank: everything at its default. */
export const singleRank: Layout = completeLayout(layoutSchema.parse({}), "layout");

export function numRanks({ pp, dp, tp }: Pick<Layout, "pp" | "dp" | "tp">): number {
  return pp * dp * tp;
}
/** Replicas of an expert within a pipeline rank. */
export function expertReplicas({ dp, tp, ep, etp }: Pick<Layout, "dp" | "tp" | "ep" | "etp">): number {
  return (dp * tp) / (ep * etp);
}

/** Fills in ep and etp, and checks what the fields say of each other. Throws `configuration`. */
export function completeLayout(layout: ParsedLayout, what: string): Layout {
  const refuse = (problem: string): never => {
    throw new MoeError("configuration", `${what}: ${problem}`);
  };
  const { pp, dp, tp, strategy, interleave, schedule, layers, recompute } = layout;
  const { ep, etp } = expertDegrees(layout, refuse);
  if (dp * tp !== ep * etp * Math.floor((dp * tp) / (ep * etp)) || ep * etp > dp * tp)
    refuse(`ep ${ep} * etp ${etp} does not divide dp ${dp} * tp ${tp} (strategy ${strategy}): experts have whole replicas`);
  if (interleave > 1 !== (schedule === "interleaved"))
    refuse(`interleave ${interleave} with schedule "${schedule}": more than one stage a rank goes with "interleaved", and only with it`);
  if (interleave > 1 && pp === 1) refuse(`interleave ${interleave} needs a pipeline, got pp 1`);
  const numStages = pp * interleave;
  for (const [name, list] of Object.entries({ layers, recompute })) {
    if (list !== null && list.length !== numStages)
      refuse(`${name} [${list.join(", ")}] has ${list.length} entries for pp ${pp} * interleave ${interleave} = ${numStages} stages`);
  }
  const empty = layers?.indexOf(0) ?? -1;
  if (empty >= 0) refuse(`layers [${layers?.join(", ")}]: stage ${empty} has no layer; use fewer stages (pp) or give it one`);
  if (layout.sequenceParallel && tp === 1) refuse("sequenceParallel needs tp of at least 2: it cuts tokens over tp ranks, got tp 1");
  if (layout.overlap && pp > 1)
    refuse(`overlap with pp ${pp}: halves of a micro-batch take turns in models that are whole in depth; use pp 1 or overlap false`);
  const { microBatchSequences: _, ...rest } = layout;
  return { ...rest, ep, etp };
}

/** ep and etp of a strategy; what is given beside it must agree. */
function expertDegrees(layout: ParsedLayout, refuse: (problem: string) => never): { ep: number; etp: number } {
  const { strategy, dp, tp } = layout;
  const fixed = (name: "ep" | "etp", value: number, why: string): number => {
    const given = layout[name];
    return given === null || given === value
      ? value
      : refuse(
          `${name} ${given} contradicts strategy ${strategy}, whose ${name} is ${why} (${value}); leave it out or choose another strategy`,
        );
  };
  switch (strategy) {
    case "EDP":
      return { ep: fixed("ep", tp, "tp"), etp: fixed("etp", 1, "1") };
    case "EP":
      return { ep: layout.ep ?? dp * tp, etp: fixed("etp", 1, "1") };
    case "ETP":
      return { ep: layout.ep ?? dp, etp: layout.etp ?? tp };
    case "TP":
      return { ep: fixed("ep", 1, "1"), etp: fixed("etp", tp, "tp") };
    default:
      return strategy satisfies never;
  }
}

/** What a layout is checked with: the parts of a run that it cuts. */
export interface LayoutWork {
  readonly batchSequences: number;
  readonly microBatchSequences: number;
  readonly balanceGroupSequences: number;
}

/** Checks a layout against the run's batch. Throws `configuration` where a balance group would be split. */
export function checkLayoutBatch(layout: Layout, work: LayoutWork, what: string): void {
  const { dp, overlap } = layout;
  const { batchSequences, microBatchSequences, balanceGroupSequences } = work;
  if (batchSequences % (dp * microBatchSequences) !== 0) {
    const split = (batchSequences / dp) % balanceGroupSequences !== 0;
    const why = split ? ", and would split a balance group" : "";
    throw new MoeError(
      "configuration",
      `${what}: layout.dp ${dp} * microBatchSequences ${microBatchSequences} does not divide batchSequences ${batchSequences}: ` +
        `a data-parallel rank has whole micro-batches of whole balance groups (${balanceGroupSequences} sequences)${why}`,
    );
  }
  if (overlap && (microBatchSequences < 2 || microBatchSequences / balanceGroupSequences < 2)) {
    throw new MoeError(
      "configuration",
      `${what}: layout.overlap splits a micro-batch between balance groups, got microBatchSequences ${microBatchSequences} of groups of ` +
        `${balanceGroupSequences}; set moe.balanceGroupSequences to at most half of it`,
    );
  }
}

/** Checks a layout against the model that it cuts. Throws `configuration`, returns warnings for what has no effect. */
export function checkLayoutModel(layout: Layout, model: ModelConfig): string[] {
  const refuse = (problem: string): never => {
    throw new MoeError("configuration", `layout: ${problem}`);
  };
  const { pp, tp, ep, etp, strategy, interleave, layers } = layout;
  const numStages = pp * interleave;
  if (numStages > model.numLayers)
    refuse(`pp ${pp} * interleave ${interleave} = ${numStages} stages for ${model.numLayers} layers: some would have none`);
  const sum = layers?.reduce((a, b) => a + b, 0) ?? model.numLayers;
  if (sum !== model.numLayers) refuse(`layers [${layers?.join(", ")}] add up to ${sum}, the model has ${model.numLayers}`);
  for (const [stage, { numLayers, recompute }] of stagesOf(layout, model.numLayers, 0).entries()) {
    if (recompute > numLayers) refuse(`recompute ${recompute} of stage ${stage}, which has ${numLayers} layers`);
  }
  if (tp > model.vocabSize) refuse(`tp ${tp} is above the vocabulary of ${model.vocabSize}: some ranks would have no row of it`);
  if (model.moe === null) {
    return ep * etp === 1 || strategy === "EDP" ? [] : [`layout.strategy ${strategy} has no effect: the model has no experts`];
  }
  const { numExperts, expertFfnSize } = model.moe;
  if (ep > numExperts) refuse(`ep ${ep} (strategy ${strategy}) is above the ${numExperts} experts of a layer: some ranks would have none`);
  if (etp > expertFfnSize)
    refuse(`etp ${etp} (strategy ${strategy}) is above the ${expertFfnSize} columns of an expert: some ranks would have none`);
  return [];
}

/** Consecutive layers of one stage. */
export interface Stage {
  readonly firstLayer: number;
  readonly numLayers: number;
  /** Of these, the first `recompute` are recomputed in the backward pass. */
  readonly recompute: number;
}

/** The stages of a model of `numLayers` layers, in its order. `recomputeLayers`: of the model's first, where the layout says nothing. */
export function stagesOf({ pp, interleave, layers, recompute }: Layout, numLayers: number, recomputeLayers: number): Stage[] {
  const counts = layers ?? equalCounts(numLayers, pp * interleave);
  let firstLayer = 0;
  return counts.map((count, stage) => {
    const first = firstLayer;
    firstLayer += count;
    const own = recompute === null ? Math.max(0, Math.min(count, recomputeLayers - first)) : (recompute[stage] ?? 0);
    return { firstLayer: first, numLayers: count, recompute: own };
  });
}

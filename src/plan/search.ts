/**
 * The search over layouts: every one of `layouts.ts` is bounded, the promising ones are evaluated, and what was rejected says why.
 *
 * Method: the bound of a layout (`LayoutEvaluation.bound`) takes microseconds, its exact split milliseconds. Layouts are evaluated in
 * the order of their bounds until the next bound is above the best step found by more than `slack`: no layout left can then be the fastest,
 * nor within `slack` of it. For memory, the leanest split of each layout is looked for in the order of a bound on their bytes, until the next
 * bound is above the least found. Cost per token on the same devices follows time; `plan.ts` asks again with fewer, and only for steps
 * that are short enough to be cheaper (`below`).
 *
 * The Pareto table holds the evaluated plans that no other beats in both step time and peak memory. Among equals (to nine digits) the layout with
 * fewer stages, then the smaller micro-batch is first, so the answer does not depend on the order of enumeration.
 */
import { isFeasible, LayoutEvaluation, type EvaluatedLayout, type InfeasibleLayout } from "./evaluate.ts";
import { EvaluationCache, type EvaluateOptions } from "./evaluation-cache.ts";
import type { StepTerms } from "./step-terms.ts";
import { layoutsOf, type FixedLayout } from "./layouts.ts";
import { memoryParts, type MemoryPart, type PlanLayout, type StageMemory } from "./types.ts";
import { numDevices } from "../config/cluster.ts";
import { MoeError } from "../util/errors.ts";

export interface SearchOptions extends EvaluateOptions {
  readonly fixed?: FixedLayout;
  /** Layouts up to this fraction above the fastest are evaluated, for the table of runners-up. Default 0.05. */
  readonly slack?: number;
  /** Seconds: layouts whose step cannot be below are left out. Default: none are. */
  readonly below?: number;
  /** Look for the plan with the least memory, too. Default true. */
  readonly lean?: boolean;
}

export interface SearchResult {
  readonly fastest: EvaluatedLayout;
  readonly leanest: EvaluatedLayout;
  /** By time; the first is `fastest`. */
  readonly ranked: readonly EvaluatedLayout[];
  /** By memory, every layout once; the first is `leanest`. */
  readonly rankedByMemory: readonly EvaluatedLayout[];
  readonly pareto: readonly EvaluatedLayout[];
  readonly infeasible: readonly InfeasibleLayout[];
  readonly numLayouts: number;
  readonly numEvaluated: number;
  /** No layout of the space has a shorter step. */
  readonly lowerBoundSeconds: number;
}

/** A sentence where no layout fits, with the one that comes nearest. Throws `configuration` where none is possible. */
export function searchLayouts(options: SearchOptions): SearchResult | string {
  const { workload, cluster, fixed = {}, slack = 0.05, below = Infinity, schedule } = options;
  const devicesPerNode = Math.min(...cluster.nodes.map((group) => group.devicesPerNode));
  const layouts = layoutsOf({
    workload,
    numDevices: numDevices(cluster),
    devicesPerNode,
    fixed,
    ...(schedule === undefined ? {} : { schedule }),
  });
  const cache = new EvaluationCache();
  const bounded = layouts
    .map((layout) => new LayoutEvaluation(layout, { maxNodes: 3000, ...options }, cache))
    .map((evaluation) => ({ evaluation, bound: evaluation.bound() }))
    .toSorted((a, b) => a.bound - b.bound || compareLayouts(a.evaluation.layout, b.evaluation.layout));
  const feasible: EvaluatedLayout[] = [];
  const infeasible: InfeasibleLayout[] = [];
  let fastest = Infinity;
  for (const { evaluation, bound } of bounded) {
    if (bound > Math.min(below, fastest * (1 + slack))) break;
    const result = evaluation.evaluate();
    if (!isFeasible(result)) {
      infeasible.push(result);
      continue;
    }
    feasible.push(result);
    fastest = Math.min(fastest, result.seconds);
  }
  if (feasible.length === 0) return nothingFits(infeasible, layouts.length);
  const lean = leanPlans(options, layouts, cache);
  const ranked = refined(feasible.toSorted(byTime), options, cache);
  const first = ranked[0];
  const rankedByMemory = firstOfEachLayout([...lean, ...ranked].toSorted(byMemory));
  const leanest = rankedByMemory[0];
  if (first === undefined || leanest === undefined) throw new MoeError("internal", "layout search: lost its results");
  return {
    fastest: first,
    leanest,
    ranked,
    rankedByMemory,
    pareto: paretoOf([...ranked, ...lean]),
    infeasible,
    numLayouts: layouts.length,
    numEvaluated: feasible.length + infeasible.length,
    lowerBoundSeconds: Math.min(first.seconds, ...bounded.map(({ bound }) => bound)),
  };
}

/** Plans at the top that are looked at once more, and splits of interleaved stages that are tried for each. */
const numRefined = 3;
const refineMoves = 300;

/** The first ones once more, with a whole search tree for their splits, and in order again. */
function refined(ranked: readonly EvaluatedLayout[], options: SearchOptions, cache: EvaluationCache): EvaluatedLayout[] {
  if (options.layers !== undefined || options.maxNodes !== undefined) return [...ranked];
  const again = ranked.map((plan, i) => {
    if (i >= numRefined || plan.optimal) return plan;
    const better = new LayoutEvaluation(plan.layout, { moves: refineMoves, ...options }, cache).evaluate();
    return isFeasible(better) && better.seconds <= plan.seconds ? better : plan;
  });
  return again.toSorted(byTime);
}

/**
 * The plans that hold the least. Interleaved stages hold more than one stage a rank does, so they are looked at only where the latter is
 * excluded; they have everything recomputed, where nothing else was asked for.
 */
function leanPlans(options: SearchOptions, layouts: readonly PlanLayout[], cache: EvaluationCache): EvaluatedLayout[] {
  if (options.lean === false) return [];
  const { recompute = "auto" } = options;
  const plain = layouts.filter(({ interleave }) => interleave === 1);
  const bounded = (plain.length > 0 ? plain : layouts)
    .map((layout) => {
      const all = recompute === "auto" && layout.interleave > 1 ? "full" : recompute;
      return new LayoutEvaluation(layout, { maxNodes: 1000, ...options, recompute: all }, cache);
    })
    .map((evaluation) => ({ evaluation, bound: evaluation.memoryBound() }))
    .toSorted((a, b) => a.bound - b.bound || compareLayouts(a.evaluation.layout, b.evaluation.layout));
  const found: EvaluatedLayout[] = [];
  let least = Infinity;
  for (const { evaluation, bound } of bounded) {
    if (bound > least) break;
    const result = evaluation.leanest();
    if (!isFeasible(result)) continue;
    found.push(result);
    least = Math.min(least, result.peakMemoryBytes);
  }
  return found;
}

function compareLayouts(a: PlanLayout, b: PlanLayout): number {
  for (const key of ["pp", "interleave", "microBatch", "tp", "etp", "ep", "zero"] as const) {
    if (a[key] !== b[key]) return a[key] - b[key];
  }
  return 0;
}

/** Times that agree in nine digits are equal: rounded, not compared with a tolerance, or an order could go round in circles. */
function byTime(a: EvaluatedLayout, b: EvaluatedLayout): number {
  return Number(a.seconds.toPrecision(9)) - Number(b.seconds.toPrecision(9)) || compareLayouts(a.layout, b.layout);
}
function byMemory(a: EvaluatedLayout, b: EvaluatedLayout): number {
  return a.peakMemoryBytes === b.peakMemoryBytes ? byTime(a, b) : a.peakMemoryBytes - b.peakMemoryBytes;
}

function firstOfEachLayout(plans: readonly EvaluatedLayout[]): EvaluatedLayout[] {
  const seen = new Set<string>();
  return plans.filter(({ layout }) => seen.size < seen.add(JSON.stringify(layout)).size);
}

/** What no other beats in both time and peak memory, by time. */
export function paretoOf(plans: readonly EvaluatedLayout[]): EvaluatedLayout[] {
  const front: EvaluatedLayout[] = [];
  for (const plan of plans.toSorted(byTime)) {
    if (plan.peakMemoryBytes < (front.at(-1)?.peakMemoryBytes ?? Infinity)) front.push(plan);
  }
  return front;
}

/** Where the second plan loses its time to the first: terms with their seconds, the largest loss first; gains are negative. */
export function lossesOf(best: EvaluatedLayout, other: EvaluatedLayout): { readonly term: keyof StepTerms; readonly seconds: number }[] {
  return (Object.keys(best.terms) as (keyof StepTerms)[])
    .map((term) => ({ term, seconds: other.terms[term] - best.terms[term] }))
    .toSorted((a, b) => b.seconds - a.seconds);
}

/** Where the fullest device of the second plan holds more than that of the first: bytes by kind, the most first; less is negative. */
export function excessesOf(best: EvaluatedLayout, other: EvaluatedLayout): { readonly part: MemoryPart; readonly bytes: number }[] {
  const [held, more] = [fullestOf(best), fullestOf(other)];
  return memoryParts.map((part) => ({ part, bytes: more[part] - held[part] })).toSorted((a, b) => b.bytes - a.bytes);
}

function fullestOf({ memory }: EvaluatedLayout): StageMemory {
  return memory.reduce((a, b) => (b.total > a.total ? b : a));
}

function nothingFits(infeasible: readonly InfeasibleLayout[], numLayouts: number): string {
  const nearest = infeasible.toSorted((a, b) => a.excessBytes - b.excessBytes)[0];
  const layout = nearest === undefined ? "" : describeLayout(nearest.layout);
  return `none of ${numLayouts} layouts fits; nearest: ${layout}, where ${nearest?.reason ?? ""}`;
}

/** `pp 12 x dp 32 x tp 4, ep 4, micro-batch 1`. */
export function describeLayout({ pp, dp, tp, ep, etp, microBatch, interleave, zero }: PlanLayout): string {
  return [
    `pp ${pp}${interleave > 1 ? ` (interleaved ${interleave})` : ""} x dp ${dp} x tp ${tp}`,
    ...(ep > 1 || etp > 1 ? [`ep ${ep}${etp > 1 ? ` x etp ${etp}` : ""}`] : []),
    `micro-batch ${microBatch}`,
    ...(zero > 0 ? [`ZeRO-${zero}`] : []),
  ].join(", ");
}

/**
 * `moe plan` without its command line: a request, the search over layouts for three purposes (time, memory, cost), and one report that says
 * what was found, what it lost to, what is impossible and why, and what a training run of so many tokens takes.
 *
 * Cost: a token's price is devices * step time * price of a device. On a fixed number of devices the fastest is the cheapest, so the
 * search for cost asks again with an eighth, a quarter and half of the devices: the same batch on fewer devices has more micro-batches for
 * each and waits less. Each time it looks only for steps that are cheaper than what was found.
 *
 * Model FLOPs utilization counts a multiply-add as 2 and causal attention once, no recomputation (`flopsPerToken`), against the peak of the
 * devices in the compute type.
 */
import { numDevices, withNumDevices, type ClusterConfig } from "../config/cluster.ts";
import { flopsPerToken, numActiveParams, numParams } from "../config/model-counts.ts";
import type { ModelConfig } from "../config/model.ts";
import { MoeError } from "../util/errors.ts";
import type { PipelineScheduleName } from "../util/pipeline-schedule.ts";
import { peakFlops } from "./device-time.ts";
import type { EvaluatedLayout } from "./evaluate.ts";
import { fewestDevices, mostNodes } from "./fewest-devices.ts";
import { nearestMultiples, type FixedLayout } from "./layouts.ts";
import { excessesOf, lossesOf, searchLayouts, type SearchOptions, type SearchResult } from "./search.ts";
import type { RecomputePolicy } from "./stage-costs.ts";
import { shapeOf } from "./shape.ts";
import { softwarePresets } from "./software.ts";
import type { StepTerms } from "./step-terms.ts";
import type { MemoryPart, PlanLayout, Software } from "./types.ts";

/** What programs of today do. */
const usualSoftware: Software = softwarePresets.megatron;

/** Of a report. */
const numRunnersUp = 8;

export const objectives = ["time", "memory", "cost"] as const;
export type Objective = (typeof objectives)[number];

export interface PlanRequest {
  readonly model: ModelConfig;
  readonly cluster: ClusterConfig;
  /** What `cluster` is a part of: where nothing fits, more of its nodes are tried. Default: `cluster`. */
  readonly wholeCluster?: ClusterConfig;
  readonly sequenceLength: number;
  /** Of one optimizer step; a multiple of the sequence length. */
  readonly batchTokens: number;
  readonly objective?: Objective;
  readonly fixed?: FixedLayout;
  readonly layers?: readonly number[];
  readonly recompute?: RecomputePolicy | readonly number[];
  readonly schedule?: PipelineScheduleName;
  /** Share of a device's memory that is left free: at least 0, below 1. Default 0.05. */
  readonly memoryReserve?: number;
  /** Default: `megatron` of the presets. */
  readonly software?: Software;
  /** Of a run: days, device hours and price are told. */
  readonly targetTokens?: number;
  /** Of one device for an hour. Default: what the cluster's devices say. */
  readonly pricePerHour?: number;
}

export interface LayoutSummary extends PlanLayout {
  readonly schedule: PipelineScheduleName;
  /** Layers of each stage, in the order of the model (pp * interleave of them). */
  readonly stages: readonly number[];
  /** Of each stage, how many of its first layers are recomputed wholly. */
  readonly recompute: readonly number[];
  /** And how many of the next ones in attention only; left out where none is. */
  readonly selectiveRecompute?: readonly number[];
}

export interface PlanSummary {
  readonly layout: LayoutSummary;
  readonly numDevices: number;
  readonly stepTimeMs: number;
  readonly lowerBoundMs: number;
  /** Whether the split of the layers was proven to be the fastest under this layout. */
  readonly optimal: boolean;
  readonly tokensPerGpuPerSecond: number;
  readonly mfu: number;
  readonly bubbleFraction: number;
  /** Of one device of each pipeline rank. */
  readonly memoryBytesPerStage: readonly number[];
  readonly peakMemoryBytes: number;
  readonly termsMs: StepTerms;
  /** Device seconds of a million tokens. */
  readonly deviceSecondsPerMillionTokens: number;
}

export interface RunnerUp extends PlanSummary {
  /** Against the best: milliseconds by term, losses first. */
  readonly losses: readonly { readonly term: keyof StepTerms; readonly ms: number }[];
  /** Against the best: bytes of the fullest device by kind, what it holds more first. */
  readonly excesses: readonly { readonly part: MemoryPart; readonly bytes: number }[];
}

export interface RunEstimate {
  readonly tokens: number;
  readonly steps: number;
  readonly days: number;
  readonly deviceHours: number;
  /** In the currency of the price; null without one. */
  readonly cost: number | null;
}

/** Devices of one kind. */
export interface DeviceCount {
  readonly name: string;
  readonly count: number;
}

export interface PlanReport {
  readonly cluster: { readonly name: string; readonly numDevices: number; readonly devices: readonly DeviceCount[] };
  readonly model: { readonly parameters: number; readonly activeParameters: number };
  readonly sequenceLength: number;
  readonly batchSequences: number;
  readonly objective: Objective;
  readonly best: LayoutSummary;
  readonly stepTimeMs: number;
  readonly tokensPerGpuPerSecond: number;
  readonly memoryBytesPerStage: readonly number[];
  readonly lowerBoundMs: number;
  readonly plan: PlanSummary;
  readonly byTime: PlanSummary;
  readonly byMemory: PlanSummary;
  readonly byCost: PlanSummary;
  /** The next ones by the objective, on the same devices. */
  readonly runnersUp: readonly RunnerUp[];
  /** This and what follows is of the devices that the best plan uses. */
  readonly pareto: readonly PlanSummary[];
  readonly infeasible: readonly { readonly layout: PlanLayout; readonly reason: string }[];
  readonly search: { readonly numLayouts: number; readonly numEvaluated: number; readonly lowerBoundMs: number };
  readonly run: RunEstimate | null;
}

export interface PlanResult {
  readonly report: PlanReport;
  /** What the report's `best` is, for exports and pictures. */
  readonly best: EvaluatedLayout;
  readonly search: SearchResult;
  /** The devices that `best` uses: fewer than all where the objective is cost. */
  readonly cluster: ClusterConfig;
  readonly options: SearchOptions;
}

/**
 * Throws `configuration` for a batch that is no whole number of sequences or does not divide, for fixed degrees that contradict the model or the
 * cluster, and where nothing fits (with the nearest layout and the smallest number of these devices that would do).
 */
export function planTraining(request: PlanRequest): PlanResult {
  const options = searchOptions(request);
  const { objective = "time" } = request;
  const whole: Searched = { search: searchOrExplain(options, request), cluster: options.cluster };
  const cheapest = cheapestOf(whole, options, request);
  const summary = (plan: EvaluatedLayout, cluster: ClusterConfig): PlanSummary => summarize(plan, cluster, request);
  const { search: found, cluster } = objective === "cost" ? withRunnersUp(cheapest, whole, options) : whole;
  const ranked = objective === "memory" ? found.rankedByMemory : found.ranked;
  const best = objective === "memory" ? found.leanest : found.fastest;
  const plan = summary(best, cluster);
  const others = ranked.filter((other) => other !== best).slice(0, numRunnersUp);
  const report: PlanReport = {
    cluster: {
      name: cluster.name,
      numDevices: numDevices(cluster),
      devices: deviceCounts(cluster),
    },
    model: { parameters: numParams(request.model), activeParameters: numActiveParams(request.model) },
    sequenceLength: request.sequenceLength,
    batchSequences: options.workload.batchSequences,
    objective,
    best: plan.layout,
    stepTimeMs: plan.stepTimeMs,
    tokensPerGpuPerSecond: plan.tokensPerGpuPerSecond,
    memoryBytesPerStage: plan.memoryBytesPerStage,
    lowerBoundMs: plan.lowerBoundMs,
    plan,
    byTime: summary(whole.search.fastest, whole.cluster),
    byMemory: summary(whole.search.leanest, whole.cluster),
    byCost: summary(cheapest.search.fastest, cheapest.cluster),
    runnersUp: others.map((other) => ({
      ...summary(other, cluster),
      losses: lossesOf(best, other).map(({ term, seconds }) => ({ term, ms: 1e3 * seconds })),
      excesses: excessesOf(best, other),
    })),
    pareto: found.pareto.map((other) => summary(other, cluster)),
    infeasible: found.infeasible.map(({ layout, reason }) => ({ layout, reason })),
    search: { numLayouts: found.numLayouts, numEvaluated: found.numEvaluated, lowerBoundMs: 1e3 * found.lowerBoundSeconds },
    run: request.targetTokens === undefined ? null : runEstimate(plan, cluster, request, request.targetTokens),
  };
  return { report, best, search: found, cluster, options };
}

function searchOptions(request: PlanRequest): SearchOptions {
  const {
    model,
    cluster,
    sequenceLength,
    batchTokens,
    fixed,
    layers,
    recompute,
    schedule,
    memoryReserve = 0.05,
    software = usualSoftware,
  } = request;
  const batchSequences = batchTokens / sequenceLength;
  if (!Number.isSafeInteger(batchSequences) || batchSequences < 1) {
    throw new MoeError(
      "configuration",
      `a batch of ${batchTokens} tokens is not a whole number of sequences of ${sequenceLength}; nearest: ${nearestMultiples(batchTokens, sequenceLength)} tokens`,
    );
  }
  if (sequenceLength > model.maxPositions)
    throw new MoeError("configuration", `sequences of ${sequenceLength} tokens exceed the model's ${model.maxPositions} positions`);
  checkLists(request);
  return {
    workload: { model: shapeOf(model), sequenceLength, batchSequences, software },
    cluster,
    memoryReserve,
    fixed: fixedBySplit(fixed ?? {}, layers),
    ...(layers === undefined ? {} : { layers }),
    ...(recompute === undefined ? {} : { recompute }),
    ...(schedule === undefined ? {} : { schedule }),
  };
}

/** A given split says how many stages there are. */
function fixedBySplit(fixed: FixedLayout, layers: readonly number[] | undefined): FixedLayout {
  if (layers === undefined) return fixed;
  const interleave = fixed.interleave ?? (fixed.pp === undefined ? 1 : layers.length / fixed.pp);
  return { ...fixed, pp: fixed.pp ?? layers.length / interleave, interleave };
}

function checkLists({ model, fixed = {}, layers, recompute }: PlanRequest): void {
  const refuse = (problem: string): never => {
    throw new MoeError("configuration", problem);
  };
  if (layers !== undefined) {
    const sum = layers.reduce((a, b) => a + b, 0);
    if (sum !== model.numLayers) refuse(`layers [${layers.join(", ")}] add up to ${sum}, the model has ${model.numLayers}`);
    const empty = layers.indexOf(0);
    if (empty >= 0) refuse(`layers [${layers.join(", ")}]: stage ${empty} has no layer`);
    const { pp, interleave } = fixed;
    if (pp !== undefined && layers.length % pp !== 0) refuse(`layers [${layers.join(", ")}] has ${layers.length} stages for pp ${pp}`);
    if (pp !== undefined && interleave !== undefined && layers.length !== pp * interleave)
      refuse(`layers [${layers.join(", ")}] has ${layers.length} stages for pp ${pp} * interleave ${interleave}`);
  }
  if (typeof recompute !== "object") return;
  if (layers === undefined) refuse(`recompute [${recompute.join(", ")}] needs the layers of each stage (--layers)`);
  else if (recompute.length !== layers.length)
    refuse(`recompute [${recompute.join(", ")}] has ${recompute.length} entries for ${layers.length} stages`);
  const over = recompute.findIndex((count, s) => count > (layers?.[s] ?? 0));
  if (over >= 0) refuse(`recompute ${recompute[over]} of stage ${over}, which has ${layers?.[over]} layers`);
}

function searchOrExplain(options: SearchOptions, request: PlanRequest): SearchResult {
  const found = searchLayouts(options);
  if (typeof found !== "string") return found;
  const cluster = request.wholeCluster ?? request.cluster;
  const count = fewestDevices(options, cluster, numParams(request.model));
  const { device } = cluster.nodes.at(-1) ?? {};
  const decided = Object.keys(request.fixed ?? {}).length > 0 || request.layers !== undefined ? " with what is fixed" : "";
  const advice =
    count === null
      ? `no number of ${device?.name ?? "these devices"} up to ${mostNodes} nodes fits it, either`
      : `the smallest number of them that fits is ${count}${decided}`;
  throw new MoeError("configuration", `${found}; ${advice}`);
}

/** A search and the devices that it was about. */
interface Searched {
  readonly search: SearchResult;
  readonly cluster: ClusterConfig;
}

/** The cheapest of all devices and of fewer; of equals the one with more devices. */
function cheapestOf(whole: Searched, options: SearchOptions, { pricePerHour }: PlanRequest): Searched {
  let cheapest = whole;
  // Without prices, and where devices cost nothing, their time counts.
  const priced = (clusterPrice(whole.cluster, pricePerHour) ?? 0) > 0;
  const rate = (cluster: ClusterConfig): number => (priced ? clusterPrice(cluster, pricePerHour) : null) ?? numDevices(cluster);
  let price = whole.search.fastest.seconds * rate(whole.cluster);
  for (const cluster of smallerClusters(whole.cluster)) {
    const below = (price / rate(cluster)) * (1 - 1e-9);
    const search = tryHard(() => searchLayouts({ ...options, cluster, slack: 0, lean: false, below }));
    if (search === null || typeof search === "string" || search.fastest.seconds >= below) continue;
    [cheapest, price] = [{ search, cluster }, search.fastest.seconds * rate(cluster)];
  }
  return cheapest;
}

/** The search for the cheapest looked for nothing else: once more, with the plans that come next and the leanest ones. */
function withRunnersUp(cheapest: Searched, whole: Searched, options: SearchOptions): Searched {
  const { cluster } = cheapest;
  const search = cluster === whole.cluster ? whole.search : searchLayouts({ ...options, cluster });
  if (typeof search === "string") throw new MoeError("internal", `plan by cost: ${search}`);
  return { search, cluster };
}

/** An eighth, a quarter and half of the devices, where these are whole nodes; the last ones of the cluster are left out. */
function smallerClusters(cluster: ClusterConfig): ClusterConfig[] {
  return [8, 4, 2].flatMap((part) => {
    const count = numDevices(cluster) / part;
    return Number.isInteger(count) ? (tryHard(() => withNumDevices(cluster, count)) ?? []) : [];
  });
}

/** What `attempt` returns, or null where a configuration does not allow it. */
function tryHard<T>(attempt: () => T): T | null {
  try {
    return attempt();
  } catch (error) {
    if (error instanceof MoeError && error.kind === "configuration") return null;
    throw error;
  }
}

/** Of all devices for an hour: at the price that was asked for, else at their own; null where one has none. */
function clusterPrice({ nodes }: ClusterConfig, pricePerHour: number | undefined): number | null {
  let sum = 0;
  for (const { device, devicesPerNode, numNodes } of nodes) {
    const price = pricePerHour ?? device.pricePerHour;
    if (price === undefined) return null;
    sum += devicesPerNode * numNodes * price;
  }
  return sum;
}

function deviceCounts({ nodes }: ClusterConfig): DeviceCount[] {
  const counts = new Map<string, number>();
  for (const { device, devicesPerNode, numNodes } of nodes)
    counts.set(device.name, (counts.get(device.name) ?? 0) + devicesPerNode * numNodes);
  return [...counts].map(([name, count]) => ({ name, count }));
}

/** `1536 x A800`; of several kinds `16 x A800, 16 x RTX-4090`. */
export function describeDevices(devices: readonly DeviceCount[]): string {
  return devices.map(({ name, count }) => `${count} x ${name}`).join(", ");
}

function summarize(
  plan: EvaluatedLayout,
  cluster: ClusterConfig,
  { model, sequenceLength, batchTokens, software = usualSoftware }: PlanRequest,
): PlanSummary {
  const count = numDevices(cluster);
  const peak = cluster.nodes.reduce(
    (sum, { device, devicesPerNode, numNodes }) => sum + devicesPerNode * numNodes * peakFlops(device, software.computeType),
    0,
  );
  const selective = plan.stages.map(({ selectiveRecompute }) => selectiveRecompute);
  return {
    layout: {
      ...plan.layout,
      schedule: plan.schedule,
      stages: plan.stages.map(({ numLayers }) => numLayers),
      recompute: plan.stages.map(({ fullRecompute }) => fullRecompute),
      ...(selective.some((n) => n > 0) ? { selectiveRecompute: selective } : {}),
    },
    numDevices: count,
    stepTimeMs: 1e3 * plan.seconds,
    lowerBoundMs: 1e3 * plan.lowerBoundSeconds,
    optimal: plan.optimal,
    tokensPerGpuPerSecond: batchTokens / plan.seconds / count,
    mfu: (flopsPerToken(model, sequenceLength) * batchTokens) / plan.seconds / peak,
    bubbleFraction: plan.bubbleFraction,
    memoryBytesPerStage: plan.memory.map(({ total }) => Math.round(total)),
    peakMemoryBytes: Math.round(plan.peakMemoryBytes),
    termsMs: Object.fromEntries(
      Object.entries(plan.terms).map(([term, seconds]) => [term, 1e3 * (seconds as number)]),
    ) as unknown as StepTerms,
    deviceSecondsPerMillionTokens: (1e6 * count * plan.seconds) / batchTokens,
  };
}

function runEstimate(plan: PlanSummary, cluster: ClusterConfig, { batchTokens, pricePerHour }: PlanRequest, tokens: number): RunEstimate {
  const steps = Math.ceil(tokens / batchTokens);
  const hours = (steps * plan.stepTimeMs) / 3.6e6;
  const price = clusterPrice(cluster, pricePerHour);
  return {
    tokens,
    steps,
    days: hours / 24,
    deviceHours: hours * plan.numDevices,
    cost: price === null ? null : hours * price,
  };
}

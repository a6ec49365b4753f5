/** A plan as text for the terminal. */
import {
  describeDevices,
  describeLayout,
  gibibytes,
  type LayoutSummary,
  type PlanReport,
  type PlanSummary,
  type RunnerUp,
  type ServingReport,
  type StepTerms,
} from "../plan/index.ts";
import { formatCount, formatTable } from "./output.ts";

export interface TextContext {
  readonly seconds: number;
  readonly files: readonly string[];
  readonly source: string;
}

const termNames = {
  compute: "computing",
  communication: "collectives in layers",
  recompute: "recomputation",
  overhead: "micro-batches besides layers",
  messages: "messages between stages",
  bubble: "waiting for other stages",
  gradients: "exchange of gradients",
  optimizer: "optimizer",
  step: "rest of the step",
} as const satisfies Record<keyof StepTerms, string>;

export function describeTraining(report: PlanReport, { seconds, files, source }: TextContext): string {
  const { cluster, model, plan, search, run, infeasible } = report;
  const { layout } = plan;
  const proof = plan.optimal
    ? "the split is proven to be the fastest"
    : `no split is below ${plan.lowerBoundMs.toFixed(1)} ms (${gap(plan.stepTimeMs, plan.lowerBoundMs)})`;
  return [
    `${source}: ${formatCount(model.parameters)} parameters, ${formatCount(model.activeParameters)} active; ${describeDevices(cluster.devices)} (${cluster.name}), ` +
      `${report.batchSequences} sequences of ${report.sequenceLength} tokens a step`,
    `best by ${report.objective}: ${describeLayout(layout)}`,
    `step ${plan.stepTimeMs.toFixed(1)} ms, ${plan.tokensPerGpuPerSecond.toFixed(0)} tokens a second and device, ${percent(plan.mfu)} of the peak (model FLOPs), bubble ${percent(plan.bubbleFraction)}; ${proof}`,
    "",
    formatTable(stageRows(plan)),
    "",
    formatTable(termRows(plan)),
    "",
    `${search.numLayouts} layouts, ${search.numEvaluated} evaluated, ${infeasible.length} of these do not fit, in ${seconds.toFixed(2)} s; no layout is below ${search.lowerBoundMs.toFixed(1)} ms`,
    formatTable([
      summaryHead,
      ...(["byTime", "byMemory", "byCost"] as const).map((key) => summaryRow(key.slice(2).toLowerCase(), report[key])),
    ]),
    ...(report.pareto.length < 2
      ? []
      : [
          "",
          "no plan is better in both time and memory:",
          formatTable([summaryHead, ...report.pareto.map((p, i) => summaryRow(String(i + 1), p))]),
        ]),
    ...runnersUpLines(report),
    ...(infeasible.length === 0
      ? []
      : ["", "what does not fit:", ...infeasible.slice(0, 5).map(({ layout: other, reason }) => `  ${describeLayout(other)}: ${reason}`)]),
    ...(run === null ? [] : ["", runLine(run)]),
    ...(files.length === 0 ? [] : ["", ...files.map((file) => `wrote ${file}`)]),
  ].join("\n");
}

function stageRows({ layout, memoryBytesPerStage }: PlanSummary): string[][] {
  const { pp, stages, recompute } = layout;
  const own = (list: readonly number[], rank: number): string => list.filter((_, s) => s % pp === rank).join("+");
  const head = ["stage", "layers", "recomputed", "memory"];
  return [
    head,
    ...memoryBytesPerStage.map((bytes, rank) => [String(rank), own(stages, rank), own(recompute, rank), `${gibibytes(bytes)} GiB`]),
  ];
}

function termRows({ termsMs, stepTimeMs }: PlanSummary): string[][] {
  return Object.entries(termsMs)
    .filter(([, ms]) => ms > 0)
    .map(([term, ms]) => [termNames[term as keyof StepTerms], `${(ms as number).toFixed(1)} ms`, percent((ms as number) / stepTimeMs)]);
}

const summaryHead = ["", "step ms", "tokens/s/device", "GiB", "devices", "layout"];
function summaryRow(name: string, plan: PlanSummary): string[] {
  return [
    name,
    plan.stepTimeMs.toFixed(1),
    plan.tokensPerGpuPerSecond.toFixed(0),
    gibibytes(plan.peakMemoryBytes),
    String(plan.numDevices),
    `${describeLayout(plan.layout)}; ${splitOf(plan.layout)}`,
  ];
}

/** `5x7+4x4` layers, recomputed ones in brackets. */
function splitOf({ stages, recompute }: LayoutSummary): string {
  const parts: { text: string; count: number }[] = [];
  for (const [s, n] of stages.entries()) {
    const text = (recompute[s] ?? 0) > 0 ? `${n}[${recompute[s]}]` : String(n);
    const last = parts.at(-1);
    if (last?.text === text) last.count++;
    else parts.push({ text, count: 1 });
  }
  return `layers ${parts.map(({ text, count }) => (count === 1 ? text : `${text} x${count}`)).join(", ")}`;
}

function runnersUpLines({ objective, runnersUp }: PlanReport): string[] {
  if (runnersUp.length === 0) return [];
  const byMemory = objective === "memory";
  const lines = runnersUp.slice(0, 5).map((other) => (byMemory ? excessLine(other) : lossLine(other)));
  return ["", byMemory ? "what the next ones hold more:" : "what the next ones lose:", ...lines];
}

function lossLine({ layout, stepTimeMs, losses }: RunnerUp): string {
  const differences = losses.map(({ term, ms }) => ({ name: termNames[term], value: ms, text: `${ms.toFixed(1)} ms` }));
  return `  ${describeLayout(layout)}: ${stepTimeMs.toFixed(1)} ms; ${whyOf(differences, 0.005 * stepTimeMs) || "as fast"}`;
}

function excessLine({ layout, peakMemoryBytes, excesses }: RunnerUp): string {
  const differences = excesses.map(({ part, bytes }) => ({ name: part, value: bytes, text: `${(bytes / 2 ** 30).toFixed(2)} GiB` }));
  return `  ${describeLayout(layout)}: ${gibibytes(peakMemoryBytes)} GiB; ${whyOf(differences, 0.005 * peakMemoryBytes) || "as much"}`;
}

/** Largest losses against largest gains, of those above `least`; the list begins with the largest loss. */
function whyOf(differences: readonly { readonly name: string; readonly value: number; readonly text: string }[], least: number): string {
  const losses = differences.filter(({ value }) => value > least).slice(0, 3);
  const gains = differences
    .filter(({ value }) => value < -least)
    .toReversed()
    .slice(0, 2);
  const told = (list: typeof differences): string =>
    list.map(({ name, value, text }) => `${name} ${value > 0 ? "+" : ""}${text}`).join(", ");
  return [told(losses), gains.length === 0 ? "" : `against ${told(gains)}`].filter((part) => part !== "").join(" ");
}

function runLine({ tokens, steps, days, deviceHours, cost }: NonNullable<PlanReport["run"]>): string {
  const price = cost === null ? "no price given (--price)" : `cost ${cost.toFixed(0)}`;
  return `${formatCount(tokens)} tokens: ${steps} steps, ${days.toFixed(1)} days, ${deviceHours.toFixed(0)} device hours, ${price}`;
}

export interface ServingContext {
  readonly source: string;
  readonly weights: string;
  readonly kv: string;
  readonly promptTokens: number;
  readonly outputTokens: number;
}

export function describeServing(report: ServingReport, { source, weights, kv, promptTokens, outputTokens }: ServingContext): string {
  const gigabytes = (bytes: number): string => (bytes / 1e9).toFixed(2);
  const ranks = [
    ["rank", "heads", "weights GB", "cache KB a token", "room GB"],
    ...report.weightBytes.map((bytes, rank) => [
      String(rank),
      String(report.heads[rank]),
      gigabytes(bytes),
      ((report.kvBytesPerToken[rank] ?? 0) / 1e3).toFixed(1),
      gigabytes(report.roomBytes[rank] ?? 0),
    ]),
  ];
  const batches = [
    ["batch", "step ms", "weights", "cache", "all-reduce", "decode tokens/s", "with prefill"],
    ...report.batches.map((b) => [
      String(b.batch),
      ...[b.stepMs, b.weightsMs, b.cacheMs, b.communicationMs].map((ms) => ms.toFixed(1)),
      b.decodeTokensPerSecond.toFixed(0),
      b.tokensPerSecond.toFixed(0),
    ]),
  ];
  const how = report.mode === "experts" ? "whole experts a rank" : "slices of every expert";
  return [
    `${source}: weights in ${weights}, cache in ${kv}, on ${report.ranks} x ${report.device} (${gigabytes(report.memoryBytes)} GB each), ${how}`,
    "",
    formatTable(ranks),
    "",
    `room for ${report.cacheTokens} tokens: ${report.largestBatch} sequences of ${promptTokens} + ${outputTokens}; a prompt alone takes ${report.prefillMs.toFixed(0)} ms`,
    formatTable(batches),
    ...(report.notes.length === 0 ? [] : ["", ...report.notes]),
  ].join("\n");
}

function percent(fraction: number): string {
  return `${(100 * fraction).toFixed(1)}%`;
}
function gap(value: number, bound: number): string {
  return `${percent(value / bound - 1)} above`;
}

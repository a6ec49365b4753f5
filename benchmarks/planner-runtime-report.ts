/** The section of `docs/planner-accuracy.md` on our own trainer. */
import type { EfficiencyConfig } from "../src/config/cluster.ts";
import { constantText, percent, table, type ConstantMeanings } from "./planner-format.ts";
import { modelOf, runtimeCases, type RuntimeCase, type RuntimeRole } from "./planner-runtime-cases.ts";
import { bubbleErrorOf, errorOf, savedRuns, scoreRuns, type PredictedRun, type RuntimeScore } from "./planner-runtime-score.ts";
import { mean, quantile } from "./planner-splits.ts";

const heading = "## Against our own runtime";

export function runtimeSection(meanings: ConstantMeanings): string {
  const runs = savedRuns();
  if (runs === null) return `${heading}\n\nNot measured yet: \`npm run bench -- planner --only planner.runtime\`.\n`;
  const score = scoreRuns(runs);
  return [intro(score), steps(score.predicted), bubbles(score.predicted), calibration(score, meanings)].join("\n");
}

function intro({ machine: { processor, date, samples, cluster }, fitted, predicted }: RuntimeScore): string {
  const device = cluster.nodes[0]?.device;
  const [one, two] = [fitted.filter(({ measured }) => measured.numDevices === 1), fitted.filter(({ measured }) => measured.numDevices > 1)];
  const of = (role: RuntimeRole): PredictedRun[] => predicted.filter((run) => caseOf(run)?.role === role);
  return `${heading}

Steps of our own trainer in f32, ranks of one thread, on ${processor} with two cores (one core: ${((device?.peakFlops.f32 ?? 0) / 1e9).toFixed(0)} GFLOP/s of multiply-adds), ${date}; medians of ${samples} steps, in turns,
each beside two steps of a reference run, because the cores of a virtual machine change their speed. Calibrated, as \`moe plan calibrate\` does it, on ${one.length} runs of one rank and ${two.length} of two (${two.map(({ name }) => name).join(", ")}).
Of the layouts that it predicts, some had been looked at while the cost model was written; the others were written down before anything of them was measured, and the cost model was not changed for them
(what every measurement said: [log](log.md)). Bar: 10% each.

* not looked at: ${scoreText(of("unseen"))}
* looked at before: ${scoreText(of("seen"))}

The rows are \`benchmarks/planner-runtime.csv\`; \`npm run bench -- planner --only planner.runtime\` measures them anew. Routing of the models with experts is forced to be even.
`;
}

function scoreText(runs: readonly PredictedRun[]): string {
  const errors = runs.map(errorOf);
  const within = errors.filter((error) => error <= 0.1).length;
  return `${within} of ${runs.length} within 10%; ${percent(mean(errors))} off on average, ${percent(quantile(errors, 1))} at most`;
}

function caseOf({ name }: PredictedRun): RuntimeCase | undefined {
  return runtimeCases.find((one) => one.name === name);
}

function describeLayout({ layout, sequenceLength, batchSequences, microBatch }: RuntimeCase): string {
  const { pp = 1, dp = 1, tp = 1, zero = 0, sequenceParallel = false, strategy, layers, recompute } = layout;
  const degrees = [
    [dp, "DP"],
    [tp, "TP"],
    [pp, "PP"],
  ] as const;
  const parts = degrees.filter(([degree]) => degree > 1).map(([degree, name]) => `${name} ${degree}`);
  if (zero === 1) parts.push("ZeRO-1");
  if (sequenceParallel) parts.push("sequence parallel");
  if (strategy !== undefined) parts.push(strategy);
  if (layers !== undefined && layers !== null) parts.push(`layers [${layers.join(", ")}]`);
  if (recompute !== undefined && recompute !== null) parts.push(`recomputed [${recompute.join(", ")}]`);
  return `${parts.join(", ")}; ${batchSequences / dp / microBatch} x ${microBatch} x ${sequenceLength} tokens`;
}

function describeModel(one: RuntimeCase): string {
  const { hiddenSize, numLayers, ffnSize, moe } = modelOf(one);
  const network = moe === null ? `FFN ${ffnSize}` : `${moe.numExperts} experts of ${moe.expertFfnSize}, top-${moe.topK}`;
  return `${numLayers} layers, hidden ${hiddenSize}, ${network}`;
}

function steps(predicted: readonly PredictedRun[]): string {
  const body = predicted.map((run) => {
    const one = caseOf(run);
    const error = run.seconds / run.measured.seconds - 1;
    const texts = one === undefined ? ["", ""] : [describeModel(one), describeLayout(one)];
    return [
      one?.role === "unseen" ? `**${run.name}**` : run.name,
      ...texts,
      ...[run.measured.seconds, run.seconds].map((seconds) => (1000 * seconds).toFixed(0)),
      percent(error),
    ];
  });
  const columns = ["row", "model", "layout; micro-batches of a rank", "measured, ms", "predicted, ms", "error"];
  return `${table(columns, body)}\n\nIn bold: not looked at.\n`;
}

function bubbles(predicted: readonly PredictedRun[]): string {
  const piped = predicted.filter(({ measured }) => measured.bubbleFraction !== null);
  const body = piped.map((run) => [
    run.name,
    percent(run.measured.bubbleFraction ?? 0),
    percent(run.bubbleFraction),
    `${(100 * bubbleErrorOf(run)).toFixed(1)} points`,
  ]);
  return `The bubble, the share of ranks' time from the first pass to the end of the last in which they neither compute nor send: from the steps' own traces, and simulated.

${table(["row", "measured", "predicted", "apart"], body)}
`;
}

function calibration({ machine, calibration: { cluster, fitted }, fitted: rows }: RuntimeScore, meanings: ConstantMeanings): string {
  const body = fitted.map((key: keyof EfficiencyConfig) => [
    `\`${key}\``,
    ...meanings[key],
    constantText(key, machine.cluster.efficiency),
    constantText(key, cluster.efficiency),
  ]);
  const own = rows.map(
    (run) => `${run.name} ${(1000 * run.measured.seconds).toFixed(0)} ms (${percent(run.seconds / run.measured.seconds - 1)})`,
  );
  return `Fitted constants (${fitted.length}); the others are the preset \`cpu\`'s:

${table(["constant", "unit", "meaning", "start", "fitted"], body)}

What they were fitted to, with what is left of the error: ${own.join(", ")}.
`;
}

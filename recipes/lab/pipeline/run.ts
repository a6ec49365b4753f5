/**
 * The pipeline lab: `node recipes/lab/pipeline/run.ts [--quick] [--out docs/lab/pipeline]`.
 *
 * Eight layers whose loss weighs two (Skywork-MoE, arXiv 2406.06563, appendix B, has such a last stage), on two ranks: the even split against the one that
 * the planner's exact search finds over measured times of the parts, in turns. For three and four stages the two cores of a small machine show nothing:
 * there the same measured times are replayed in the planner's simulator, and labelled so. Then peak memory of four stages (which needs no
 * cores), with one count of recomputed layers for all against one for each. Writes a report and a Chrome trace of each side.
 */
import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { simulateStep } from "../../../src/plan/simulate.ts";
import { chromeTrace } from "../../../src/util/chrome-trace.ts";
import { equalSpeeds, intervalLength, partition } from "../../../src/util/partition.ts";
import { measureMemory, type MemoryResult } from "./memory.ts";
import { numLayers } from "./model.ts";
import type { LabStep } from "./rank.ts";
import { LabSession } from "./session.ts";
import { measureParts, plannedLayers, stageTimes, type PartTimes } from "./times.ts";

const numMicroBatches = 16;

interface Measured {
  readonly layers: readonly number[];
  readonly seconds: readonly number[];
  readonly trace: string;
  readonly loss: number;
}

/** Seconds of a step by the simulator, from times measured on one rank. Messages take no time there. */
function simulated(parts: PartTimes, layers: readonly number[]): { seconds: number; bubble: number } {
  let first = 0;
  const stages = layers.map((count) => {
    const { forward, backward } = stageTimes(parts, first, count);
    first += count;
    return { forward, backwardInput: backward, backwardWeight: 0 };
  });
  const schedule = { name: "1f1b", numRanks: layers.length, numMicroBatches } as const;
  const { seconds, bubbleFraction } = simulateStep({ schedule, stages, messageSeconds: 0, overlapMessages: true });
  return { seconds, bubble: bubbleFraction };
}
const evenLayers = (numStages: number): number[] => partition(numLayers, equalSpeeds(numStages)).map(intervalLength);
const middleOf = (values: readonly number[]): number => values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;

/** Both splits on two ranks, in turns. */
async function measureSplits(splits: readonly (readonly number[])[], samples: number): Promise<Measured[]> {
  const session = await LabSession.start(
    2,
    1,
    splits.map((layers) => ({ layout: { pp: 2, layers: [...layers] }, numMicroBatches })),
  );
  const seconds = splits.map((): number[] => []);
  const last: LabStep[][] = [];
  for (let sample = -2; sample < samples; sample++) {
    for (const variant of splits.keys()) {
      const steps = await session.step(variant);
      if (sample >= 0) seconds[variant]?.push(Math.max(...steps.map((step) => step.seconds)));
    }
  }
  for (const variant of splits.keys()) last[variant] = await session.step(variant, { trace: true });
  await session.end();
  return splits.map((layers, variant) => {
    const spans = last[variant]?.flatMap((step) => step.spans) ?? [];
    const start = spans.reduce((least, { startUs }) => Math.min(least, startUs), Infinity);
    const shifted = spans.map((span) => ({ ...span, startUs: span.startUs - start }));
    return {
      layers,
      seconds: seconds[variant] ?? [],
      trace: chromeTrace(shifted, { layers: layers.join(" ") }),
      loss: last[variant]?.[0]?.loss ?? Number.NaN,
    };
  });
}

const ms = (seconds: number): string => (seconds * 1000).toFixed(1);
const mib = (bytes: number): string => (bytes / 2 ** 20).toFixed(1);

function partsTable({ embedding, layer, loss }: PartTimes): string[] {
  const row = (name: string, { forward, backward }: PartTimes["layer"]): string => `| ${name} | ${ms(forward)} | ${ms(backward)} |`;
  const weight = (loss.forward + loss.backward) / (layer.forward + layer.backward);
  return [
    "| part | forward, ms | backward, ms |",
    "| --- | --- | --- |",
    row("embedding", embedding),
    row("a layer", layer),
    row("final norm and loss", loss),
    "",
    `The loss weighs ${weight.toFixed(2)} layers.`,
  ];
}

function splitsTable(parts: PartTimes, measured: readonly Measured[]): string[] {
  const [even, chosen] = measured;
  const rows = measured.map(({ layers, seconds }) => {
    const predicted = simulated(parts, layers).seconds;
    const low = Math.min(...seconds);
    const high = Math.max(...seconds);
    return `| [${layers.join(", ")}] | ${ms(middleOf(seconds))} (${ms(low)} to ${ms(high)}) | ${ms(predicted)} |`;
  });
  const ratio = middleOf(even?.seconds ?? []) / middleOf(chosen?.seconds ?? []);
  const exact = plannedLayers(parts, 2, numMicroBatches);
  const rounds = (even?.seconds ?? []).map((seconds, i) => seconds / (chosen?.seconds[i] ?? Number.NaN));
  return [
    "| layers of the stages | step, ms: median (least to most) | simulated from the parts, ms |",
    "| --- | --- | --- |",
    ...rows,
    "",
    `The planner chose [${exact.join(", ")}]: **${ratio.toFixed(3)}x** the even split's throughput (medians; of the ratios of neighbouring turns, the median is ${middleOf(rounds).toFixed(3)}).`,
  ];
}

function simulatedTable(parts: PartTimes): string[] {
  const rows = [3, 4].map((numStages) => {
    const [even, chosen] = [evenLayers(numStages), plannedLayers(parts, numStages, numMicroBatches)];
    const [before, after] = [simulated(parts, even), simulated(parts, chosen)];
    const bubbles = `${(100 * before.bubble).toFixed(1)}% to ${(100 * after.bubble).toFixed(1)}%`;
    const steps = `${ms(before.seconds)} to ${ms(after.seconds)}`;
    return `| ${numStages} | [${even.join(", ")}] | [${chosen.join(", ")}] | ${steps} | ${bubbles} | ${(before.seconds / after.seconds).toFixed(3)} |`;
  });
  return ["| stages | even | chosen | step, ms | bubble | gain |", "| --- | --- | --- | --- | --- | --- |", ...rows];
}

function memoryTable({ numStages, peaks, limitBytes, counts, countsPeaks, evenCount }: MemoryResult): string[] {
  const header = Array.from({ length: numStages }, (_, stage) => `stage ${stage}`);
  const mark = (bytes: number): string => `${mib(bytes)}${bytes > limitBytes ? " (over)" : ""}`;
  const row = (name: string, bytes: readonly number[], total: number): string => `| ${name} | ${bytes.map(mark).join(" | ")} | ${total} |`;
  const all =
    evenCount === null ? "no even count fits" : `the least even count that fits is ${evenCount}, ${evenCount * numStages} layers in all`;
  return [
    `Limit: ${mib(limitBytes)} MiB a stage.`,
    "",
    `| recomputed layers of each stage | ${header.join(" | ")} | recomputed in all |`,
    `| --- | ${header.map(() => "---").join(" | ")} | --- |`,
    ...peaks.map((bytes, count) => row(`${count} in each`, bytes, count * numStages)),
    row(
      `[${counts.join(", ")}]`,
      countsPeaks,
      counts.reduce((a, b) => a + b, 0),
    ),
    "",
    `MiB. Counts by stage recompute ${counts.reduce((a, b) => a + b, 0)} layers a micro-batch; ${all}.`,
  ];
}

const { values } = parseArgs({
  options: { quick: { type: "boolean", default: false }, out: { type: "string", default: "docs/lab/pipeline" } },
});
const parts = await measureParts(values.quick ? 5 : 21);
const measured = await measureSplits([evenLayers(2), plannedLayers(parts, 2, numMicroBatches)], values.quick ? 2 : 15);
const memory = await measureMemory(8);
const lines = [
  "# Pipelines whose stages are not equal",
  "",
  "Written by `node recipes/lab/pipeline/run.ts`. Eight layers of width 256, 256 tokens a micro-batch, 16 micro-batches, 1F1B, f32, a vocabulary of 10240.",
  "",
  "## Times of the parts: one rank, one thread, medians",
  "",
  ...partsTable(parts),
  "",
  "## Two ranks of one thread each, measured in turns",
  "",
  ...splitsTable(parts, measured),
  "",
  "Timelines: `pipeline-even.json`, `pipeline-chosen.json` (open in ui.perfetto.dev).",
  "",
  "## Three and four stages, SIMULATED",
  "",
  "Not measured: the times of the parts above, replayed in the planner's simulator. Messages take no time there.",
  "",
  ...simulatedTable(parts),
  "",
  `## Peak memory of ${memory.numStages} stages, measured`,
  "",
  `${memory.numMicroBatches} micro-batches, two layers a stage; weights, gradients, moments and activations of each rank's backend in a step.`,
  "",
  ...memoryTable(memory),
  "",
];
writeFileSync(`${values.out}.md`, lines.join("\n"));
for (const [index, name] of ["even", "chosen"].entries()) writeFileSync(`${values.out}-${name}.json`, `${measured[index]?.trace ?? ""}\n`);
console.log(lines.join("\n"));

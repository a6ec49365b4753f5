/**
 * Measures the cases of rows `planner.runtime`: ranks of one thread, of one and of two ranks, sleep while they are not asked for a step. Cases take turns;
 * a turn begins with a step that finds the caches full of another case and does not count. A virtual machine's cores are not equally fast all the
 * time, so every step that counts stands between two steps of a reference case of as many ranks: its time over the mean of theirs, times the
 * reference's median over the whole run, is the sample. A step during which other programs took the processor is taken again, up to three times. Medians.
 * The result is a CSV file of the columns that `moe plan calibrate` reads.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join } from "node:path";
import { layoutOf } from "../src/config/run.ts";
import { TokenFileWriter } from "../src/data/index.ts";
import { startRanks, type Ranks } from "../src/parallel/index.ts";
import type { TraceSpan } from "../src/util/chrome-trace.ts";
import { Random } from "../src/util/random.ts";
import type { Context } from "./context.ts";
import { median } from "./measure.ts";
import { modelOf, numRanksOf, runOf, runtimeCases, vocabSize, type RuntimeCase } from "./planner-runtime-cases.ts";
import type { RuntimeCommand, RuntimeJob, RuntimeReply } from "./planner-runtime-rank.ts";

/** Medians of a case; no bubble without a pipeline. */
export interface MeasuredCase {
  readonly seconds: number;
  readonly bubbleFraction: number | null;
}

/** Ranks with all cases of their number. */
class Steppers {
  readonly #ranks: Ranks;
  readonly #size: number;
  readonly #answers: (RuntimeReply | "ready")[][];
  #wake: (() => void) | null = null;
  #error: unknown = null;

  private constructor(size: number, job: RuntimeJob) {
    this.#size = size;
    this.#answers = Array.from({ length: size }, () => []);
    this.#ranks = startRanks({
      size,
      entry: new URL("./planner-runtime-rank.ts", import.meta.url),
      data: job,
      backend: { numThreads: 1 },
      onMessage: (rank, message) => {
        this.#answers[rank]?.push(message as RuntimeReply | "ready");
        this.#wake?.();
      },
    });
    this.#ranks.results.catch((error: unknown) => {
      this.#error = error;
      this.#wake?.();
    });
  }
  static async start(size: number, job: RuntimeJob): Promise<Steppers> {
    const steppers = new Steppers(size, job);
    await steppers.#all();
    return steppers;
  }

  async step(index: number): Promise<RuntimeReply[]> {
    this.#post({ index });
    return (await this.#all()).filter((answer) => answer !== "ready");
  }
  async end(): Promise<void> {
    this.#post({ index: -1 });
    await this.#ranks.results;
  }
  #post(command: RuntimeCommand): void {
    for (let rank = 0; rank < this.#size; rank++) this.#ranks.post(rank, command);
  }
  async #all(): Promise<(RuntimeReply | "ready")[]> {
    while (this.#answers.some((list) => list.length === 0)) {
      if (this.#error !== null) throw this.#error;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    return this.#answers.flatMap((list) => list.shift() ?? []);
  }
}

/** Of all cases, in their order. */
export async function measureCases({ rounds, log }: { readonly rounds: number; readonly log: Context["log"] }): Promise<MeasuredCase[]> {
  const folder = mkdtempSync(join(tmpdir(), "moe-planner-runtime-"));
  const steppers = new Map<number, Steppers>();
  try {
    const tokens = join(folder, "tokens");
    writeTokens(tokens);
    for (const size of new Set(runtimeCases.map(numRanksOf)))
      steppers.set(size, await Steppers.start(size, { cases: runtimeCases, tokens }));
    const stepOf = (index: number, size: number) => async (): Promise<RuntimeReply[]> => (await steppers.get(size)?.step(index)) ?? [];
    const taken = runtimeCases.map((): Paired[] => []);
    for (let round = -1; round < rounds; round++) {
      log(`planner.runtime: ${round < 0 ? "warm-up" : `round ${round + 1} of ${rounds}`}`);
      for (const [index, one] of runtimeCases.entries()) {
        const size = numRanksOf(one);
        const [own, reference] = [stepOf(index, size), stepOf(referenceOf(size), size)];
        await own();
        if (round >= 0) taken[index]?.push(...(await turn(own, reference)));
      }
    }
    return runtimeCases.map((one, index) => {
      const alike = taken.filter((_, i) => runtimeCases[i] !== undefined && numRanksOf(runtimeCases[i]) === numRanksOf(one));
      const level = median(alike.flat().map(({ reference }) => reference));
      return summary(taken[index] ?? [], level, one.name, log);
    });
  } finally {
    await Promise.all(Array.from(steppers.values(), (one) => one.end()));
    rmSync(folder, { recursive: true, force: true });
  }
}

function summary(taken: readonly Paired[], level: number, name: string, log: Context["log"]): MeasuredCase {
  const seconds = taken.map(({ sample, reference }) => (sample.seconds * level) / reference);
  const bubbles = taken.flatMap(({ sample }) => sample.bubble ?? []);
  const ms = (value: number): string => (1000 * value).toFixed(0);
  const spread = (values: readonly number[]): string =>
    `${ms(median(values))} ms (${ms(Math.min(...values))} to ${ms(Math.max(...values))})`;
  const plain = spread(taken.map(({ sample }) => sample.seconds));
  const numDisturbed = taken.filter(({ sample }) => sample.disturbed).length;
  const others = numDisturbed === 0 ? "" : `; other programs took part in ${numDisturbed} of ${taken.length}`;
  log(`planner.runtime: ${name} ${spread(seconds)}; not beside the reference: ${plain}${others}`);
  return { seconds: median(seconds), bubbleFraction: bubbles.length === 0 ? null : median(bubbles) };
}

/** Steps of a turn that count. */
export const stepsOfTurn = 2;
/** Of the time of all processors, what others may take during a step. */
const disturbance = 0.04;
const mostAttempts = 4;

interface Sample {
  readonly seconds: number;
  /** Null without a pipeline. */
  readonly bubble: number | null;
  readonly disturbed: boolean;
}
interface Paired {
  readonly sample: Sample;
  /** Mean of the reference's steps before and after it. */
  readonly reference: number;
}
type Step = () => Promise<RuntimeReply[]>;

/** Of cases of that many ranks. */
function referenceOf(size: number): number {
  const name = size === 1 ? "one.small" : "tp2.small";
  return runtimeCases.findIndex((one) => one.name === name);
}

async function turn(own: Step, reference: Step): Promise<Paired[]> {
  const pairs: Paired[] = [];
  let before = await sampleOf(reference);
  for (let i = 0; i < stepsOfTurn; i++) {
    const sample = await sampleOf(own);
    const after = await sampleOf(reference);
    pairs.push({ sample, reference: (before.seconds + after.seconds) / 2 });
    before = after;
  }
  return pairs;
}

/** The first of a few attempts during which nobody else computed, or the last. */
async function sampleOf(step: Step): Promise<Sample> {
  for (let attempt = 1; ; attempt++) {
    const [before, own, started] = [busySeconds(), process.cpuUsage(), performance.now()];
    const replies = await step();
    const { user, system } = process.cpuUsage(own);
    const others = busySeconds() - before - (user + system) / 1e6;
    const disturbed = others > (disturbance * availableParallelism() * (performance.now() - started)) / 1000;
    if (disturbed && attempt < mostAttempts) continue;
    const spans = replies.flatMap((reply) => reply.spans);
    return { seconds: Math.max(...replies.map(({ seconds }) => seconds)), bubble: bubbleOfSpans(spans), disturbed };
  }
}

/** Seconds that the machine's processors were not idle, stolen ones included; 0 where the system does not say. */
function busySeconds(): number {
  if (process.platform !== "linux") return 0;
  // user nice system idle iowait irq softirq steal, in hundredths of a second.
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0, steal = 0] = (readFileSync("/proc/stat", "utf8").split("\n")[0] ?? "")
    .split(/\s+/)
    .slice(1)
    .map(Number);
  return (user + nice + system + irq + softirq + steal) / 100;
}

function writeTokens(path: string): void {
  const random = new Random(1);
  using writer = new TokenFileWriter(path, { vocabSize });
  writer.append(Int32Array.from({ length: 64 * 512 + 1 }, () => random.integer(vocabSize)));
  writer.finish("random");
}

/**
 * The share of ranks' time, from the first pass of a step to the end of the last, in which they neither run a pass nor send: what the simulation calls
 * the bubble; null where there is no pipeline. `spans`: of all ranks, as `moe train --trace` writes them.
 */
export function bubbleOfSpans(spans: readonly TraceSpan[]): number | null {
  const passes = spans.filter(({ track, name }) => track === "compute" && /^(forward|backward) /.test(name));
  const sends = spans.filter(({ track, name }) => track === "communication" && name.startsWith("send "));
  if (sends.length === 0) return null;
  const start = Math.min(...passes.map(({ startUs }) => startUs));
  const end = Math.max(...passes.map(({ startUs, durationUs }) => startUs + durationUs));
  const used = [...passes, ...sends].reduce((sum, { durationUs }) => sum + durationUs, 0);
  return 1 - used / (new Set(passes.map(({ rank }) => rank)).size * (end - start));
}

const columns: readonly (readonly [name: string, value: (one: RuntimeCase, measured: MeasuredCase) => string | number])[] = [
  ["name", ({ name }) => name],
  ["# GPUs", numRanksOf],
  ["global batch", ({ batchSequences }) => batchSequences],
  ["micro batch", ({ microBatch }) => microBatch],
  ["hidden size", (one) => modelOf(one).hiddenSize],
  ["attention heads", (one) => modelOf(one).numHeads],
  ["kv heads", (one) => modelOf(one).numKvHeads],
  ["ffn size", (one) => modelOf(one).moe?.expertFfnSize ?? modelOf(one).ffnSize],
  ["experts", (one) => modelOf(one).moe?.numExperts ?? ""],
  ["top-k", (one) => modelOf(one).moe?.topK ?? ""],
  ["# layers", (one) => modelOf(one).numLayers],
  ["sequence length", ({ sequenceLength }) => sequenceLength],
  ["vocabulary", () => vocabSize],
  ["tensor parallelism", ({ layout }) => layout.tp ?? 1],
  ["data parallelism", ({ layout }) => layout.dp ?? 1],
  ["pipeline parallelism", ({ layout }) => layout.pp ?? 1],
  ["expert parallelism", (one) => (modelOf(one).moe === null ? "" : layoutOf(runOf(one)).ep)],
  ["expert tensor parallelism", (one) => (modelOf(one).moe === null ? "" : layoutOf(runOf(one)).etp)],
  ["zero", ({ layout }) => layout.zero ?? 0],
  ["sequence parallel", ({ layout }) => (layout.sequenceParallel === true ? 1 : 0)],
  ["stage layers", ({ layout }) => layout.layers?.join("+") ?? ""],
  ["recomputed layers", ({ layout }) => layout.recompute?.join("+") ?? ""],
  ["bubble", (_, { bubbleFraction }) => bubbleFraction?.toFixed(4) ?? ""],
  ["iteration time (ms)", (_, { seconds }) => (1000 * seconds).toFixed(2)],
];

/** The rows as `parseMeasurements` reads them. */
export function measurementsCsv(measured: readonly MeasuredCase[]): string {
  const lines = runtimeCases.map((one, i) => {
    const own = measured[i] ?? { seconds: Number.NaN, bubbleFraction: null };
    return columns.map(([, value]) => value(one, own)).join(",");
  });
  return [columns.map(([name]) => name).join(","), ...lines, ""].join("\n");
}

/**
 * Measures the cases of rows `planner.runtime`: ranks of one thread, of one and of two ranks, sleep while they are not asked for a step. Cases take turns;
 * each turn is two steps, of which the second counts: the first finds the caches full of another case. A step during which other programs (or other
 * guests of the host) took the processor is taken again, up to three times. Medians. The result is a CSV file of the columns that `moe plan calibrate` reads.
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
export async function measureCases({ effort, log }: Pick<Context, "effort" | "log">): Promise<MeasuredCase[]> {
  const folder = mkdtempSync(join(tmpdir(), "moe-planner-runtime-"));
  const steppers: Steppers[] = [];
  try {
    const tokens = join(folder, "tokens");
    writeTokens(tokens);
    const sizes = [...new Set(runtimeCases.map(numRanksOf))];
    const groups = sizes.map((size) => runtimeCases.filter((one) => numRanksOf(one) === size));
    for (const [i, cases] of groups.entries()) steppers.push(await Steppers.start(sizes[i] ?? 1, { cases, tokens }));
    const taken = new Map(runtimeCases.map((one) => [one, { seconds: [] as number[], bubbles: [] as number[] }]));
    let numDisturbed = 0;
    for (let round = -1; round < effort.samples; round++) {
      log(`planner.runtime: ${round < 0 ? "warm-up" : `round ${round + 1} of ${effort.samples}`}`);
      for (const [i, cases] of groups.entries()) {
        for (const [index, one] of cases.entries()) {
          const stepper = steppers[i];
          if (stepper === undefined) continue;
          await stepper.step(index);
          const { replies, disturbed } = await undisturbed(() => stepper.step(index));
          if (round < 0) continue;
          if (disturbed) numDisturbed++;
          const into = taken.get(one);
          into?.seconds.push(Math.max(...replies.map(({ seconds }) => seconds)));
          into?.bubbles.push(bubbleOfSpans(replies.flatMap(({ spans }) => spans)));
        }
      }
    }
    log(`planner.runtime: other programs took part in ${numDisturbed} of ${effort.samples * runtimeCases.length} steps`);
    return runtimeCases.map((one) => {
      const { seconds = [], bubbles = [] } = taken.get(one) ?? {};
      const [least, middle, most] = [Math.min(...seconds), median(seconds), Math.max(...seconds)].map((value) => (1000 * value).toFixed(0));
      log(`planner.runtime: ${one.name} ${middle} ms (${least} to ${most})`);
      return { seconds: median(seconds), bubbleFraction: (one.layout.pp ?? 1) > 1 ? median(bubbles) : null };
    });
  } finally {
    await Promise.all(steppers.map((one) => one.end()));
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Of the time of all processors, what others may take during a step. */
const disturbance = 0.03;
const mostAttempts = 4;

/** The first of a few attempts during which nobody else computed, or the last. */
async function undisturbed(step: () => Promise<RuntimeReply[]>): Promise<{ replies: RuntimeReply[]; disturbed: boolean }> {
  for (let attempt = 1; ; attempt++) {
    const [before, own, started] = [busySeconds(), process.cpuUsage(), performance.now()];
    const replies = await step();
    const { user, system } = process.cpuUsage(own);
    const others = busySeconds() - before - (user + system) / 1e6;
    const disturbed = others > (disturbance * availableParallelism() * (performance.now() - started)) / 1000;
    if (!disturbed || attempt === mostAttempts) return { replies, disturbed };
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
 * the bubble. `spans`: of all ranks, as `moe train --trace` writes them.
 */
export function bubbleOfSpans(spans: readonly TraceSpan[]): number {
  const passes = spans.filter(({ track, name }) => track === "compute" && /^(forward|backward) /.test(name));
  const sends = spans.filter(({ track, name }) => track === "communication" && name.startsWith("send "));
  if (passes.length === 0) return Number.NaN;
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

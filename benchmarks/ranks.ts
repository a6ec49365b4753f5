/**
 * What ranks cost, over one rank with the same threads and the same global batch:
 *   ranks.dp, ranks.tp  two ranks of one thread, the engine's model of 32 million parameters, against one rank of two threads
 *   ranks.edp           the same of the model with experts (theme moe), whole experts on each rank; a rank waits for the one whose experts were
 *                       chosen more often, so `.balanced` has moe.forcedBalance on both sides and shows what the ranks themselves cost
 *   ddp                 two data-parallel ranks of one thread against PyTorch DistributedDataParallel over gloo, two processes of one thread
 *   zero.memory         bytes of a rank between steps under EDP and ZeRO-1, over those of the formula (`src/train/parallel/memory.ts`)
 *   overlap.alltoall    share of the exchange of tokens that is left to wait for over an emulated link (recipes/lab/edp/overlap.ts)
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { measureOverlap } from "../recipes/lab/edp/overlap.ts";
import { writeTokens } from "../recipes/lab/edp/lab.ts";
import { layoutOf, parseRunConfig, type RunConfigInput } from "../src/config/run.ts";
import type { LayoutInput } from "../src/config/layout.ts";
import { fromHuggingFaceConfig } from "../src/config/model-huggingface.ts";
import { startRanks, type Ranks } from "../src/parallel/index.ts";
import { stateBytes } from "../src/train/parallel/memory.ts";
import { messageOf, wanted, type Context, type Precision } from "./context.ts";
import { interleave, type Row, type Side } from "./measure.ts";
import { moeShape } from "./moe.ts";
import { LineProcess } from "./process.ts";
import { trainShape, type TrainShape } from "./train.ts";

export interface RanksJob {
  readonly shape: TrainShape;
  readonly layout: LayoutInput;
  readonly precision: Precision;
  readonly microBatchSequences: number;
  readonly forcedBalance?: boolean;
}
export interface RanksReply {
  readonly seconds: number;
  /** Live in rank 0's engine after the step. */
  readonly bytes: number;
}

const ranksBar = 0.9;
const ddpBar = 1.3;
const overlapBar = 0.3;
const memoryBar = 1.03;

/** Ranks that take a step when asked. */
class Steppers {
  readonly #ranks: Ranks;
  readonly #tokens: number;
  #answered: ((reply: RanksReply) => void) | null = null;

  constructor(size: number, threads: number, job: RanksJob) {
    this.#tokens = job.shape.batch * job.shape.sequence;
    this.#ranks = startRanks({
      size,
      entry: new URL("./ranks-rank.ts", import.meta.url),
      data: job,
      backend: { numThreads: threads },
      timeoutMs: 3_600_000,
      onMessage: (_, reply) => this.#answered?.(reply as RanksReply),
    });
  }
  async step(): Promise<RanksReply> {
    return await new Promise((resolve, reject) => {
      this.#answered = resolve;
      this.#ranks.results.catch(reject);
      this.#ranks.post(0, "step");
    });
  }
  get side(): Side {
    return { sample: async () => this.#tokens / (await this.step()).seconds };
  }
  async end(): Promise<void> {
    this.#ranks.post(0, "end");
    await this.#ranks.results;
  }
}

interface RanksRow {
  readonly name: string;
  readonly shape: TrainShape;
  readonly layout: LayoutInput;
  readonly precision: Precision;
  readonly forcedBalance?: boolean;
}
const rows: readonly RanksRow[] = [
  { name: "ranks.dp", shape: trainShape, layout: { dp: 2 }, precision: "f32" },
  { name: "ranks.tp", shape: trainShape, layout: { tp: 2 }, precision: "f32" },
  { name: "ranks.edp", shape: moeShape, layout: { tp: 2, strategy: "EDP" }, precision: "f32" },
  { name: "ranks.edp.balanced", shape: moeShape, layout: { tp: 2, strategy: "EDP" }, precision: "f32", forcedBalance: true },
];

export async function* ranksRows(context: Context): AsyncGenerator<Row> {
  const names = wanted(context, [...rows.map(({ name }) => name), "ddp", "zero.memory", "overlap.alltoall"]);
  const effort = { samples: Math.min(5, context.effort.samples), warmups: 1 };
  for (const { name, shape, layout, precision, forcedBalance = false } of rows) {
    if (!names.includes(name)) continue;
    context.log(`${name}: two ranks and one`);
    const job = { shape, precision, microBatchSequences: shape.batch / 2, forcedBalance };
    const two = new Steppers(2, 1, { ...job, layout });
    const one = new Steppers(1, 2, { ...job, layout: {} });
    const [ours = [], rival = []] = await interleave([two.side, one.side], effort);
    await Promise.all([two.end(), one.end()]);
    const note = `2 ranks of 1 thread; rival: 1 rank of 2 threads${forcedBalance ? "; moe.forcedBalance on both sides" : ""}`;
    yield { name, ours, rival, unit: "tokens/s", bar: ranksBar, note };
  }
  if (names.includes("ddp")) yield await ddpRow(effort);
  if (names.includes("zero.memory")) yield await memoryRow();
  if (names.includes("overlap.alltoall")) yield await overlapRow(context);
}

async function ddpRow(effort: { samples: number; warmups: number }): Promise<Row> {
  const ours = new Steppers(2, 1, { shape: trainShape, layout: { dp: 2 }, precision: "f32", microBatchSequences: trainShape.batch / 2 });
  const row = { name: "ddp", unit: "tokens/s", note: "2 ranks of 1 thread each, f32; rival: PyTorch DDP over gloo" } as const;
  const python = process.env["MOE_PYTHON"] ?? join(import.meta.dirname, ".venv", "bin", "python");
  try {
    using rival = new LineProcess(
      python,
      [join(import.meta.dirname, "rival", "rival_ddp.py"), JSON.stringify({ shape: trainShape, ranks: 2 })],
      {
        OMP_NUM_THREADS: "1",
      },
    );
    const tokens = trainShape.batch * trainShape.sequence;
    const side = { sample: async () => tokens / Number(await rival.ask("step", 300_000)) };
    const [mine = [], theirs = []] = await interleave([ours.side, side], effort);
    return { ...row, ours: mine, rival: theirs, bar: ddpBar };
  } catch (error) {
    const [mine = []] = await interleave([ours.side], effort);
    return { ...row, ours: mine, rival: [], bar: null, note: `the rival does not run: ${messageOf(error)}` };
  } finally {
    await ours.end();
  }
}

/** Between steps: weights, gradients, optimizer; what a step needs besides is gone. */
async function memoryRow(): Promise<Row> {
  const layout: LayoutInput = { dp: 2, tp: 2, strategy: "EDP", zero: 1 };
  const four = new Steppers(4, 1, { shape: moeShape, layout, precision: "bf16", microBatchSequences: 1 });
  await four.step();
  const { bytes } = await four.step();
  await four.end();
  const full = layoutOf(parseRunConfig(runOfLayout(layout)));
  const expected = stateBytes(fromHuggingFaceConfig(moeShape.config), full, "bf16", 0);
  return {
    name: "zero.memory",
    ours: [bytes],
    rival: [expected],
    unit: "bytes",
    bar: memoryBar,
    note: "rank 0 of 4 (dp 2, tp 2, EDP, ZeRO-1, bf16), between steps; rival: the formula",
  };
}
function runOfLayout(layout: LayoutInput): RunConfigInput {
  return {
    model: { config: {} },
    data: { train: [{ path: "none" }], sequenceLength: 1 },
    batchSequences: 8,
    microBatchSequences: 1,
    numSteps: 1,
    optimizer: { learningRate: 1 },
    layout,
  };
}

async function overlapRow({ effort, log }: Context): Promise<Row> {
  const folder = mkdtempSync(join(tmpdir(), "moe-bench-overlap-"));
  try {
    writeTokens(folder);
    const hidden: number[] = [];
    let note = "";
    for (let i = 0; i < Math.min(3, effort.samples); i++) {
      log(`overlap.alltoall: ${i + 1}`);
      const result = await measureOverlap(folder, 8);
      hidden.push(result.hidden);
      note = `exposed without overlap: ${(100 * result.exposed).toFixed(0)}% of the step, over ${result.link.gigabytesPerSecond.toFixed(3)} GB/s`;
    }
    // A share has an upper bar: what is not hidden.
    return {
      name: "overlap.alltoall",
      ours: hidden.map((share) => 1 - share),
      rival: hidden.map(() => 1),
      unit: "share",
      bar: overlapBar,
      note,
    };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

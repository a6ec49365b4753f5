/**
 * Rows `train.f32`, `train.bf16` and `train.memory`: one optimizer step of a Llama of 32 million parameters (batch 8, sequence 512) in our
 * trainer and in transformers with PyTorch: SDPA attention, fused AdamW, gradients clipped to norm 1 on both sides.
 *
 * In bf16 the rival is the faster of autocast over f32 weights and a model that is bf16 throughout (whose optimizer state is bf16 too, unlike
 * ours, which keeps f32 masters and moments). `torch.compile` runs as a second rival where it works within its time.
 *
 * Memory: growth of the process's peak resident size from just before the model exists, each sample in a fresh process.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadBackend } from "../src/backend/load.ts";
import { flopsPerToken } from "../src/config/model-counts.ts";
import { fromHuggingFaceConfig } from "../src/config/model-huggingface.ts";
import { parseRunConfig } from "../src/config/run.ts";
import { Dataset, TokenFile, TokenFileWriter } from "../src/data/index.ts";
import { Decoder } from "../src/model/index.ts";
import { Engine } from "../src/tensor/index.ts";
import { Trainer } from "../src/train/index.ts";
import { Random } from "../src/util/random.ts";
import { messageOf, precisions, startRival, wants, type Context, type Precision } from "./context.ts";
import { interleave, median, type Row, type Side } from "./measure.ts";
import { LineProcess, type PythonRival } from "./process.ts";

/** A training step, as both sides get it. */
export interface TrainShape {
  /** Sequences of a step. */
  readonly batch: number;
  /** Tokens of a sequence. */
  readonly sequence: number;
  /** In the form of a Hugging Face `config.json`. */
  readonly config: Readonly<Record<string, unknown>> & { readonly model_type: string; readonly vocab_size: number };
}

export const trainShape: TrainShape = {
  batch: 8,
  sequence: 512,
  config: {
    model_type: "llama",
    vocab_size: 8192,
    hidden_size: 512,
    intermediate_size: 1408,
    num_hidden_layers: 8,
    num_attention_heads: 8,
    num_key_value_heads: 4,
    max_position_embeddings: 512,
    rms_norm_eps: 1e-5,
    tie_word_embeddings: false,
  },
};

const trainBar = 1.3;
const memoryBar = 0.8;
const threads = 2;
/** The optimizer's state and all gradients are there from the second step on. */
const memorySteps = 2;
/** The rival's ways to a step in each precision (`rival/rival_train.py`). */
export type Variants = Readonly<Record<Precision, readonly string[]>>;
const variantsOf: Variants = { f32: ["f32"], bf16: ["autocast", "bf16"] };
/** For compiling and the first step. */
const compileTimeoutMs = 240_000;

/** Our step: a trainer over random tokens. */
export class OurTraining implements Disposable {
  readonly engine: Engine;
  readonly #model: Decoder;
  readonly #trainer: Trainer;
  readonly #tokens: TokenFile;
  readonly #folder: string;
  readonly #shape: TrainShape;

  constructor(engine: Engine, precision: Precision, shape: TrainShape = trainShape) {
    const { batch, sequence, config } = shape;
    const tokensPerStep = batch * sequence;
    this.engine = engine;
    this.#shape = shape;
    this.#folder = mkdtempSync(join(tmpdir(), "moe-bench-"));
    const path = join(this.#folder, "tokens");
    const random = new Random(1);
    using writer = new TokenFileWriter(path, { vocabSize: config.vocab_size });
    writer.append(Int32Array.from({ length: 8 * tokensPerStep + 1 }, () => random.integer(config.vocab_size)));
    writer.finish("random");
    this.#tokens = new TokenFile(path);
    this.#model = Decoder.initialize(engine, fromHuggingFaceConfig(config), { dtype: precision, seed: 1 });
    const run = parseRunConfig({
      model: { config: {} },
      data: { train: [{ path }], sequenceLength: sequence },
      batchSequences: batch,
      numSteps: 1000,
      precision,
      optimizer: { learningRate: 1e-4, clipNorm: 1 },
    });
    this.#trainer = new Trainer(run, this.#model, new Dataset(this.#tokens, { sequenceLength: sequence, seed: 1 }), { peakFlops: null });
  }
  /** Of forward and backward. */
  get flopsPerToken(): number {
    return flopsPerToken(this.#model.config, this.#shape.sequence);
  }
  /** Seconds of one step. */
  step(): number {
    return this.#trainer.step().seconds;
  }
  [Symbol.dispose](): void {
    this.#trainer[Symbol.dispose]();
    this.#model[Symbol.dispose]();
    this.#tokens[Symbol.dispose]();
    rmSync(this.#folder, { recursive: true });
  }
}

/** A rival's step, or why it does not run. */
async function rivalStep(variant: string, shape: TrainShape, timeoutMs?: number): Promise<{ rival: PythonRival; side: Side } | string> {
  const rival = await startRival("linear.versions");
  if (typeof rival === "string") return rival;
  try {
    await rival.call("train.setup", { variant, shape, threads }, timeoutMs);
    await rival.call("train.step", {}, timeoutMs);
  } catch (error) {
    rival[Symbol.dispose]();
    return `${variant}: ${messageOf(error)}`;
  }
  const tokensPerStep = shape.batch * shape.sequence;
  return { rival, side: { sample: async () => tokensPerStep / (await rival.number("train.step", {}, "seconds")) } };
}

export interface StepRow {
  readonly name: string;
  readonly shape: TrainShape;
  /** The fastest of these is the rival. */
  readonly variants: readonly string[];
  /** A further rival that takes minutes to start: told, not judged. */
  readonly slow?: string;
  readonly bar: number;
}

/** Steps of a trial, after the one of `rivalStep`. */
const trialSteps = 2;

/**
 * The fastest of the rival's ways to a step, still running. They are tried one after the other and in fresh processes: side by side,
 * some models would not fit in memory, and a process that has run a slow way may keep gigabytes.
 */
async function fastestVariant(
  { name, shape, variants }: StepRow,
  log: Context["log"],
): Promise<{ running: { variant: string; rival: PythonRival; side: Side } | null; trials: Record<string, number[]>; notes: string[] }> {
  const trials: Record<string, number[]> = {};
  const notes: string[] = [];
  let best: { variant: string; rate: number } | null = null;
  for (const variant of variants) {
    log(`${name}: trying ${variant}`);
    const started = await rivalStep(variant, shape);
    if (typeof started === "string") {
      notes.push(started);
      continue;
    }
    const { rival, side } = started;
    const rates: number[] = [];
    try {
      for (let i = 0; i < trialSteps; i++) rates.push(await side.sample());
    } finally {
      rival[Symbol.dispose]();
    }
    trials[`${variant}, trial`] = rates;
    const rate = median(rates);
    if (best === null || rate > best.rate) best = { variant, rate };
  }
  if (best === null) return { running: null, trials, notes };
  const again = await rivalStep(best.variant, shape);
  if (typeof again === "string") return { running: null, trials, notes: [...notes, again] };
  return { running: { variant: best.variant, ...again }, trials, notes };
}

/** Our step and the rival's, in turn: a row in tokens a second, beside what the roof's FLOP/s would allow. */
export async function measureStep(context: Context, precision: Precision, row: StepRow): Promise<Row> {
  const { name, shape, slow, bar } = row;
  const { effort, log } = context;
  const tokensPerStep = shape.batch * shape.sequence;
  const { running, trials, notes } = await fastestVariant(row, log);
  const sides: Side[] = running === null ? [] : [running.side];
  let compiled: PythonRival | null = null;
  const engine = new Engine(await loadBackend({ numThreads: threads }));
  try {
    if (slow !== undefined && effort.samples > 3) {
      log(`${name}: starting ${slow}`);
      const started = await rivalStep(slow, shape, compileTimeoutMs);
      if (typeof started === "string") notes.push(started);
      else {
        compiled = started.rival;
        sides.push(started.side);
      }
    }
    using training = new OurTraining(engine, precision, shape);
    const roof: Side = { sample: async () => ((await context.roof.arithmetic(precision, threads)) * 1e9) / training.flopsPerToken };
    const all = [{ sample: () => tokensPerStep / training.step() }, roof, ...sides];
    const [ours = [], roofs = [], ...taken] = await interleave(all, { samples: Math.min(5, effort.samples), warmups: 1 });
    const rival = running === null ? [] : (taken[0] ?? []);
    const others = { ...trials, ...(compiled !== null && slow !== undefined ? { [slow]: taken.at(-1) ?? [] } : {}) };
    const told = running === null ? notes : [`the rival is ${running.variant}`, ...notes];
    return { name, ours, rival, unit: "tokens/s", bar, roof: roofs, others, note: told.join("; ") };
  } finally {
    running?.rival[Symbol.dispose]();
    compiled?.[Symbol.dispose]();
    engine[Symbol.dispose]();
  }
}

async function ourMemory(precision: Precision): Promise<{ bytes: number; backendBytes: number }> {
  using child = new LineProcess(process.execPath, [join(import.meta.dirname, "train-memory.ts")]);
  return JSON.parse(await child.ask(JSON.stringify({ precision, steps: memorySteps, threads }))) as { bytes: number; backendBytes: number };
}

async function rivalMemory(variant: string): Promise<number> {
  const rival = await startRival("train.ready");
  if (typeof rival === "string") throw new Error(rival);
  try {
    return await rival.number("train.memory", { variant, shape: trainShape, threads, steps: memorySteps }, "bytes");
  } finally {
    rival[Symbol.dispose]();
  }
}

/** The row's two sides take turns; bf16, which is told beside it, is taken once: the figures hardly vary. */
async function measureMemory({ effort, log }: Context): Promise<Row> {
  const inBackend: Record<string, number[]> = {};
  const ours = async (precision: Precision): Promise<number> => {
    const { bytes, backendBytes } = await ourMemory(precision);
    (inBackend[`ours ${precision}, in the backend`] ??= []).push(backendBytes);
    return bytes;
  };
  log("train.memory: fresh processes");
  const row = { name: "train.memory", unit: "bytes", bar: memoryBar } as const;
  try {
    const samples = effort.samples > 3 ? 3 : 1;
    const [f32 = [], rival = []] = await interleave([{ sample: () => ours("f32") }, { sample: () => rivalMemory("f32") }], {
      samples,
      warmups: 0,
    });
    const others = {
      "ours bf16": [await ours("bf16")],
      autocast: [await rivalMemory("autocast")],
      bf16: [await rivalMemory("bf16")],
      ...inBackend,
    };
    return { ...row, ours: f32, rival, others, note: "the f32 step on both sides; bf16 beside it" };
  } catch (error) {
    return { ...row, ours: [await ours("f32")], rival: [], note: messageOf(error) };
  }
}

/** Rows `train.f32` and `train.bf16`, tokens a second, then `train.memory`, bytes. */
export async function* trainRows(context: Context): AsyncGenerator<Row> {
  for (const precision of precisions) {
    const name = `train.${precision}`;
    // Compiling is a second rival of the usually faster way only.
    const slow = precision === "f32" ? "f32+compile" : "autocast+compile";
    if (wants(context, name))
      yield await measureStep(context, precision, { name, shape: trainShape, variants: variantsOf[precision], slow, bar: trainBar });
  }
  if (wants(context, "train.memory")) yield await measureMemory(context);
}

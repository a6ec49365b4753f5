import { copyFileSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { loadBackend } from "../backend/load.ts";
import { fromHuggingFaceConfig } from "../config/model-huggingface.ts";
import { parseRunConfig, type RunConfigInput } from "../config/run.ts";
import { Dataset } from "../data/index.ts";
import { Decoder } from "../model/index.ts";
import { Engine } from "../tensor/index.ts";
import { madeUpText, tinyModel, tinyRun, trainedBytes, unevenTokens } from "../../test/train/harness.ts";
import {
  evaluate,
  listCheckpoints,
  readCheckpointState,
  train,
  Trainer,
  type StepMetrics,
  type TrainEvent,
  type TrainResult,
} from "./index.ts";

let folder = "";
let engine: Engine;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "moe-train-"));
  engine = new Engine(await loadBackend({ numThreads: 1 }));
});
afterEach(() => {
  expect(engine.backend.liveBytes).toBe(0);
  engine[Symbol.dispose]();
  rmSync(folder, { recursive: true, force: true });
});

/** Runs a configuration in `folder/name`. */
async function run(
  input: RunConfigInput,
  name = "run",
  resume = false,
  onEvent: (event: TrainEvent) => void = () => undefined,
): Promise<TrainResult> {
  return await train({ engine, config: parseRunConfig(input), runFolder: join(folder, name), resume, onEvent });
}
/** Steps of a trainer over these tokens: metrics and the final weights. */
function steps(
  kind: "dense" | "moe",
  changes: Partial<RunConfigInput>,
  numSteps = 3,
): { metrics: StepMetrics[]; weights: Map<string, Float32Array> } {
  using file = unevenTokens(folder);
  const config = parseRunConfig({ ...tinyRun(folder, kind), batchSequences: 8, ...changes });
  const data = new Dataset(file, { sequenceLength: 32, seed: 1 });
  using model = Decoder.initialize(engine, fromHuggingFaceConfig(tinyModel(kind), "test"), { dtype: config.precision, seed: 1 });
  using trainer = new Trainer(config, model, data, { peakFlops: null });
  const metrics = Array.from({ length: numSteps }, () => trainer.step());
  return { metrics, weights: new Map([...model.parameters].map(([name, tensor]) => [name, tensor.toFloat32Array()])) };
}
function relativeGap(a: Float32Array, b: Float32Array): number {
  let [difference, size] = [0, 0];
  for (const [i, value] of a.entries()) {
    difference = Math.max(difference, Math.abs(value - (b[i] ?? Number.NaN)));
    size = Math.max(size, Math.abs(value));
  }
  return difference / size;
}

describe("a step", () => {
  test("weighs every loss-bearing token of the global batch alike, however the batch is cut", () => {
    const whole = steps("dense", { microBatchSequences: 8 });
    // The micro-batches do bear different numbers of tokens: a mean of means would be another loss.
    for (const microBatchSequences of [2, 1]) {
      const cut = steps("dense", { microBatchSequences });
      for (const [i, { loss, gradNorm, tokens }] of whole.metrics.entries()) {
        expect(Math.abs((cut.metrics[i]?.loss ?? 0) - loss)).toBeLessThan(1e-5 * loss);
        expect(Math.abs((cut.metrics[i]?.gradNorm ?? 0) - gradNorm)).toBeLessThan(1e-5 * gradNorm);
        expect(cut.metrics[i]?.tokens).toBe(tokens);
      }
      for (const [name, values] of whole.weights)
        expect(relativeGap(values, cut.weights.get(name) ?? new Float32Array()), name).toBeLessThan(1e-5);
    }
  });
  test("does not depend on recomputation", () => {
    expect(steps("moe", { recomputeLayers: 2 }).weights).toEqual(steps("moe", {}).weights);
  });
  test("reports loads that sum to 1, drops only under a capacity, and the balance loss that it trains on", () => {
    const free = steps("moe", { moe: { auxiliaryLossCoefficient: 0.5 }, microBatchSequences: 4 }).metrics[0];
    const tight = steps("moe", { moe: { capacityFactor: 0.5 } }).metrics[0];
    for (const { load, dropRate, layer } of free?.layers ?? []) {
      expect(load.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 12);
      expect(dropRate).toBe(0);
      // Half of a fair share each: at least half of the assignments go.
      expect(tight?.layers[layer]?.dropRate).toBeGreaterThanOrEqual(0.45);
    }
    const balance = (free?.layers ?? []).reduce((sum, layer) => sum + layer.auxiliaryLoss, 0);
    expect(free?.auxiliaryLoss).toBeCloseTo(0.5 * balance, 10);
    expect(free?.layers).toHaveLength(2);
  });
  test("lets the moments of experts without tokens decay and changes nothing else of them", () => {
    using file = unevenTokens(folder);
    const config = parseRunConfig({ ...tinyRun(folder, "moe"), optimizer: { learningRate: 1e-3, weightDecay: 0 } });
    using model = Decoder.initialize(engine, fromHuggingFaceConfig(tinyModel("moe"), "test"), { dtype: "f32", seed: 1 });
    using trainer = new Trainer(config, model, new Dataset(file, { sequenceLength: 32, seed: 1 }), { peakFlops: null });
    // Gates of zero tie, and ties go to the lower index: experts 2 and 3 get nothing.
    engine.fillZero(model.parameters.get("layers.0.moe.router.weight") ?? engine.zeros([1], "f32"));
    const before = model.parameters.get("layers.0.moe.experts.up")?.toFloat32Array() ?? new Float32Array();
    const first = trainer.step();
    expect(first.layers[0]?.load).toEqual([0.5, 0.5, 0, 0]);
    const after = model.parameters.get("layers.0.moe.experts.up")?.toFloat32Array() ?? new Float32Array();
    const perExpert = before.length / 4;
    expect(after.subarray(2 * perExpert)).toEqual(before.subarray(2 * perExpert));
    expect(after.subarray(0, perExpert)).not.toEqual(before.subarray(0, perExpert));
    const moments = trainer.optimizer.state().tensors.get("layers.0.moe.experts.up.exp_avg_sq")?.toFloat32Array();
    expect(moments?.subarray(2 * perExpert).every((value) => value === 0)).toBe(true);
  });
  test("that is not finite names the step and the parameter and changes nothing", () => {
    using file = unevenTokens(folder);
    const config = parseRunConfig(tinyRun(folder, "dense"));
    using model = Decoder.initialize(engine, fromHuggingFaceConfig(tinyModel("dense"), "test"), { dtype: "f32", seed: 1 });
    using trainer = new Trainer(config, model, new Dataset(file, { sequenceLength: 32, seed: 1 }), { peakFlops: null });
    trainer.step();
    engine.backend.kernels.fillF32(model.parameters.get("layers.1.feedForward.up.weight")?.ptr ?? 0, 1, Number.NaN);
    const head = model.parameters.get("head.weight")?.toFloat32Array();
    expect(() => trainer.step()).toThrow(/step 2: the loss is NaN \(first in the weights of layers\.1\.feedForward\.up\.weight\)/);
    expect(model.parameters.get("head.weight")?.toFloat32Array()).toEqual(head);
    expect(trainer.state.step).toBe(1);
  });
});

test("a run gives the same bits on 1, 2 and 3 threads", async () => {
  const input = tinyRun(folder, "moe", {
    numSteps: 4,
    moe: { capacityFactor: 1 },
    data: { train: [{ path: join(folder, "text.txt") }], sequenceLength: 64 },
  });
  const results = [];
  for (const numThreads of [1, 2, 3]) {
    using threaded = new Engine(await loadBackend({ numThreads }));
    const result = await train({ engine: threaded, config: parseRunConfig(input), runFolder: join(folder, `threads-${numThreads}`) });
    results.push(trainedBytes(result.folder));
  }
  expect(results[1]).toEqual(results[0]);
  expect(results[2]).toEqual(results[0]);
});

describe("an evaluation", () => {
  test("is the mean over tokens, with the standard error of a ratio over sequences, whatever the batch", () => {
    using file = unevenTokens(folder);
    const data = new Dataset(file, { sequenceLength: 32, seed: 1, shuffle: false });
    using model = Decoder.initialize(engine, fromHuggingFaceConfig(tinyModel("moe"), "test"), { dtype: "f32", seed: 1 });
    const whole = evaluate(model, data, { maxSequences: 7, batchSequences: 7 });
    expect(evaluate(model, data, { maxSequences: 7, batchSequences: 2 })).toEqual(whole);
    // By hand, from the evaluation of each sequence by itself (a data set that begins there).
    const each = Array.from({ length: 7 }, (_, i) => {
      const one = data.batch(i, 1);
      const { loss } = evaluate(model, Object.assign(Object.create(data) as Dataset, { numSequences: 1, batch: () => one }), {
        maxSequences: 1,
        batchSequences: 1,
      });
      return { tokens: one.numTargets, sum: loss * one.numTargets };
    });
    const tokens = each.reduce((n, e) => n + e.tokens, 0);
    const mean = each.reduce((n, e) => n + e.sum, 0) / tokens;
    const squares = each.reduce((n, e) => n + (e.sum - mean * e.tokens) ** 2, 0);
    expect(whole).toMatchObject({ numTokens: tokens, numSequences: 7 });
    expect(whole.loss).toBeCloseTo(mean, 12);
    expect(whole.standardError).toBeCloseTo(Math.sqrt((squares / 6) * 7) / tokens, 12);
  });
  test("drops no token, whatever capacity the training has", async () => {
    const text = join(folder, "text.txt");
    const data = { train: [{ path: text }], validation: { a: [{ path: text }], b: [{ path: text }] }, sequenceLength: 32 };
    const losses: number[] = [];
    for (const capacityFactor of [0.3, null]) {
      // A step that changes nothing to speak of: both runs evaluate the same model.
      const input = tinyRun(folder, "moe", {
        data,
        numSteps: 1,
        moe: { capacityFactor },
        optimizer: { learningRate: 1e-30, weightDecay: 0 },
      });
      const { evaluations } = await run(input, `capacity-${capacityFactor}`);
      expect(evaluations["b"]).toEqual(evaluations["a"]);
      losses.push(evaluations["a"]?.loss ?? 0);
    }
    expect(losses[1]).toBe(losses[0]);
  });
});

describe("a run folder", () => {
  const input = (changes: Partial<RunConfigInput> = {}): RunConfigInput =>
    tinyRun(folder, "dense", { checkpoint: { intervalSteps: 2, keep: 2 }, ...changes });

  test("keeps the newest checkpoints, complete metrics and the whole configuration", async () => {
    const events: string[] = [];
    const { folder: last } = await run(input({ numSteps: 9 }), "run", false, ({ type }) => events.push(type));
    expect(readdirSync(join(folder, "run", "checkpoints"))).toEqual(["step-00000008", "step-00000009"]);
    expect(events.filter((type) => type === "checkpoint")).toHaveLength(5);
    expect(readdirSync(last).sort()).toEqual([
      "config.json",
      "generation_config.json",
      "manifest.json",
      "model.safetensors",
      "optimizer.safetensors",
      "state.json",
      "tokenizer.json",
      "tokenizer_config.json",
    ]);
    const lines = readFileSync(join(folder, "run", "metrics.jsonl"), "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as StepMetrics);
    expect(lines.map(({ step }) => step)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9]);
    for (const line of lines) {
      for (const key of ["loss", "learningRate", "gradNorm", "tokens", "seconds", "tokensPerSecond", "mfu", "peakBytes"] as const)
        expect(line[key], key).toBeGreaterThan(0);
    }
    expect(parseRunConfig(JSON.parse(readFileSync(join(folder, "run", "config.json"), "utf8")))).toEqual(
      parseRunConfig(input({ numSteps: 9 })),
    );
  });
  test("is not taken over by a new run, and a finished one resumes to what it was", async () => {
    const { folder: last } = await run(input());
    await expect(run(input())).rejects.toThrow(/run: expected a new run folder, got one with checkpoints; resume it/);
    const before = trainedBytes(last);
    const again = await run(input(), "run", true);
    expect(again.folder).toBe(last);
    expect(trainedBytes(last)).toEqual(before);
  });
  test.each([
    ["a flipped byte in the weights", "model.safetensors", (path: string) => flipByte(path)],
    ["a flipped byte in the moments", "optimizer.safetensors", (path: string) => flipByte(path)],
    ["a missing tokenizer", "tokenizer.json", (path: string) => rmSync(path)],
    ["missing weights", "model.safetensors", (path: string) => rmSync(path)],
    ["a changed state", "state.json", (path: string) => writeFileSync(path, readFileSync(path, "utf8").replace('"step": 6', '"step": 5'))],
    ["a missing manifest", "manifest.json", (path: string) => rmSync(path)],
    ["a manifest that lists nothing", "manifest.json", (path: string) => writeFileSync(path, '{"files":{}}')],
  ])("refuses a checkpoint with %s by the name of the file, and resumes from the one before", async (_, name, damage) => {
    const whole = await run(input());
    const expected = trainedBytes(whole.folder);
    damage(join(whole.folder, name));
    await expect(run(input(), "run", true)).rejects.toThrow(new RegExp(`step-00000006/${name.replace(".", "\\.")}: expected .*, got `));
    rmSync(whole.folder, { recursive: true });
    expect(listCheckpoints(join(folder, "run")).map((path) => readCheckpointState(path).training.step)).toEqual([4]);
    expect(trainedBytes((await run(input(), "run", true)).folder)).toEqual(expected);
  });
  test("is not resumed under another precision, model, seed or text", async () => {
    const { folder: last } = await run(input());
    const resume = async (changes: Partial<RunConfigInput>): Promise<unknown> => await run({ ...input(), ...changes }, "run", true);
    await expect(resume({ precision: "bf16" })).rejects.toThrow(`${last}: saved with precision f32, cannot resume with bf16`);
    await expect(resume({ seed: 7 })).rejects.toThrow(/cannot resume, because the training text, .* or the seed changed/);
    await expect(resume({ model: { config: { ...tinyModel("dense"), hidden_size: 64 } } })).rejects.toThrow(/hidden_size: 32 -> 64/);
    const changed = input();
    writeFileSync(join(folder, "text.txt"), madeUpText(400, 2));
    await expect(run(changed, "run", true)).rejects.toThrow(/cannot resume/);
  });
  test("goes on under other settings with a warning that prints them", async () => {
    await run(input());
    const warnings: string[] = [];
    const { state } = await run(input({ numSteps: 8 }), "run", true, (event) => event.type === "warning" && warnings.push(event.message));
    expect(state.step).toBe(8);
    expect(warnings).toEqual(["resumed under a changed configuration: numSteps: 6 -> 8"]);
  });
  test("starts from a checkpoint of another run, with that model's tokenizer", async () => {
    const { folder: first } = await run(input());
    const { newTokenizer: _, ...rest } = input();
    const second = await run({ ...rest, model: { from: first }, precision: "bf16" }, "second");
    expect(second.state.step).toBe(6);
    expect(readFileSync(join(second.folder, "tokenizer.json"))).toEqual(readFileSync(join(first, "tokenizer.json")));
  });
});

test("a validation loss that is no number ends the run, by name, with the weights saved", async () => {
  // Beyond f32: the one step leaves infinite weights, which the next loss would have told.
  const input = tinyRun(folder, "dense", { numSteps: 1, optimizer: { learningRate: 1e39 } });
  const data = { ...input.data, validation: { held: [{ path: join(folder, "text.txt") }] } };
  const message = /step 1: the validation loss of held is (NaN|Infinity)\. The weights are in .*step-00000001; try a lower learning rate/;
  await expect(run({ ...input, data })).rejects.toThrow(message);
  expect(listCheckpoints(join(folder, "run"))).toHaveLength(1);
});

test("a second run in a folder is refused while the first is at work, and the first goes on", async () => {
  const input = tinyRun(folder, "dense", { numSteps: 3 });
  let refused: unknown = null;
  const result = await run(input, "run", false, ({ type }) => {
    if (type !== "start") return;
    refused = run(input, "run", true).catch((error: unknown) => error);
  });
  expect(String(await refused)).toMatch(/run: expected a run folder that no process trains in, got one of process \d+/);
  expect([result.state.step, readdirSync(join(folder, "run")).includes("lock")]).toEqual([3, false]);
});

function flipByte(path: string): void {
  const bytes = readFileSync(path);
  const at = bytes.length - 10;
  bytes[at] = (bytes[at] ?? 0) ^ 4;
  writeFileSync(path, bytes);
}

describe("what cannot be trained on", () => {
  const withText = (content: string | null, changes: Partial<RunConfigInput> = {}): RunConfigInput => {
    const path = join(folder, "other.txt");
    if (content !== null) writeFileSync(path, content);
    return { ...tinyRun(folder, "dense", changes), data: { train: [{ path }], sequenceLength: 32 } };
  };
  test.each([
    ["a text shorter than a sequence", () => withText("too short"), /data\.train \(.*other\.txt\): expected at least 33 tokens .* got \d+/],
    ["an empty text", () => withText(""), /other\.txt: expected some text, got an empty file/],
    ["white space", () => withText("\n \n"), /other\.txt: expected some text, got no tokens at all/],
    ["a missing text", () => withText(null), /other\.txt: expected .* got no such file/],
    [
      "a sequence longer than the model's",
      () => ({ ...withText(madeUpText(99)), data: { ...tinyRun(folder, "dense").data, sequenceLength: 65 } }),
      /data\.sequenceLength 65 exceeds the model's max_position_embeddings 64/,
    ],
    [
      "a missing model",
      () => ({ ...withText(madeUpText(99)), newTokenizer: undefined, model: { from: join(folder, "nothing") } }),
      /nothing: expected .*config\.json/,
    ],
    ["a missing tokenizer", () => ({ ...withText(madeUpText(99)), newTokenizer: undefined }), /needs a tokenizer/],
  ])("is refused by name: %s", async (_, make, message) => {
    const { newTokenizer, ...rest } = make();
    await expect(run(newTokenizer === undefined ? rest : { ...rest, newTokenizer })).rejects.toThrow(message);
    expect(listCheckpoints(join(folder, "run"))).toEqual([]);
  });
  test("is refused by name: a tokenizer with more ids than the model has rows", async () => {
    const { newTokenizer: _, ...rest } = tinyRun(folder, "dense");
    const { folder: trained } = await run(tinyRun(folder, "dense", { numSteps: 1 }), "first");
    const model = { config: { ...tinyModel("dense"), vocab_size: 280 } };
    await expect(run({ ...rest, model, tokenizer: trained })).rejects.toThrow(
      /step-00000001: the tokenizer has \d+ ids, the model's embedding 280 rows/,
    );
  });
  test("stops while the text is read when asked to, and leaves no file", async () => {
    const controller = new AbortController();
    controller.abort();
    const config = parseRunConfig(tinyRun(folder, "dense"));
    await expect(train({ engine, config, runFolder: join(folder, "run"), signal: controller.signal })).rejects.toThrow(
      /stopped while reading the text/,
    );
    expect(existsSync(join(folder, "run", "tokens", "train.tokens"))).toBe(false);
  });
});

test("several validation sets, of several files and formats, are evaluated each by its name", async () => {
  const text = join(folder, "text.txt");
  const jsonl = join(folder, "more.jsonl");
  const input = tinyRun(folder, "dense", {});
  writeFileSync(jsonl, `${JSON.stringify({ body: madeUpText(80, 5) })}\n`);
  copyFileSync(text, join(folder, "copy.txt"));
  const validation = { one: [{ path: text }], two: [{ path: jsonl, field: "body" }, { path: join(folder, "copy.txt") }] };
  const { evaluations } = await run({ ...input, data: { ...input.data, validation } });
  expect(Object.keys(evaluations)).toEqual(["one", "two"]);
  expect(evaluations["one"]?.loss).not.toBe(evaluations["two"]?.loss);
});

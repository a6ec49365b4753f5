/** Texts that a run writes, and the experts of their tokens. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { checkpointOf, tinyModel, tinyRun, trainedBytes } from "../../test/train/harness.ts";
import { loadBackend } from "../backend/load.ts";
import { loadTokenizer } from "../checkpoint/tokenizer.ts";
import { parseRunConfig, type RunConfigInput } from "../config/run.ts";
import { loadModel } from "../model/index.ts";
import { Engine } from "../tensor/index.ts";
import { train, type SampleRecord } from "./index.ts";
import { writeSamples } from "./samples.ts";

let folder = "";
let engine: Engine;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "moe-samples-"));
  engine = new Engine(await loadBackend({ numThreads: 1 }));
});
afterEach(() => {
  expect(engine.backend.liveBytes).toBe(0);
  engine[Symbol.dispose]();
  rmSync(folder, { recursive: true, force: true });
});

const samples = { intervalSteps: 2, prompts: ["the cat", ""], maxTokens: 12 };
const input = (changes: Partial<RunConfigInput> = {}): RunConfigInput => tinyRun(folder, "skywork", { numSteps: 4, samples, ...changes });
async function run(config: RunConfigInput, name: string, resume = false, stopAfter = Infinity): Promise<void> {
  const controller = new AbortController();
  await train({
    engine,
    config: parseRunConfig(config),
    runFolder: join(folder, name),
    resume,
    signal: controller.signal,
    onEvent: (event) => {
      if (event.type === "step" && event.metrics.step >= stopAfter) controller.abort();
    },
  });
}
const recordsOf = (name: string): SampleRecord[] =>
  readFileSync(join(folder, name, "samples.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as SampleRecord);

describe("samples of a run", () => {
  test("are written for every prompt before the first step and at every interval, with the experts of every token", async () => {
    await run(input(), "run");
    const records = recordsOf("run");
    expect(records.map(({ step, prompt }) => [step, prompt])).toEqual([
      [0, 0],
      [0, 1],
      [2, 0],
      [2, 1],
      [4, 0],
      [4, 1],
    ]);
    const tokenizer = await loadTokenizer(checkpointOf(join(folder, "run"), 4));
    for (const record of records) {
      const { tokens, ids, layers, experts, weights, promptTokens, prompt } = record;
      expect(layers).toEqual([0, 1]);
      expect(tokens.length).toBe(ids.length);
      expect(ids.length).toBeGreaterThan(promptTokens);
      expect(ids.length).toBeLessThanOrEqual(promptTokens + 12);
      expect(tokens.join("")).toBe(tokenizer.decode(ids, { skipSpecialTokens: false }));
      if (prompt === 0) expect(tokens.slice(0, promptTokens).join("")).toContain("the cat");
      expect(experts.map((layer) => layer.length)).toEqual([ids.length, ids.length]);
      for (const [l, layer] of experts.entries())
        for (const [t, chosen] of layer.entries()) {
          expect(new Set(chosen).size).toBe(2);
          expect(chosen.every((e) => e >= 0 && e < 4)).toBe(true);
          const [first = 0, second = 0] = weights[l]?.[t] ?? [];
          expect(first).toBeGreaterThanOrEqual(second);
          expect(first + second).toBeCloseTo(1, 3);
        }
    }
    expect(Object.keys(records[0] ?? {}).toSorted((a, b) => a.localeCompare(b))).toEqual(documentedKeys());
  });

  test("change no bit of the training, and a resumed run writes the same ones", async () => {
    await run(input(), "with");
    await run(input({ samples: { intervalSteps: 0 } }), "without");
    expect(existsSync(join(folder, "without", "samples.jsonl"))).toBe(false);
    expect(trainedBytes(checkpointOf(join(folder, "with"), 4))).toEqual(trainedBytes(checkpointOf(join(folder, "without"), 4)));
    await run(input(), "resumed", false, 3);
    // What a process wrote that died after the checkpoint: made again, not kept twice.
    writeFileSync(join(folder, "resumed", "samples.jsonl"), '{"type":"sample","step":4,"prompt":0}\n{"torn', { flag: "a" });
    await run(input(), "resumed", true);
    expect(recordsOf("resumed")).toEqual(recordsOf("with"));
  });

  test("tell the routing that the model has for the text as a batch, whatever cut it was generated in", async () => {
    await run(input(), "run");
    const checkpoint = checkpointOf(join(folder, "run"), 4);
    const tokenizer = await loadTokenizer(checkpoint);
    using model = loadModel(engine, checkpoint, { dtype: "f32", mapped: false });
    expect(writeSamples(model, tokenizer, parseRunConfig(input()), 4)).toEqual(recordsOf("run").slice(-2));
  });

  test("of a dense model have no layers", async () => {
    await run({ ...input(), model: { config: tinyModel("dense") } }, "dense");
    expect(recordsOf("dense").every(({ layers, experts }) => layers.length === 0 && experts.length === 0)).toBe(true);
  });

  test("that leave no room for a prompt are refused before anything is trained", async () => {
    await expect(run(input({ samples: { ...samples, maxTokens: 64 } }), "long")).rejects.toThrow(
      "samples.maxTokens 64 leaves no room for a prompt within the model's 64 positions",
    );
  });
});

/** First cells of the table under "# Samples" in docs/metrics.md. */
function documentedKeys(): string[] {
  const text = readFileSync(join(import.meta.dirname, "../../docs/metrics.md"), "utf8").split("# Samples")[1] ?? "";
  const cells = [...text.matchAll(/^\| (`.*?`) \|/gm)].flatMap(([, cell = ""]) => [...cell.matchAll(/`(\w+)`/g)]);
  return ["type", ...cells.map(([, key = ""]) => key)].toSorted((a, b) => a.localeCompare(b));
}

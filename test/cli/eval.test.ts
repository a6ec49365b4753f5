/** `moe eval` as a process: what goes where, exit codes, and an interruption that loses nothing. */
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { loadBackend } from "../../src/backend/load.ts";
import { writeTokenizerFiles } from "../../src/checkpoint/tokenizer.ts";
import { modelPresets } from "../../src/config/model-presets.ts";
import { Decoder, saveModel } from "../../src/model/index.ts";
import { Engine } from "../../src/tensor/index.ts";

const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
let folder = "";
let model = "";
const env = (): NodeJS.ProcessEnv => ({ ...process.env, HF_ENDPOINT: "http://127.0.0.1:1", MOE_EVAL_DATA: join(folder, "data") });

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "moe-cli-eval-"));
  model = join(folder, "tiny");
  const size = { vocabSize: 1200, hiddenSize: 32, ffnSize: 48, numLayers: 2, numHeads: 2, numKvHeads: 1, headDim: 16, maxPositions: 1024 };
  using engine = new Engine(await loadBackend());
  using decoder = Decoder.initialize(engine, { ...modelPresets.quickstart, ...size, initStd: 0.2 }, { dtype: "f32", seed: 3 });
  saveModel(decoder, model);
  const fixture = new URL("../golden/tokenizer/hf-smollm.tokenizer.json", import.meta.url);
  const tokenizerConfig = { bos_token: "<|im_start|>", eos_token: "<|im_end|>" };
  writeTokenizerFiles({ tokenizerJson: JSON.parse(readFileSync(fixture, "utf8")) as unknown, tokenizerConfig }, model);
  mkdirSync(join(folder, "data"));
  const row = (i: number): string => JSON.stringify({ question: `What is ${i} and ${i}?`, answer: `It is #### ${2 * i}` });
  writeFileSync(join(folder, "data", "gsm8k-test.jsonl"), Array.from({ length: 40 }, (_, i) => row(i)).join("\n"));
  writeFileSync(join(folder, "data", "gsm8k-train.jsonl"), Array.from({ length: 8 }, (_, i) => row(i + 100)).join("\n"));
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

function moe(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, "eval", ...args], { encoding: "utf8", env: env() });
  return { status, stdout, stderr };
}
const withoutTimes = (text: string): unknown => {
  const { date: _date, total_evaluation_time_seconds: _seconds, ...rest } = JSON.parse(text) as Record<string, unknown>;
  return rest;
};

test("prints one JSON object with --json, a table without; progress goes to standard error", () => {
  const outcome = moe(model, "--tasks", "gsm8k", "--limit", "2", "--num-fewshot", "1", "--json");
  expect(outcome.status, outcome.stderr).toBe(0);
  const { results } = JSON.parse(outcome.stdout) as { results: Record<string, Record<string, unknown>> };
  expect(results["gsm8k"]).toMatchObject({ sample_len: 2, "exact_match,strict-match": 0, "exact_match_stderr,strict-match": 0 });
  expect(outcome.stderr).toContain("completions 2/2");
  const table = moe(model, "--tasks", "gsm8k", "--limit", "1", "--num-fewshot", "0");
  expect(table.stdout).toMatch(/^Task +Version +Filter +n-shot +Metric +Value +Stderr\ngsm8k +3 +strict-match +0 +exact_match +0\.0000/);
});

test("an interrupted command keeps what it has, and --resume goes on to the result of an uninterrupted one", async () => {
  const args = ["--tasks", "gsm8k", "--num-fewshot", "1", "--log-samples", "--json", "--batch-tokens", "32"];
  const whole = moe(model, ...args, "--output-path", join(folder, "whole"));
  expect(whole.status, whole.stderr).toBe(0);
  const out = join(folder, "out");
  const responses = join(out, "tiny", "responses.jsonl");
  const child = spawn(process.execPath, [main, "eval", model, ...args, "--output-path", out], {
    env: env(),
    stdio: ["ignore", "ignore", "pipe"],
  });
  let stderr = "";
  child.stderr.on("data", (text: Buffer) => {
    stderr += text.toString();
    if (stderr.includes("completions")) child.kill("SIGINT");
  });
  const status = await new Promise((done) => child.on("exit", done));
  expect(status, stderr).not.toBe(0);
  const kept = readFileSync(responses, "utf8").trimEnd().split("\n").length;
  expect(kept).toBeGreaterThan(0);
  expect(kept).toBeLessThan(40);
  const resumed = moe(model, ...args, "--output-path", out, "--resume");
  expect(resumed.stderr).toContain(`${kept} answers are known from before`);
  expect(withoutTimes(resumed.stdout)).toEqual(withoutTimes(whole.stdout));
  const samples = (where: string): string => {
    const name = readdirSync(join(where, "tiny")).find((file) => file.startsWith("samples_gsm8k_"));
    return readFileSync(join(where, "tiny", name ?? ""), "utf8");
  };
  expect(samples(out)).toBe(samples(join(folder, "whole")));
});

test.each([
  [["--tasks", "gsm9k"], 2, /unknown task gsm9k.*gsm8k/],
  [[], 2, /expected --tasks/],
  [["--tasks", "gsm8k", "--resume"], 2, /--resume needs --output-path/],
  [["--tasks", "gsm8k", "--limit", "0"], 2, /--limit above 0/],
  [["--tasks", "gsm8k", "--task", "x"], 2, /unknown option '--task'/],
  [["--tasks", "mmlu"], 1, /expected data of mmlu/],
  [["--tasks", "gsm8k", "--num-fewshot", "9"], 1, /expected 9 examples/],
])("bad input %j exits with %d and says what was meant", (args, status, message) => {
  const outcome = moe(model, ...args);
  expect(outcome.stderr).toMatch(message);
  expect([outcome.status, outcome.stdout]).toEqual([status, ""]);
  expect(existsSync(join(folder, "eval-data"))).toBe(false);
});

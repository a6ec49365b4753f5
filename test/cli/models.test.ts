/**
 * The commands that read and write models, as processes: exit codes, what goes to which stream, and the way of one small model
 * through all of them.
 */
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadBackend } from "../../src/backend/load.ts";
import { writeTokenizerFiles } from "../../src/checkpoint/tokenizer.ts";
import { modelPresets } from "../../src/config/model-presets.ts";
import { Decoder, saveModel } from "../../src/model/index.ts";
import { Engine } from "../../src/tensor/index.ts";

const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
interface Outcome {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}
function moe(...args: string[]): Outcome {
  // A failing pull must not reach for a network.
  const env = { ...process.env, HF_ENDPOINT: "http://127.0.0.1:1" };
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args], { encoding: "utf8", env });
  return { status, stdout, stderr };
}
/** The one object that a command with --json prints, and nothing beside it. */
function json({ status, stdout, stderr }: Outcome): Record<string, unknown> {
  expect(status, stderr).toBe(0);
  expect(stdout.endsWith("\n")).toBe(true);
  expect(stdout.trimEnd()).not.toContain("\n");
  return JSON.parse(stdout) as Record<string, unknown>;
}

let folder = "";
let dense = "";
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "moe-cli-"));
  dense = join(folder, "dense");
  const size = { vocabSize: 1200, hiddenSize: 32, ffnSize: 48, numLayers: 2, numHeads: 2, numKvHeads: 1, headDim: 16, maxPositions: 256 };
  using engine = new Engine(await loadBackend());
  using model = Decoder.initialize(engine, { ...modelPresets.quickstart, ...size, initStd: 0.2 }, { dtype: "f32", seed: 3 });
  saveModel(model, dense);
  const fixture = new URL("../golden/tokenizer/hf-smollm.tokenizer.json", import.meta.url);
  writeTokenizerFiles({ tokenizerJson: JSON.parse(readFileSync(fixture, "utf8")) as unknown, tokenizerConfig: {} }, dense);
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

describe("wrong usage exits with 2, says what was meant, and prints nothing on standard output", () => {
  test.each([
    [["generate", "x", "--promt", "hi"], /unknown option '--promt'[\s\S]*--prompt/],
    [["inspct", "x"], /unknown command 'inspct'[\s\S]*inspect/],
    [["inspect", "x", "--jsn"], /unknown option '--jsn'[\s\S]*--json/],
    [["upcycle", "x", "y", "--expert", "8"], /unknown option '--expert'[\s\S]*--experts/],
    [["export", "x", "y", "--dtype", "q4"], /'q4' is invalid. Allowed choices are f32, f16, bf16/],
    [["generate", "x"], /expected --prompt/],
    [["generate", "x", "--prompt", "a", "--max-tokens", "0"], /whole number of at least 1/],
    [["generate", "x", "--prompt", "a", "--temperature", "warm"], /number of at least 0/],
    [["inspect"], /missing required argument 'model'/],
    [["inspect", "x", "y"], /too many arguments/],
    [["pull", "smollm2"], /expected a model as owner\/name, got "smollm2"/],
  ])("moe %j", (args, message) => {
    const { status, stdout, stderr } = moe(...args);
    expect(stderr).toMatch(message);
    expect([status, stdout]).toEqual([2, ""]);
  });
});

describe("what is missing or broken exits with 1 and is named", () => {
  test.each(["inspect", "generate", "upcycle", "export"])("moe %s of a path that does not exist", (command) => {
    const rest = command === "generate" ? ["--prompt", "a"] : command === "inspect" ? [] : [join(folder, `${command}-out`)];
    const { status, stdout, stderr } = moe(command, join(folder, "nowhere"), ...rest, "--json");
    expect(stderr).toMatch(/^moe: .*nowhere: expected .* got nothing of that name\n$/);
    expect([status, stdout]).toEqual([1, ""]);
    expect(existsSync(join(folder, `${command}-out`))).toBe(false);
  });

  test("a file that is no GGUF, and a folder that is no model", () => {
    const path = join(folder, "text.gguf");
    writeFileSync(path, "once upon a time, there was no model in this file");
    expect(moe("inspect", path)).toMatchObject({ status: 1, stderr: expect.stringMatching(/text\.gguf: expected .*GGUF/) as unknown });
    const empty = join(folder, "empty");
    mkdirSync(empty);
    expect(moe("inspect", empty)).toMatchObject({ status: 1, stderr: expect.stringContaining("config.json") as unknown });
  });

  test("an upcycling that cannot be leaves no folder, and one that would overwrite is refused", () => {
    const out = join(folder, "impossible");
    expect(moe("upcycle", dense, out, "--experts", "2", "--top-k", "3")).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(/topK 3/) as unknown,
    });
    expect(existsSync(out)).toBe(false);
    expect(moe("upcycle", dense, dense)).toMatchObject({ status: 2, stderr: expect.stringContaining("does not exist yet") as unknown });
  });
});

test.each([
  ["mixtral", /^experts +5, top-2, width 20$/m],
  ["qwen2-moe", /^experts +6, top-2, width 20, weights not renormalized, shared expert 28 with a gate$/m],
  ["qwen3-moe", /^experts +8, top-3, width 20, in 2 of 4 layers$/m],
  ["skywork-moe-gate2", /softmax of the chosen, gating normalization 1, two-layer gate, input times 2$/m],
  ["skywork-moe-sigmoid", /sigmoid scores, weights times 1.7, 2 of 4 groups, selection bias, shared expert 14 with a gate$/m],
  ["llama2", /^experts +none$/m],
])("moe inspect says what is not plain about the experts of %s", (name, line) => {
  const { status, stdout } = moe("inspect", fileURLToPath(new URL(`../golden/models/${name}`, import.meta.url)));
  expect(status).toBe(0);
  expect(stdout).toMatch(line);
});

describe("upcycling options", () => {
  const optionsFile = (name: string, value: unknown): string => {
    const path = join(folder, name);
    writeFileSync(path, typeof value === "string" ? value : JSON.stringify(value));
    return path;
  };
  test("come from a file, flags win, and the receipt says what came of them", () => {
    const config = optionsFile("options.json", {
      numExperts: 4,
      topK: 2,
      target: "qwen2_moe",
      sharedExpert: { share: 0.5 },
      router: { type: "prompts", prompts: [["The union"], ["A nation of laws"], ["once upon a time", "and then"], ["12345"]] },
    });
    const out = join(folder, "from-file");
    const receipt = json(moe("upcycle", dense, out, "--config", config, "--seed", "5", "--budget-tokens", "1e6", "--json"));
    expect(receipt).toMatchObject({
      architecture: "qwen2_moe",
      options: { numExperts: 4, seed: 5, router: { type: "prompts" }, budgetTokens: 1e6 },
      exactness: { verdict: "exact" },
    });
    expect(receipt["maxOutputGap"]).toBeLessThan(1e-5);
    expect(receipt["tensors"]).toBeUndefined();
    const { tensors, ...written } = JSON.parse(readFileSync(join(out, "upcycling.json"), "utf8")) as Record<string, unknown>;
    expect(tensors).toHaveLength(receipt["numTensors"] as number);
    expect({ ...written, numTensors: receipt["numTensors"], out }).toEqual(receipt);
  });
  test("of a hostile or broken file are refused, and nothing is written", () => {
    const out = join(folder, "hostile");
    for (const [content, status, message] of [
      ["{", 1, /hostile\.json: expected JSON/],
      ["[1, 2]", 1, /hostile\.json: expected a JSON object of options/],
      [{ numExpert: 4 }, 1, /hostile\.json: unknown key "numExpert".*numExperts/],
      [{ method: { type: "noise", std: "1; rm -rf" } }, 1, /method\.std/],
      [{ numExperts: 1e308 }, 1, /numExperts/],
      ['{"__proto__": {"numExperts": 4}, "topK": 9}', 1, /hostile\.json: /],
      [{ target: "olmoe" }, 1, /llama to olmoe is impossible: check attention\.qkNorm failed/],
    ] as const) {
      const result = moe("upcycle", dense, out, "--config", optionsFile("hostile.json", content));
      expect(result.stderr).toMatch(message);
      expect([result.status, result.stdout]).toEqual([status, ""]);
      expect([existsSync(out), existsSync(`${out}.partial`)]).toEqual([false, false]);
    }
    expect(moe("upcycle", dense, out, "--noise-std", "0.1")).toMatchObject({
      status: 2,
      stderr: expect.stringMatching(/--method noise/) as unknown,
    });
  });
  test("are told to people too", () => {
    const out = join(folder, "told");
    const { status, stdout } = moe("upcycle", dense, out, "--experts", "4", "--method", "drop", "--drop-ratio", "0.5");
    expect(status).toBe(0);
    expect(stdout).toMatch(
      /^llama of .* became skywork_moe of .*\n.*tensors written to .*upcycling\.json\napproximate: method: 0\.5 of the/,
    );
    expect(stdout).toMatch(/memory of its state: .* to serve in FP8\ncost: /);
  });
});

test("a reader that goes away ends the command without a word", async () => {
  const child = spawn(process.execPath, [main, "inspect", dense], { stdio: ["ignore", "pipe", "pipe"] });
  let stderr = "";
  child.stderr.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
  child.stdout.destroy();
  const code = await new Promise((done) => child.on("close", done));
  expect([code, stderr]).toEqual([1, ""]);
});

test("a model goes through export, upcycling and generation, and says the same at each stop", () => {
  const gguf = join(folder, "dense.gguf");
  const moeFolder = join(folder, "moe");
  expect(json(moe("export", dense, gguf, "--json"))).toMatchObject({ path: gguf, type: "F32", architecture: "llama" });
  const [report, again] = [dense, gguf].map((path) => json(moe("inspect", path, "--json")));
  expect(report).toMatchObject({ architecture: "llama", numActiveParams: report?.["numParams"] });
  expect(again?.["numParams"]).toBe(report?.["numParams"]);

  const receipt = json(moe("upcycle", gguf, moeFolder, "--experts", "4", "--top-k", "2", "--json"));
  expect(receipt["maxOutputGap"]).toBeLessThan(1e-5);
  expect(JSON.parse(readFileSync(join(moeFolder, "upcycling.json"), "utf8"))).toMatchObject({ options: { numExperts: 4, topK: 2 } });
  const upcycled = json(moe("inspect", moeFolder, "--json"));
  expect(upcycled).toMatchObject({ architecture: "skywork_moe", numParams: receipt["numParamsAfter"] });
  expect(upcycled["numParams"]).toBeGreaterThan(upcycled["numActiveParams"] as number);

  const flags = ["--prompt", "Once upon a time", "--max-tokens", "12"];
  const [text, fromGguf, fromMoe] = [dense, gguf, moeFolder].map((path) => json(moe("generate", path, ...flags, "--json")));
  expect(text?.["ids"]).toHaveLength(12);
  expect(fromGguf?.["ids"]).toEqual(text?.["ids"]);
  expect(fromMoe?.["ids"]).toEqual(text?.["ids"]);

  const plain = moe("generate", dense, ...flags);
  expect(plain.status).toBe(0);
  expect(plain.stdout).toBe(`${String(text?.["text"])}\n`);
  expect(plain.stderr).toMatch(/prompt tokens at .* new at/);
});

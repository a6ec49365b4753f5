/** Whole evaluations of a tiny model over made rows: reports, samples, kept answers, broken data. */
import { appendFileSync, cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadBackend } from "../backend/load.ts";
import { loadTokenizer, writeTokenizerFiles } from "../checkpoint/tokenizer.ts";
import { modelPresets } from "../config/model-presets.ts";
import { Decoder } from "../model/index.ts";
import { Engine } from "../tensor/index.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { choiceMetrics, evaluateTasks, type EvaluateOptions, type Evaluation } from "./evaluate.ts";
import { prepareTask } from "./prepare.ts";
import { tableRows } from "./report.ts";
import { hashText } from "./responses.ts";
import { math500Task } from "./tasks/math.ts";
import { writeEvaluation } from "./write.ts";

let folder = "";
let data = "";
let engine: Engine;
let model: Decoder;
let tokenizer: Tokenizer;
const tiny = { vocabSize: 1200, hiddenSize: 32, ffnSize: 48, numLayers: 2, numHeads: 2, numKvHeads: 1, headDim: 16, maxPositions: 2048 };

const choiceRow = (i: number): string => `${i},Frage ${i},a${i},"b,${i}",c,d,${"ABCD"[i % 4]}`;
const lines = (rows: readonly unknown[]): string => rows.map((row) => `${JSON.stringify(row)}\n`).join("");

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "moe-eval-"));
  data = join(folder, "data");
  for (const split of ["dev", "test"]) {
    mkdirSync(join(data, "cmmlu", split), { recursive: true });
    const count = split === "dev" ? 5 : 7;
    const rows = (n: number): string => [",Question,A,B,C,D,Answer", ...Array.from({ length: n }, (_, i) => choiceRow(i))].join("\n");
    writeFileSync(join(data, "cmmlu", split, "agronomy.csv"), rows(count));
    writeFileSync(join(data, "cmmlu", split, "anatomy.csv"), rows(count - 2));
  }
  const problem = (i: number): unknown => ({ question: `Wie viel ist ${i} und ${i}?`, answer: `Es ist\n#### ${2 * i}` });
  writeFileSync(join(data, "gsm8k-test.jsonl"), lines([1, 2, 3, 4].map(problem)));
  writeFileSync(join(data, "gsm8k-train.jsonl"), lines(Array.from({ length: 30 }, (_, i) => problem(i + 10))));
  const code = { task_id: "t/0", prompt: "def f():\n", test: "def check(g):\n    pass\n", entry_point: "f" };
  writeFileSync(join(data, "HumanEval.jsonl"), lines([code, { ...code, task_id: "t/1", entry_point: "missing" }]));
  writeFileSync(join(data, "text.jsonl"), lines([{ text: "One two three." }, { id: 7, text: "Four, five " }]));

  engine = new Engine(await loadBackend());
  model = Decoder.initialize(engine, { ...modelPresets.quickstart, ...tiny, initStd: 0.3 }, { dtype: "f32", seed: 3 });
  const fixture = new URL("../../test/golden/tokenizer/hf-smollm.tokenizer.json", import.meta.url);
  const tokenizerConfig = { bos_token: "<|im_start|>", eos_token: "<|im_end|>" };
  writeTokenizerFiles({ tokenizerJson: JSON.parse(readFileSync(fixture, "utf8")) as unknown, tokenizerConfig }, folder);
  tokenizer = await loadTokenizer(folder);
});
afterAll(() => {
  model[Symbol.dispose]();
  expect(engine.backend.liveBytes).toBe(0);
  engine[Symbol.dispose]();
  rmSync(folder, { recursive: true, force: true });
});

function run(tasks: readonly string[], options: EvaluateOptions = {}): Promise<Evaluation> {
  return evaluateTasks(model, tokenizer, tasks, { data, logSamples: true, ...options });
}
/** What must not depend on how an evaluation went: everything but times. */
function lasting({ results, samples }: Evaluation): unknown {
  const { date: _date, total_evaluation_time_seconds: _seconds, config, ...rest } = results;
  return { ...rest, config: { ...config, batch_tokens: 0 }, samples: [...samples] };
}

describe("reports", () => {
  test("a group is the mean of its tasks weighted by samples; tasks without data are left out and named", async () => {
    const notices: string[] = [];
    const { results, samples } = await run(["cmmlu"], { numFewshot: 2, onNotice: (notice) => notices.push(notice) });
    expect(notices[0]).toContain("no data of 65 tasks");
    expect(Object.keys(results.results)).toEqual(["cmmlu_agronomy", "cmmlu_anatomy", "cmmlu"]);
    const [a, b, all] = ["cmmlu_agronomy", "cmmlu_anatomy", "cmmlu"].map((name) => Number(results.results[name]?.["acc,none"]));
    expect(all).toBeCloseTo(((a ?? NaN) * 7 + (b ?? NaN) * 5) / 12, 12);
    expect(results.groups?.["cmmlu"]?.["sample_len"]).toBe(12);
    expect(results["n-shot"]).toEqual({ cmmlu_agronomy: 2, cmmlu_anatomy: 2, cmmlu: 2 });
    expect(results.versions).toEqual({ cmmlu_agronomy: 1, cmmlu_anatomy: 1, cmmlu: 1 });
    expect(results["n-samples"]["cmmlu_anatomy"]).toEqual({ original: 5, effective: 5 });
    expect(results.higher_is_better["cmmlu"]).toEqual({ acc: true, acc_norm: true });
    expect(results.configs["cmmlu_agronomy"]?.["doc_to_text"]).toBe("{{Question}}\nA. {{A}}\nB. {{B}}\nC. {{C}}\nD. {{D}}\n答案：");
    expect(tableRows(results).map((row) => row[0])).toEqual(["Task", "cmmlu", "", "  cmmlu_agronomy", "", "  cmmlu_anatomy", ""]);
    expect(samples.get("cmmlu_agronomy")).toHaveLength(7);
  });
  test("a sample's record carries document, prompt, answers, metrics and hashes", async () => {
    const { samples } = await run(["cmmlu_agronomy"], { limit: 1 });
    const [record] = samples.get("cmmlu_agronomy") ?? [];
    const doc = { "Unnamed: 0": 0, Question: "Frage 0", A: "a0", B: "b,0", C: "c", D: "d", Answer: "A" };
    const prompt = "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\nFrage 0\nA. a0\nB. b,0\nC. c\nD. d\n答案：";
    expect(record).toMatchObject({
      doc_id: 0,
      doc,
      target: "0",
      arguments: { gen_args_0: { arg_0: prompt, arg_1: " A" }, gen_args_3: { arg_0: prompt, arg_1: " D" } },
      filter: "none",
      metrics: ["acc", "acc_norm"],
      prompt_hash: hashText(prompt),
      target_hash: hashText("0"),
      // Python: sha256(json.dumps(doc, indent=2, ensure_ascii=False))
      doc_hash: hashText(JSON.stringify(doc, null, 2)),
    });
    expect(record?.["resps"]).toHaveLength(4);
  });
  test("ties go to the first choice; acc_norm divides by characters", () => {
    const scores = [-4, -4, -6].map((logLikelihood) => ({ logLikelihood, isGreedy: false }));
    expect(choiceMetrics(["ab", "a", "abcd"], scores, 0)).toEqual({ acc: 1, acc_norm: 0 });
    expect(choiceMetrics(["ab", "a", "abcd"], scores, 2)).toEqual({ acc: 0, acc_norm: 1 });
  });
  test("perplexity counts words, bytes and tokens of each document, over windows of any length", async () => {
    const name = `perplexity:${join(data, "text.jsonl")}`;
    const { results, samples } = await run([name]);
    const totals = (samples.get(name) ?? []).map((record) => record["word_perplexity"] as [number, number]);
    expect(totals.map(([, words]) => words)).toEqual([3, 3]);
    const total = totals.reduce((sum, [x]) => sum + x, 0);
    const scores = results.results[name] ?? {};
    expect(scores["word_perplexity,none"]).toBeCloseTo(Math.exp(-total / 6), 9);
    expect(scores["byte_perplexity,none"]).toBeCloseTo(Math.exp(-total / 25), 9);
    expect(scores["bits_per_byte,none"]).toBeCloseTo(-total / 25 / Math.LN2, 9);
    const tokens = tokenizer.encode("One two three.").length + tokenizer.encode("Four, five ").length;
    expect(scores["token_perplexity,none"]).toBeCloseTo(Math.exp(-total / tokens), 6);
    expect((await run([name], { maxLength: 3 })).results.results[name]?.["word_perplexity,none"]).not.toBe(scores["word_perplexity,none"]);
  });
  test("programs are what a runner gets; a pass counts 1", async () => {
    const programs: string[] = [];
    const runCode = async (program: string): Promise<boolean> => {
      programs.push(program);
      return program.endsWith("check(f)");
    };
    const { results } = await run(["humaneval"], { runCode });
    expect(programs.every((program) => program.startsWith("def f():\n") && program.includes("\ndef check(g):"))).toBe(true);
    expect(results.results["humaneval"]?.["pass@1,create_test"]).toBe(0.5);
  });
  test("without a runner, programs run in the sandbox, and the evaluation waits for them", async () => {
    // Whatever the model writes stands between quotes: the first program passes, the second does not.
    const row = (i: number): unknown => ({
      task_id: `t/${i}`,
      prompt: "def f():\n    return 1\n\ntext = r'''",
      test: `'''\ndef check(g):\n    assert g() == ${i + 1}\n`,
      entry_point: "f",
    });
    const programs = join(folder, "programs");
    mkdirSync(programs);
    writeFileSync(join(programs, "HumanEval.jsonl"), lines([row(0), row(1)]));
    const { results, samples } = await run(["humaneval"], { data: programs });
    expect(samples.get("humaneval")?.map((record) => record["pass@1"])).toEqual([1, 0]);
    expect(results.results["humaneval"]?.["pass@1,create_test"]).toBe(0.5);
  }, 120_000);
});

describe("kept answers", () => {
  const tasks = ["cmmlu", "gsm8k"];
  test("an interrupted evaluation goes on where it stopped, to the result of one that was not", async () => {
    const responses = join(folder, "kept", "responses.jsonl");
    const whole = await run(tasks);
    for (const stopAfter of [9, 2]) {
      const controller = new AbortController();
      let answers = 0;
      const options: EvaluateOptions = { responses, resume: true, batchTokens: 64, signal: controller.signal };
      const work = run(tasks, { ...options, onProgress: () => ++answers === stopAfter && controller.abort() });
      await expect(work).rejects.toThrow("interrupted");
    }
    // A killed process may leave half a line.
    appendFileSync(responses, '{"key":"ab');
    const known = readFileSync(responses, "utf8").split("\n").length - 1;
    let asked = 0;
    const resumed = await run(tasks, {
      responses,
      resume: true,
      onProgress: ({ total, phase, done }) => (asked += done === total && phase !== "programs" ? total : 0),
    });
    expect(lasting(resumed)).toEqual(lasting(whole));
    expect(asked + known).toBe(12 * 4 + 4);
    let again = 0;
    expect(lasting(await run(tasks, { responses, resume: true, onProgress: () => again++ }))).toEqual(lasting(whole));
    expect(again).toBe(0);
  });
  test("are not taken for those of another model or setting, and set aside without resume", async () => {
    const responses = join(folder, "other", "responses.jsonl");
    await run(["cmmlu_anatomy"], { responses });
    let asked = 0;
    const options: EvaluateOptions = { responses, resume: true, onProgress: () => asked++ };
    await run(["cmmlu_anatomy"], { ...options, maxLength: 500 });
    expect(asked).toBe(20);
    using other = Decoder.initialize(engine, { ...modelPresets.quickstart, ...tiny }, { dtype: "f32", seed: 4 });
    await evaluateTasks(other, tokenizer, ["cmmlu_anatomy"], { data, ...options });
    expect(asked).toBe(40);
    await run(["cmmlu_anatomy"], { responses, limit: 1 });
    expect(readFileSync(responses, "utf8").split("\n")).toHaveLength(5);
    expect(existsSync(`${responses}.old`)).toBe(true);
  });
  test("a file of something else is refused, not overwritten", async () => {
    const responses = join(folder, "foreign.jsonl");
    writeFileSync(responses, "precious\n");
    await expect(run(["cmmlu_anatomy"], { responses, resume: true })).rejects.toThrow("foreign.jsonl:1: expected a kept answer");
    expect(readFileSync(responses, "utf8")).toBe("precious\n");
  });
});

test("results do not depend on the size of batches", async () => {
  const tasks = ["cmmlu", "gsm8k", `perplexity:${join(data, "text.jsonl")}`];
  expect(lasting(await run(tasks, { batchTokens: 5 }))).toEqual(lasting(await run(tasks)));
});

describe("data", () => {
  test("a broken row is an error with file and line, or left out and counted", async () => {
    const broken = join(folder, "broken");
    cpSync(data, broken, { recursive: true });
    appendFileSync(join(broken, "gsm8k-test.jsonl"), '{"question": "no answer"}\n{"question":\n');
    await expect(run(["gsm8k"], { data: broken })).rejects.toThrow(/gsm8k-test\.jsonl:5: expected text under "answer".*--skip-broken/);
    const { results } = await run(["gsm8k"], { data: broken, skipBroken: true, limit: 2 });
    expect(results["n-samples"]["gsm8k"]).toEqual({ original: 4, effective: 2, skipped: 2 });
    appendFileSync(join(broken, "gsm8k-train.jsonl"), "[]\n");
    const notices: string[] = [];
    await run(["gsm8k"], { data: broken, skipBroken: true, limit: 1, onNotice: (notice) => notices.push(notice) });
    expect(notices).toEqual(["gsm8k: 2 broken rows were left out", "gsm8k: 1 broken rows among the examples were left out"]);
  });
  test("a task never shows a document its own answer: one without a split for examples has none to show", async () => {
    const { fewshotDocs: _, ...minerva } = math500Task();
    const rows = [1, 2, 3].map((i) => ({ problem: `p${i}`, solution: `\\boxed{${i}}` }));
    writeFileSync(join(data, "MATH-500.jsonl"), lines(rows));
    const options = { data, downloads: "", skipBroken: false, limit: null, fewshotSeed: 1 };
    await expect(prepareTask(minerva, { ...options, numFewshot: 1 })).rejects.toThrow("expected 1 examples to show (--num-fewshot), got 0");
    const { docs } = await prepareTask(minerva, { ...options, numFewshot: 0 });
    expect(docs.map(({ prompt }) => prompt)).toEqual(rows.map(({ problem }) => `Problem:\n${problem}\n\nSolution:`));
  });
  test("missing data is named with what would be found", async () => {
    await expect(run(["mmlu"])).rejects.toThrow("expected data of mmlu");
    await expect(run(["cmmlu_arts"])).rejects.toThrow("cmmlu/test/arts.jsonl");
    await expect(run(["gsm8k"], { data: join(folder, "none") })).rejects.toThrow("a folder with evaluation data");
    await expect(run(["perplexity:none.txt"])).rejects.toThrow("none.txt");
    await expect(run(["cmmlu_anatomy"], { numFewshot: 4 })).rejects.toThrow("expected 4 examples");
  });
  test("a fraction as the limit is one of the documents", async () => {
    expect((await run(["cmmlu_agronomy"], { limit: 0.5 })).results["n-samples"]["cmmlu_agronomy"]?.effective).toBe(4);
  });
});

test("files are one of results and one of samples a task, with plain names", async () => {
  const evaluation = await run([`perplexity:${join(data, "text.jsonl")}`]);
  const [results = "", samples = "", ...more] = writeEvaluation(join(folder, "out"), evaluation);
  expect(more).toEqual([]);
  expect(results).toMatch(/results_\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}\.json$/);
  expect(samples).toMatch(/out[\\/]samples_perplexity__.*__text\.jsonl_.*\.jsonl$/);
  expect((JSON.parse(readFileSync(results, "utf8")) as Evaluation["results"]).results).toEqual(evaluation.results.results);
  expect(readFileSync(samples, "utf8").trimEnd().split("\n")).toHaveLength(2);
});

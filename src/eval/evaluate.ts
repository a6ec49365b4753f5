/**
 * An evaluation from beginning to end: prepare prompts, ask the model what is not known yet, judge the answers, report. Every
 * answer is kept as it comes (responses.ts), so a run that ends early goes on where it stopped.
 */
import { freemem } from "node:os";
import { join } from "node:path";
import type { Decoder } from "../model/index.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { MoeError } from "../util/errors.ts";
import { completePrompts } from "./complete.ts";
import { passAtK } from "./metrics.ts";
import {
  JobMaker,
  prepareTask,
  withoutMissing,
  type CompletionJob,
  type DocJobs,
  type PreparedDoc,
  type PreparedTask,
  type ScoreJob,
} from "./prepare.ts";
import { countWords } from "./python.ts";
import { report, type EvalResults, type TaskOutcome } from "./report.ts";
import { hashText, ResponseLog } from "./responses.ts";
import { hashesOf, recordedScore, sampleRecord, type Sample } from "./samples.ts";
import { defaultProgramLimits, Sandbox } from "./sandbox/index.ts";
import { scorePairs, type EngineOptions, type Score } from "./score.ts";
import { leaves, type CodeRunner, type GenerationTask, type MetricValue, type Task } from "./task.ts";
import { chooseTasks } from "./tasks/registry.ts";

export interface EvaluateOptions {
  /** Folder with the data. Default: `MOE_EVAL_DATA`, else files come from the Hub. */
  readonly data?: string;
  /** Where files from the Hub are kept. Default `eval-data`. */
  readonly downloads?: string;
  /** Examples in a prompt. Default: what each task has. */
  readonly numFewshot?: number;
  /** Documents of each task at most; below 1 a fraction of them. */
  readonly limit?: number;
  /** Leave broken rows out and count them, rather than to fail. */
  readonly skipBroken?: boolean;
  /** Seed of the examples that are drawn at random. Default 1234. */
  readonly fewshotSeed?: number;
  /** Tokens of one forward pass at most. Default 1024. Results do not depend on it. */
  readonly batchTokens?: number;
  /** Bytes for the KV cache at most. Default: a quarter of the free memory, from 256 MiB to 4 GiB. Results do not depend on it. */
  readonly cacheBytes?: number;
  /** Tokens that the model sees at most. Default: its `maxPositions`. */
  readonly maxLength?: number;
  /** File in which answers are kept, and from which `resume` takes them. */
  readonly responses?: string;
  readonly resume?: boolean;
  /** Give the samples' records. */
  readonly logSamples?: boolean;
  /** Name of the model in the report. */
  readonly modelName?: string;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: EvalProgress) => void;
  /** What a person should know: data that is missing, answers known from before. */
  readonly onNotice?: (notice: string) => void;
  /** Runs programs. Default: the sandbox. */
  readonly runCode?: CodeRunner;
}

export interface EvalProgress {
  readonly phase: "scores" | "completions" | "programs";
  readonly done: number;
  readonly total: number;
}

export interface Evaluation {
  readonly results: EvalResults;
  /** Records of each task's samples; empty without `logSamples`. */
  readonly samples: ReadonlyMap<string, readonly Readonly<Record<string, unknown>>[]>;
}

/** A task with everything that is asked for it. */
interface Asked extends PreparedTask {
  readonly jobs: readonly DocJobs[];
}

/**
 * Evaluates a model on tasks. Throws `usage` for unknown tasks and for an interruption, `file` for data that is missing or broken,
 * `configuration` for prompts that cannot be put to this model.
 *
 * ```ts
 * const { results } = await evaluateTasks(model, tokenizer, ["gsm8k", "perplexity:book.txt"], { data: "eval-data", limit: 50 });
 * console.log(results.results["gsm8k"]?.["exact_match,strict-match"]);
 * ```
 */
export async function evaluateTasks(
  model: Decoder,
  tokenizer: Tokenizer,
  tasks: readonly string[],
  options: EvaluateOptions = {},
): Promise<Evaluation> {
  const startedAt = new Date();
  const data = options.data ?? process.env["MOE_EVAL_DATA"] ?? null;
  const { maxPositions } = model.config;
  const engine: EngineOptions = {
    batchTokens: positive("batchTokens", options.batchTokens ?? 1024),
    cacheBytes: options.cacheBytes ?? Math.min(2 ** 32, Math.max(2 ** 28, Math.floor(freemem() / 4))),
    maxLength: Math.min(positive("maxLength", options.maxLength ?? maxPositions), maxPositions),
    signal: options.signal,
  };
  const { chosen, missing } = withoutMissing(chooseTasks(tasks), data);
  if (missing.length > 0) options.onNotice?.(`${data} has no data of ${missing.length} tasks, which are left out: ${named(missing)}`);
  const { skipBroken = false, numFewshot = null, limit = null, fewshotSeed = 1234, downloads = "eval-data" } = options;
  const maker = new JobMaker(model, tokenizer, engine.maxLength);
  const asked: Asked[] = [];
  for (const task of new Map(chosen.flatMap(leaves).map((leaf) => [leaf.name, leaf])).values()) {
    const prepared = await prepareTask(task, { data, downloads, skipBroken, numFewshot, limit, fewshotSeed });
    const { numBroken, numBrokenExamples } = prepared;
    if (numBroken > 0) options.onNotice?.(`${task.name}: ${numBroken} broken rows were left out`);
    if (numBrokenExamples > 0) options.onNotice?.(`${task.name}: ${numBrokenExamples} broken rows among the examples were left out`);
    asked.push({ ...prepared, jobs: prepared.docs.map((doc) => maker.jobsOf(task, doc)) });
  }
  using log = new ResponseLog(options.responses ?? null, { resume: options.resume === true });
  await answerAll(model, tokenizer, asked, { engine, log, options });
  const judged = new Map<string, readonly Sample[]>();
  for (const item of asked) judged.set(item.task.name, await judgeTask(item, log, options));
  const outcomes = asked.map((item) => outcomeOf(item, judged.get(item.task.name) ?? []));
  const seconds = (Date.now() - startedAt.getTime()) / 1000;
  const config = {
    model: "moe.ts",
    model_args: options.modelName ?? "",
    model_num_parameters: [...model.parameters.values()].reduce((n, tensor) => n + tensor.size, 0),
    model_dtype: model.dtype,
    model_fingerprint: maker.fingerprint,
    batch_tokens: engine.batchTokens,
    max_length: engine.maxLength,
    device: model.engine.backend.name,
    limit,
    fewshot_seed: fewshotSeed,
  };
  const samples = new Map(
    options.logSamples === true ? asked.map((item) => [item.task.name, recordsOf(item, judged.get(item.task.name) ?? [])]) : [],
  );
  return { results: report(chosen, outcomes, { config, startedAt, seconds }), samples };
}

/** A list that stays readable. */
function named(names: readonly string[]): string {
  return names.length <= 4 ? names.join(", ") : `${names.slice(0, 3).join(", ")} and ${names.length - 3} more`;
}

function positive(name: string, value: number): number {
  if (!(Number.isSafeInteger(value) && value > 0))
    throw new MoeError("usage", `evaluation: expected ${name} to be a positive whole number, got ${value}`);
  return value;
}

interface Run {
  readonly engine: EngineOptions;
  readonly log: ResponseLog;
  readonly options: EvaluateOptions;
}

/** Asks the model everything that is not known, each request once. */
async function answerAll(model: Decoder, tokenizer: Tokenizer, asked: readonly Asked[], { engine, log, options }: Run): Promise<void> {
  const scores = new Map<string, ScoreJob>();
  const completions = new Map<string, CompletionJob>();
  let known = 0;
  for (const jobs of asked.flatMap((item) => item.jobs)) {
    for (const job of "scores" in jobs ? jobs.scores : []) {
      if (log.has(job.key)) known++;
      else scores.set(job.key, job);
    }
    if (!("completion" in jobs)) continue;
    if (log.has(jobs.completion.key)) known++;
    else completions.set(jobs.completion.key, jobs.completion);
  }
  if (known > 0) options.onNotice?.(`${known} answers are known from before`);
  const keep = (job: ScoreJob | CompletionJob, response: unknown, progress: EvalProgress): void => {
    log.add(job.key, job.task, job.docId, response);
    options.onProgress?.(progress);
  };
  const scoreJobs = [...scores.values()];
  let done = 0;
  await scorePairs(
    model,
    scoreJobs.map(({ pair }) => pair),
    engine,
    (request, score) => {
      const job = scoreJobs[request];
      if (job !== undefined) keep(job, score, { phase: "scores", done: ++done, total: scoreJobs.length });
    },
  );
  const completionJobs = [...completions.values()];
  done = 0;
  await completePrompts(
    model,
    tokenizer,
    completionJobs.map(({ request }) => request),
    engine,
    (request, text) => {
      const job = completionJobs[request];
      if (job !== undefined) keep(job, text, { phase: "completions", done: ++done, total: completionJobs.length });
    },
  );
}

async function judgeTask(item: Asked, log: ResponseLog, options: EvaluateOptions): Promise<readonly Sample[]> {
  const { task } = item;
  if (task.kind !== "generate_until") return item.docs.map((doc, i) => judgeScores(task, doc, item.jobs[i], log));
  const completed = item.docs.map((doc, i) => {
    const jobs = item.jobs[i];
    const text = jobs !== undefined && "completion" in jobs ? log.get(jobs.completion.key) : undefined;
    if (typeof text !== "string") throw new MoeError("internal", `evaluation: ${task.name} ${doc.docId} has no completion`);
    return { doc, text };
  });
  const passed = task.program === undefined ? null : await runPrograms(task, completed, log, options);
  return task.filters.flatMap((filter) =>
    completed.map(({ doc: { doc, docId }, text }, i): Sample => {
      const filtered = filter.apply(text, doc);
      const values = passed === null ? (task.score?.(filtered, doc) ?? {}) : { "pass@1": passAtK(1, passed[i] === true ? 1 : 0, 1) };
      // A program is a list of one candidate, as the record has it.
      return { docId, filter: filter.name, values, responses: [text], filtered: passed === null ? [filtered] : [[filtered]] };
    }),
  );
}

function judgeScores(
  task: Exclude<Task, GenerationTask>,
  { doc, docId }: PreparedDoc,
  jobs: DocJobs | undefined,
  log: ResponseLog,
): Sample {
  const scores = (jobs !== undefined && "scores" in jobs ? jobs.scores : []).map(({ key }) => log.get(key) as Score);
  if (task.kind === "multiple_choice") {
    const responses = scores.map(recordedScore);
    return { docId, filter: "none", values: choiceMetrics(task.choices, scores, task.target(doc)), responses, filtered: responses };
  }
  const total = scores.reduce((sum, { logLikelihood }) => sum + logLikelihood, 0);
  const tokens = (jobs !== undefined && "scores" in jobs ? jobs.scores : []).reduce((n, { pair }) => n + pair.continuationIds.length, 0);
  const text = task.counted?.(doc) ?? String(task.target(doc));
  const bytes = Buffer.byteLength(text);
  const all: Readonly<Record<string, MetricValue>> = {
    word_perplexity: [total, countWords(text)],
    byte_perplexity: [total, bytes],
    bits_per_byte: [total, bytes],
    token_perplexity: [total, tokens],
  };
  const values = Object.fromEntries(Object.entries(all).filter(([name]) => task.metrics.some((metric) => metric.name === name)));
  return { docId, filter: "none", values, responses: [String(total)], filtered: [String(total)] };
}

/** The choice with the largest log-likelihood (the first of equal ones), and with the largest for each character of it. */
export function choiceMetrics(choices: readonly string[], scores: readonly Score[], target: number): { acc: number; acc_norm: number } {
  const totals = scores.map(({ logLikelihood }) => logLikelihood);
  const perCharacter = totals.map((total, i) => total / Array.from(choices[i] ?? "").length);
  const best = (values: readonly number[]): number => values.indexOf(Math.max(...values));
  return { acc: best(totals) === target ? 1 : 0, acc_norm: best(perCharacter) === target ? 1 : 0 };
}

/** Which programs pass, in the order of the completions. Known ones are not run again. */
async function runPrograms(
  task: GenerationTask,
  completed: readonly { doc: PreparedDoc; text: string }[],
  log: ResponseLog,
  options: EvaluateOptions,
): Promise<readonly boolean[]> {
  using sandbox = options.runCode === undefined ? new Sandbox(defaultProgramLimits) : null;
  const runCode: CodeRunner = options.runCode ?? (async (program) => (await sandbox?.run(program))?.passed === true);
  let done = 0;
  // Awaited here, not returned as a promise: the sandbox closes where this function ends.
  return await Promise.all(
    completed.map(async ({ doc: { doc, docId }, text }) => {
      const program = task.program?.(task.filters[0]?.apply(text, doc) ?? text, doc) ?? "";
      const key = hashText(`program ${program}`).slice(0, 40);
      if (!log.has(key)) {
        const passed = await runCode(program);
        // Several programs run at once: an interruption ends them all here.
        if (options.signal?.aborted === true)
          throw new MoeError("usage", "evaluation: interrupted while programs ran; --resume goes on from there");
        log.add(key, task.name, docId, passed);
      }
      options.onProgress?.({ phase: "programs", done: ++done, total: completed.length });
      return log.get(key) === true;
    }),
  );
}

function outcomeOf({ task, docs, numFewshot, numDocs, numBroken }: Asked, samples: readonly Sample[]): TaskOutcome {
  const byId = new Map(docs.map((doc) => [doc.docId, doc]));
  const hashes = samples.map(({ docId }) => {
    const prepared = byId.get(docId);
    return prepared === undefined ? "" : Object.values(hashesOf(task, prepared.doc, prepared.prompt)).join("");
  });
  return { task, numFewshot, numDocs, numBroken, samples, hash: hashText(hashes.join("")) };
}

function recordsOf({ task, docs }: Asked, samples: readonly Sample[]): readonly Readonly<Record<string, unknown>>[] {
  const byId = new Map(docs.map((doc) => [doc.docId, doc]));
  return samples.flatMap((sample) => {
    const prepared = byId.get(sample.docId);
    return prepared === undefined ? [] : [sampleRecord(task, prepared.doc, prepared.prompt, sample)];
  });
}

/** Where the command keeps what: all under `<output>/<model>`. */
export function outputFolder(outputPath: string, modelName: string): string {
  return join(outputPath, plainName(modelName));
}
/** A name without what file names must not have. */
export function plainName(name: string): string {
  return name.replace(/["<>:/|\\?*[\]]+/g, "__");
}

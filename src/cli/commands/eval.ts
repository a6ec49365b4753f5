/** `moe eval`: scores of a model on tasks. */
import { basename, join, resolve } from "node:path";
import type { Command } from "commander";
import { chooseTasks, evaluateTasks, outputFolder, tableRows, writeEvaluation, type EvalProgress } from "../../eval/index.ts";
import type { ActivationChoice } from "../../model/index.ts";
import { MoeError } from "../../util/errors.ts";
import { decimal, wholeNumber } from "../options.ts";
import { formatTable, Output, type Progress } from "../output.ts";
import { activationsOption, modelDtype, openSession } from "../session.ts";

interface EvalFlags {
  readonly tasks?: string;
  readonly numFewshot?: number;
  readonly limit?: number;
  readonly outputPath?: string;
  readonly logSamples?: boolean;
  readonly resume?: boolean;
  readonly data?: string;
  readonly skipBroken?: boolean;
  readonly batchTokens: number;
  readonly maxLength?: number;
  readonly seed: number;
  readonly dtype?: string;
  readonly activations: ActivationChoice;
  readonly json?: boolean;
}

export function addEval(program: Command): void {
  program
    .command("eval")
    .description("scores on tasks: perplexity, MMLU, C-Eval, CMMLU, GSM8K, MATH, HumanEval")
    .argument("<model>", "folder with safetensors, or GGUF file")
    .option("--tasks <names>", "tasks, separated by commas; perplexity:<file> for any text (required)")
    .option("--num-fewshot <n>", "examples in a prompt (default: the task's)", wholeNumber(0))
    .option("--limit <n>", "documents of each task at most; below 1 a fraction", decimal(0))
    .option("--output-path <folder>", "write results, and keep every answer as it comes")
    .option("--log-samples", "write a record of each sample too")
    .option("--resume", "take answers that an earlier run kept in --output-path")
    .option("--data <folder>", "the tasks' data (default: MOE_EVAL_DATA, else the Hub)")
    .option("--skip-broken", "leave broken rows out and count them")
    .option("--batch-tokens <n>", "tokens of one forward pass at most", wholeNumber(1), 1024)
    .option("--max-length <n>", "tokens that the model sees at most (default: its positions)", wholeNumber(1))
    .option("--seed <n>", "seed of the examples that are drawn at random", wholeNumber(0), 1234)
    .option("--dtype <type>", "compute in f32 or bf16 (default: as stored)")
    .addOption(activationsOption())
    .option("--json", "print one JSON object")
    .action(evaluate);
}

async function evaluate(path: string, flags: EvalFlags): Promise<void> {
  const tasks = (flags.tasks ?? "").split(",").flatMap((name) => (name.trim() === "" ? [] : [name.trim()]));
  if (tasks.length === 0) throw new MoeError("usage", "eval: expected --tasks <names>, got none");
  const { outputPath, numFewshot, limit, data, maxLength, batchTokens } = flags;
  if (flags.limit === 0) throw new MoeError("usage", "eval: expected --limit above 0, got 0");
  if (flags.seed >= 2 ** 32) throw new MoeError("usage", `eval: expected --seed below 4294967296, got ${flags.seed}`);
  if (outputPath === undefined && (flags.resume === true || flags.logSamples === true))
    throw new MoeError("usage", `eval: --${flags.resume === true ? "resume" : "log-samples"} needs --output-path <folder>`);
  // A misspelt task is found before a large model is loaded.
  chooseTasks(tasks);
  const output = new Output({ json: flags.json === true });
  using session = await openSession(path, modelDtype(flags.dtype), flags.activations);
  const modelName = basename(resolve(path));
  const folder = outputPath === undefined ? null : outputFolder(outputPath, modelName);
  const watch = new Watch(output);
  const interrupt = new AbortController();
  const onSignal = (): void => interrupt.abort();
  process.once("SIGINT", onSignal).once("SIGTERM", onSignal);
  try {
    const evaluation = await evaluateTasks(session.model, session.tokenizer, tasks, {
      ...(data === undefined ? {} : { data }),
      ...(numFewshot === undefined ? {} : { numFewshot }),
      ...(limit === undefined ? {} : { limit }),
      ...(maxLength === undefined ? {} : { maxLength }),
      ...(folder === null ? {} : { responses: join(folder, "responses.jsonl") }),
      resume: flags.resume === true,
      logSamples: flags.logSamples === true,
      skipBroken: flags.skipBroken === true,
      fewshotSeed: flags.seed,
      batchTokens,
      modelName,
      signal: interrupt.signal,
      onProgress: (progress) => watch.update(progress),
      onNotice: (notice) => output.log(notice),
    });
    watch.stop();
    if (folder !== null) for (const file of writeEvaluation(folder, evaluation)) output.log(`wrote ${file}`);
    output.result(evaluation.results, formatTable(tableRows(evaluation.results)));
  } finally {
    watch.stop();
    process.off("SIGINT", onSignal).off("SIGTERM", onSignal);
  }
}

/** One bar after the other. */
class Watch {
  readonly #output: Output;
  #bar: Progress | null = null;
  #phase: EvalProgress["phase"] | null = null;

  constructor(output: Output) {
    this.#output = output;
  }
  update({ phase, done, total }: EvalProgress): void {
    if (phase !== this.#phase) {
      this.stop();
      this.#bar = this.#output.progress(phase, total);
      this.#phase = phase;
    }
    this.#bar?.update(done);
  }
  stop(): void {
    this.#bar?.stop();
    this.#bar = null;
    this.#phase = null;
  }
}

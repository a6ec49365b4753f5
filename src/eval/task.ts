/**
 * What a task is: data, not code that runs. A task says which rows it reads, how a row becomes a prompt, which answers are
 * compared or how a completion is judged, and what the metrics are. Who computes log-likelihoods (score.ts), completions
 * (complete.ts) and reports (report.ts) knows no task.
 *
 * Prompts, separators, filters, metrics and versions are those of lm-evaluation-harness, so that a score can stand beside
 * published ones; `docs/evaluation.md` says where they differ.
 */

/** One row of a data set, after `Task.parse`. Keys keep the order of the file, because samples carry a hash of it. */
export type Doc = Readonly<Record<string, unknown>>;

/** A metric of one sample: a number, or a log-likelihood with the count that it is divided by. */
export type MetricValue = number | readonly [total: number, count: number];

export type Aggregation = "mean" | "weighted_perplexity" | "bits_per_byte";

export interface Metric {
  readonly name: string;
  readonly aggregation: Aggregation;
  readonly higherIsBetter: boolean;
}

/** Where the rows are. */
export interface DatasetSpec {
  /** Name on the Hub. */
  readonly path: string;
  /** Configuration of it (a subject), or null. */
  readonly subset: string | null;
  /** The subset is the only one: file names need not say it. */
  readonly single?: boolean;
  /** Names that a local folder or file of it may have. */
  readonly names: readonly string[];
  /** The split that is scored. */
  readonly split: string;
  /** The split that examples come from, where the task names one. */
  readonly fewshotSplit: string | null;
  /** Columns of CSV files that have no header line. */
  readonly columns?: readonly string[];
}

interface TaskBase {
  readonly name: string;
  /** Name in a group's table. */
  readonly alias: string;
  readonly version: number;
  readonly dataset: DatasetSpec;
  /** Stands before everything, with its own separator. */
  readonly description: string;
  /** Examples by default. */
  readonly numFewshot: number;
  /** The number of examples cannot be changed. */
  readonly fixedFewshot: boolean;
  /** Examples: the first ones, or drawn at random for each prompt. */
  readonly sampler: "first_n" | "default";
  /** Examples that the task brings itself. */
  readonly fewshotDocs?: readonly Doc[];
  readonly metrics: readonly Metric[];
  /** A row of the file as a document; a string says what is wrong with it. */
  parse(row: Doc): Doc | string;
  /** The question. */
  text(doc: Doc): string;
  /** The answer as an example shows it. */
  answer(doc: Doc): string;
  /** What a sample's record calls the target. */
  target(doc: Doc): string | number;
}

export interface MultipleChoiceTask extends TaskBase {
  readonly kind: "multiple_choice";
  readonly choices: readonly string[];
  target(doc: Doc): number;
}

/** What is made of a completion before it is judged. */
export interface Filter {
  readonly name: string;
  apply(completion: string, doc: Doc): string;
}

/** Runs a program; true where it ends well. */
export type CodeRunner = (program: string) => Promise<boolean>;

export interface GenerationTask extends TaskBase {
  readonly kind: "generate_until";
  readonly until: readonly string[];
  /** Tokens of a completion at most. */
  readonly maxTokens: number;
  readonly filters: readonly Filter[];
  /** The program whose success is the score, where the completion is code. */
  program?(filtered: string, doc: Doc): string;
  /** Metrics of a filtered completion, where it is not. */
  score?(filtered: string, doc: Doc): Readonly<Record<string, number>>;
}

export interface RollingTask extends TaskBase {
  readonly kind: "loglikelihood_rolling";
  /** The text whose words and bytes are counted, where it is not the one that is scored. */
  counted?(doc: Doc): string;
}

export type Task = MultipleChoiceTask | GenerationTask | RollingTask;

/** Tasks that are reported together. Scores are averaged by samples. */
export interface TaskGroup {
  readonly name: string;
  readonly alias: string;
  readonly version: number;
  readonly metrics: readonly string[];
  readonly children: readonly (Task | TaskGroup)[];
}

export function isGroup(item: Task | TaskGroup): item is TaskGroup {
  return "children" in item;
}

/** All tasks of a group, in order. */
export function leaves(item: Task | TaskGroup): readonly Task[] {
  return isGroup(item) ? item.children.flatMap(leaves) : [item];
}

/** `doc[key]` as text; a document that `parse` let through has it. */
export function textOf(doc: Doc, key: string): string {
  const value = doc[key];
  return typeof value === "string" ? value : String(value ?? "");
}

/** The first of `keys` that is missing or not text, as a complaint. */
export function missingText(row: Doc, keys: readonly string[]): string | null {
  for (const key of keys) {
    const value = row[key];
    if (typeof value === "string") continue;
    return `text under "${key}", got ${value === undefined ? `keys ${Object.keys(row).join(", ") || "none"}` : JSON.stringify(value)}`;
  }
  return null;
}

/**
 * From samples to the result object: scores of tasks and groups under the keys of lm-evaluation-harness (`results`, `groups`,
 * `group_subtasks`, `configs`, `versions`, `n-shot`, `higher_is_better`, `n-samples`), and a table for people. The keys inside are not
 * house style; they are the format.
 */
import { aggregate, pooledStandardError, weightedMean } from "./metrics.ts";
import type { Sample } from "./samples.ts";
import { isGroup, leaves, type Doc, type MetricValue, type Task, type TaskGroup } from "./task.ts";

/** One task's scores: `alias`, `sample_len`, `acc,none`, `acc_stderr,none` and so on. */
export type Scores = Readonly<Record<string, unknown>>;

export interface EvalResults {
  readonly results: Readonly<Record<string, Scores>>;
  readonly groups?: Readonly<Record<string, Scores>>;
  readonly group_subtasks: Readonly<Record<string, readonly string[]>>;
  readonly configs: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
  readonly versions: Readonly<Record<string, number>>;
  readonly "n-shot": Readonly<Record<string, number>>;
  readonly higher_is_better: Readonly<Record<string, Readonly<Record<string, boolean>>>>;
  /** Rows that could be scored, rows that were, and rows left out because they are broken. */
  readonly "n-samples": Readonly<Record<string, { readonly original: number; readonly effective: number; readonly skipped?: number }>>;
  /** How the model was run. */
  readonly config: Readonly<Record<string, unknown>>;
  /** Hash over the hashes of a task's samples. */
  readonly task_hashes: Readonly<Record<string, string>>;
  readonly date: number;
  readonly total_evaluation_time_seconds: string;
}

/** What came of one task. */
export interface TaskOutcome {
  readonly task: Task;
  readonly numFewshot: number;
  readonly numDocs: number;
  readonly numBroken: number;
  readonly samples: readonly Sample[];
  readonly hash: string;
}

export function scoresOfTask({ task, samples }: TaskOutcome): Scores {
  const scores: Record<string, unknown> = { name: task.name, alias: task.alias };
  const byFilter = Map.groupBy(samples, ({ filter }) => filter);
  scores["sample_len"] = byFilter.values().next().value?.length ?? 0;
  for (const [filter, filtered] of byFilter) {
    for (const { name, aggregation } of task.metrics) {
      const values: MetricValue[] = filtered.flatMap(({ values: { [name]: value } }) => (value === undefined ? [] : [value]));
      const { value, standardError } = aggregate(aggregation, values);
      scores[`${name},${filter}`] = value;
      scores[`${name}_stderr,${filter}`] = standardError;
    }
  }
  return scores;
}

/** A group's scores: means over the tasks, weighted by their samples. */
export function scoresOfGroup(group: TaskGroup, results: Readonly<Record<string, Scores>>): Scores {
  const parts = leaves(group).flatMap(({ name }): Scores[] => {
    const part = results[name];
    return part === undefined ? [] : [part];
  });
  const size = (part: Scores): number => Number(part["sample_len"] ?? 0);
  const scores: Record<string, unknown> = {
    alias: group.alias,
    name: group.name,
    sample_len: parts.reduce((n, part) => n + size(part), 0),
  };
  for (const metric of group.metrics) {
    const keys = new Set(parts.flatMap((part) => Object.keys(part).filter((key) => key.startsWith(`${metric},`))));
    for (const key of keys) {
      const errorKey = key.replace(",", "_stderr,");
      const having = parts.filter((part) => typeof part[key] === "number");
      const sizes = having.map(size);
      scores[key] = weightedMean(
        having.map((part) => Number(part[key])),
        sizes,
      );
      const errors = having.map((part) => part[errorKey]).map((error) => (typeof error === "number" ? error : "N/A"));
      scores[errorKey] = pooledStandardError(errors, sizes);
    }
  }
  return scores;
}

/** What a task is, in the format's words. Prompts are shown over `{{column}}` in place of a document's text. */
function describe({ task, numFewshot }: TaskOutcome): Readonly<Record<string, unknown>> {
  const { dataset, metrics } = task;
  const placeholders = new Proxy<Doc>(
    {},
    { get: (_, key) => (key === "choices" ? [0, 1, 2, 3].map((i) => `{{choices[${i}]}}`) : `{{${String(key)}}}`) },
  );
  const split = dataset.split === "val" ? { validation_split: dataset.split } : { test_split: dataset.split };
  return {
    task: task.name,
    ...(task.alias === task.name ? {} : { task_alias: task.alias }),
    dataset_path: dataset.path,
    ...(dataset.subset === null ? {} : { dataset_name: dataset.subset }),
    ...split,
    ...(dataset.fewshotSplit === null ? {} : { fewshot_split: dataset.fewshotSplit }),
    doc_to_text: task.text(placeholders),
    ...(task.kind === "multiple_choice" ? { doc_to_choice: task.choices } : {}),
    description: task.description,
    target_delimiter: " ",
    fewshot_delimiter: "\n\n",
    fewshot_config: { sampler: task.sampler },
    num_fewshot: numFewshot,
    metric_list: metrics.map(({ name, aggregation, higherIsBetter }) => ({ metric: name, aggregation, higher_is_better: higherIsBetter })),
    output_type: task.kind,
    ...(task.kind === "generate_until"
      ? {
          generation_kwargs: { until: task.until, max_gen_toks: task.maxTokens, do_sample: false, temperature: 0 },
          filter_list: task.filters.map(({ name }) => ({ name })),
        }
      : {}),
    repeats: 1,
    should_decontaminate: false,
    metadata: { version: task.version },
  };
}

/** Groups among the chosen items, with those inside them, inner ones first. */
function allGroups(items: readonly (Task | TaskGroup)[]): readonly TaskGroup[] {
  return items.flatMap((item) => (isGroup(item) ? [...allGroups(item.children), item] : []));
}

export interface RunFacts {
  readonly config: Readonly<Record<string, unknown>>;
  readonly startedAt: Date;
  readonly seconds: number;
}

/** The result object. `chosen` are the tasks and groups as asked for, without tasks that were left out. */
export function report(chosen: readonly (Task | TaskGroup)[], outcomes: readonly TaskOutcome[], facts: RunFacts): EvalResults {
  const results: Record<string, Scores> = Object.fromEntries(outcomes.map((outcome) => [outcome.task.name, scoresOfTask(outcome)]));
  const groups = allGroups(chosen);
  const groupScores = Object.fromEntries(groups.map((group) => [group.name, scoresOfGroup(group, results)]));
  const better = (tasks: readonly Task[]): Record<string, boolean> =>
    Object.fromEntries(tasks.flatMap(({ metrics }) => metrics.map(({ name, higherIsBetter }) => [name, higherIsBetter])));
  const shots = new Map(outcomes.map(({ task, numFewshot }) => [task.name, numFewshot]));
  for (const group of groups) {
    const [first, ...others] = new Set(leaves(group).map(({ name }) => shots.get(name)));
    if (first !== undefined && others.length === 0) shots.set(group.name, first);
  }
  const everything = [...outcomes.map(({ task }) => task), ...groups];
  return {
    results: { ...results, ...groupScores },
    ...(groups.length > 0 ? { groups: groupScores } : {}),
    group_subtasks: Object.fromEntries(groups.map((group) => [group.name, group.children.map(({ name }) => name)])),
    configs: Object.fromEntries(outcomes.map((outcome) => [outcome.task.name, describe(outcome)])),
    versions: Object.fromEntries(everything.map(({ name, version }) => [name, version])),
    "n-shot": Object.fromEntries(shots),
    higher_is_better: Object.fromEntries(everything.map((item) => [item.name, better(leaves(item))])),
    "n-samples": Object.fromEntries(
      outcomes.map(({ task, numDocs, numBroken, samples }) => {
        const effective = new Set(samples.map(({ docId }) => docId)).size;
        return [task.name, { original: numDocs, effective, ...(numBroken > 0 ? { skipped: numBroken } : {}) }];
      }),
    ),
    config: facts.config,
    task_hashes: Object.fromEntries(outcomes.map(({ task, hash }) => [task.name, hash])),
    date: facts.startedAt.getTime() / 1000,
    total_evaluation_time_seconds: String(facts.seconds),
  };
}

/** Rows of a table: task, version, filter, examples, metric, value, standard error. Groups stand before what they contain. */
export function tableRows(results: EvalResults): readonly (readonly string[])[] {
  const rows: string[][] = [["Task", "Version", "Filter", "n-shot", "Metric", "Value", "Stderr"]];
  const inner = new Set(Object.values(results.group_subtasks).flat());
  const visit = (name: string, depth: number): void => {
    const scores = results.results[name] ?? {};
    let label = `${"  ".repeat(depth)}${String(scores["alias"] ?? name)}`;
    for (const [key, value] of Object.entries(scores)) {
      const [metric = "", filter] = key.split(",");
      if (filter === undefined || metric.endsWith("_stderr") || typeof value !== "number") continue;
      const error = scores[`${metric}_stderr,${filter}`];
      const shown = typeof error === "number" ? `± ${error.toFixed(4)}` : "";
      rows.push([
        label,
        String(results.versions[name] ?? ""),
        filter,
        String(results["n-shot"][name] ?? ""),
        metric,
        value.toFixed(4),
        shown,
      ]);
      label = "";
    }
    for (const child of results.group_subtasks[name] ?? []) visit(child, depth + 1);
  };
  for (const name of Object.keys(results.results)) if (!inner.has(name)) visit(name, 0);
  return rows;
}

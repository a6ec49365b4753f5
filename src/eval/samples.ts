/**
 * One judged sample, and its record in lm-evaluation-harness's form: document, prompt, answers, metrics, and hashes of document,
 * prompt and target, by which samples of two evaluations are matched.
 */
import { continuationOf } from "./prompt.ts";
import { toPythonString } from "./python.ts";
import { hashText } from "./responses.ts";
import type { Score } from "./score.ts";
import type { Doc, MetricValue, Task } from "./task.ts";

export interface Sample {
  readonly docId: number;
  readonly filter: string;
  readonly values: Readonly<Record<string, MetricValue>>;
  /** What the model answered, and what the filter made of it, in the record's form. */
  readonly responses: readonly unknown[];
  readonly filtered: readonly unknown[];
}

/** A log-likelihood as a record has it. */
export function recordedScore({ logLikelihood, isGreedy }: Score): readonly [string, string] {
  return [String(logLikelihood), toPythonString(isGreedy)];
}

export interface SampleHashes {
  readonly doc_hash: string;
  readonly prompt_hash: string;
  readonly target_hash: string;
}

export function hashesOf(task: Task, doc: Doc, prompt: string): SampleHashes {
  return {
    doc_hash: hashText(JSON.stringify(doc, null, 2)),
    prompt_hash: hashText(task.kind === "loglikelihood_rolling" ? String(task.target(doc)) : prompt),
    target_hash: hashText(toPythonString(task.target(doc))),
  };
}

/** A line of `samples_<task>.jsonl`. */
export function sampleRecord(task: Task, doc: Doc, prompt: string, sample: Sample): Readonly<Record<string, unknown>> {
  return {
    doc_id: sample.docId,
    doc,
    target: toPythonString(task.target(doc)),
    arguments: Object.fromEntries(argumentsOf(task, doc, prompt).map((args, i) => [`gen_args_${i}`, args])),
    resps: sample.responses.map((response) => [response]),
    filtered_resps: sample.filtered,
    filter: sample.filter,
    metrics: Object.keys(sample.values),
    ...hashesOf(task, doc, prompt),
    ...sample.values,
  };
}

function argumentsOf(task: Task, doc: Doc, prompt: string): readonly Readonly<Record<string, unknown>>[] {
  switch (task.kind) {
    case "multiple_choice":
      return task.choices.map((choice) => ({ arg_0: prompt, arg_1: continuationOf(choice) }));
    case "generate_until":
      return [{ arg_0: prompt, arg_1: { until: task.until, max_gen_toks: task.maxTokens, do_sample: false, temperature: 0 } }];
    default:
      return [{ arg_0: task.target(doc) }];
  }
}

/**
 * From names of tasks to requests: documents, examples, prompts and token ids of everything that will be asked of the model,
 * each request under a key that says what its answer depends on.
 */
import { createHash } from "node:crypto";
import type { Decoder } from "../model/index.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { MoeError } from "../util/errors.ts";
import type { CompletionRequest } from "./complete.ts";
import {
  continuationOf,
  encodeText,
  ExampleSampler,
  PairEncoder,
  prefixToken,
  promptOf,
  rollingWindows,
  type EncodedPair,
} from "./prompt.ts";
import { hashModel } from "./responses.ts";
import { hasData, loadDocs, type SourceOptions } from "./source.ts";
import { isGroup, leaves, type Doc, type Task, type TaskGroup } from "./task.ts";

/** A document with its prompt. */
export interface PreparedDoc {
  readonly docId: number;
  readonly doc: Doc;
  readonly prompt: string;
}
export interface PreparedTask {
  readonly task: Task;
  readonly numFewshot: number;
  /** Documents before the limit. */
  readonly numDocs: number;
  /** Rows left out, among the documents and among the examples. */
  readonly numBroken: number;
  readonly numBrokenExamples: number;
  readonly docs: readonly PreparedDoc[];
}

export interface PrepareOptions extends SourceOptions {
  /** Null: what each task has by default. */
  readonly numFewshot: number | null;
  /** Documents of each task at most; below 1 a fraction of them. Null: all. */
  readonly limit: number | null;
  readonly fewshotSeed: number;
}

/**
 * The chosen items without tasks whose data the folder does not have, and the names of those. A task that was asked for by its own
 * name stays, and will say what it misses.
 */
export function withoutMissing(
  chosen: readonly (Task | TaskGroup)[],
  data: string | null,
): { chosen: readonly (Task | TaskGroup)[]; missing: readonly string[] } {
  const missing: string[] = [];
  const prune = (item: Task | TaskGroup): readonly (Task | TaskGroup)[] => {
    if (!isGroup(item)) {
      if (data === null || hasData(item, data)) return [item];
      missing.push(item.name);
      return [];
    }
    const children = item.children.flatMap(prune);
    return children.length > 0 ? [{ ...item, children }] : [];
  };
  const kept = chosen.map((item) => (isGroup(item) ? prune(item) : [item]));
  for (const [i, item] of chosen.entries()) {
    if (kept[i]?.length === 0)
      throw new MoeError("file", `${data}: expected data of ${item.name} (such as ${leaves(item)[0]?.name}), got none`);
  }
  return { chosen: kept.flat(), missing };
}

/** Loads a task's documents and writes its prompts. Throws as `loadDocs` and `ExampleSampler` do. */
export async function prepareTask(task: Task, options: PrepareOptions): Promise<PreparedTask> {
  const { docs, numBroken } = await loadDocs(task, task.dataset.split, options);
  const numFewshot = task.fixedFewshot ? task.numFewshot : (options.numFewshot ?? task.numFewshot);
  const { fewshotSplit } = task.dataset;
  const examples =
    numFewshot === 0 || task.fewshotDocs !== undefined || fewshotSplit === null
      ? { docs: task.fewshotDocs ?? [], numBroken: 0 }
      : await loadDocs(task, fewshotSplit, options);
  const sampler = new ExampleSampler(task, examples.docs, numFewshot, options.fewshotSeed);
  const { limit } = options;
  const count = limit === null ? docs.length : limit < 1 ? Math.ceil(docs.length * limit) : Math.floor(limit);
  const prepared = docs.slice(0, count).map((doc, docId) => ({ docId, doc, prompt: promptOf(task, doc, sampler.next(numFewshot)) }));
  return { task, numFewshot, numDocs: docs.length, numBroken, numBrokenExamples: examples.numBroken, docs: prepared };
}

interface Keyed {
  readonly key: string;
  readonly task: string;
  readonly docId: number;
}
export interface ScoreJob extends Keyed {
  readonly pair: EncodedPair;
}
export interface CompletionJob extends Keyed {
  readonly request: CompletionRequest;
}
/** What a document asks for: scores in the order of its choices or windows, or a completion. */
export type DocJobs = { readonly scores: readonly ScoreJob[] } | { readonly completion: CompletionJob };

/** Writes the requests of documents for one model. */
export class JobMaker {
  readonly #tokenizer: Tokenizer;
  readonly #encoder: PairEncoder;
  readonly #maxLength: number;
  /** What every answer of this model depends on. */
  readonly fingerprint: string;

  constructor(model: Decoder, tokenizer: Tokenizer, maxLength: number) {
    this.#tokenizer = tokenizer;
    this.#encoder = new PairEncoder(tokenizer);
    this.#maxLength = maxLength;
    this.fingerprint = createHash("sha256")
      .update(`${hashModel(model)} ${maxLength} ${tokenizer.vocabSize}`)
      .digest("hex");
  }

  jobsOf(task: Task, { doc, docId, prompt }: PreparedDoc): DocJobs {
    const place = { task: task.name, docId };
    switch (task.kind) {
      case "multiple_choice":
        return { scores: task.choices.map((choice) => this.#scoreJob(place, this.#encoder.encode(prompt, continuationOf(choice)))) };
      case "loglikelihood_rolling": {
        const ids = encodeText(this.#tokenizer, String(task.target(doc)));
        const windows = rollingWindows(ids, prefixToken(this.#tokenizer), this.#maxLength);
        return { scores: windows.map((pair) => this.#scoreJob(place, pair)) };
      }
      default: {
        const request = { promptIds: encodeText(this.#tokenizer, prompt), until: task.until, maxTokens: task.maxTokens };
        const key = this.#key("completion", [request.promptIds], JSON.stringify([request.until, request.maxTokens]));
        return { completion: { ...place, key, request } };
      }
    }
  }
  #scoreJob(place: { task: string; docId: number }, pair: EncodedPair): ScoreJob {
    return { ...place, key: this.#key("score", [pair.contextIds, pair.continuationIds], ""), pair };
  }
  #key(kind: string, parts: readonly ArrayLike<number>[], settings: string): string {
    const hash = createHash("sha256").update(`${this.fingerprint} ${kind} ${settings}`);
    for (const ids of parts) hash.update(Int32Array.of(ids.length)).update(Int32Array.from(ids));
    return hash.digest("hex").slice(0, 40);
  }
}

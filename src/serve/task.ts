/** Requests and their choices on their way through the engine: its records, and what follows from one of them alone. */
import type { PagedSequence } from "../model/index.ts";
import { MoeError } from "../util/errors.ts";
import type { StepEntry } from "./forward.ts";
import type { GenerationListener, GenerationRequest, RequestUsage, TokenLogprobs } from "./request.ts";
import type { ChoiceSettings, ServeSequence } from "./sequence.ts";

/** A request on its way. */
export interface Group {
  readonly id: number;
  readonly settings: ChoiceSettings;
  readonly listener: GenerationListener;
  readonly submitted: number;
  readonly promptLogprobs: TokenLogprobs[];
  /** Choices that have not finished, those that were not begun included. */
  open: number;
  /** Choices that begin when the first one's prompt is computed. */
  unforked: number;
  cachedTokens: number | null;
  generatedTokens: number;
  firstTokenMs: number | null;
}
/** A choice of a request on its way. */
export interface Task {
  readonly group: Group;
  readonly sequence: ServeSequence;
  finished: boolean;
}
/** What a step computes of a choice. */
export type Planned = StepEntry & { readonly task: Task; readonly drafts: readonly number[] };

/** Throws `usage` for a request that no engine of this vocabulary and context can serve. */
export function checkRequest(request: GenerationRequest, vocabSize: number, maxContext: number): void {
  const { promptIds, maxTokens, seed = 0, n = 1, logprobs = 0, promptLogprobs = 0 } = request;
  if (promptIds.length === 0) throw new MoeError("usage", "request: expected a prompt of at least one token, got none");
  if (promptIds.length > maxContext || (promptIds.length === maxContext && maxTokens > 0))
    throw new MoeError(
      "usage",
      `request: a prompt of ${promptIds.length} tokens leaves no room in a context of ${maxContext} (prompt and output)`,
    );
  const wrong = Array.from(promptIds).findIndex((id) => !(Number.isInteger(id) && id >= 0 && id < vocabSize));
  if (wrong >= 0)
    throw new MoeError("usage", `request: prompt token ${wrong} is ${promptIds[wrong]}, expected an id from 0 to ${vocabSize - 1}`);
  for (const [name, value, least] of [
    ["maxTokens", maxTokens, 0],
    ["seed", seed, 0],
    ["n", n, 1],
    ["logprobs", logprobs, 0],
    ["promptLogprobs", promptLogprobs, 0],
  ] as const)
    if (!(Number.isSafeInteger(value) && value >= least))
      throw new MoeError("usage", `request: ${name}: expected a whole number of at least ${least}, got ${value}`);
}
/** The next `count` tokens of a sequence and guesses after them, with the rows that are wanted. */
export function entryOf(task: Task, cache: PagedSequence, count: number, drafts: readonly number[]): Planned {
  const { sequence, group } = task;
  const first = cache.length;
  const ids = [...sequence.ids.slice(first, first + count), ...drafts];
  const lastNeeded = sequence.ids.length - 1 - first;
  const { promptLogprobs } = group.settings.request;
  const nextLogprob = promptLogprobs === undefined || sequence.choice > 0 ? sequence.promptLength : group.promptLogprobs.length;
  const isPrompt = (place: number): boolean => place >= nextLogprob && place < sequence.promptLength - 1;
  const wanted = [...ids.keys()].filter((offset) => offset >= lastNeeded || isPrompt(first + offset));
  return { task, sequence: cache, first, ids, wanted, drafts };
}
export function usageOf({ settings, cachedTokens, generatedTokens, firstTokenMs }: Group): RequestUsage {
  return { promptTokens: settings.request.promptIds.length, cachedTokens: cachedTokens ?? 0, generatedTokens, firstTokenMs };
}
export function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}

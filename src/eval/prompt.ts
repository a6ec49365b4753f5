/**
 * From documents to prompts and token ids. A prompt is description, examples (question, space, answer, blank line) and the
 * question; what is scored behind it is a space and the answer. Trailing white space of a context goes to the continuation,
 * and the pair is encoded as one text and cut where the context's ids end, because a tokenizer may not cut where a text does.
 */
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { MoeError } from "../util/errors.ts";
import { PythonRandom, stripEnd } from "./python.ts";
import type { Doc, Task } from "./task.ts";

const targetDelimiter = " ";
const fewshotDelimiter = "\n\n";

/** Draws the examples of one task's prompts, one prompt after the other. */
export class ExampleSampler {
  readonly #task: Task;
  readonly #pool: readonly Doc[];
  readonly #random: PythonRandom;

  /** Throws `configuration` where the pool has fewer than `count` documents. */
  constructor(task: Task, pool: readonly Doc[], count: number, seed: number) {
    if (pool.length < count) {
      throw new MoeError("configuration", `${task.name}: expected ${count} examples to show (--num-fewshot), got ${pool.length} documents`);
    }
    this.#task = task;
    this.#pool = pool;
    this.#random = new PythonRandom(seed);
  }
  next(count: number): readonly Doc[] {
    if (count === 0) return [];
    return this.#task.sampler === "first_n" ? this.#pool.slice(0, count) : this.#random.sample(this.#pool, count);
  }
}

/** The whole context of a document. */
export function promptOf(task: Task, doc: Doc, examples: readonly Doc[]): string {
  const turns = examples.map((example) => {
    const answer = task.answer(example);
    return answer === "" ? task.text(example) : task.text(example) + targetDelimiter + answer + fewshotDelimiter;
  });
  return task.description + turns.join("") + task.text(doc);
}

/** What is scored behind the context for one choice. */
export function continuationOf(choice: string): string {
  return targetDelimiter + choice;
}

/** The token that stands before a text without context: bos, else eos. Throws `unsupported` where there is neither. */
export function prefixToken(tokenizer: Tokenizer): number {
  const id = tokenizer.bosId ?? tokenizer.eosId;
  if (id === undefined)
    throw new MoeError("unsupported", "evaluation: the tokenizer has neither a bos nor an eos token to begin a text with");
  return id;
}

/** Ids of a text as the model expects it at its beginning (with a bos where it wants one and the text does not bring it). */
export function encodeText(tokenizer: Tokenizer, text: string): Int32Array {
  const prefix = tokenizer.bosId ?? tokenizer.eosId;
  const mark = prefix === undefined ? "" : tokenizer.decode([prefix], { skipSpecialTokens: false });
  return tokenizer.encode(text, mark !== "" && text.startsWith(mark) ? { addSpecialTokens: false } : {});
}

export interface EncodedPair {
  readonly contextIds: ArrayLike<number>;
  readonly continuationIds: ArrayLike<number>;
}

/** Contexts repeat from choice to choice: the last one's ids are kept. */
export class PairEncoder {
  readonly #tokenizer: Tokenizer;
  #lastText = "";
  #lastIds: Int32Array = new Int32Array();

  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
  }
  /** Throws `unsupported` for a continuation without a token of its own. */
  encode(context: string, continuation: string): EncodedPair {
    const pair = context === "" ? this.#alone(continuation) : this.#behind(context, continuation);
    if (pair.continuationIds.length === 0)
      throw new MoeError("unsupported", `evaluation: ${JSON.stringify(continuation)} has no token of its own behind its context`);
    return pair;
  }
  #alone(continuation: string): EncodedPair {
    const ids = this.#tokenizer.encode(continuation, { addSpecialTokens: false });
    const prefix = prefixToken(this.#tokenizer);
    return ids[0] === prefix
      ? { contextIds: ids.subarray(0, 1), continuationIds: ids.subarray(1) }
      : { contextIds: [prefix], continuationIds: ids };
  }
  #behind(context: string, continuation: string): EncodedPair {
    const stripped = stripEnd(context);
    const whole = encodeText(this.#tokenizer, context + continuation);
    if (stripped !== this.#lastText || this.#lastIds.length === 0) {
      this.#lastText = stripped;
      this.#lastIds = encodeText(this.#tokenizer, stripped);
    }
    const length = this.#lastIds.length;
    return { contextIds: this.#lastIds, continuationIds: whole.subarray(length) };
  }
}

/**
 * A text cut into windows that score every token once: each window's input is at most `maxLength` tokens, the first begins with
 * the prefix token, each later one with the last token before it.
 */
export function rollingWindows(ids: Int32Array, prefix: number, maxLength: number): readonly EncodedPair[] {
  const windows: EncodedPair[] = [];
  let done = 0;
  while (done < ids.length) {
    const end = Math.min(done + maxLength, ids.length);
    if (done === 0) windows.push({ contextIds: [prefix], continuationIds: ids.subarray(0, end) });
    else {
      // A short last window keeps the full length of context that fits.
      const start = Math.max(0, end - maxLength - 1);
      windows.push({ contextIds: ids.subarray(start, done), continuationIds: ids.subarray(done, end) });
    }
    done = end;
  }
  return windows;
}

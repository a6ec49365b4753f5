/**
 * One choice of a request on its way: its tokens, how far its keys are in the cache, and how the next token is chosen from a
 * row of logits. Nothing here knows of other sequences: what a choice becomes is a function of its request and its index.
 */
import { adjustLogits, adjustsLogits, argmax, checkLargestLogit, drawToken, StoppedText, type SamplingOptions } from "../generate/index.ts";
import type { PagedSequence } from "../model/index.ts";
import type { DecodeStream, Tokenizer } from "../tokenizer/tokenizer.ts";
import { MoeError } from "../util/errors.ts";
import { Random } from "../util/random.ts";
import type { GenerationRequest, TokenConstraint, TokenLogprobs } from "./request.ts";

/** What of a request all its choices read. */
export interface ChoiceSettings {
  readonly request: GenerationRequest;
  readonly sampling: SamplingOptions;
  readonly stopIds: ReadonlySet<number>;
  readonly maxTokens: number;
  readonly promptSeen: ReadonlySet<number>;
}

export class ServeSequence {
  readonly choice: number;
  readonly settings: ChoiceSettings;
  readonly promptLength: number;
  /** Prompt and output. */
  readonly ids: number[];
  /** Its part of the cache while it runs; null while it waits. `cache.length` tokens of `ids` are computed. */
  cache: PagedSequence | null = null;
  readonly #seen: Set<number>;
  readonly #generated = new Map<number, number>();
  readonly #constraint: TokenConstraint | null;
  readonly #stream: DecodeStream;
  readonly #output: StoppedText;
  #piece = "";

  constructor(settings: ChoiceSettings, choice: number, tokenizer: Tokenizer) {
    const { request } = settings;
    this.settings = settings;
    this.choice = choice;
    this.ids = Array.from(request.promptIds);
    this.promptLength = this.ids.length;
    this.#seen = new Set(settings.promptSeen);
    this.#constraint = request.constraint?.clone() ?? null;
    this.#stream = tokenizer.createDecodeStream({ skipSpecialTokens: request.keepSpecialTokens !== true });
    this.#output = new StoppedText(request.stop ?? [], (text) => {
      this.#piece += text;
    });
  }

  get numGenerated(): number {
    return this.ids.length - this.promptLength;
  }
  /** Whether the index of the largest logit, which the backend can find, is all that a choice needs. */
  get isPlainGreedy(): boolean {
    const { sampling, request } = this.settings;
    return sampling.temperature === 0 && !adjustsLogits(sampling) && this.#constraint === null && request.logprobs === undefined;
  }

  /**
   * The next token from its row of logits f32 [V], which is changed. Numbers are drawn by (seed, choice, place of the token): a token that is
   * chosen again after a preemption, or after a wrong speculation, is the same.
   */
  choose(logits: Float32Array): number {
    const { sampling, request } = this.settings;
    if (adjustsLogits(sampling)) adjustLogits(logits, sampling, { seen: this.#seen, generated: this.#generated });
    if (this.#constraint !== null) {
      this.#mask(logits, this.#constraint);
      if (argmaxIsMasked(logits)) throw new MoeError("unsupported", "constraint: no token of the vocabulary can go on from here");
    }
    return drawToken(logits, sampling, Random.keyed(request.seed ?? 0, this.choice, this.numGenerated));
  }
  #mask(logits: Float32Array, constraint: TokenConstraint): void {
    const { mask, endAllowed } = constraint.allowed();
    checkLargestLogit(logits[argmax(logits)] ?? Number.NaN);
    for (let id = 0; id < logits.length; id++) {
      if (((mask[id >>> 5] ?? 0) >>> (id & 31)) & 1) continue;
      if (endAllowed && this.settings.stopIds.has(id)) continue;
      logits[id] = Number.NEGATIVE_INFINITY;
    }
  }

  /** Takes the next token. Returns the text that became certain, and what ended the choice, if anything. */
  push(id: number): { text: string; end: "stop" | "length" | null; stoppedBy: string | number | null } {
    const { request, stopIds, maxTokens } = this.settings;
    this.#seen.add(id);
    this.#generated.set(id, (this.#generated.get(id) ?? 0) + 1);
    this.ids.push(id);
    if (stopIds.has(id)) return { text: "", end: "stop", stoppedBy: id };
    this.#constraint?.accept(id);
    if (this.#output.push(this.#stream.push(id))) return { text: this.#take(), end: "stop", stoppedBy: this.#output.stoppedBy };
    const full = this.numGenerated >= maxTokens;
    // A constraint that can only end needs no token to say so.
    const ended = this.#constraint !== null && request.ignoreEnd !== true && onlyEnds(this.#constraint);
    return { text: this.#take(), end: ended ? "stop" : full ? "length" : null, stoppedBy: null };
  }
  /** The rest of the text at the end of the choice. */
  finish(): string {
    if (!this.#output.stopped) this.#output.push(this.#stream.end());
    this.#output.end();
    return this.#take();
  }
  #take(): string {
    const text = this.#piece;
    this.#piece = "";
    return text;
  }
}

function argmaxIsMasked(logits: Float32Array): boolean {
  return !((logits[argmax(logits)] ?? Number.NEGATIVE_INFINITY) > Number.NEGATIVE_INFINITY);
}
function onlyEnds(constraint: TokenConstraint): boolean {
  const { mask, endAllowed } = constraint.allowed();
  return endAllowed && mask.every((word) => word === 0);
}

/** Log-probability of `id` and the `count` most probable tokens in a row of logits as the model gave it. */
export function logprobsOf(logits: Float32Array, logSumExp: number, id: number, count: number): TokenLogprobs {
  const of = (token: number): number => (logits[token] ?? Number.NaN) - logSumExp;
  return { id, logprob: of(id), top: largest(logits, count).map((token) => ({ id: token, logprob: of(token) })) };
}

/** The `count` largest, descending, ties to the lower index. */
function largest(logits: Float32Array, count: number): number[] {
  const found: number[] = [];
  if (count <= 0) return found;
  let least = Number.NEGATIVE_INFINITY;
  for (let id = 0; id < logits.length; id++) {
    const value = logits[id] ?? 0;
    if (!(value > least)) continue;
    let at = found.length;
    while (at > 0 && value > (logits[found[at - 1] ?? 0] ?? 0)) at--;
    found.splice(at, 0, id);
    if (found.length > count) found.pop();
    if (found.length === count) least = logits[found[count - 1] ?? 0] ?? 0;
  }
  return found;
}

/**
 * The serving engine: many requests, one model. Each `step` is one forward pass over a flat batch of whatever is due: one
 * token of every sequence that decodes, and parts of the prompts of those that begin (continuous batching, Orca, OSDI 2022; chunked
 * prefill). In a mixture of experts the tokens of all requests so go through one grouped product an expert layer.
 *
 * A token's logits are the same bits in any batch, chunk or page, and its random numbers are keyed by request: so neither
 * neighbours nor preemption nor the prefix cache change a request's tokens or log-probabilities.
 *
 * Synchronous and single-threaded: whoever must not wait for a step runs the engine in a worker. Not here: protocols, queues with limits,
 * deadlines (`src/server`).
 */
import { checkSamplingOptions, samplingOptions } from "../generate/index.ts";
import { batchOfDocuments, blockTokens, PagedCache, type Decoder, type PagedSequence } from "../model/index.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { MoeError } from "../util/errors.ts";
import type { Drafter } from "./drafter.ts";
import { forwardStep, type StepEntry, type StepRow } from "./forward.ts";
import { planTokens } from "./plan.ts";
import type { ServingOptions, ServingStats } from "./options.ts";
import type { GenerationListener, GenerationRequest, ServeFinishReason } from "./request.ts";
import { logprobsOf, ServeSequence } from "./sequence.ts";
import { asError, checkRequest, entryOf, usageOf, type Group, type Planned, type Task } from "./task.ts";

export class ServingEngine implements Disposable {
  readonly model: Decoder;
  readonly tokenizer: Tokenizer;
  /** Tokens of prompt and output of one sequence at most. */
  readonly maxContext: number;
  readonly #options: Required<Omit<ServingOptions, "drafter" | "cacheBytes" | "cacheDtype" | "maxContext">>;
  readonly #cache: PagedCache;
  readonly #drafter: Drafter | null;
  readonly #endIds: ReadonlySet<number>;
  readonly #groups = new Map<number, Group>();
  #running: Task[] = [];
  #waiting: Task[] = [];
  #lastId = 0;
  #listenerError: { readonly error: unknown } | null = null;
  readonly #counts = {
    steps: 0,
    computedTokens: 0,
    generatedTokens: 0,
    promptTokens: 0,
    cachedPromptTokens: 0,
    preemptions: 0,
    draftedTokens: 0,
    acceptedTokens: 0,
  };
  readonly #expertCounts = new Map<number, Float64Array>();

  /** Allocates the cache. Throws `configuration` where the bytes do not hold a block. The caller keeps the model and disposes the engine. */
  constructor(model: Decoder, tokenizer: Tokenizer, options: ServingOptions) {
    const { cacheBytes, cacheDtype = model.dtype, drafter, maxContext = model.config.maxPositions, ...rest } = options;
    this.#options = { maxRunning: 32, tokenBudget: 512, prefixCache: true, maxDraftTokens: 4, ...rest };
    for (const [name, value] of Object.entries({ ...this.#options, maxContext, prefixCache: 1 }))
      if (!(Number.isSafeInteger(value) && value >= 1))
        throw new MoeError("configuration", `serving: ${name}: expected a whole number of at least 1, got ${String(value)}`);
    const blockBytes = PagedCache.blockBytes(model.config, cacheDtype);
    const numBlocks = Math.floor(cacheBytes / blockBytes);
    if (!(numBlocks >= 1))
      throw new MoeError(
        "configuration",
        `serving: a KV cache of ${cacheBytes} bytes holds no block of ${blockTokens} tokens (${blockBytes} bytes)`,
      );
    if ([...model.parameters.values()].some(({ scales }) => scales?.activations === "tensor"))
      throw new MoeError(
        "unsupported",
        "serving with one activation scale for all tokens of a step: answers would depend on each other; round by token",
      );
    this.model = model;
    this.tokenizer = tokenizer;
    this.maxContext = Math.min(maxContext, numBlocks * blockTokens);
    this.#drafter = drafter ?? null;
    this.#endIds = new Set([...tokenizer.endIds, ...model.config.eosTokenIds]);
    this.#cache = new PagedCache(model.engine, model.cacheConfig, { numBlocks, dtype: cacheDtype });
  }

  /** Whether a step would do something. */
  get hasWork(): boolean {
    return this.#running.length + this.#waiting.length > 0;
  }
  stats(): ServingStats {
    const { numFreeBlocks, numIdleBlocks, options } = this.#cache;
    return {
      running: this.#running.length,
      waiting: this.#waiting.length,
      blocksTotal: options.numBlocks,
      blocksUsed: options.numBlocks - numFreeBlocks,
      blocksIdle: numIdleBlocks,
      ...this.#counts,
    };
  }
  /** Tokens that each expert got, by layer, since the engine was made or `resetExpertCounts`. Empty without experts. */
  expertCounts(): ReadonlyMap<number, Float64Array> {
    return this.#expertCounts;
  }
  resetExpertCounts(): void {
    this.#expertCounts.clear();
  }
  /** Forgets beginnings that are kept and that nobody uses. */
  clearPrefixCache(): void {
    this.#cache.clearPublished();
  }

  /**
   * Queues a request; what becomes of it goes to `listener`, from `step` and `abort`. Returns its number. Throws `usage` for what cannot be
   * served: no prompt, ids outside the vocabulary, a prompt that fills the context, options out of range. A listener may submit and abort; what
   * it throws aborts its request and comes out of `step`.
   */
  submit(request: GenerationRequest, listener: GenerationListener): number {
    const { promptIds, n = 1 } = request;
    const sampling = samplingOptions(request.sampling ?? {});
    checkSamplingOptions(sampling);
    checkRequest(request, this.model.config.vocabSize, this.maxContext);
    const stopIds = new Set([...(request.ignoreEnd === true ? [] : this.#endIds), ...(request.stopIds ?? [])]);
    const maxTokens = Math.min(request.maxTokens, this.maxContext - promptIds.length);
    const group: Group = {
      id: ++this.#lastId,
      settings: { request, sampling, stopIds, maxTokens, promptSeen: new Set(Array.from(promptIds)) },
      listener,
      submitted: performance.now(),
      promptLogprobs: [],
      open: n,
      unforked: n - 1,
      cachedTokens: null,
      generatedTokens: 0,
      firstTokenMs: null,
    };
    this.#groups.set(group.id, group);
    this.#waiting.push(this.#task(group, 0));
    return group.id;
  }
  #task(group: Group, choice: number): Task {
    return { group, sequence: new ServeSequence(group.settings, choice, this.tokenizer), finished: false };
  }

  /** Ends a request now: its slots and blocks are free when this returns. False where it is not under way. */
  abort(id: number): boolean {
    const group = this.#groups.get(id);
    if (group === undefined) return false;
    this.#close(group, "aborted", null);
    return true;
  }
  /** Ends every choice of a request. */
  #close(group: Group, reason: ServeFinishReason, error: Error | null): void {
    const { unforked } = group;
    group.unforked = 0;
    for (const task of [...this.#running, ...this.#waiting]) if (task.group === group) this.#finish(task, reason, null, error);
    const n = group.settings.request.n ?? 1;
    for (let choice = n - unforked; choice < n; choice++) this.#finish(this.#task(group, choice), reason, null, error);
  }

  /**
   * One forward pass, and what follows from it. False where there was nothing to do. An error that only concerns one request ends that request;
   * one of the whole pass ends all that were in it. Throws what is nobody's request: lost ranks, our bugs, errors of listeners.
   */
  step(): boolean {
    this.#admit();
    const planned = this.#plan();
    if (planned.length === 0) return false;
    this.#counts.steps++;
    try {
      forwardStep(this.model, this.#cache, planned, {
        visit: (entry, row) => this.#visit(entry, row),
        routed: (layer, counts) => this.#countExperts(layer, counts),
      });
      for (const { task } of planned) this.#settle(task);
    } catch (error) {
      for (const { task } of planned) this.#close(task.group, "error", asError(error));
      if (!(error instanceof MoeError) || error.kind === "communication" || error.kind === "internal") throw error;
    }
    this.#running = this.#running.filter(({ finished }) => !finished);
    const thrown = this.#listenerError;
    this.#listenerError = null;
    if (thrown !== null) throw thrown.error;
    return true;
  }

  /** Lets waiting sequences begin, in order, while there are slots and blocks for their whole prompts. */
  #admit(): void {
    for (let task = this.#waiting[0]; task !== undefined && this.#running.length < this.#options.maxRunning; task = this.#waiting[0]) {
      const { sequence, group } = task;
      const needsAll = group.settings.request.promptLogprobs !== undefined && group.cachedTokens === null;
      const cache = this.#cache.begin(this.#options.prefixCache && !needsAll ? sequence.ids : []);
      const cached = cache.length;
      // One more, so that the first new token is not at once one too many.
      if (!this.#cache.reserve(cache, Math.min(sequence.ids.length + 1, this.maxContext) - cached)) {
        this.#cache.release(cache);
        return;
      }
      sequence.cache = cache;
      if (group.cachedTokens === null) {
        group.cachedTokens = cached;
        this.#counts.promptTokens += sequence.promptLength;
        this.#counts.cachedPromptTokens += cached;
      }
      this.#waiting.shift();
      this.#running.push(task);
    }
  }

  #plan(): Planned[] {
    const remaining = this.#running.map(({ sequence }) => sequence.ids.length - (sequence.cache?.length ?? 0));
    const counts = planTokens(remaining, this.#options.tokenBudget);
    const drafts = this.#draft(remaining, this.#options.tokenBudget - counts.reduce((a, b) => a + b, 0));
    const planned: Planned[] = [];
    // Making room takes from the end of the list, so what is planned keeps its place.
    for (const [i, task] of [...this.#running].entries()) {
      const [count, guesses] = [counts[i] ?? 0, drafts.get(task) ?? []];
      const cache = count === 0 ? null : this.#makeRoom(task, count + guesses.length);
      if (cache === null) continue;
      planned.push(entryOf(task, cache, count, guesses));
      this.#counts.draftedTokens += guesses.length;
      this.#counts.computedTokens += count + guesses.length;
    }
    return planned;
  }
  #draft(remaining: readonly number[], budget: number): Map<Task, readonly number[]> {
    const drafter = this.#drafter;
    if (drafter === null) return new Map();
    const wanted = this.#running.filter(({ group }, i) => remaining[i] === 1 && group.settings.request.speculate !== false);
    const share = Math.min(this.#options.maxDraftTokens, Math.floor(budget / Math.max(1, wanted.length)));
    const asked = wanted
      .map((task) => ({ task, limit: Math.min(share, task.group.settings.maxTokens - task.sequence.numGenerated - 1) }))
      .filter(({ limit }) => limit > 0);
    if (asked.length === 0) return new Map();
    const proposals = drafter.propose(asked.map(({ task, limit }) => ({ key: task, ids: task.sequence.ids, limit })));
    const { vocabSize } = this.model.config;
    const valid = (ids: readonly number[]): readonly number[] => {
      // A draft model's vocabulary may be padded beyond ours.
      const end = ids.findIndex((id) => id >= vocabSize);
      return end < 0 ? ids : ids.slice(0, end);
    };
    return new Map(asked.map(({ task, limit }, i) => [task, valid((proposals[i] ?? []).slice(0, limit))]));
  }

  /** Reserves blocks for `count` tokens, if need be at the cost of the sequences that came last. Null where that is this one itself. */
  #makeRoom(task: Task, count: number): PagedSequence | null {
    while (task.sequence.cache !== null && !this.#cache.reserve(task.sequence.cache, count)) {
      const newest = this.#running.at(-1);
      if (newest === undefined) break;
      this.#running.pop();
      this.#waiting.unshift(newest);
      this.#releaseCache(newest);
      this.#counts.preemptions++;
    }
    return task.sequence.cache;
  }
  #releaseCache(task: Task): void {
    if (task.sequence.cache !== null) this.#cache.release(task.sequence.cache);
    task.sequence.cache = null;
    this.#drafter?.release(task);
  }

  /** What a row of logits means for its sequence. Returns false where the rows after it (of guesses) are of no use any more. */
  #visit(entry: StepEntry, row: StepRow): boolean {
    const { task, drafts } = entry as Planned;
    if (task.finished) return false;
    try {
      if (row.place < task.sequence.promptLength - 1) {
        this.#promptLogprob(task, row);
        return true;
      }
      this.#beginChoices(task, row);
      const id = this.#advance(task, row);
      const guess = drafts[row.place - (entry.first + entry.ids.length - 1 - drafts.length)];
      const isRight = guess === id && !task.finished;
      if (isRight) this.#counts.acceptedTokens++;
      return isRight;
    } catch (error) {
      this.#close(task.group, "error", asError(error));
      return false;
    }
  }
  #promptLogprob({ group, sequence }: Task, row: StepRow): void {
    const { promptLogprobs } = group.settings.request;
    // A prompt that is computed again after a preemption has told its part already.
    if (promptLogprobs === undefined || row.place !== group.promptLogprobs.length) return;
    group.promptLogprobs.push(logprobsOf(row.logits(), row.logSumExp(), sequence.ids[row.place + 1] ?? -1, promptLogprobs));
  }
  /** The first row after the prompt is that of all choices: the others begin here, on shared blocks. */
  #beginChoices(task: Task, row: StepRow): void {
    const { group, sequence } = task;
    const { request } = group.settings;
    if (sequence.choice !== 0 || sequence.numGenerated > 0) return;
    if (request.promptLogprobs !== undefined) this.#tell(group, { type: "prompt", logprobs: group.promptLogprobs });
    const n = request.n ?? 1;
    const later: Task[] = [];
    for (; group.unforked > 0; group.unforked--) {
      const other = this.#task(group, n - group.unforked);
      if (this.#running.length >= this.#options.maxRunning || sequence.cache === null) later.push(other);
      else {
        other.sequence.cache = this.#cache.fork(sequence.cache, sequence.promptLength);
        this.#running.push(other);
        this.#advance(other, row);
      }
    }
    this.#waiting.unshift(...later);
  }
  /** Chooses the next token of a sequence by a row, and tells it. */
  #advance(task: Task, row: StepRow): number {
    const { group, sequence } = task;
    const { request, maxTokens } = group.settings;
    if (maxTokens === 0) {
      this.#finish(task, "length", null, null);
      return -1;
    }
    const id = sequence.isPlainGreedy ? row.best() : sequence.choose(row.logits().slice());
    const logprobs = request.logprobs === undefined ? null : logprobsOf(row.logits(), row.logSumExp(), id, request.logprobs);
    const { text, end, stoppedBy } = sequence.push(id);
    group.generatedTokens++;
    this.#counts.generatedTokens++;
    group.firstTokenMs ??= performance.now() - group.submitted;
    // An id that ends the choice is not part of it.
    if (typeof stoppedBy !== "number") this.#tell(group, { type: "token", choice: sequence.choice, id, text, logprobs });
    if (end !== null && !task.finished) this.#finish(task, end, stoppedBy, null);
    return id;
  }
  /** After a pass: guesses that were wrong leave the cache, and full blocks can be found by others. */
  #settle({ sequence }: Task): void {
    const { cache, ids } = sequence;
    if (cache === null) return;
    if (cache.length >= ids.length) this.#cache.truncate(cache, ids.length - 1);
    if (this.#options.prefixCache) this.#cache.publish(cache, ids);
  }

  #finish(task: Task, reason: ServeFinishReason, stoppedBy: string | number | null, error: Error | null): void {
    if (task.finished) return;
    task.finished = true;
    const { group, sequence } = task;
    // What was computed may serve who goes on from here; after an error nobody knows what was.
    if (reason !== "error") this.#settle(task);
    this.#releaseCache(task);
    this.#running = this.#running.filter((other) => other !== task);
    this.#waiting = this.#waiting.filter((other) => other !== task);
    group.open--;
    if (group.open === 0) this.#groups.delete(group.id);
    this.#tell(group, { type: "finish", choice: sequence.choice, reason, text: sequence.finish(), stoppedBy, error });
    if (group.open === 0) this.#tell(group, { type: "end", usage: usageOf(group) });
  }
  #tell(group: Group, event: Parameters<GenerationListener>[0]): void {
    try {
      group.listener(event);
    } catch (error) {
      this.#listenerError ??= { error };
      this.abort(group.id);
    }
  }
  #countExperts(layer: number, counts: Int32Array): void {
    const total = this.#expertCounts.get(layer) ?? new Float64Array(counts.length);
    for (let e = 0; e < counts.length; e++) total[e] = (total[e] ?? 0) + (counts[e] ?? 0);
    this.#expertCounts.set(layer, total);
  }

  /**
   * The mean of the final hidden states f32 [hidden] of a text: an embedding of sorts, by a pass of its own. Throws `usage` as `submit` does.
   */
  embed(promptIds: ArrayLike<number>): Float32Array {
    checkRequest({ promptIds, maxTokens: 0 }, this.model.config.vocabSize, this.maxContext);
    const { engine, config } = this.model;
    return engine.scope(() => {
      const { hidden_TH } = this.model.forwardHidden(batchOfDocuments(engine, [promptIds], { vocabSize: config.vocabSize }));
      const values = hidden_TH.toFloat32Array();
      const mean = new Float64Array(config.hiddenSize);
      for (let i = 0; i < values.length; i++) mean[i % mean.length] = (mean[i % mean.length] ?? 0) + (values[i] ?? 0);
      return Float32Array.from(mean, (sum) => sum / promptIds.length);
    });
  }

  /** Aborts what is under way and frees the cache and the drafter. The model stays. */
  [Symbol.dispose](): void {
    for (const id of this.#groups.keys()) this.abort(id);
    this.#cache[Symbol.dispose]();
    this.#drafter?.[Symbol.dispose]();
  }
}

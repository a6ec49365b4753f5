/**
 * The engine's side of the server: takes messages, steps the engine while there is work, and says what happened, one message a step. Between
 * two steps all messages that have come are read, so that an aborted request is gone before the next pass.
 */
import { JsonConstraints, type GenerationEvent, type GenerationRequest, type ServingEngine, type TokenLogprobs } from "../serve/index.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { MoeError } from "../util/errors.ts";
import { badRequest, errorData } from "./errors.ts";
import { ExpertRecorder } from "./expert-recorder.ts";
import { prepareConstraint, preparePrompt } from "./prepare.ts";
import type { Call, CallResults, FromEngine, GenerateTask, TaskEvent, ToEngine, TokenLogprob, TokenText } from "./protocol.ts";

/** Milliseconds between two reports of counters while there is work. */
const statsIntervalMs = 100;

export class EngineHost {
  readonly #engine: ServingEngine;
  readonly #post: (message: FromEngine) => void;
  readonly #experts: ExpertRecorder;
  readonly #endIds: ReadonlySet<number>;
  readonly #texts = new Map<number, TokenText>();
  /** Our request numbers to the engine's. */
  readonly #requests = new Map<number, number>();
  /** Calls that run the model, one between two steps. */
  readonly #jobs: { readonly id: number; readonly call: Call }[] = [];
  #events: { id: number; event: TaskEvent }[] = [];
  #constraints: JsonConstraints | null = null;
  #ending = false;
  #wake: (() => void) | null = null;
  #statsSent = 0;

  constructor(engine: ServingEngine, post: (message: FromEngine) => void) {
    this.#engine = engine;
    this.#post = post;
    this.#experts = new ExpertRecorder(() => engine.expertCounts());
    this.#endIds = new Set([...engine.tokenizer.endIds, ...engine.model.config.eosTokenIds]);
  }
  get #tokenizer(): Tokenizer {
    return this.#engine.tokenizer;
  }

  /** Steps until `shutdown`. Rejects with what the engine cannot survive. */
  async run(): Promise<void> {
    while (!this.#ending) {
      if (this.turn()) {
        await new Promise<void>((wake) => {
          this.#wake = wake;
        });
        this.#wake = null;
      } else await new Promise((turn) => setImmediate(turn));
    }
    this.end();
  }
  /** Whether `shutdown` came. */
  get isEnding(): boolean {
    return this.#ending;
  }
  /** A call, a step, and what came of them. True where nothing is left to do. Throws what the engine cannot survive: a lost rank. */
  turn(): boolean {
    const job = this.#jobs.shift();
    if (job !== undefined) this.#answer(job.id, job.call);
    if (this.#engine.hasWork) this.#step();
    this.#flush();
    const isIdle = !this.#engine.hasWork && this.#jobs.length === 0;
    this.#report(isIdle);
    return isIdle;
  }
  /** Aborts what is under way, and says so. */
  end(): void {
    for (const id of this.#requests.values()) this.#engine.abort(id);
    this.#flush();
  }
  #step(): void {
    try {
      this.#engine.step();
    } catch (error) {
      if (error instanceof MoeError && error.kind === "communication") throw error;
      // The requests of the pass have been told; the next ones may fare better.
      this.#post({ type: "trouble", message: error instanceof Error ? (error.stack ?? error.message) : String(error) });
    }
  }
  #flush(): void {
    if (this.#events.length > 0) this.#post({ type: "events", events: this.#events });
    this.#events = [];
  }
  #report(always: boolean): void {
    const now = performance.now();
    if (!always && now - this.#statsSent < statsIntervalMs) return;
    this.#statsSent = now;
    const experts = [...this.#engine.expertCounts()].map(([layer, counts]) => [layer, [...counts]] as const);
    this.#post({ type: "stats", stats: { ...this.#engine.stats(), liveBytes: this.#engine.model.engine.backend.liveBytes }, experts });
  }

  receive(message: ToEngine): void {
    switch (message.type) {
      case "generate":
        this.#generate(message.id, message.task);
        break;
      case "abort": {
        const id = this.#requests.get(message.id);
        if (id !== undefined) this.#engine.abort(id);
        this.#requests.delete(message.id);
        break;
      }
      case "call":
        if (message.call.method === "embed") this.#jobs.push(message);
        else this.#answer(message.id, message.call);
        break;
      case "shutdown":
        this.#ending = true;
        break;
      default:
        message satisfies never;
    }
    this.#wake?.();
  }

  #generate(id: number, task: GenerateTask): void {
    const send = (event: TaskEvent): void => {
      this.#events.push({ id, event });
    };
    try {
      const { request, echoed, sendsEnd } = this.#prepare(task);
      send({ type: "accepted", promptTokens: request.promptIds.length, prompt: echoed });
      const number = this.#engine.submit(request, (event) => {
        if (event.type === "end") this.#requests.delete(id);
        send(this.#translate(event, sendsEnd));
      });
      this.#requests.set(id, number);
    } catch (error) {
      send({ type: "failed", error: errorData(error) });
    }
  }
  #prepare(task: GenerateTask): { request: GenerationRequest; echoed: { text: string; tokens: TokenText[] } | null; sendsEnd: boolean } {
    const { vocabSize } = this.#engine.model.config;
    const { ids, text } = preparePrompt(this.#tokenizer, task.prompt, { maxContext: this.#engine.maxContext, vocabSize });
    const constraint = prepareConstraint(() => this.#jsonConstraints(), task.format);
    for (const [token] of task.sampling.logitBias)
      if (token >= vocabSize) throw badRequest(`token ${token}: the vocabulary has ${vocabSize} tokens`, "logit_bias");
    // Who scores a text asks for one token after it, with log-probabilities, and counts on getting one, be it an end token.
    const sendsEnd = task.maxTokens === 1 && task.logprobs !== null && !task.ignoreEnd && task.format === null;
    const request: GenerationRequest = {
      promptIds: ids,
      maxTokens: task.maxTokens ?? this.#engine.maxContext - ids.length,
      sampling: { ...task.sampling, logitBias: new Map(task.sampling.logitBias) },
      seed: task.seed,
      n: task.n,
      stop: task.stop,
      stopIds: task.stopIds,
      ignoreEnd: task.ignoreEnd || sendsEnd,
      keepSpecialTokens: task.keepSpecialTokens,
      ...(task.logprobs === null ? {} : { logprobs: task.logprobs }),
      ...(task.promptLogprobs === null ? {} : { promptLogprobs: task.promptLogprobs }),
      ...(constraint === undefined ? {} : { constraint }),
    };
    const tokens = task.logprobs === null ? [] : Array.from(ids, (token) => this.#text(token));
    return { request, echoed: task.echo ? { text: text(), tokens } : null, sendsEnd };
  }
  /** Made when first asked for: the vocabulary is sorted for it. */
  #jsonConstraints(): JsonConstraints {
    this.#constraints ??= new JsonConstraints(this.#tokenizer, this.#engine.model.config.vocabSize);
    return this.#constraints;
  }
  #translate(event: GenerationEvent, sendsEnd: boolean): TaskEvent {
    switch (event.type) {
      case "prompt":
        return { type: "prompt", logprobs: event.logprobs.map((entry) => this.#logprob(entry)) };
      case "token": {
        const logprobs = event.logprobs === null ? null : this.#logprob(event.logprobs);
        const text = sendsEnd && this.#endIds.has(event.id) ? "" : event.text;
        this.#lastIds.set(event.choice, event.id);
        return { type: "token", choice: event.choice, text, logprobs };
      }
      case "finish": {
        const last = sendsEnd && event.reason === "length" ? this.#lastIds.get(event.choice) : undefined;
        const atEnd = last !== undefined && this.#endIds.has(last);
        return {
          type: "finish",
          choice: event.choice,
          reason: atEnd ? "stop" : event.reason,
          text: atEnd ? "" : event.text,
          stoppedBy: atEnd ? last : event.stoppedBy,
          error: event.error === null ? null : errorData(event.error),
        };
      }
      case "end": {
        const { promptTokens, cachedTokens, generatedTokens } = event.usage;
        return { type: "end", usage: { promptTokens, cachedTokens, generatedTokens } };
      }
      default:
        return event satisfies never;
    }
  }
  /** The last token of a choice of the request that is told about at the moment: `finish` follows its `token` at once. */
  readonly #lastIds = new Map<number, number>();

  #text(id: number): TokenText {
    const known = this.#texts.get(id);
    if (known !== undefined) return known;
    // A vocabulary padded to a round number has ids that no tokenizer knows.
    const bytes = id < this.#tokenizer.vocabSize ? this.#tokenizer.idToBytes(id) : new Uint8Array();
    const made = { id, text: new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes), bytes: [...bytes] };
    this.#texts.set(id, made);
    return made;
  }
  #logprob({ id, logprob, top }: TokenLogprobs): TokenLogprob {
    return { ...this.#text(id), logprob, top: top.map((entry) => ({ ...this.#text(entry.id), logprob: entry.logprob })) };
  }

  #answer(id: number, call: Call): void {
    try {
      this.#post({ type: "answer", id, value: this.#call(call) });
    } catch (error) {
      this.#post({ type: "failed", id, error: errorData(error) });
    }
  }
  #call(call: Call): CallResults[Call["method"]] {
    const { config } = this.#engine.model;
    const limits = { maxContext: this.#engine.maxContext, vocabSize: config.vocabSize };
    switch (call.method) {
      case "tokenize": {
        const { ids } = preparePrompt(this.#tokenizer, call.prompt, { ...limits, maxContext: Number.POSITIVE_INFINITY });
        return { ids: Array.from(ids), texts: call.withTexts ? Array.from(ids, (token) => this.#tokenizer.idToPiece(token)) : null };
      }
      case "detokenize":
        return { text: this.#tokenizer.decode(call.ids, { skipSpecialTokens: call.skipSpecialTokens }) };
      case "embed": {
        const { ids } = preparePrompt(this.#tokenizer, call.prompt, limits);
        return { embedding: this.#engine.embed(ids), promptTokens: ids.length };
      }
      case "experts":
        return this.#experts.act(call.action);
      default:
        return call satisfies never;
    }
  }
}

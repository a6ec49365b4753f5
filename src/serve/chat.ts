/**
 * A conversation with a model: the messages so far, and the next reply as a stream of text. The engine's prefix cache keeps
 * what was said, so that a turn costs its own tokens only. Not a terminal (`moe chat`) and not a protocol.
 */
import type { SamplingOptions } from "../generate/index.ts";
import { encodeChat, type ChatMessage } from "../tokenizer/chat.ts";
import { MoeError } from "../util/errors.ts";
import type { ServingEngine } from "./engine.ts";
import type { GenerationEvent } from "./request.ts";

export interface ChatSessionOptions {
  readonly system?: string;
  /** Tokens of one reply at most. */
  readonly maxTokens: number;
  readonly sampling?: Partial<SamplingOptions>;
  /** Reply i of the conversation is drawn with seed + i. Default 0. */
  readonly seed?: number;
}

export interface ChatReply {
  readonly text: string;
  readonly reason: "stop" | "length" | "aborted";
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly generatedTokens: number;
  /** Messages that were forgotten, oldest first, for the context to hold the rest. */
  readonly forgotten: number;
}

export class ChatSession {
  readonly #serving: ServingEngine;
  readonly #options: ChatSessionOptions;
  #messages: ChatMessage[];

  constructor(serving: ServingEngine, options: ChatSessionOptions) {
    this.#serving = serving;
    this.#options = options;
    this.#messages = this.#beginning();
  }
  get messages(): readonly ChatMessage[] {
    return this.#messages;
  }
  /** Forgets all but the system's message. */
  reset(): void {
    this.#messages = this.#beginning();
  }
  #beginning(): ChatMessage[] {
    return this.#options.system === undefined ? [] : [{ role: "system", content: this.#options.system }];
  }

  /**
   * The reply to a user's message, passed on as it comes. Both become part of the conversation, also a reply that `signal` cut short; where an
   * error ends it, neither does. Throws as `encodeChat` and `ServingEngine.submit` do, and what ended the reply.
   */
  async send(text: string, onText: (text: string) => void, signal?: AbortSignal): Promise<ChatReply> {
    const { maxTokens, sampling = {}, seed = 0 } = this.#options;
    const { messages, promptIds } = this.#fit([...this.#messages, { role: "user", content: text }]);
    const forgotten = this.#messages.length + 1 - messages.length;
    const turn = messages.filter(({ role }) => role === "assistant").length;
    let reply = "";
    let finish: (GenerationEvent & { type: "finish" }) | null = null;
    let usage = { promptTokens: 0, cachedTokens: 0, generatedTokens: 0 };
    const id = this.#serving.submit({ promptIds, maxTokens, sampling, seed: seed + turn }, (event) => {
      if (event.type === "end") ({ usage } = event);
      if (event.type === "finish") finish = event;
      if (event.type !== "token" && event.type !== "finish") return;
      reply += event.text;
      if (event.text !== "") onText(event.text);
    });
    const isDone = (): boolean => finish !== null;
    while (!isDone()) {
      if (signal?.aborted === true) this.#serving.abort(id);
      else this.#serving.step();
      // Keys and signals are read between steps.
      await new Promise((done) => setImmediate(done));
    }
    const { reason, error } = finish as unknown as GenerationEvent & { type: "finish" };
    if (reason === "error") throw error ?? new MoeError("internal", "chat: a reply ended in an error that nobody told");
    this.#messages = [...messages, { role: "assistant", content: reply }];
    return { text: reply, reason, forgotten, ...usage };
  }
  /** Drops turns from the oldest on until the rest leaves room for a reply. */
  #fit(messages: readonly ChatMessage[]): { messages: readonly ChatMessage[]; promptIds: Int32Array } {
    const { tokenizer, maxContext } = this.#serving;
    const room = maxContext - Math.min(this.#options.maxTokens, Math.floor(maxContext / 2));
    const system = messages.filter(({ role }) => role === "system");
    let rest = messages.filter(({ role }) => role !== "system");
    for (;;) {
      const kept = [...system, ...rest];
      const promptIds = encodeChat(tokenizer, kept, { addGenerationPrompt: true });
      if (promptIds.length <= room || rest.length <= 1) return { messages: kept, promptIds };
      rest = rest.slice(2);
    }
  }
}

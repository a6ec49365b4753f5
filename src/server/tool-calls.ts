/**
 * Tool calls in a model's text. Models write them in a few ways: JSON within `<tool_call>` tags (Hermes, Qwen, and the prompt that this
 * server makes for models without a template for tools), or the answer is nothing but JSON (Llama 3, Mistral, whose marks are control
 * tokens and not in the text). Text that may become a call is held back until it is one or is not.
 */
import { newId } from "./shared.ts";

export interface ToolCall {
  readonly id: string;
  readonly name: string;
  /** JSON. */
  readonly arguments: string;
}
export interface ParsedText {
  readonly content: string;
  readonly calls: readonly ToolCall[];
}

const open = "<tool_call>";
const close = "</tool_call>";

/** Which text is a call: where the request left the choice to the model, asked for some call, or for one by name. */
export type ToolMode = { readonly kind: "auto" } | { readonly kind: "required" } | { readonly kind: "named"; readonly name: string };

export class ToolCallParser {
  readonly #names: ReadonlySet<string>;
  readonly #mode: ToolMode;
  readonly #maxCalls: number;
  #held = "";
  #sent = "";
  #numCalls = 0;

  constructor(names: Iterable<string>, mode: ToolMode, { parallel = true }: { readonly parallel?: boolean } = {}) {
    this.#names = new Set(names);
    this.#mode = mode;
    this.#maxCalls = parallel ? Number.POSITIVE_INFINITY : 1;
  }
  get hasCalls(): boolean {
    return this.#numCalls > 0;
  }

  /** More text. Returns what is certain now. */
  push(text: string): ParsedText {
    this.#held += text;
    if (this.#mode.kind !== "auto") return { content: "", calls: [] };
    const calls: ToolCall[] = [];
    let content = "";
    for (;;) {
      const isBare = this.#sent === "" && content === "" && calls.length === 0 && this.#numCalls === 0 && /^\s*(?:[[{]|$)/.test(this.#held);
      if (isBare) break;
      const at = this.#held.indexOf(open);
      if (at < 0) {
        const certain = this.#held.length - beginning(this.#held, open);
        content += this.#held.slice(0, certain);
        this.#held = this.#held.slice(certain);
        break;
      }
      content += this.#held.slice(0, at);
      const end = this.#held.indexOf(close, at);
      this.#held = this.#held.slice(at);
      if (end < 0) break;
      const whole = this.#held.slice(0, end - at + close.length);
      this.#held = this.#held.slice(whole.length);
      const found = this.#calls(whole.slice(open.length, -close.length));
      if (found.length === 0) content += whole;
      calls.push(...found);
    }
    return this.#told(content, calls);
  }
  /** The end of the text. */
  end(): ParsedText {
    const rest = this.#held;
    this.#held = "";
    if (this.#mode.kind === "named") return this.#told("", [this.#call(this.#mode.name, rest.trim())]);
    const body = rest.trim();
    const calls = this.#calls(body.startsWith(open) ? body.slice(open.length) : body);
    return this.#told(calls.length === 0 ? rest : "", calls);
  }
  /** White space around calls is no content. */
  #told(content: string, calls: readonly ToolCall[]): ParsedText {
    const isBlank = content.trim() === "" && (calls.length > 0 || this.#numCalls > 0);
    const taken = calls.slice(0, Math.max(0, this.#maxCalls - this.#numCalls));
    this.#numCalls += taken.length;
    const told = isBlank ? "" : content;
    this.#sent += told;
    return { content: told, calls: taken };
  }
  #calls(text: string): ToolCall[] {
    let value: unknown;
    try {
      value = JSON.parse(text) as unknown;
    } catch {
      return [];
    }
    const items: unknown[] = Array.isArray(value) ? value : [value];
    const calls = items.map((item) => this.#callOf(item));
    return calls.every((call) => call !== null) ? calls : [];
  }
  #callOf(item: unknown): ToolCall | null {
    if (typeof item !== "object" || item === null) return null;
    const { name, arguments: args, parameters } = item as Record<string, unknown>;
    if (typeof name !== "string" || !this.#names.has(name)) return null;
    const given = args ?? parameters ?? {};
    return this.#call(name, typeof given === "string" ? given : JSON.stringify(given));
  }
  #call(name: string, args: string): ToolCall {
    return { id: newId("call", "_"), name, arguments: args };
  }
}

/** Length of the longest end of `text` that begins `mark`. */
function beginning(text: string, mark: string): number {
  for (let length = Math.min(mark.length - 1, text.length); length > 0; length--) if (text.endsWith(mark.slice(0, length))) return length;
  return 0;
}

/** The schema of an answer that is a call of one of these functions. */
export function callSchema(tools: readonly { readonly name: string; readonly parameters?: unknown }[]): unknown {
  const one = tools.map(({ name, parameters }) => ({
    type: "object",
    properties: { name: { const: name }, arguments: parameters ?? { type: "object" } },
    required: ["name", "arguments"],
    additionalProperties: false,
  }));
  return one.length === 1 ? one[0] : { anyOf: one };
}

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
  #blank = "";
  #hasBegun = false;
  #isAfterCall = false;
  #numCalls = 0;

  constructor(names: Iterable<string>, mode: ToolMode, { parallel = true }: { readonly parallel?: boolean } = {}) {
    this.#names = new Set(names);
    this.#mode = mode;
    this.#maxCalls = parallel ? Number.POSITIVE_INFINITY : 1;
  }

  /** More text. Returns what is certain now. */
  push(text: string): ParsedText {
    this.#held += text;
    const calls: ToolCall[] = [];
    let content = "";
    while (this.#mode.kind === "auto" && !this.#mayBeBare()) {
      const at = this.#held.indexOf(open);
      const certain = at < 0 ? this.#held.length - beginning(this.#held, open) : at;
      content += this.#said(this.#take(certain));
      const end = at < 0 ? -1 : this.#held.indexOf(close);
      if (end < 0) break;
      const whole = this.#take(end + close.length);
      const found = this.#called(this.#calls(whole.slice(open.length, -close.length)));
      if (found === null) content += this.#said(whole);
      else calls.push(...found);
    }
    return { content, calls };
  }
  /** The end of the text. */
  end(): ParsedText {
    const rest = this.#take(this.#held.length);
    const body = rest.trim();
    const calls =
      this.#mode.kind === "named"
        ? [this.#call(this.#mode.name, body)]
        : this.#calls(body.startsWith(open) ? body.slice(open.length) : body);
    const found = this.#called(calls);
    if (found !== null) return { content: "", calls: found };
    const blank = this.#blank;
    const said = this.#said(rest);
    return { content: said === "" && !this.#isAfterCall ? blank + rest : said, calls: [] };
  }
  /** Whether all that was said so far may be JSON without tags. */
  #mayBeBare(): boolean {
    return !this.#hasBegun && /^\s*(?:[[{]|$)/.test(this.#held);
  }
  #take(length: number): string {
    const taken = this.#held.slice(0, length);
    this.#held = this.#held.slice(length);
    return taken;
  }
  /** Text that is no call. White space at the beginning and after a call waits for what follows: before a call it is nothing. */
  #said(text: string): string {
    const all = this.#blank + text;
    const isBlank = all.trim() === "";
    if (isBlank && (!this.#hasBegun || this.#isAfterCall)) {
      this.#blank = all;
      return "";
    }
    const said = this.#isAfterCall ? all.trimStart() : all;
    this.#blank = "";
    this.#isAfterCall = false;
    this.#hasBegun = true;
    return said;
  }
  /** Calls that were found, as many as are wanted; null where there were none. */
  #called(calls: readonly ToolCall[]): readonly ToolCall[] | null {
    if (calls.length === 0) return null;
    this.#blank = "";
    this.#isAfterCall = true;
    this.#hasBegun = true;
    const taken = calls.slice(0, Math.max(0, this.#maxCalls - this.#numCalls));
    this.#numCalls += taken.length;
    return taken;
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

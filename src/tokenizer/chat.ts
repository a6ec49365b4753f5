/**
 * Chat templates: messages to the text that a model was trained on, by the Jinja template that comes with the tokenizer
 * (tokenizer_config.json, chat_template.jinja or `tokenizer.chat_template` of GGUF). The package `@huggingface/jinja`
 * interprets it; no code of a model file runs. The template is still untrusted, so the interpreter counts its steps and
 * every value it makes is bounded; a template that loops or swells ends in an error.
 *
 * For training, `chatTokens` also says which ids the assistant wrote. A template with `{% generation %}` marks them
 * itself. For others, the conversation is rendered up to each assistant turn and after it, and what is new is the turn;
 * that needs a template that only appends, and is an error when it does not.
 */

import { MoeError } from "../util/errors.ts";
import { Environment, Interpreter, type JinjaEnvironment, type JinjaValue, parse, tokenize } from "./jinja-library.ts";
import type { Tokenizer } from "./tokenizer.ts";

export interface ChatMessage {
  readonly role: string;
  readonly content: unknown;
  /** Whatever else the template reads (`tool_calls`, `name`). */
  readonly [key: string]: unknown;
}

export interface ChatOptions {
  /** End with the beginning of an assistant turn. Default false. */
  readonly addGenerationPrompt?: boolean;
  readonly tools?: readonly unknown[];
  /** More variables for the template. */
  readonly variables?: Readonly<Record<string, unknown>>;
  /** Template to use instead of the tokenizer's. */
  readonly template?: string;
}

export interface ChatTokens {
  readonly text: string;
  readonly ids: Int32Array;
  /** 1 for each id that the assistant wrote (end of turn included), otherwise 0. */
  readonly assistantMask: Uint8Array;
}

const maxSteps = 500_000;
const maxValueLength = 16 * 2 ** 20;
/** Noncharacters, which no text should hold, around what the assistant wrote. */
const open = "\ufdd0";
const close = "\ufdd1";
const generationTag = /(^[ \t]*)?\{%(-?)\s*(end)?generation\s*(-?)%\}(\n?)/gm;

function fail(message: string, cause?: unknown): MoeError {
  return new MoeError("file", `chat template: ${message}`, cause === undefined ? undefined : { cause });
}

class BoundedInterpreter extends Interpreter {
  #steps = 0;

  override evaluate(statement: unknown, environment: JinjaEnvironment): JinjaValue {
    if (++this.#steps > maxSteps) throw new Error(`more than ${maxSteps} steps`);
    const result = super.evaluate(statement, environment);
    const { value } = result;
    if ((typeof value === "string" || Array.isArray(value)) && value.length > maxValueLength) {
      throw new Error(`a value of more than ${maxValueLength} characters or items`);
    }
    return result;
  }
}

/** `range` with a bound on its length; the interpreter's own would fill memory first. */
function boundedRange(from: number, to?: number, step = 1): number[] {
  const [start, stop] = to === undefined ? [0, from] : [from, to];
  const length = Math.max(0, Math.ceil((stop - start) / step));
  if (!(length <= 10_000)) throw new Error(`range of ${length} items`);
  return Array.from({ length }, (_, i) => start + i * step);
}

function render(template: string, variables: Readonly<Record<string, unknown>>): string {
  const constants = { false: false, true: true, none: null, False: false, True: true, None: null };
  try {
    const environment = new Environment();
    const functions = {
      raise_exception: (message: string): never => {
        throw new Error(message);
      },
      range: boundedRange,
      strftime_now: (format: string): string => formatDate(new Date(), format),
    };
    for (const [key, value] of Object.entries({ ...constants, ...functions, ...variables })) environment.set(key, value);
    const program = parse(tokenize(template, { lstrip_blocks: true, trim_blocks: true }));
    const { value } = new BoundedInterpreter(environment).run(program);
    if (typeof value !== "string") throw new Error("the result is not text");
    return value;
  } catch (cause) {
    throw fail(cause instanceof Error ? cause.message : String(cause), cause);
  }
}

function two(value: number): string {
  return String(value).padStart(2, "0");
}

function formatDate(date: Date, format: string): string {
  const name = (options: Intl.DateTimeFormatOptions): string => date.toLocaleDateString("en-US", options);
  const parts: Record<string, string> = {
    Y: String(date.getFullYear()),
    m: two(date.getMonth() + 1),
    d: two(date.getDate()),
    H: two(date.getHours()),
    M: two(date.getMinutes()),
    S: two(date.getSeconds()),
    b: name({ month: "short" }),
    B: name({ month: "long" }),
    a: name({ weekday: "short" }),
    A: name({ weekday: "long" }),
    y: two(date.getFullYear() % 100),
    "%": "%",
  };
  return format.replace(/%([a-zA-Z%])/g, (whole, key: string) => parts[key] ?? whole);
}

function templateOf(tokenizer: Tokenizer, options: ChatOptions): string {
  const template = options.template ?? tokenizer.chatTemplate;
  if (template === undefined) {
    throw new MoeError(
      "usage",
      "chat template: this tokenizer has none (tokenizer_config.json: chat_template, chat_template.jinja or tokenizer.chat_template); pass options.template",
    );
  }
  if (template.length > 2 ** 20) throw fail(`at most ${2 ** 20} characters, got ${template.length}`);
  return template;
}

function variablesOf(tokenizer: Tokenizer, messages: readonly ChatMessage[], options: ChatOptions): Record<string, unknown> {
  const special = (id: number | undefined): string => (id === undefined ? "" : tokenizer.idToPiece(id));
  return {
    messages,
    add_generation_prompt: options.addGenerationPrompt ?? false,
    bos_token: special(tokenizer.bosId),
    eos_token: special(tokenizer.eosId),
    pad_token: special(tokenizer.padId),
    unk_token: special(tokenizer.unkId),
    ...(options.tools === undefined ? {} : { tools: options.tools }),
    ...options.variables,
  };
}

/**
 * The text of a conversation.
 *
 * @example
 * const prompt = renderChat(tokenizer, [{ role: "user", content: "Hi" }], { addGenerationPrompt: true });
 * const ids = tokenizer.encode(prompt, { addSpecialTokens: false });
 *
 * @throws MoeError of kind `usage` without a template, `file` when the template fails, with its message.
 */
export function renderChat(tokenizer: Tokenizer, messages: readonly ChatMessage[], options: ChatOptions = {}): string {
  return render(templateOf(tokenizer, options), variablesOf(tokenizer, messages, options));
}

/** Ids of a conversation. The template writes bos itself, so nothing is added. Errors as `renderChat`. */
export function encodeChat(tokenizer: Tokenizer, messages: readonly ChatMessage[], options: ChatOptions = {}): Int32Array {
  return tokenizer.encode(renderChat(tokenizer, messages, options), { addSpecialTokens: false });
}

/**
 * Text, ids and the mask of what the assistant wrote, for training on its turns only. Each stretch between two borders
 * of an assistant turn is encoded by itself, so that no id is half a turn; special tokens usually stand there anyway.
 */
export function chatTokens(tokenizer: Tokenizer, messages: readonly ChatMessage[], options: ChatOptions = {}): ChatTokens {
  const template = templateOf(tokenizer, options);
  const stretches = /\{%-?\s*generation\s*-?%\}/.test(template)
    ? markedStretches(template, variablesOf(tokenizer, messages, options))
    : appendedStretches(template, tokenizer, messages, options);
  const parts = stretches.map((stretch) => ({ ...stretch, ids: tokenizer.encode(stretch.text, { addSpecialTokens: false }) }));
  const length = parts.reduce((sum, part) => sum + part.ids.length, 0);
  const ids = new Int32Array(length);
  const assistantMask = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    ids.set(part.ids, at);
    assistantMask.fill(part.assistant ? 1 : 0, at, at + part.ids.length);
    at += part.ids.length;
  }
  return { text: parts.map((part) => part.text).join(""), ids, assistantMask };
}

interface Stretch {
  readonly text: string;
  readonly assistant: boolean;
}

/** By the template's own marks: the tags become noncharacters in the output. */
function markedStretches(template: string, variables: Readonly<Record<string, unknown>>): Stretch[] {
  const marked = template.replace(generationTag, (_, _indent, trimLeft: string, end: string | undefined, trimRight: string) => {
    return `{{${trimLeft} "${end === undefined ? open : close}" ${trimRight}}}`;
  });
  const text = render(marked, variables);
  const stretches: Stretch[] = [];
  for (const [i, part] of text.split(open).entries()) {
    const pieces = part.split(close);
    if (pieces.length !== (i === 0 ? 1 : 2))
      throw fail(`expected {% generation %} and {% endgeneration %} in pairs and no U+FDD0 or U+FDD1 in the messages`);
    if (i > 0) stretches.push({ text: pieces[0] as string, assistant: true });
    stretches.push({ text: pieces.at(-1) as string, assistant: false });
  }
  return stretches.filter((stretch) => stretch.text !== "");
}

/** By rendering with and without each assistant turn. */
function appendedStretches(template: string, tokenizer: Tokenizer, messages: readonly ChatMessage[], options: ChatOptions): Stretch[] {
  const upTo = (count: number, addGenerationPrompt: boolean): string =>
    render(template, variablesOf(tokenizer, messages.slice(0, count), { ...options, addGenerationPrompt }));
  const stretches: Stretch[] = [];
  let done = "";
  const extend = (text: string, assistant: boolean, turn: number): void => {
    if (!text.startsWith(done))
      throw fail(`message ${turn + 1} changes the text before it, so the assistant's part cannot be found; mark it with {% generation %}`);
    if (text.length > done.length) stretches.push({ text: text.slice(done.length), assistant });
    done = text;
  };
  messages.forEach((message, turn) => {
    if (message.role !== "assistant") return;
    extend(upTo(turn, true), false, turn);
    extend(upTo(turn + 1, false), true, turn);
  });
  extend(upTo(messages.length, options.addGenerationPrompt ?? false), false, messages.length - 1);
  return stretches;
}

/** `/v1/chat/completions`: the next message of a conversation. */
import type { ServerResponse } from "node:http";
import { Answers } from "../answers.ts";
import { chatTask, type ChatSettings } from "../chat-task.ts";
import type { ServerContext } from "../context.ts";
import { badRequest } from "../errors.ts";
import { chatLogprobs } from "../logprobs.ts";
import type { OutputFormat, TaskEvent, ToolFunction } from "../protocol.ts";
import { runTasks } from "../run.ts";
import type { ChatRequest } from "../schemas.ts";
import type { EventStream } from "../sse.ts";
import { checkStreamOptions } from "../tasks.ts";
import type { ParsedText, ToolCall, ToolCallParser } from "../tool-calls.ts";
import { newId, usageOf } from "../shared.ts";

function settingsOf(body: ChatRequest): ChatSettings {
  checkStreamOptions(body);
  if (typeof body.top_logprobs === "number" && body.logprobs !== true)
    throw badRequest("top_logprobs: only with logprobs: true", "top_logprobs");
  const choice = body.tool_choice ?? "auto";
  return {
    messages: body.messages,
    tools: (body.tools ?? []).map((tool) => toolFunction(tool.function)),
    toolChoice: typeof choice === "string" ? choice : { name: choice.function.name },
    parallelCalls: body.parallel_tool_calls ?? true,
    format: formatOf(body.response_format),
    maxTokens: body.max_completion_tokens ?? body.max_tokens ?? null,
    variables: body.chat_template_kwargs ?? {},
    n: body.n ?? 1,
    logprobs: body.logprobs === true ? (body.top_logprobs ?? 0) : null,
    sampling: body,
  };
}
/** A function with the fields that it has, and not those that are null. */
export function toolFunction({
  name,
  description,
  parameters,
}: {
  name: string;
  description?: string | null | undefined;
  parameters?: Record<string, unknown> | null | undefined;
}): ToolFunction {
  return { name, ...(typeof description === "string" ? { description } : {}), ...(parameters ? { parameters } : {}) };
}
function formatOf(format: ChatRequest["response_format"]): OutputFormat | null {
  if (format === null || format === undefined || format.type === "text") return null;
  if (format.type === "json_object") return { kind: "json-object" };
  return { kind: "json-schema", schema: format.json_schema.schema ?? {} };
}

function head(context: ServerContext, object: string): { id: string; object: string; created: number; model: string } {
  return { id: newId("chatcmpl"), object, created: Math.floor(Date.now() / 1000), model: context.modelName };
}
function callField({ id, name, arguments: args }: ToolCall): unknown {
  return { id, type: "function", function: { name, arguments: args } };
}

export async function chatCompletion(context: ServerContext, response: ServerResponse, body: ChatRequest): Promise<unknown> {
  const { task, parser } = chatTask(context, settingsOf(body));
  const answers = new Answers(1);
  const usage = await runTasks(context, response, [task], (_, event) => {
    answers.receive(0, event);
  });
  const choices = answers.of(0).map((answer, index) => {
    const { content, calls } = parsed(answer.text, parser);
    const hasCalls = calls.length > 0;
    return {
      index,
      message: {
        role: "assistant",
        content: content === "" && hasCalls ? null : content,
        refusal: null,
        ...(hasCalls ? { tool_calls: calls.map(callField) } : {}),
      },
      logprobs: task.logprobs === null ? null : chatLogprobs(answer.tokens),
      finish_reason: hasCalls && answer.reason === "stop" ? "tool_calls" : answer.reason,
      stop_reason: answer.stoppedBy,
    };
  });
  return { ...head(context, "chat.completion"), choices, usage: usageOf(usage) };
}
/** A whole text as content and calls. */
export function parsed(text: string, parser: (() => ToolCallParser) | null): ParsedText {
  if (parser === null) return { content: text, calls: [] };
  const one = parser();
  const [a, b] = [one.push(text), one.end()];
  return { content: a.content + b.content, calls: [...a.calls, ...b.calls] };
}

/** The same as events. */
export async function streamChat(context: ServerContext, response: ServerResponse, body: ChatRequest, stream: EventStream): Promise<void> {
  const { task, parser } = chatTask(context, settingsOf(body));
  const top = head(context, "chat.completion.chunk");
  const withUsage = body.stream_options?.include_usage === true;
  const send = (choice: unknown): void => {
    stream.send({ ...top, choices: [choice], ...(withUsage ? { usage: null } : {}) });
  };
  const writers = Array.from({ length: task.n }, (_, index) => new DeltaWriter(index, parser?.() ?? null, send));
  const usage = await runTasks(context, response, [task], (_, event) => {
    if (event.type === "accepted") for (const writer of writers) writer.begin();
    if (event.type === "token" || event.type === "finish") writers[event.choice]?.receive(event);
  });
  if (withUsage) stream.send({ ...top, choices: [], usage: usageOf(usage) });
  stream.send("[DONE]");
}

/** The events of one choice. */
class DeltaWriter {
  readonly #index: number;
  readonly #parser: ToolCallParser | null;
  readonly #send: (choice: unknown) => void;
  #numCalls = 0;

  constructor(index: number, parser: ToolCallParser | null, send: (choice: unknown) => void) {
    this.#index = index;
    this.#parser = parser;
    this.#send = send;
  }
  begin(): void {
    this.#delta({ role: "assistant", content: "" });
  }
  receive(event: Extract<TaskEvent, { type: "token" | "finish" }>): void {
    const logprobs = event.type === "finish" || event.logprobs === null ? null : chatLogprobs([event.logprobs]);
    const text = this.#parser === null ? { content: event.text, calls: [] } : this.#parser.push(event.text);
    this.#write(text, logprobs);
    if (event.type !== "finish") return;
    if (this.#parser !== null) this.#write(this.#parser.end(), null);
    const reason = event.reason === "length" ? "length" : this.#numCalls > 0 ? "tool_calls" : "stop";
    this.#delta({}, null, reason);
  }
  #write({ content, calls }: ParsedText, logprobs: unknown): void {
    if (content !== "" || logprobs !== null) this.#delta({ content }, logprobs);
    for (const call of calls) this.#delta({ tool_calls: [{ index: this.#numCalls++, ...(callField(call) as object) }] });
  }
  #delta(delta: unknown, logprobs: unknown = null, finishReason: string | null = null): void {
    this.#send({ index: this.#index, delta, logprobs, finish_reason: finishReason });
  }
}

/**
 * `/v1/responses`, the part of it that needs no memory: one answer to the input that the request brings, as an object or as events. Nothing is
 * stored, so `previous_response_id` is refused.
 */
import type { ServerResponse } from "node:http";
import { Answers } from "../answers.ts";
import { chatTask, type ChatSettings } from "../chat-task.ts";
import type { ServerContext } from "../context.ts";
import type { GenerateTask, OutputFormat } from "../protocol.ts";
import { runTasks, type RunUsage } from "../run.ts";
import type { ChatRequestMessage, ResponsesRequest } from "../schemas.ts";
import { newId } from "../shared.ts";
import type { EventStream } from "../sse.ts";
import type { ParsedText, ToolCall, ToolCallParser } from "../tool-calls.ts";
import { parsed, toolFunction } from "./chat.ts";

type InputItem = Exclude<ResponsesRequest["input"], string>[number];

function settingsOf(body: ResponsesRequest): ChatSettings {
  const choice = body.tool_choice ?? "auto";
  const instructions: ChatRequestMessage[] = typeof body.instructions === "string" ? [{ role: "system", content: body.instructions }] : [];
  const input: ChatRequestMessage[] = typeof body.input === "string" ? [{ role: "user", content: body.input }] : body.input.map(messageOf);
  return {
    messages: [...instructions, ...input],
    tools: (body.tools ?? []).map(toolFunction),
    toolChoice: typeof choice === "string" ? choice : { name: choice.name },
    parallelCalls: body.parallel_tool_calls ?? true,
    format: formatOf(body.text?.format),
    maxTokens: body.max_output_tokens ?? null,
    variables: {},
    n: 1,
    logprobs: null,
    sampling: body,
  };
}
function messageOf(item: InputItem): ChatRequestMessage {
  if (item.type === "function_call") {
    const call = { id: item.call_id, type: "function" as const, function: { name: item.name, arguments: item.arguments } };
    return { role: "assistant", content: "", tool_calls: [call] };
  }
  if (item.type === "function_call_output") return { role: "tool", content: item.output, tool_call_id: item.call_id };
  return { role: item.role, content: item.content };
}
function formatOf(format: NonNullable<ResponsesRequest["text"]>["format"]): OutputFormat | null {
  if (format === null || format === undefined || format.type === "text") return null;
  return format.type === "json_object" ? { kind: "json-object" } : { kind: "json-schema", schema: format.schema ?? {} };
}

interface Frame {
  readonly id: string;
  readonly messageId: string;
  readonly createdAt: number;
}
function newFrame(): Frame {
  return { id: newId("resp", "_"), messageId: newId("msg", "_"), createdAt: Math.floor(Date.now() / 1000) };
}

function textPart(text: string): unknown {
  return { type: "output_text", text, annotations: [], logprobs: [] };
}
function messageItem(frame: Frame, text: string, status: string): unknown {
  return { type: "message", id: frame.messageId, status, role: "assistant", content: status === "in_progress" ? [] : [textPart(text)] };
}
function callItem(call: ToolCall): Record<string, unknown> {
  const { id, name, arguments: args } = call;
  return { type: "function_call", id: id.replace("call", "fc"), call_id: id, name, arguments: args, status: "completed" };
}

interface Outcome {
  readonly status: "in_progress" | "completed" | "incomplete";
  readonly output: readonly unknown[];
  readonly usage: RunUsage | null;
}
function responseObject(context: ServerContext, body: ResponsesRequest, task: GenerateTask, frame: Frame, outcome: Outcome): unknown {
  const { status, output, usage } = outcome;
  return {
    id: frame.id,
    object: "response",
    created_at: frame.createdAt,
    status,
    error: null,
    incomplete_details: status === "incomplete" ? { reason: "max_output_tokens" } : null,
    instructions: body.instructions ?? null,
    max_output_tokens: body.max_output_tokens ?? null,
    metadata: body.metadata ?? {},
    model: context.modelName,
    output,
    parallel_tool_calls: body.parallel_tool_calls ?? true,
    previous_response_id: null,
    store: false,
    temperature: task.sampling.temperature,
    text: { format: body.text?.format ?? { type: "text" } },
    tool_choice: body.tool_choice ?? "auto",
    tools: body.tools ?? [],
    top_p: body.top_p ?? 1,
    truncation: "disabled",
    usage:
      usage === null
        ? null
        : {
            input_tokens: usage.promptTokens,
            input_tokens_details: { cached_tokens: usage.cachedTokens },
            output_tokens: usage.generatedTokens,
            output_tokens_details: { reasoning_tokens: 0 },
            total_tokens: usage.promptTokens + usage.generatedTokens,
          },
  };
}
function outputOf(frame: Frame, { content, calls }: ParsedText, status: string): unknown[] {
  return [...(content !== "" || calls.length === 0 ? [messageItem(frame, content, status)] : []), ...calls.map(callItem)];
}

export async function respond(context: ServerContext, response: ServerResponse, body: ResponsesRequest): Promise<unknown> {
  const { task, parser } = chatTask(context, settingsOf(body));
  const frame = newFrame();
  const answers = new Answers(1);
  const usage = await runTasks(context, response, [task], (_, event) => {
    answers.receive(0, event);
  });
  const [answer] = answers.of(0);
  const status = answer?.reason === "length" ? "incomplete" : "completed";
  const output = outputOf(frame, parsed(answer?.text ?? "", parser), status);
  return responseObject(context, body, task, frame, { status, output, usage });
}

/** The same as named events. */
export async function streamResponse(
  context: ServerContext,
  response: ServerResponse,
  body: ResponsesRequest,
  stream: EventStream,
): Promise<void> {
  const { task, parser } = chatTask(context, settingsOf(body));
  const frame = newFrame();
  const writer = new ResponseWriter(frame, parser?.() ?? null, stream);
  const whole = (outcome: Outcome): unknown => responseObject(context, body, task, frame, outcome);
  let status: "completed" | "incomplete" = "completed";
  const usage = await runTasks(context, response, [task], (_, event) => {
    if (event.type === "accepted") writer.begin(whole({ status: "in_progress", output: [], usage: null }));
    else if (event.type === "token") writer.text(event.text);
    else if (event.type === "finish") {
      if (event.reason === "length") status = "incomplete";
      writer.text(event.text);
      writer.end(status);
    }
  });
  writer.event(`response.${status}`, { response: whole({ status, output: writer.output, usage }) });
}

class ResponseWriter {
  readonly output: unknown[] = [];
  readonly #frame: Frame;
  readonly #parser: ToolCallParser | null;
  readonly #stream: EventStream;
  #sequence = 0;
  #text = "";
  /** Place of the message among the output's items, or null before it began. */
  #messageIndex: number | null = null;
  #numItems = 0;
  readonly #calls: ToolCall[] = [];

  constructor(frame: Frame, parser: ToolCallParser | null, stream: EventStream) {
    this.#frame = frame;
    this.#parser = parser;
    this.#stream = stream;
  }
  event(type: string, fields: Record<string, unknown>): void {
    this.#stream.send({ type, sequence_number: this.#sequence++, ...fields }, type);
  }
  begin(response: unknown): void {
    this.event("response.created", { response });
    this.event("response.in_progress", { response });
  }
  text(text: string): void {
    this.#take(this.#parser === null ? { content: text, calls: [] } : this.#parser.push(text));
  }
  #take({ content, calls }: ParsedText): void {
    if (content !== "") {
      this.#beginMessage();
      this.#text += content;
      this.event("response.output_text.delta", { ...this.#place(), delta: content, logprobs: [] });
    }
    this.#calls.push(...calls);
  }
  #place(): { item_id: string; output_index: number; content_index: number } {
    return { item_id: this.#frame.messageId, output_index: this.#messageIndex ?? 0, content_index: 0 };
  }
  #beginMessage(): void {
    if (this.#messageIndex !== null) return;
    this.#messageIndex = this.#numItems++;
    this.event("response.output_item.added", { output_index: this.#messageIndex, item: messageItem(this.#frame, "", "in_progress") });
    this.event("response.content_part.added", { ...this.#place(), part: textPart("") });
  }
  end(status: string): void {
    if (this.#parser !== null) this.#take(this.#parser.end());
    if (this.#calls.length === 0) this.#beginMessage();
    if (this.#messageIndex !== null) {
      const item = messageItem(this.#frame, this.#text, status);
      this.event("response.output_text.done", { ...this.#place(), text: this.#text, logprobs: [] });
      this.event("response.content_part.done", { ...this.#place(), part: textPart(this.#text) });
      this.event("response.output_item.done", { output_index: this.#messageIndex, item });
      this.output.push(item);
    }
    for (const call of this.#calls) {
      const item = callItem(call);
      const output_index = this.#numItems++;
      this.event("response.output_item.added", { output_index, item: { ...item, arguments: "", status: "in_progress" } });
      this.event("response.function_call_arguments.delta", { item_id: item["id"], output_index, delta: call.arguments });
      this.event("response.function_call_arguments.done", {
        item_id: item["id"],
        output_index,
        name: call.name,
        arguments: call.arguments,
      });
      this.event("response.output_item.done", { output_index, item });
      this.output.push(item);
    }
  }
}

/**
 * From a conversation in OpenAI's form to a task: messages as chat templates expect them, tools, the form of the answer. Used by
 * /v1/chat/completions and /v1/responses.
 */
import type { ServerContext } from "./context.ts";
import { badRequest } from "./errors.ts";
import type { ChatTask, GenerateTask, OutputFormat, ToolFunction } from "./protocol.ts";
import type { ChatRequestMessage } from "./schemas.ts";
import { taskOf, type SamplingInput } from "./tasks.ts";
import { callSchema, ToolCallParser, type ToolMode } from "./tool-calls.ts";

export type ToolChoice = "none" | "auto" | "required" | { readonly name: string };

/** What a conversation asks for, in neither API's spelling. */
export interface ChatSettings {
  readonly messages: readonly ChatRequestMessage[];
  readonly tools: readonly ToolFunction[];
  readonly toolChoice: ToolChoice;
  readonly parallelCalls: boolean;
  readonly format: OutputFormat | null;
  readonly maxTokens: number | null;
  readonly variables: Readonly<Record<string, unknown>>;
  readonly n: number;
  readonly logprobs: number | null;
  readonly sampling: SamplingInput;
}

/** The task, and a parser of calls for each answer, or null where no tools were given. */
export function chatTask(context: ServerContext, settings: ChatSettings): { task: GenerateTask; parser: (() => ToolCallParser) | null } {
  if (!context.engine.info.hasChatTemplate)
    throw badRequest("this model has no chat template: use /v1/completions, or serve a model that has one", "messages", "no_chat_template");
  const { tools, toolChoice } = settings;
  const mode = modeOf(tools, toolChoice);
  if (mode !== null && mode.kind !== "auto" && settings.format !== null)
    throw badRequest("response_format: not together with a tool_choice that asks for a call", "response_format");
  const chat: ChatTask = {
    messages: templateMessages(settings.messages),
    tools: mode === null ? [] : tools,
    variables: settings.variables,
  };
  const task: GenerateTask = {
    ...taskOf({ kind: "chat", chat }, settings.maxTokens, settings.sampling, context.randomSeed),
    n: settings.n,
    logprobs: settings.logprobs,
    format: formatOf(mode, tools) ?? settings.format,
  };
  const names = tools.map(({ name }) => name);
  const parser = mode === null ? null : (): ToolCallParser => new ToolCallParser(names, mode, { parallel: settings.parallelCalls });
  return { task, parser };
}

function modeOf(tools: readonly ToolFunction[], choice: ToolChoice): ToolMode | null {
  const names = tools.map(({ name }) => name);
  if (new Set(names).size < names.length) throw badRequest("tools: two functions have the same name", "tools");
  if (typeof choice === "object") {
    if (!names.includes(choice.name))
      throw badRequest(`tool_choice: no tool is named ${JSON.stringify(choice.name.slice(0, 100))}`, "tool_choice");
    return { kind: "named", name: choice.name };
  }
  if (choice === "required" && tools.length === 0) throw badRequest("tool_choice: required, but there are no tools", "tool_choice");
  if (choice === "none" || tools.length === 0) return null;
  return { kind: choice };
}
function formatOf(mode: ToolMode | null, tools: readonly ToolFunction[]): OutputFormat | null {
  if (mode === null || mode.kind === "auto") return null;
  if (mode.kind === "required") return { kind: "json-schema", schema: callSchema(tools) };
  return { kind: "json-schema", schema: tools.find(({ name }) => name === mode.name)?.parameters ?? { type: "object" } };
}

/** Templates read content as text, arguments of calls as objects, and know of no developers. */
export function templateMessages(messages: readonly ChatRequestMessage[]): Record<string, unknown>[] {
  return messages.map((message, i) => {
    const { role, content, name, tool_calls: calls, tool_call_id: callId } = message;
    if (role === "tool" && typeof callId !== "string")
      throw badRequest(`messages.${i}: a tool's message needs tool_call_id`, `messages.${i}.tool_call_id`);
    if (role !== "assistant" && (content === null || content === undefined))
      throw badRequest(`messages.${i}: expected content`, `messages.${i}.content`);
    return {
      role: role === "developer" ? "system" : role,
      content: textOf(content),
      ...(typeof name === "string" ? { name } : {}),
      ...(typeof callId === "string" ? { tool_call_id: callId } : {}),
      ...(Array.isArray(calls) && calls.length > 0 ? { tool_calls: calls.map(templateCall) } : {}),
    };
  });
}
function textOf(content: ChatRequestMessage["content"]): string {
  if (typeof content === "string") return content;
  return (content ?? []).map((part) => ("text" in part ? part.text : part.refusal)).join("");
}
function templateCall(call: NonNullable<ChatRequestMessage["tool_calls"]>[number]): unknown {
  let args: unknown = call.function.arguments;
  try {
    args = JSON.parse(call.function.arguments) as unknown;
  } catch {
    // What a model wrote need not be JSON; the template then gets the text.
  }
  return { id: call.id, type: "function", function: { name: call.function.name, arguments: args } };
}

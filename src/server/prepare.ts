/**
 * From a task to ids and a constraint, on the engine's thread: chat templates, tools, tokenizing, schemas. What is wrong with a request is
 * an error of the request here (`ApiError`), never of the server.
 */
import type { JsonConstraints, TokenConstraint } from "../serve/index.ts";
import { renderChat, type ChatMessage } from "../tokenizer/chat.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { badRequest, errorData, fromErrorData } from "./errors.ts";
import type { ChatTask, OutputFormat, PromptSource, ToolFunction } from "./protocol.ts";

export interface PreparedPrompt {
  readonly ids: ArrayLike<number>;
  readonly text: () => string;
}

/** Ids of a prompt within the limits of the model. */
export function preparePrompt(
  tokenizer: Tokenizer,
  source: PromptSource,
  { maxContext, vocabSize }: { maxContext: number; vocabSize: number },
): PreparedPrompt {
  const prompt = encodePrompt(tokenizer, source);
  const param = source.kind === "chat" ? "messages" : "prompt";
  if (prompt.ids.length === 0) throw badRequest("the prompt is empty: expected at least one token", param);
  if (prompt.ids.length >= maxContext) {
    throw badRequest(
      `the context holds ${maxContext} tokens of prompt and answer; the prompt has ${prompt.ids.length}`,
      param,
      "context_length_exceeded",
    );
  }
  const wrong = Array.prototype.findIndex.call(prompt.ids, (id: number) => id >= vocabSize);
  if (wrong >= 0) throw badRequest(`prompt token ${wrong} is ${prompt.ids[wrong]}; the vocabulary has ${vocabSize} tokens`, param);
  return prompt;
}

function encodePrompt(tokenizer: Tokenizer, source: PromptSource): PreparedPrompt {
  switch (source.kind) {
    case "text": {
      const encoded = tokenizer.encode(source.text, { addSpecialTokens: source.addSpecialTokens });
      const needsStart = encoded.length === 0 && source.addSpecialTokens && tokenizer.bosId !== undefined;
      return { ids: needsStart ? [tokenizer.bosId ?? 0] : encoded, text: () => source.text };
    }
    case "ids":
      return { ids: source.ids, text: () => tokenizer.decode(source.ids, { skipSpecialTokens: false }) };
    case "chat": {
      const text = chatText(tokenizer, source.chat);
      return { ids: tokenizer.encode(text, { addSpecialTokens: false }), text: () => text };
    }
    default:
      return source satisfies never;
  }
}

/** The text of a conversation with the beginning of the answer. */
function chatText(tokenizer: Tokenizer, { messages, tools, variables }: ChatTask): string {
  const knowsTools = /\btools\b/.test(tokenizer.chatTemplate ?? "");
  const asTools = tools.map((tool) => ({ type: "function", function: { description: "", parameters: {}, ...tool } }));
  const told: readonly ChatMessage[] =
    tools.length > 0 && !knowsTools ? withToolPrompt(messages as readonly ChatMessage[], tools) : (messages as readonly ChatMessage[]);
  try {
    return renderChat(tokenizer, told, {
      addGenerationPrompt: true,
      variables,
      ...(tools.length > 0 && knowsTools ? { tools: asTools } : {}),
    });
  } catch (error) {
    // Templates raise for conversations that they do not know (roles that must alternate): that is the request's fault.
    throw fromErrorData({ ...errorData(error, { blameRequest: true }), status: 400, param: "messages", code: "chat_template" });
  }
}

/** Tools for a model whose template has no place for them: a system message in the form that most models with tools were trained on. */
function withToolPrompt(messages: readonly ChatMessage[], tools: readonly ToolFunction[]): ChatMessage[] {
  const listed = tools.map((tool) => JSON.stringify({ type: "function", function: tool })).join("\n");
  const text =
    `You may call functions. Their signatures:\n<tools>\n${listed}\n</tools>\n` +
    `For each call write a JSON object within <tool_call></tool_call>:\n` +
    `<tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call>`;
  const [first, ...rest] = messages;
  if (first?.role === "system") return [{ ...first, content: `${String(first.content)}\n\n${text}` }, ...rest.map(spelledOut)];
  return [{ role: "system", content: text }, ...messages.map(spelledOut)];
}
/** Calls and results as text, for a template that would leave them out. */
function spelledOut(message: ChatMessage): ChatMessage {
  const calls = message["tool_calls"];
  if (message.role === "tool") return { role: "user", content: `<tool_response>\n${String(message.content)}\n</tool_response>` };
  if (message.role !== "assistant" || !Array.isArray(calls)) return message;
  const written = (calls as { function: unknown }[]).map((call) => `<tool_call>\n${JSON.stringify(call.function)}\n</tool_call>`);
  return { role: "assistant", content: [message.content, ...written].filter((part) => part !== "").join("\n") };
}

/** Which tokens may come next, or undefined where any may. Throws a 400 for a schema that cannot be followed. */
export function prepareConstraint(constraints: () => JsonConstraints, format: OutputFormat | null): TokenConstraint | undefined {
  if (format === null) return undefined;
  try {
    return format.kind === "json-object" ? constraints().anyObject() : constraints().schema(format.schema);
  } catch (error) {
    throw fromErrorData({ ...errorData(error, { blameRequest: true }), param: "response_format", code: "invalid_schema" });
  }
}

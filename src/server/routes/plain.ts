/** The routes with one short answer: embeddings, tokens, experts, models. */
import type { ServerContext } from "../context.ts";
import { badRequest } from "../errors.ts";
import type { ExpertRecord, PromptSource } from "../protocol.ts";
import type { detokenizeRequest, EmbeddingsRequest, expertsRequest, tokenizeRequest } from "../schemas.ts";
import type { z } from "zod";
import { templateMessages } from "../chat-task.ts";
import { promptsOf } from "../tasks.ts";

/** `/v1/embeddings`: the mean of the final hidden states over a text's tokens, as it is (no normalization). */
export async function embeddings(context: ServerContext, body: EmbeddingsRequest): Promise<unknown> {
  const { hiddenSize } = context.engine.info;
  if (typeof body.dimensions === "number" && body.dimensions !== hiddenSize)
    throw badRequest(`dimensions: this model's embeddings have ${hiddenSize}, got ${body.dimensions}`, "dimensions");
  const prompts = promptsOf(body.input);
  const release = context.admission.admit(prompts.length);
  try {
    const results = await Promise.all(prompts.map((prompt) => context.engine.call({ method: "embed", prompt })));
    const numTokens = results.reduce((sum, { promptTokens }) => sum + promptTokens, 0);
    const data = results.map(({ embedding }, index) => ({
      object: "embedding",
      index,
      embedding: body.encoding_format === "base64" ? base64(embedding) : Array.from(embedding),
    }));
    return { object: "list", data, model: context.modelName, usage: { prompt_tokens: numTokens, total_tokens: numTokens } };
  } finally {
    release();
  }
}
/** Little-endian f32, as OpenAI's clients read it. */
function base64(values: Float32Array): string {
  return Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString("base64");
}

/** `/tokenize`: ids of a text or of a conversation. */
export async function tokenize(context: ServerContext, body: z.output<typeof tokenizeRequest>): Promise<unknown> {
  const { prompt, messages, add_special_tokens: addSpecialTokens, return_token_strs: withTexts } = body;
  const hasPrompt = typeof prompt === "string";
  if (hasPrompt === (messages !== null && messages !== undefined)) throw badRequest("expected either prompt or messages", "prompt");
  if (!hasPrompt && !context.engine.info.hasChatTemplate)
    throw badRequest("this model has no chat template", "messages", "no_chat_template");
  const source: PromptSource = hasPrompt
    ? { kind: "text", text: prompt, addSpecialTokens: addSpecialTokens ?? true }
    : { kind: "chat", chat: { messages: templateMessages(messages ?? []), tools: [], variables: {} } };
  if (source.kind === "text" && source.text === "") return { count: 0, max_model_len: context.engine.info.maxContext, tokens: [] };
  const { ids, texts } = await context.engine.call({ method: "tokenize", prompt: source, withTexts: withTexts === true });
  return {
    count: ids.length,
    max_model_len: context.engine.info.maxContext,
    tokens: ids,
    ...(texts === null ? {} : { token_strs: texts }),
  };
}

/** `/detokenize`: the text of ids. */
export async function detokenize(context: ServerContext, body: z.output<typeof detokenizeRequest>): Promise<unknown> {
  const skipSpecialTokens = body.skip_special_tokens ?? false;
  const { text } = await context.engine.call({ method: "detokenize", ids: body.tokens, skipSpecialTokens });
  return { prompt: text };
}

/** `/v1/experts`: which experts got how many tokens between start and stop. */
export function experts(context: ServerContext, { action }: z.output<typeof expertsRequest>): Promise<ExpertRecord> {
  return context.engine.call({ method: "experts", action });
}

export function modelObject(context: ServerContext): unknown {
  const { maxContext, numParams } = context.engine.info;
  return {
    id: context.modelName,
    object: "model",
    created: context.created,
    owned_by: "moe.ts",
    max_model_len: maxContext,
    num_parameters: numParams,
  };
}

/** `/health`: from the main thread alone, so that it answers while the engine computes. */
export function health(context: ServerContext): { status: number; body: unknown } {
  const { death, stats } = context.engine;
  const status = death !== null ? "failed" : context.state.draining ? "draining" : "ok";
  return {
    status: status === "ok" ? 200 : 503,
    body: { status, running: stats.running, waiting: stats.waiting, ...(death === null ? {} : { reason: death }) },
  };
}

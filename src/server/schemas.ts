/**
 * Requests as schemas: the one source of what is accepted and of the OpenAPI document. Fields of OpenAI's that mean nothing here are
 * named and ignored (`accepted, without effect`); any other unknown field is an error, so that a misspelt one is not silently without effect.
 *
 * Beyond OpenAI's: `top_k`, `min_p`, `repetition_penalty`, `stop_token_ids`, `ignore_eos`, `skip_special_tokens`, as other servers name them.
 */
import { z } from "zod";
import { biasMap, idList, listOf, promptList } from "./lists.ts";

const maxChoices = 128;
const jsonObject = z.record(z.string(), z.unknown());
const ignored = (schema: z.ZodType = z.unknown()): z.ZodOptional<z.ZodNullable<z.ZodType>> =>
  schema.nullish().describe("Accepted, without effect.");

const model = z.string().nullish().describe("Name of the served model. Default: that one.");
const stream = z.boolean().nullish().describe("Answer in server-sent events, token by token.");
const streamOptions = z
  .strictObject({ include_usage: z.boolean().nullish(), include_obfuscation: ignored(z.boolean()) })
  .nullish()
  .describe("Only with stream.");
const prompt = promptList(maxChoices).describe("A text, token ids, or a list of either.");

const sampling = {
  temperature: z.number().min(0).max(2).nullish().describe("0: always the most probable token. Default 1."),
  top_p: z.number().min(0).max(1).nullish().describe("Keep the most probable tokens up to this sum. Default 1."),
  top_k: z
    .int()
    .min(-1)
    .max(2 ** 31 - 1)
    .nullish()
    .describe("Keep the k most probable tokens. 0 and -1: all (default)."),
  min_p: z.number().min(0).max(1).nullish().describe("Keep what is at least this times as probable as the most probable. Default 0."),
  seed: z.int().nullish().describe("The same seed gives the same answer, whatever else the server does. Default: random."),
};
const penalties = {
  repetition_penalty: z.number().min(0.01).max(10).nullish().describe("Divides logits of tokens seen before. Default 1."),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  logit_bias: biasMap(4096).nullish().describe("Token id to what is added to its logit."),
  stop: z
    .union([z.string(), listOf(z.string(), { max: 16 })])
    .nullish()
    .describe("End before this text."),
  stop_token_ids: idList().nullish().describe("Token ids that end the answer, besides the model's own."),
  ignore_eos: z.boolean().nullish().describe("Go on beyond the model's end tokens."),
  skip_special_tokens: z.boolean().nullish().describe("Leave control tokens out of the text. Default true."),
};
const ours = { ...sampling, ...penalties };
const withoutEffect = {
  user: ignored(z.string()),
  metadata: ignored(jsonObject),
  store: ignored(z.boolean()),
  service_tier: ignored(z.string()),
  safety_identifier: ignored(z.string()),
  prompt_cache_key: ignored(z.string()),
};
const maxTokens = z
  .int()
  .min(1)
  .max(2 ** 31 - 1);
const choices = z.int().min(1).max(maxChoices).nullish().describe("Answers to each prompt. Default 1.");

export const completionRequest = z.strictObject({
  model,
  prompt,
  suffix: z.string().nullish().describe("Not supported: only null or an empty text."),
  max_tokens: z
    .int()
    .min(0)
    .max(2 ** 31 - 1)
    .nullish()
    .describe("Default 16. 0 with echo: only the prompt is scored."),
  n: choices,
  best_of: z
    .int()
    .min(1)
    .max(maxChoices)
    .nullish()
    .describe("Make so many, keep the n of the highest log-probability per token. Not with stream."),
  echo: z.boolean().nullish().describe("Put the prompt before the answer, in text and in logprobs."),
  logprobs: z.int().min(0).max(20).nullish().describe("Log-probabilities, with those of so many most probable tokens."),
  stream,
  stream_options: streamOptions,
  ...ours,
  ...withoutEffect,
});

const textPart = z.strictObject({
  type: z.enum(["text", "input_text", "output_text"]),
  text: z.string(),
  annotations: ignored(),
  logprobs: ignored(),
});
const refusalPart = z.strictObject({ type: z.literal("refusal"), refusal: z.string() });
const content = z.union([z.string(), listOf(z.union([textPart, refusalPart]))]);
const functionName = z.string().regex(/^[a-zA-Z0-9_.-]{1,64}$/);
const toolCall = z.strictObject({
  id: z.string(),
  type: z.literal("function"),
  function: z.strictObject({ name: z.string(), arguments: z.string() }),
});
const message = z.strictObject({
  role: z.enum(["system", "developer", "user", "assistant", "tool"]),
  content: content.nullish(),
  name: z.string().nullish(),
  tool_calls: listOf(toolCall, { max: 128 }).nullish(),
  tool_call_id: z.string().nullish(),
  refusal: ignored(z.string()),
  annotations: ignored(),
  audio: z.null().optional(),
});
const tool = z.strictObject({
  type: z.literal("function"),
  function: z.strictObject({
    name: functionName,
    description: z.string().nullish(),
    parameters: jsonObject.nullish().describe("JSON schema of the arguments."),
    strict: z.boolean().nullish(),
  }),
});
const jsonSchemaFormat = z.strictObject({
  name: z.string(),
  description: z.string().nullish(),
  schema: jsonObject.nullish(),
  strict: z.boolean().nullish(),
});

export const chatRequest = z.strictObject({
  model,
  messages: listOf(message, { min: 1 }),
  max_tokens: maxTokens.nullish().describe("Default: what the context leaves."),
  max_completion_tokens: maxTokens.nullish().describe("The newer name of max_tokens."),
  n: choices,
  logprobs: z.boolean().nullish(),
  top_logprobs: z.int().min(0).max(20).nullish().describe("Only with logprobs."),
  tools: listOf(tool, { max: 128 }).nullish(),
  tool_choice: z
    .union([
      z.enum(["none", "auto", "required"]),
      z.strictObject({ type: z.literal("function"), function: z.strictObject({ name: z.string() }) }),
    ])
    .nullish(),
  parallel_tool_calls: z.boolean().nullish().describe("false: at most one tool call."),
  response_format: z
    .union([
      z.strictObject({ type: z.literal("text") }),
      z.strictObject({ type: z.literal("json_object") }),
      z.strictObject({ type: z.literal("json_schema"), json_schema: jsonSchemaFormat }),
    ])
    .nullish(),
  chat_template_kwargs: jsonObject.nullish().describe("More variables for the chat template."),
  stream,
  stream_options: streamOptions,
  ...ours,
  ...withoutEffect,
  modalities: ignored(listOf(z.literal("text"), { max: 8 })),
  reasoning_effort: ignored(z.string()),
  verbosity: ignored(z.string()),
});

const status = ignored(z.string());
const inputItem = z.union([
  z.strictObject({
    type: z.literal("message").optional(),
    role: z.enum(["system", "developer", "user", "assistant"]),
    content,
    id: ignored(z.string()),
    status,
  }),
  z.strictObject({
    type: z.literal("function_call"),
    call_id: z.string(),
    name: z.string(),
    arguments: z.string(),
    id: ignored(z.string()),
    status,
  }),
  z.strictObject({ type: z.literal("function_call_output"), call_id: z.string(), output: z.string(), id: ignored(z.string()), status }),
]);
const responseFormat = z.union([
  z.strictObject({ type: z.literal("text") }),
  z.strictObject({ type: z.literal("json_object") }),
  z.strictObject({ type: z.literal("json_schema"), ...jsonSchemaFormat.shape }),
]);

const flatTool = z.strictObject({
  type: z.literal("function"),
  name: functionName,
  description: z.string().nullish(),
  parameters: jsonObject.nullish(),
  strict: z.boolean().nullish(),
});

export const responsesRequest = z.strictObject({
  model,
  input: z.union([z.string(), listOf(inputItem, { min: 1 })]),
  instructions: z.string().nullish(),
  max_output_tokens: maxTokens.nullish(),
  text: z.strictObject({ format: responseFormat.nullish(), verbosity: ignored(z.string()) }).nullish(),
  tools: listOf(flatTool, { max: 128 }).nullish(),
  tool_choice: z.union([z.enum(["none", "auto", "required"]), z.strictObject({ type: z.literal("function"), name: z.string() })]).nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  stream,
  stream_options: ignored(jsonObject),
  previous_response_id: z.null().optional().describe("Responses are not stored: send the whole conversation as input."),
  conversation: z.null().optional(),
  background: z.literal(false).nullish(),
  truncation: z.literal("disabled").nullish(),
  ...sampling,
  ...withoutEffect,
  include: ignored(listOf(z.string(), { max: 64 })),
  reasoning: ignored(jsonObject),
});

export const embeddingsRequest = z.strictObject({
  model,
  input: prompt,
  encoding_format: z.enum(["float", "base64"]).nullish(),
  dimensions: z.int().min(1).nullish().describe("Only the model's hidden size."),
  user: ignored(z.string()),
});

export const tokenizeRequest = z.strictObject({
  model,
  prompt: z.string().nullish(),
  messages: listOf(message, { min: 1 }).nullish().describe("Instead of prompt: through the chat template."),
  add_special_tokens: z.boolean().nullish().describe("Default true. Only with prompt."),
  return_token_strs: z.boolean().nullish(),
});
export const detokenizeRequest = z.strictObject({
  model,
  tokens: idList(),
  skip_special_tokens: z.boolean().nullish().describe("Default false."),
});
export const expertsRequest = z.strictObject({ action: z.enum(["start", "stop", "dump"]) });

export type CompletionRequest = z.output<typeof completionRequest>;
export type ChatRequest = z.output<typeof chatRequest>;
export type ChatRequestMessage = z.output<typeof message>;
export type ResponsesRequest = z.output<typeof responsesRequest>;
export type EmbeddingsRequest = z.output<typeof embeddingsRequest>;
export type SamplingRequest = z.output<z.ZodObject<typeof ours>>;

/** From the fields of a request to what the engine's thread is asked: defaults and OpenAI's conventions are here. */
import { badRequest } from "./errors.ts";
import type { GenerateTask, PromptSource, SamplingFields } from "./protocol.ts";
import type { SamplingRequest } from "./schemas.ts";

/** Options that a request may lack altogether (/v1/responses has no penalties). */
export type SamplingInput = { readonly [K in keyof SamplingRequest]?: SamplingRequest[K] | undefined };

function samplingFields(body: SamplingInput): SamplingFields {
  const topP = body.top_p ?? 1;
  return {
    temperature: body.temperature ?? 1,
    // 0 keeps the most probable token alone, as the smallest positive number does.
    topP: topP === 0 ? Number.MIN_VALUE : topP,
    topK: Math.max(0, body.top_k ?? 0),
    minP: body.min_p ?? 0,
    repetitionPenalty: body.repetition_penalty ?? 1,
    frequencyPenalty: body.frequency_penalty ?? 0,
    presencePenalty: body.presence_penalty ?? 0,
    logitBias: Object.entries(body.logit_bias ?? {}).map(([id, bias]) => [Number(id), bias] as const),
  };
}

/** Seeds of clients are any 64-bit integers; the engine's are not negative. */
function seedOf(seed: number | null | undefined, randomSeed: () => number): number {
  if (seed === null || seed === undefined) return randomSeed();
  return seed < 0 ? seed + Number.MAX_SAFE_INTEGER : seed;
}

/** A task with the sampling of a request and nothing else asked for. */
export function taskOf(prompt: PromptSource, maxTokens: number | null, body: SamplingInput, randomSeed: () => number): GenerateTask {
  const stop = body.stop ?? [];
  return {
    prompt,
    maxTokens,
    sampling: samplingFields(body),
    seed: seedOf(body.seed, randomSeed),
    n: 1,
    stop: (typeof stop === "string" ? [stop] : stop).filter((text) => text !== ""),
    stopIds: body.stop_token_ids ?? [],
    ignoreEnd: body.ignore_eos ?? false,
    keepSpecialTokens: body.skip_special_tokens === false,
    logprobs: null,
    promptLogprobs: null,
    echo: false,
    format: null,
  };
}

/** The prompts of a request that may have one or several, as texts or ids. */
export function promptsOf(prompt: string | readonly string[] | readonly number[] | readonly (readonly number[])[]): PromptSource[] {
  if (typeof prompt === "string") return [textPrompt(prompt)];
  if (typeof prompt[0] === "number") return [{ kind: "ids", ids: prompt as readonly number[] }];
  return (prompt as readonly (string | readonly number[])[]).map((item) =>
    typeof item === "string" ? textPrompt(item) : { kind: "ids", ids: item },
  );
}
function textPrompt(text: string): PromptSource {
  return { kind: "text", text, addSpecialTokens: true };
}

/** Throws 400 for `stream_options` without `stream`, as OpenAI does. */
export function checkStreamOptions({ stream, stream_options }: { stream?: boolean | null | undefined; stream_options?: unknown }): void {
  if (stream !== true && stream_options !== null && stream_options !== undefined)
    throw badRequest("stream_options: only with stream: true", "stream_options");
}

/** What several routes write alike. */
import { randomBytes } from "node:crypto";
import type { ServerContext } from "./context.ts";
import { ApiError } from "./errors.ts";
import type { RunUsage } from "./run.ts";

/** `cmpl-...`: unique, and meaning nothing. */
export function newId(prefix: string, separator = "-"): string {
  return `${prefix}${separator}${randomBytes(12).toString("hex")}`;
}

export function usageOf({ promptTokens, generatedTokens, cachedTokens }: RunUsage): Record<string, unknown> {
  return {
    prompt_tokens: promptTokens,
    completion_tokens: generatedTokens,
    total_tokens: promptTokens + generatedTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens },
  };
}

/** Throws 404 for a model that is not the one served. */
export function checkModel(context: ServerContext, name: string | null | undefined): void {
  if (name === null || name === undefined || name === context.modelName) return;
  throw new ApiError(404, `the model ${JSON.stringify(name.slice(0, 200))} is not served here; ${JSON.stringify(context.modelName)} is`, {
    param: "model",
    code: "model_not_found",
  });
}

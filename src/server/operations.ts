/** The routes as data: what each is for and which body it takes. The router and the OpenAPI document are both made from this. */
import type { z } from "zod";
import {
  chatRequest,
  completionRequest,
  detokenizeRequest,
  embeddingsRequest,
  expertsRequest,
  responsesRequest,
  tokenizeRequest,
} from "./schemas.ts";

export interface Operation {
  readonly method: "GET" | "POST";
  readonly path: string;
  readonly id: string;
  readonly summary: string;
  /** Of the body, by this name in the document. */
  readonly request?: { readonly name: string; readonly schema: z.ZodType };
  readonly answers: "json" | "json or events" | "text" | "html";
}

export const operations = [
  { method: "GET", path: "/health", id: "health", summary: "Whether the server is well. Needs no key.", answers: "json" },
  { method: "GET", path: "/v1/models", id: "models", summary: "The served model.", answers: "json" },
  { method: "GET", path: "/v1/models/{model}", id: "model", summary: "The served model.", answers: "json" },
  {
    method: "POST",
    path: "/v1/completions",
    id: "completions",
    summary: "Text after prompts.",
    request: { name: "CompletionRequest", schema: completionRequest },
    answers: "json or events",
  },
  {
    method: "POST",
    path: "/v1/chat/completions",
    id: "chat",
    summary: "The next message of a conversation.",
    request: { name: "ChatCompletionRequest", schema: chatRequest },
    answers: "json or events",
  },
  {
    method: "POST",
    path: "/v1/responses",
    id: "responses",
    summary: "An answer to an input. Nothing is stored.",
    request: { name: "ResponsesRequest", schema: responsesRequest },
    answers: "json or events",
  },
  {
    method: "POST",
    path: "/v1/embeddings",
    id: "embeddings",
    summary: "The mean of the final hidden states over a text's tokens.",
    request: { name: "EmbeddingsRequest", schema: embeddingsRequest },
    answers: "json",
  },
  {
    method: "POST",
    path: "/tokenize",
    id: "tokenize",
    summary: "Token ids of a text or a conversation.",
    request: { name: "TokenizeRequest", schema: tokenizeRequest },
    answers: "json",
  },
  {
    method: "POST",
    path: "/detokenize",
    id: "detokenize",
    summary: "The text of token ids.",
    request: { name: "DetokenizeRequest", schema: detokenizeRequest },
    answers: "json",
  },
  { method: "GET", path: "/v1/experts", id: "dumpExperts", summary: "Tokens that each expert got while recording.", answers: "json" },
  {
    method: "POST",
    path: "/v1/experts",
    id: "experts",
    summary: "Begins, ends or tells a record of tokens by expert.",
    request: { name: "ExpertsRequest", schema: expertsRequest },
    answers: "json",
  },
  { method: "GET", path: "/metrics", id: "metrics", summary: "Counters for Prometheus.", answers: "text" },
  { method: "GET", path: "/openapi.json", id: "openapi", summary: "This document.", answers: "json" },
  { method: "GET", path: "/", id: "page", summary: "A page to chat on.", answers: "html" },
] as const satisfies readonly Operation[];

export type OperationId = (typeof operations)[number]["id"];

/**
 * HTTP: fastify with the routes of `operations.ts`, one way in for bodies (UTF-8, JSON, schema) and one way out for errors. Everything here is
 * short; what takes time is the engine's.
 */
import { fastify, type FastifyInstance, type FastifyReply, type FastifyRequest } from "fastify";
import { keyCheck } from "./auth.ts";
import type { ServerContext } from "./context.ts";
import { ApiError, errorBody, errorData, type ErrorData } from "./errors.ts";
import { openApiDocument } from "./openapi.ts";
import { operations, type OperationId } from "./operations.ts";
import { chatPage } from "./page.ts";
import { chatCompletion, streamChat } from "./routes/chat.ts";
import { completions, streamCompletions } from "./routes/completions.ts";
import { detokenize, embeddings, experts, health, modelObject, tokenize } from "./routes/plain.ts";
import { respond, streamResponse } from "./routes/responses.ts";
import { ClientGone } from "./run.ts";
import {
  chatRequest,
  completionRequest,
  detokenizeRequest,
  embeddingsRequest,
  expertsRequest,
  responsesRequest,
  tokenizeRequest,
} from "./schemas.ts";
import { checkModel } from "./shared.ts";
import { EventStream } from "./sse.ts";
import { decodeJson, parseBody } from "./validate.ts";
import type { z } from "zod";

type Handler = (request: FastifyRequest, reply: FastifyReply) => unknown;

export interface AppOptions {
  readonly apiKey: string | null;
  readonly version: string;
}

export function createApp(context: ServerContext, { apiKey, version }: AppOptions): FastifyInstance {
  const app = fastify({
    bodyLimit: context.limits.bodyBytes,
    forceCloseConnections: true,
    // Who sends a request byte by byte does not hold a place for ever.
    requestTimeout: 30_000,
    keepAliveTimeout: 72_000,
    exposeHeadRoutes: false,
    clientErrorHandler: answerBrokenHttp,
  });
  app.removeAllContentTypeParsers();
  app.addContentTypeParser("application/json", { parseAs: "buffer" }, (_request, body, done) => {
    try {
      done(null, decodeJson(body as Buffer));
    } catch (error) {
      done(error as Error, undefined);
    }
  });
  addHooks(app, context, keyCheck(apiKey));
  app.setErrorHandler((error, request, reply) => answerError(context, error, request, reply));
  app.setNotFoundHandler((request) => {
    const [path = ""] = request.url.split("?");
    const known = operations.filter((operation) => operation.path === path).map(({ method }) => method);
    if (known.length > 0)
      throw new ApiError(405, `${request.method} ${path}: expected ${known.join(" or ")}`, { code: "method_not_allowed" });
    throw new ApiError(404, `${request.method} ${path.slice(0, 200)}: no such route; /openapi.json lists them`, { code: "not_found" });
  });
  const handlers = handlersOf(context, version);
  for (const { method, path, id } of operations) {
    app.route({ method, url: path.replace("{model}", "*"), handler: handlers[id] });
  }
  return app;
}

function addHooks(app: FastifyInstance, context: ServerContext, checkKey: (authorization: string | undefined) => void): void {
  const { state, limits, metrics, log } = context;
  app.addHook("onRequest", (request, _reply, done) => {
    if (request.url === "/health") return done();
    state.requests++;
    counted.add(request);
    try {
      checkKey(request.headers.authorization);
      if (context.engine.death !== null) throw new ApiError(503, `the engine is gone: ${context.engine.death}`, { code: "engine_gone" });
      if (state.draining) throw new ApiError(503, "the server is shutting down", { code: "shutting_down", retryAfter: 5 });
      if (state.requests > limits.maxRequests)
        throw new ApiError(429, `${limits.maxRequests} requests are under way`, { code: "too_many_requests", retryAfter: 1 });
      done();
    } catch (error) {
      done(error as Error);
    }
  });
  const counted = new WeakSet<FastifyRequest>();
  const over = (request: FastifyRequest, reply: FastifyReply, status: number): void => {
    if (!counted.delete(request)) return;
    state.requests--;
    const route = request.routeOptions.url ?? "none";
    metrics.requests.inc({ route, status: String(status) });
    metrics.duration.observe({ route }, reply.elapsedTime / 1000);
    const level = status >= 500 ? "warn" : "info";
    log.write({ level, message: `${request.method} ${route} ${status}`, ms: Math.round(reply.elapsedTime), client: request.ip });
  };
  app.addHook("onResponse", (request, reply, done) => {
    over(request, reply, reply.raw.statusCode);
    done();
  });
  // A connection that closes before the answer ends is never "responded" to.
  app.addHook("onRequest", (request, reply, done) => {
    // 499, as nginx calls a client that closed its request.
    reply.raw.once("close", () => over(request, reply, reply.raw.writableFinished ? reply.raw.statusCode : 499));
    done();
  });
}

function answerError(context: ServerContext, error: unknown, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  // Nobody is there to be told.
  if (error instanceof ClientGone || reply.raw.destroyed) return reply.hijack();
  const data = dataOf(error);
  if (data.status === 401) reply.header("www-authenticate", 'Basic realm="moe", charset="UTF-8"');
  if (error instanceof ApiError && error.retryAfter !== null) reply.header("retry-after", String(error.retryAfter));
  if (data.status === 429 || data.status === 503) context.metrics.rejected.inc({ reason: data.code ?? "other" });
  if (data.status >= 500 && !(error instanceof ApiError)) {
    const stack = error instanceof Error ? (error.stack ?? error.message) : String(error);
    context.log.write({ level: "error", message: `${request.method} ${request.url.slice(0, 200)}: ${stack}` });
  }
  // What was not read of a body that is refused would be taken for the next request.
  if (data.status === 413 || data.status === 408 || data.status === 401) reply.header("connection", "close");
  return reply.code(data.status).type("application/json; charset=utf-8").send(errorBody(data));
}

/** Fastify's own errors have a status and a code. */
function dataOf(error: unknown): ErrorData {
  const status = error instanceof Error && "statusCode" in error ? error.statusCode : undefined;
  if (error instanceof ApiError || !(error instanceof Error) || typeof status !== "number" || status >= 500) return errorData(error);
  const code = "code" in error && typeof error.code === "string" ? error.code : null;
  const messages: Record<string, string> = {
    FST_ERR_CTP_INVALID_MEDIA_TYPE: "expected content-type: application/json",
    FST_ERR_CTP_BODY_TOO_LARGE: "request body: too large for this server",
    FST_ERR_CTP_EMPTY_JSON_BODY: "request body: expected JSON, got nothing",
  };
  return new ApiError(status, messages[code ?? ""] ?? error.message, { code }).data;
}

function answerBrokenHttp(error: NodeJS.ErrnoException, socket: import("node:net").Socket): void {
  if (error.code === "ECONNRESET" || !socket.writable) {
    socket.destroy();
    return;
  }
  const [status, reason] =
    error.code === "ERR_HTTP_REQUEST_TIMEOUT"
      ? [408, "Request Timeout"]
      : error.code === "HPE_HEADER_OVERFLOW"
        ? [431, "Request Header Fields Too Large"]
        : [400, "Bad Request"];
  const body = JSON.stringify(
    errorBody(new ApiError(status, `not a request that this server can read: ${error.message}`, { code: "bad_http" }).data),
  );
  socket.end(
    `HTTP/1.1 ${status} ${reason}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
}

/** A route that takes a body. */
function withBody<T extends z.ZodType>(
  context: ServerContext,
  schema: T,
  handle: (body: z.output<T>, reply: FastifyReply) => unknown,
): Handler {
  return (request, reply) => {
    const body = parseBody(schema, request.body);
    const { model } = body as { model?: string | null };
    checkModel(context, model);
    return handle(body, reply);
  };
}

/** Runs an answer in events. What fails before the first event is an ordinary error; afterwards it is an event. */
async function streamed(context: ServerContext, reply: FastifyReply, run: (stream: EventStream) => Promise<void>): Promise<FastifyReply> {
  const stream = new EventStream(reply.raw);
  try {
    await run(stream);
  } catch (error) {
    if (!stream.isOpen) throw error;
    if (!(error instanceof ClientGone)) {
      const data = errorData(error);
      stream.send(errorBody(data));
      stream.send("[DONE]");
      context.log.write({ level: "warn", message: `a stream broke off: ${data.message}` });
    }
  }
  reply.hijack();
  stream.end();
  return reply;
}

function handlersOf(context: ServerContext, version: string): Record<OperationId, Handler> {
  const document = openApiDocument(version);
  const page = chatPage(context.modelName);
  return {
    health: (_request, reply) => {
      const { status, body } = health(context);
      return reply.code(status).send(body);
    },
    models: () => ({ object: "list", data: [modelObject(context)] }),
    model: (request) => {
      checkModel(context, (request.params as { "*": string })["*"]);
      return modelObject(context);
    },
    completions: withBody(context, completionRequest, (body, reply) =>
      body.stream === true
        ? streamed(context, reply, (stream) => streamCompletions(context, reply.raw, body, stream))
        : completions(context, reply.raw, body),
    ),
    chat: withBody(context, chatRequest, (body, reply) =>
      body.stream === true
        ? streamed(context, reply, (stream) => streamChat(context, reply.raw, body, stream))
        : chatCompletion(context, reply.raw, body),
    ),
    responses: withBody(context, responsesRequest, (body, reply) =>
      body.stream === true
        ? streamed(context, reply, (stream) => streamResponse(context, reply.raw, body, stream))
        : respond(context, reply.raw, body),
    ),
    embeddings: withBody(context, embeddingsRequest, (body) => embeddings(context, body)),
    tokenize: withBody(context, tokenizeRequest, (body) => tokenize(context, body)),
    detokenize: withBody(context, detokenizeRequest, (body) => detokenize(context, body)),
    dumpExperts: () => experts(context, { action: "dump" }),
    experts: withBody(context, expertsRequest, (body) => experts(context, body)),
    metrics: async (_request, reply) => {
      const text = await context.metrics.registry.metrics();
      return reply.type(context.metrics.registry.contentType).send(text);
    },
    openapi: () => document,
    page: (_request, reply) => {
      for (const [name, value] of Object.entries(page.headers)) reply.header(name, value);
      return reply.type("text/html; charset=utf-8").send(page.html);
    },
  };
}

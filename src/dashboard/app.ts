/**
 * HTTP of the dashboard: the page from memory, and answers about runs as JSON. Reading only, all by GET. Runs, artifacts, steps and metrics
 * are looked up by ids and numbers; no part of a request is ever a path. Requests whose Host is not one of this server's names are refused, so
 * that a page of another site cannot read through a name that it points here.
 */
import { fastify, type FastifyInstance, type FastifyReply, type FastifyRequest } from "fastify";
import {
  evaluationSeries,
  expertLoads,
  layerExperts,
  layerGrid,
  layerSeries,
  scalarSeries,
  similaritySeries,
  type Span,
} from "./answers.ts";
import type { Catalog } from "./catalog.ts";
import type { Hub } from "./hub.ts";
import { layerMetricKeys, type LayerMetricKey } from "./metrics-index.ts";
import type { PageFile } from "./page-files.ts";
import type { DashboardRun } from "./run.ts";
import type { WatchedServer } from "./watched-server.ts";

export interface AppOptions {
  readonly catalog: Catalog;
  readonly hub: Hub;
  readonly page: ReadonlyMap<string, PageFile>;
  readonly server: WatchedServer | null;
  /** Names (without port) by which requests may call this server; null: any. */
  readonly hosts: ReadonlySet<string> | null;
}

/** What the request asks for is not there or not well said. */
class RequestError extends Error {
  readonly statusCode: number;
  constructor(statusCode: number, message: string) {
    super(message);
    this.statusCode = statusCode;
  }
}

const securityHeaders = {
  "content-security-policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cross-origin-resource-policy": "same-origin",
  "cross-origin-opener-policy": "same-origin",
} as const;

export function createDashboardApp(options: AppOptions): FastifyInstance {
  const app = fastify({ bodyLimit: 1024, forceCloseConnections: true, exposeHeadRoutes: false, requestTimeout: 30_000 });
  app.addHook("onRequest", (request, reply, done) => {
    for (const [name, value] of Object.entries(securityHeaders)) reply.header(name, value);
    const { hosts } = options;
    done(hosts === null || hosts.has(request.hostname.toLowerCase()) ? undefined : new RequestError(403, "this server has another name"));
  });
  app.setErrorHandler((error, _request, reply) => {
    const status = error instanceof Error && "statusCode" in error && typeof error.statusCode === "number" ? error.statusCode : 500;
    const message = status < 500 && error instanceof Error ? error.message : "internal error";
    return reply.code(status).send({ error: message });
  });
  app.setNotFoundHandler((_request, reply) => reply.code(404).send({ error: "no such page" }));
  for (const [path, file] of options.page) app.get(path, (request, reply) => sendFile(request, reply, file));
  addRuns(app, options);
  addStream(app, options);
  return app;
}

function sendFile(request: FastifyRequest, reply: FastifyReply, file: PageFile): FastifyReply {
  reply.header("etag", file.tag).header("vary", "accept-encoding");
  reply.header("cache-control", file.immutable ? "public, max-age=31536000, immutable" : "no-cache");
  if (request.headers["if-none-match"] === file.tag) return reply.code(304).send();
  reply.type(file.type);
  const accepted = request.headers["accept-encoding"]?.toString() ?? "";
  if (/\bbr\b/.test(accepted)) return reply.header("content-encoding", "br").send(file.brotli);
  if (/\bgzip\b/.test(accepted)) return reply.header("content-encoding", "gzip").send(file.gzip);
  return reply.send(file.body);
}

type Query = Readonly<Record<string, unknown>>;
type Answer = (run: DashboardRun, query: Query) => unknown;

function addRuns(app: FastifyInstance, { catalog, hub, server }: AppOptions): void {
  app.get("/api/runs", () => {
    catalog.scan();
    return catalog.list(server?.url ?? null);
  });
  const answers: Readonly<Record<string, Answer>> = {
    "": (run) => run.detail(),
    "/series": ({ metrics }, query) => scalarSeries(metrics, list(query, "keys"), span(query)),
    "/layer": ({ metrics }, query) => layerSeries(metrics, number(query, "layer"), list(query, "keys").map(layerKey), span(query)),
    "/grid": ({ metrics }, query) => layerGrid(metrics, layerKey(text(query, "key")), span(query)),
    "/load": ({ metrics }, query) =>
      expertLoads(metrics, { from: query["from"] === undefined ? null : number(query, "from"), to: number(query, "to") }),
    "/experts": ({ metrics }, query) => found(layerExperts(metrics, number(query, "layer"), span(query)), "no such layer"),
    "/evaluations": ({ metrics }, query) => evaluationSeries(metrics, span(query).points),
    "/similarity": ({ metrics }, query) => similaritySeries(metrics, span(query).points),
    "/similarity/matrix": (run, query) => found(run.similarityMatrix(number(query, "step"), number(query, "layer")), "no such record"),
    "/sample": (run, query) => found(run.sample(number(query, "step"), number(query, "prompt")), "no such text"),
    "/artifact": (run, query) => found(run.artifacts.read(text(query, "id")), "no such file"),
  };
  for (const [path, answer] of Object.entries(answers)) {
    app.get(`/api/runs/:id${path}`, async (request, reply) => {
      const run = found(catalog.find((request.params as { id: string }).id), "no such run");
      await opened(run, hub);
      reply.header("cache-control", "no-store");
      return answer(run, request.query as Query);
    });
  }
}

/** The first look at a run starts its index; whoever asks meanwhile gets what is there. */
async function opened(run: DashboardRun, hub: Hub): Promise<void> {
  if (run.isOpen) return;
  const done = run.update(() => hub.tell(run));
  hub.watchOpenRuns();
  // A small file is there at once; of a large one the first slices are enough to begin with.
  await Promise.race([done, new Promise((resolve) => setTimeout(resolve, 200))]);
}

function addStream(app: FastifyInstance, { hub, server }: AppOptions): void {
  app.get("/api/events", (_request, reply) => {
    for (const [name, value] of Object.entries(securityHeaders)) reply.raw.setHeader(name, value);
    if (!hub.listen(reply.raw)) throw new RequestError(503, "too many pages listen");
    reply.hijack();
    if (server !== null)
      void server.read().then(() => hub.send("server", { ...server.answer, readings: server.answer.readings.slice(-1) }));
  });
  app.get("/api/server", () => found(server, "no server is watched; moe dashboard --server <address>").answer);
}

function found<T>(value: T | null, message: string): T {
  if (value === null) throw new RequestError(404, message);
  return value;
}
function text(query: Query, name: string): string {
  const value = query[name];
  if (typeof value !== "string" || value === "" || value.length > 200) throw new RequestError(400, `${name}: expected a text`);
  return value;
}
function number(query: Query, name: string): number {
  const value = Number(text(query, name));
  if (!Number.isSafeInteger(value) || value < 0) throw new RequestError(400, `${name}: expected a whole number of at least 0`);
  return value;
}
function list(query: Query, name: string): string[] {
  const value = query[name];
  if (typeof value !== "string" || value.length > 8000) throw new RequestError(400, `${name}: expected names with commas between`);
  return value.split(",").slice(0, 256);
}
function layerKey(key: string): LayerMetricKey {
  const known = layerMetricKeys.find((name) => name === key);
  if (known === undefined) throw new RequestError(400, `${key.slice(0, 60)}: expected one of ${layerMetricKeys.join(", ")}`);
  return known;
}
function span(query: Query): Span {
  const optional = (name: string, otherwise: number): number => (query[name] === undefined ? otherwise : number(query, name));
  return {
    from: optional("from", 0),
    to: optional("to", Number.MAX_SAFE_INTEGER),
    points: Math.min(4000, Math.max(2, optional("points", 600))),
  };
}

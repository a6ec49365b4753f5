/**
 * A server from start to end: engine, HTTP, and the way out. `close` drains: nothing new is taken on, what is under way may end, what takes
 * longer than the limit is told so.
 */
import type { AddressInfo } from "node:net";
import { createApp } from "./app.ts";
import type { ServerContext } from "./context.ts";
import { startEngine, type EngineClient, type EngineObserver } from "./engine-client.ts";
import { Admission, defaultLimits, type Limits } from "./limits.ts";
import type { ServerLog } from "./log.ts";
import { ServerMetrics } from "./metrics.ts";
import type { EngineSettings } from "./protocol.ts";
import { MoeError } from "../util/errors.ts";

export interface ServeOptions extends Omit<EngineSettings, "maxBatch"> {
  readonly modelName: string;
  readonly host: string;
  /** 0: any free port. */
  readonly port: number;
  readonly apiKey: string | null;
  readonly version: string;
  readonly log: ServerLog;
  readonly limits: Partial<Limits>;
  /** The engine is gone: the process should end with this code once what was asked has been answered. */
  readonly onDeath?: (message: string, exitCode: number) => void;
}

export interface RunningServer {
  readonly url: string;
  readonly engine: EngineClient;
  /** Drains and ends. Safe to call more than once. */
  close(): Promise<void>;
}

/** Loads the model and listens. Throws what loading throws, and `resource` where the port cannot be had. */
export async function startServer(options: ServeOptions): Promise<RunningServer> {
  const limits: Limits = { ...defaultLimits, ...options.limits };
  const observer: EngineObserver = {
    onTrouble: (message) => options.log.write({ level: "error", message }),
    onDeath: (message, exitCode) => {
      options.log.write({ level: "error", message: `the engine is gone: ${message}` });
      options.onDeath?.(message, exitCode);
    },
  };
  const { modelPath, dtype, cacheDtype, activations = "keep", maxContext, cacheBytes, speculate, draftModel = null, tp = null } = options;
  const engine = await startEngine(
    { modelPath, dtype, cacheDtype, activations, maxContext, cacheBytes, speculate, draftModel, tp, maxBatch: limits.maxBatch },
    observer,
  );
  try {
    return await listen(engine, limits, options);
  } catch (error) {
    await engine.shutdown();
    throw error;
  }
}

/** Serves an engine that runs already. */
export async function listen(
  engine: EngineClient,
  limits: Limits,
  options: Pick<ServeOptions, "modelName" | "host" | "port" | "apiKey" | "version" | "log">,
): Promise<RunningServer> {
  const { host, port, apiKey, version } = options;
  const context: ServerContext = {
    engine,
    modelName: options.modelName,
    created: Math.floor(Date.now() / 1000),
    limits,
    admission: new Admission(limits),
    metrics: new ServerMetrics(engine),
    log: options.log,
    randomSeed: () => Math.floor(Math.random() * 2 ** 32),
    state: { draining: false, requests: 0, aborts: new Set() },
  };
  const app = createApp(context, { apiKey, version });
  try {
    await app.listen({ host, port });
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new MoeError("resource", `serve: expected to listen on ${host} port ${port}, but ${reason}`, { cause: error });
  }
  const address = app.server.address() as AddressInfo;
  const name = address.family === "IPv6" ? `[${address.address}]` : address.address;
  let closing: Promise<void> | null = null;
  const close = async (): Promise<void> => {
    await drain(context);
    await app.close();
    await engine.shutdown();
  };
  return { url: `http://${name}:${address.port}`, engine, close: () => (closing ??= close()) };
}

/** Waits until nothing is under way; after the limit what is left is ended with 503. */
async function drain({ state, limits }: ServerContext): Promise<void> {
  state.draining = true;
  const deadline = performance.now() + limits.drainMs;
  const pause = (): Promise<void> => new Promise((done) => setTimeout(done, 20));
  while (state.requests > 0 && performance.now() < deadline) await pause();
  for (const abort of state.aborts) abort("the server is shutting down");
  const last = performance.now() + 1000;
  while (state.requests > 0 && performance.now() < last) await pause();
}

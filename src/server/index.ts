/** The OpenAI-compatible server. */
export type { EngineClient } from "./engine-client.ts";
export { defaultLimits, type Limits } from "./limits.ts";
export { makeLog, type LogEntry, type ServerLog } from "./log.ts";
export { planServing } from "./engine-open.ts";
export { serveBehindFirst } from "./serving-rank.ts";
export type { EngineSettings, TensorParallelSettings } from "./protocol.ts";
export { openApiDocument } from "./openapi.ts";
export { listen, startServer, type RunningServer, type ServeOptions } from "./server.ts";

/** What every route reads. */
import type { EngineClient } from "./engine-client.ts";
import type { Admission, Limits } from "./limits.ts";
import type { ServerLog } from "./log.ts";
import type { ServerMetrics } from "./metrics.ts";

export interface ServerContext {
  readonly engine: EngineClient;
  /** Name of the model, as requests say it. */
  readonly modelName: string;
  readonly created: number;
  readonly limits: Limits;
  readonly admission: Admission;
  readonly metrics: ServerMetrics;
  readonly log: ServerLog;
  /** Seeds of requests that bring none. */
  readonly randomSeed: () => number;
  readonly state: ServerState;
}

export interface ServerState {
  /** Set when the server was asked to end: nothing new is taken on. */
  draining: boolean;
  /** HTTP requests under way. */
  requests: number;
  /** Ends what is under way, with this reason. */
  readonly aborts: Set<(reason: string) => void>;
}

/** The serving engine. */
export type { Drafter, DraftRequest } from "./drafter.ts";
export { ServingEngine, type ServingOptions, type ServingStats } from "./engine.ts";
export type {
  GenerationEvent,
  GenerationListener,
  GenerationRequest,
  RequestUsage,
  ServeFinishReason,
  TokenConstraint,
  TokenLogprobs,
} from "./request.ts";

/** The serving engine. */
export { ChatSession, type ChatReply, type ChatSessionOptions } from "./chat.ts";
export { JsonConstraints } from "./constrain/token-mask.ts";
export { ModelDrafter, NgramDrafter, type Drafter, type DraftRequest, type NgramOptions } from "./drafter.ts";
export { ServingEngine } from "./engine.ts";
export type { ServingOptions, ServingStats } from "./options.ts";
export type {
  GenerationEvent,
  GenerationListener,
  GenerationRequest,
  RequestUsage,
  ServeFinishReason,
  TokenConstraint,
  TokenLogprobs,
} from "./request.ts";

/** Layers, written once over the ops: linear, norm, rotary embedding, attention, feed-forward, mixture of experts. */
export {
  Attention,
  type AttentionInput,
  type AttentionModules,
  type AttentionShard,
  type AttentionSizes,
  type LayerCache,
} from "./attention.ts";
export { Block, type BlockModules, type BlockOutput } from "./block.ts";
export { FeedForward } from "./feed-forward.ts";
export { GatheredNorm } from "./gathered-norm.ts";
export { Linear } from "./linear.ts";
export { MoeBlock, type MoeBlockOptions, type MoeOutput, type Routing } from "./moe/block.ts";
export { compareRouting, selectionScores, type ChosenExperts, type RoutingComparison, type RoutingFlip } from "./moe/compare.ts";
export {
  droppedAssignments,
  droppedPerGroup,
  expertCapacity,
  validPerGroup,
  type CapacitySettings,
  type DropSettings,
  type JitterSettings,
  type RoutingContext,
} from "./moe/context.ts";
export type { ExpertBlock } from "./moe/exchange.ts";
export { Experts } from "./moe/experts.ts";
export { Router, type RouterModules, type RouterSettings } from "./moe/router.ts";
export type { ExpertShard } from "./moe/sharded.ts";
export { SharedExpert } from "./moe/shared.ts";
export { RmsNorm } from "./norm.ts";
export { RotaryEmbedding, rotaryFrequencies, type RotaryFrequencies, type RotaryOptions, type RotaryScaling } from "./rope.ts";

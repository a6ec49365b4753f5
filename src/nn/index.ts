/** Layers, written once over the ops: linear, norm, rotary embedding, attention, feed-forward, mixture of experts. */
export { Attention, type AttentionInput, type AttentionModules, type AttentionSizes, type LayerCache } from "./attention.ts";
export { Block, type BlockModules } from "./block.ts";
export { FeedForward } from "./feed-forward.ts";
export { Linear } from "./linear.ts";
export { droppedAssignments, expertCapacity, MoeBlock, type CapacitySettings, type Routing } from "./moe/block.ts";
export { Experts } from "./moe/experts.ts";
export { Router, type RouterSettings } from "./moe/router.ts";
export { RmsNorm } from "./norm.ts";
export { RotaryEmbedding, rotaryFrequencies, type RotaryFrequencies, type RotaryOptions, type RotaryScaling } from "./rope.ts";

/** Training programs by what they leave to the cost model. */
import type { Software } from "./types.ts";

export const softwarePresets = {
  /** Megatron-Core's kind today: bf16 with f32 main gradients, fused attention, no dropout, dropless experts. */
  megatron: {
    computeType: "bf16",
    headType: "bf16",
    attention: "flash",
    dropout: false,
    logits: "kept",
    gradientBytes: 4,
    exchangeBytes: 4,
    capacityFactor: null,
  },
  /**
   * Megatron-DeepSpeed before fused attention: f16 with gradients in f16, scores in memory, dropout. Its logits' products take as long as
   * products in TF32 would (measured on one node: docs/planner-accuracy.md).
   */
  "megatron-deepspeed": {
    computeType: "f16",
    headType: "f32",
    attention: "materialized",
    dropout: true,
    logits: "kept",
    gradientBytes: 2,
    exchangeBytes: 2,
    capacityFactor: null,
  },
  /** Our own trainer in f32: `src/tensor/ops/cross-entropy.ts` (loss), `native/attention.c` (blocks), `src/nn/moe/exchange.ts` (rows), `src/optim/adamw.ts` (norm and update read gradients once each). */
  "moe.ts": {
    computeType: "f32",
    headType: "f32",
    attention: "flash",
    dropout: false,
    logits: "chunked",
    gradientBytes: 4,
    exchangeBytes: 4,
    keepsGathered: true,
    fusedAccumulation: true,
    gradientPasses: 2,
    attentionBlock: 64,
    attentionBackward: 1,
    sortsArrived: true,
    hostSecondsPerRow: 3e-7,
    freesInBackward: true,
    capacityFactor: null,
  },
} as const satisfies Readonly<Record<string, Software>>;

export type SoftwareName = keyof typeof softwarePresets;

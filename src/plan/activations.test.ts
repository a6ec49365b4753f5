import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { activationBytes } from "../config/model-counts.ts";
import { modelPresets } from "../config/model-presets.ts";
import { embeddingActivationBytes, headActivationBytes, layerActivationBytes } from "./activations.ts";
import { gptShape, shapeOf } from "./shape.ts";
import { rankSizes } from "./sizes.ts";
import type { PlanLayout, Software, Workload } from "./types.ts";

const megatron: Software = {
  computeType: "f16",
  headType: "f16",
  attention: "materialized",
  dropout: true,
  logits: "kept",
  gradientBytes: 2,
  exchangeBytes: 2,
  capacityFactor: null,
};
const single: PlanLayout = { pp: 1, dp: 1, tp: 1, ep: 1, etp: 1, microBatch: 1, interleave: 1, sequenceParallel: false, zero: 0 };

describe("activation bytes", () => {
  test("of GPT-2's kind are those of arXiv 2205.05198, equations 1 to 4 and table 2", () => {
    fc.assert(
      fc.property(
        fc.constantFrom(1, 2, 4, 8),
        fc.integer({ min: 1, max: 8 }),
        fc.integer({ min: 1, max: 6 }),
        fc.constantFrom(512, 1024, 2048),
        fc.boolean(),
        (t, b, heads, S, sequenceParallel) => {
          const [a, D] = [heads * 8, 64];
          const H = a * D;
          const model = gptShape({ numLayers: 4, hiddenSize: H, numHeads: a, vocabSize: 51_200 });
          const workload: Workload = { model, sequenceLength: S, batchSequences: b, software: megatron };
          const layout = { ...single, tp: t, microBatch: b, sequenceParallel: sequenceParallel && t > 1 };
          const sizes = rankSizes(workload, layout, 2);
          const bytes = (recompute: "none" | "selective" | "full"): number => layerActivationBytes(workload, 0, sizes, layout, recompute);
          const sbh = S * b * H;
          const whole = layout.sequenceParallel ? t : 1;
          expect(bytes("none")).toBeCloseTo(sbh * (10 / whole + 24 / t + (5 * a * S) / (H * t)), 3);
          expect(bytes("selective")).toBeCloseTo(sbh * (10 / whole + 24 / t), 3);
          expect(bytes("full")).toBeCloseTo((2 * sbh) / whole, 3);
        },
      ),
    );
  });

  test.each(Object.entries(modelPresets))("of %s are what its tape keeps", (_, config) => {
    for (const computeType of ["f32", "bf16"] as const) {
      const elementBytes = computeType === "f32" ? 4 : 2;
      const software: Software = { ...megatron, computeType, attention: "flash", dropout: false, logits: "chunked" };
      const workload: Workload = { model: shapeOf(config), sequenceLength: 128, batchSequences: 2, software };
      const layout = { ...single, microBatch: 2 };
      const sizes = rankSizes(workload, layout, elementBytes);
      for (const recomputed of [0, 1, config.numLayers]) {
        let bytes = embeddingActivationBytes(workload, sizes) + headActivationBytes(workload, sizes);
        for (let layer = 0; layer < config.numLayers; layer++)
          bytes += layerActivationBytes(workload, layer, sizes, layout, layer < recomputed ? "full" : "none");
        expect(bytes).toBe(activationBytes(config, { numTokens: 256, elementBytes, recomputeLayers: recomputed }));
      }
    }
  });
});

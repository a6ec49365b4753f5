/**
 * Decoders as the cost model sees them. Our own configurations lose nothing that costs time or memory; GPT-2's kind (GELU, biases,
 * LayerNorm, learned positions), which we do not build, is described by hand: published measurements are of such models.
 */
import type { ModelConfig } from "../config/model.ts";
import { hasExperts, type MoeConfig } from "../config/model.ts";
import type { ModelShape } from "./types.ts";

/** The shape of a model of ours. */
export function shapeOf(config: ModelConfig): ModelShape {
  const { numLayers, hiddenSize, ffnSize, numHeads, numKvHeads, headDim, vocabSize, tiedEmbeddings, moe, slidingWindow } = config;
  const sizes = { numLayers, hiddenSize, ffnSize, numHeads, numKvHeads, headDim, vocabSize, tiedEmbeddings, moe, slidingWindow };
  return { ...sizes, ffnMatrices: 3, style: "llama" };
}

/** GPT-2's kind: FFN of 4 times the hidden size, as many KV heads as heads, tied embeddings. `vocabSize` as it is padded. */
export function gptShape(size: {
  readonly numLayers: number;
  readonly hiddenSize: number;
  readonly numHeads: number;
  readonly vocabSize: number;
}): ModelShape {
  return {
    ...size,
    ffnSize: 4 * size.hiddenSize,
    numKvHeads: size.numHeads,
    headDim: size.hiddenSize / size.numHeads,
    tiedEmbeddings: true,
    moe: null,
    slidingWindow: null,
    ffnMatrices: 2,
    style: "gpt2",
  };
}

/** The experts of layer `layer`, or null where it has one dense FFN. */
export function expertsOf(model: ModelShape, layer: number): MoeConfig | null {
  // `hasExperts` reads nothing else of a configuration.
  return hasExperts(model as Pick<ModelConfig, "moe"> as ModelConfig, layer) ? model.moe : null;
}

/**
 * Models of a few hundred thousand parameters from scratch on any text, in a minute or two on a laptop: to see the loop, to
 * try an idea, to be read. They learn their own tokenizer from the text.
 */
import { toHuggingFaceConfig } from "../config/model-huggingface.ts";
import { modelPresets } from "../config/model-presets.ts";
import { plainRouting, type ModelConfig } from "../config/model.ts";
import type { RunConfigInput } from "../config/run.ts";
import { dataOf, type RecipeInputs } from "./recipe.ts";

const tiny: ModelConfig = {
  ...modelPresets.quickstart,
  vocabSize: 512,
  hiddenSize: 96,
  ffnSize: 256,
  numLayers: 3,
  numHeads: 3,
  numKvHeads: 3,
  maxPositions: 256,
};

function fromScratch(name: string, inputs: RecipeInputs, model: ModelConfig): RunConfigInput {
  return {
    model: { config: toHuggingFaceConfig(model, "float32") },
    newTokenizer: { vocabSize: model.vocabSize },
    data: dataOf(name, inputs, 128),
    batchSequences: 16,
    numSteps: 300,
    precision: "f32",
    optimizer: { learningRate: 3e-3 },
    schedule: { name: "cosine", warmupSteps: 20, finalFraction: 0.1 },
    evaluation: { intervalSteps: 100, maxSequences: 64 },
    checkpoint: { intervalSteps: 100, keep: 2 },
  };
}

/** A dense Llama of 0.4 million parameters. */
export function tinyDense(inputs: RecipeInputs): RunConfigInput {
  return fromScratch("tiny-dense", inputs, tiny);
}

/** The same with 8 experts of which each token uses 2, with gating logit normalization (Skywork-MoE, arXiv 2406.06563). */
export function tinyMoe(inputs: RecipeInputs): RunConfigInput {
  return fromScratch("tiny-moe", inputs, {
    ...tiny,
    architecture: "skywork_moe",
    tiedEmbeddings: false,
    ffnSize: 128,
    moe: {
      ...plainRouting,
      numExperts: 8,
      topK: 2,
      expertFfnSize: 128,
      gateNormalization: { lambda: 1, eps: 1e-6, unbiased: true },
    },
  });
}

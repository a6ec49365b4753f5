/**
 * The model of the pipeline lab: eight equal layers, and a vocabulary so large that the loss takes about as long as two of them. What it learns does not
 * matter, so its text is random ids.
 */
import { fromHuggingFaceConfig } from "../../../src/config/model-huggingface.ts";
import type { LayoutInput } from "../../../src/config/layout.ts";
import type { ModelConfig } from "../../../src/config/model.ts";
import { parseRunConfig, type RunConfig } from "../../../src/config/run.ts";
import { TokenFileWriter } from "../../../src/data/index.ts";
import { Random } from "../../../src/util/random.ts";

export const numLayers = 8;
export const sequenceLength = 256;
const vocabSize = 10_240;

export function labModel(): ModelConfig {
  return fromHuggingFaceConfig(
    {
      model_type: "llama",
      vocab_size: vocabSize,
      hidden_size: 256,
      intermediate_size: 1024,
      num_hidden_layers: numLayers,
      num_attention_heads: 4,
      num_key_value_heads: 4,
      max_position_embeddings: sequenceLength,
      rms_norm_eps: 1e-5,
      rope_theta: 10000,
      tie_word_embeddings: false,
    },
    "the pipeline lab's model",
  );
}

/** A run of it: one sequence a micro-batch. */
export function labRun(numMicroBatches: number, layout: LayoutInput): RunConfig {
  return parseRunConfig({
    model: { config: {} },
    data: { train: [{ path: "random ids" }], sequenceLength },
    batchSequences: numMicroBatches,
    microBatchSequences: 1,
    numSteps: 100_000,
    optimizer: { learningRate: 1e-4 },
    layout,
  });
}

/** Writes the random ids. */
export function writeTokens(path: string): void {
  const random = new Random(1);
  using writer = new TokenFileWriter(path, { vocabSize });
  writer.append(Int32Array.from({ length: 200 * sequenceLength + 1 }, () => random.integer(vocabSize)));
  writer.finish("random");
}

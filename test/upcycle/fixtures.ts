/** Small random dense models for the tests of upcycling: one of each row of the table of pairs. */
import { modelPresets } from "../../src/config/model-presets.ts";
import type { ModelConfig } from "../../src/config/model.ts";
import { Decoder, loadModel, openModelSource, saveModel, type ModelDType } from "../../src/model/index.ts";
import type { Engine } from "../../src/tensor/index.ts";
import { Random } from "../../src/util/random.ts";
import { upcycleGap } from "../../src/upcycle/index.ts";
import type { PairSource } from "../../src/upcycle/pairs.ts";

export const smallConfig: ModelConfig = {
  ...modelPresets.quickstart,
  vocabSize: 120,
  hiddenSize: 32,
  ffnSize: 48,
  numLayers: 3,
  numHeads: 4,
  numKvHeads: 2,
  headDim: 8,
  maxPositions: 128,
  // Large weights: logits and feed-forward outputs that a mistake would show in.
  initStd: 0.3,
  tiedEmbeddings: false,
};

/** Tokens that the tests compare models on: longer than the windows. */
export const probeIds = Array.from({ length: 60 }, (_, i) => (i * i * 7 + 3 * i) % smallConfig.vocabSize);
export const windowSize = 8;

/** The configuration of a row of the table. */
export function configOfSource(source: PairSource): ModelConfig {
  const [architecture = "", withWindow] = source.split(" with ");
  const family: Readonly<Record<string, Partial<ModelConfig>>> = {
    llama: { architecture: "llama" },
    skywork: { architecture: "skywork" },
    mistral: { architecture: "mistral" },
    qwen2: { architecture: "qwen2", qkvBias: true },
    qwen3: { architecture: "qwen3", qkNorm: "head" },
  };
  return {
    ...smallConfig,
    ...family[architecture],
    slidingWindow: withWindow === undefined ? null : { size: windowSize, firstLayer: 0 },
  };
}

/** Writes a random model into `folder`: biases and norms are random too, so that leaving one out shows. */
export function writeDense(engine: Engine, config: ModelConfig, dtype: ModelDType, folder: string, seed = 2): void {
  using model = Decoder.initialize(engine, config, { dtype, seed });
  const random = new Random(9 + seed);
  for (const [name, tensor] of model.parameters) {
    const values = name.endsWith("orm.weight")
      ? Float32Array.from({ length: tensor.size }, () => 0.5 + random.uniform())
      : name.endsWith(".bias")
        ? random.fillNormal(new Float32Array(tensor.size), 0.5)
        : null;
    if (values !== null) engine.backend.write(tensor.ptr, values);
  }
  saveModel(model, folder);
}

/** The largest gap that the decoder itself shows between two models in files, computing in `dtype`. */
export function decoderGap(
  engine: Engine,
  dense: string,
  moe: string,
  dtype: ModelDType = "f32",
  ids: readonly number[] = probeIds,
): number {
  using before = loadModel(engine, dense, { dtype });
  using after = loadModel(engine, moe, { dtype });
  return upcycleGap(before, after, ids).maxGap;
}
/** A tensor of a model's file by its name there. */
export function tensorOf(path: string, name: string): Float32Array {
  using source = openModelSource(path);
  const shape = source.tensors.get(name)?.shape ?? [];
  const into = new Float32Array(shape.reduce((a, b) => a * b, 1));
  source.readFloat32(name, into, 0);
  return into;
}

/** What is in a model's files, from headers alone: no weights are read. */
import { openGgufWeights } from "../checkpoint/gguf-weights.ts";
import { resolveModelPath } from "../checkpoint/model-path.ts";
import { openModelWeights } from "../checkpoint/model-weights.ts";
import { numActiveParams, numParams } from "../config/model-counts.ts";
import { fromHuggingFaceConfig } from "../config/model-huggingface.ts";
import type { ModelConfig } from "../config/model.ts";
import { readConfigJson } from "./source.ts";

export interface TensorInfo {
  readonly name: string;
  /** As the file calls it: `BF16`, `Q4_K`, ... */
  readonly dtype: string;
  readonly shape: readonly number[];
}

export interface ModelReport {
  readonly path: string;
  readonly architecture: string;
  /** From the configuration; a tied embedding counts once. */
  readonly numParams: number;
  readonly numActiveParams: number;
  /** Bytes of all tensors in the files. */
  readonly numBytes: number;
  readonly config: ModelConfig;
  readonly tensors: readonly TensorInfo[];
}

/** Describes a folder with safetensors or a GGUF file. Throws `file`, `unsupported`. */
export function inspectModel(path: string): ModelReport {
  const found = resolveModelPath(path);
  const { config, tensors, numBytes } = found.format === "gguf" ? readGguf(found.file) : readFolder(found.folder);
  return {
    path,
    architecture: config.architecture,
    numParams: numParams(config),
    numActiveParams: numActiveParams(config),
    numBytes,
    config,
    tensors,
  };
}

type Contents = Pick<ModelReport, "config" | "tensors" | "numBytes">;

function readFolder(path: string): Contents {
  const { json, path: configPath } = readConfigJson(path);
  using weights = openModelWeights(path);
  const tensors = [...weights.tensors].map(([name, { dtype, shape }]) => ({ name, dtype, shape }));
  return { config: fromHuggingFaceConfig(json, configPath), tensors, numBytes: weights.numBytes };
}

function readGguf(path: string): Contents {
  using weights = openGgufWeights(path);
  const tensors = [...weights.file.tensors].map(([name, { type, shape }]) => ({ name, dtype: type, shape }));
  const numBytes = [...weights.file.tensors.values()].reduce((n, { byteLength }) => n + byteLength, 0);
  return { config: fromHuggingFaceConfig(weights.config, path), tensors, numBytes };
}

/** A dense model to read from, whatever its file format: its configuration, and its tensors under Hugging Face names as f32. */
import { statSync } from "node:fs";
import { openGgufWeights } from "../checkpoint/gguf-weights.ts";
import { openModelWeights } from "../checkpoint/model-weights.ts";
import { fromHuggingFaceConfig } from "../config/model-huggingface.ts";
import type { ModelConfig } from "../config/model.ts";
import { huggingFacePieces, parameterSpecs, readConfigJson } from "../model/index.ts";
import { fileError } from "../util/errors.ts";

export interface DenseSource extends Disposable {
  readonly config: ModelConfig;
  /** f32 where the matrices are stored so, else bf16. */
  readonly dtype: "f32" | "bf16";
  /** Elements from..from+into.length-1 of a tensor, converted. */
  readFloat32(name: string, into: Float32Array, from: number): void;
}

/** Opens a folder with safetensors or a GGUF file and checks that every tensor of its configuration is there. Throws `file`. */
export function openDense(path: string): DenseSource {
  return statSync(path, { throwIfNoEntry: false })?.isFile() === true ? openGguf(path) : openFolder(path);
}

function openFolder(path: string): DenseSource {
  const { json, path: configPath } = readConfigJson(path);
  const config = fromHuggingFaceConfig(json, configPath);
  const weights = openModelWeights(path);
  const stored = weights.tensors.get("model.embed_tokens.weight")?.dtype;
  return checked(path, config, weights.tensors, {
    config,
    dtype: stored === "F32" || stored === "F64" ? "f32" : "bf16",
    readFloat32: (name, into, from) => {
      weights.readFloat32(name, into, from);
    },
    [Symbol.dispose]: () => {
      weights.close();
    },
  });
}

function openGguf(path: string): DenseSource {
  const weights = openGgufWeights(path);
  const config = fromHuggingFaceConfig(weights.config, path);
  return checked(path, config, weights.tensors, {
    config,
    dtype: "bf16",
    readFloat32: (name, into, from) => {
      weights.readFloat32(name, into, from);
    },
    [Symbol.dispose]: () => {
      weights.close();
    },
  });
}

function checked(path: string, config: ModelConfig, tensors: ReadonlyMap<string, { readonly shape: readonly number[] }>, source: DenseSource): DenseSource {
  for (const spec of parameterSpecs(config, "f32")) {
    for (const { name, shape } of huggingFacePieces(spec, "per-expert")) {
      const got = tensors.get(name)?.shape;
      if (got?.join() === shape.join()) continue;
      source[Symbol.dispose]();
      throw fileError(path, `tensor ${name} [${shape.join(", ")}]`, got === undefined ? "none" : `[${got.join(", ")}]`);
    }
  }
  return source;
}

/**
 * A model into a folder in Hugging Face form: `config.json`, `generation_config.json` and safetensors (sharded above 5 GB).
 * Parameters are written in the type they have in memory, so that loading gives the same bits back: matrices in the model's
 * dtype, norms, biases and router gates in f32. Experts go out one tensor each, under the names of the family's released files.
 *
 * The tokenizer's files are not this layer's: whoever has them copies them beside.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { dtypeBytes } from "../backend/kernels.ts";
import { createModelWeights, type TensorDeclaration } from "../checkpoint/safetensors-writer.ts";
import { toHuggingFaceConfig } from "../config/model-huggingface.ts";
import type { ModelConfig } from "../config/model.ts";
import type { Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { systemError, writeFileAtomically } from "../util/files.ts";
import type { Decoder } from "./decoder.ts";
import { huggingFacePieces, type Piece } from "./names.ts";
import { parameterSpecs } from "./parameters.ts";

export interface SaveOptions {
  /** Largest sum of tensor bytes in one file. Default 5 GB. */
  readonly maxShardBytes?: number;
}

const chunkBytes = 4 << 20;

/**
 * Writes the model. The folder is made where it is not there; weights in it are replaced. Throws `resource` (disk) and `file`
 * (path), and `configuration` where the family's `config.json` cannot express the model; weights appear whole or not at all.
 */
export function saveModel(model: Decoder, directory: string, { maxShardBytes }: SaveOptions = {}): void {
  const fp8 = [...model.parameters].find(([, { dtype }]) => dtype === "fp8");
  if (fp8 !== undefined)
    throw new MoeError("unsupported", `saving a model of FP8 weights (${fp8[0]}): its folder is what there is to copy`);
  const configJson = toHuggingFaceConfig(model.config, model.dtype === "f32" ? "float32" : "bfloat16");
  const entries = parameterSpecs(model.config, model.dtype).flatMap((spec) => {
    const tensor = model.parameters.get(spec.name);
    return tensor === undefined ? [] : huggingFacePieces(spec, "per-expert", model.config).map((piece) => ({ tensor, piece }));
  });
  try {
    mkdirSync(directory, { recursive: true });
  } catch (error) {
    throw systemError(directory, "a folder to write the model to", error);
  }
  const declarations = entries.map(({ tensor, piece }): TensorDeclaration => ({
    name: piece.name,
    dtype: tensor.dtype === "f32" ? "F32" : "BF16",
    shape: piece.shape,
  }));
  using writer = createModelWeights(directory, declarations, maxShardBytes === undefined ? {} : { maxShardBytes });
  for (const { tensor, piece } of entries) writePiece(tensor, piece, (bytes) => writer.write(piece.name, bytes));
  writeJson(join(directory, "config.json"), configJson);
  writeJson(join(directory, "generation_config.json"), generationConfig(model.config));
  writer.commit();
}

function writePiece(tensor: Tensor, piece: Piece, write: (bytes: Uint8Array) => void): void {
  const bytes = dtypeBytes[tensor.dtype];
  const end = (piece.offset + piece.numElements) * bytes;
  for (let at = piece.offset * bytes; at < end; at += chunkBytes) {
    const chunk = new Uint8Array(Math.min(chunkBytes, end - at));
    tensor.engine.backend.read(chunk, tensor.ptr + at);
    write(chunk);
  }
}

/** `generation_config.json` of a model: its special tokens. */
export function generationConfig({ bosTokenId, eosTokenIds, padTokenId }: ModelConfig): Record<string, unknown> {
  const eos = eosTokenIds.length === 1 ? eosTokenIds[0] : eosTokenIds;
  return {
    ...(bosTokenId === null ? {} : { bos_token_id: bosTokenId }),
    ...(eosTokenIds.length === 0 ? {} : { eos_token_id: eos }),
    ...(padTokenId === null ? {} : { pad_token_id: padTokenId }),
  };
}

function writeJson(path: string, value: unknown): void {
  writeFileAtomically(path, `${JSON.stringify(value, null, 2)}\n`);
}

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
import type { Shape, Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { systemError, writeFileAtomically } from "../util/files.ts";
import type { Decoder } from "./decoder.ts";
import { huggingFacePieces, type Piece } from "./names.ts";
import { parameterSpecs, type ModelDType } from "./parameters.ts";

export interface SaveOptions {
  /** Largest sum of tensor bytes in one file. Default 5 GB. */
  readonly maxShardBytes?: number;
}

/** A tensor of a whole model, wherever its bytes are: in this rank's memory, or spread over ranks. */
export interface WholeTensor {
  readonly dtype: "f32" | "bf16";
  readonly shape: Shape;
  /** Fills `into` with the bytes from `fromByte` on. Called in ascending order, a tensor at a time. */
  read(into: Uint8Array, fromByte: number): void;
}
export interface WholeModel {
  readonly config: ModelConfig;
  readonly dtype: ModelDType;
  /** All of `parameterSpecs(config, dtype)`, by our names. */
  readonly parameters: ReadonlyMap<string, WholeTensor>;
}

const chunkBytes = 4 << 20;

/**
 * Writes the model. The folder is made where it is not there; weights in it are replaced. Throws `resource` (disk) and `file`
 * (path), and `configuration` where the family's `config.json` cannot express the model; weights appear whole or not at all.
 */
export function saveModel({ config, dtype, parameters }: Decoder, directory: string, options: SaveOptions = {}): void {
  const fp8 = [...parameters].find((entry) => entry[1].dtype === "fp8");
  if (fp8 !== undefined)
    throw new MoeError("unsupported", `saving a model of FP8 weights (${fp8[0]}): its folder is what there is to copy`);
  saveWholeModel(
    { config, dtype, parameters: new Map(Array.from(parameters, ([name, tensor]) => [name, wholeTensor(tensor)])) },
    directory,
    options,
  );
}

/** A tensor of this rank that is whole. Throws `internal` for one that is neither f32 nor bf16. */
export function wholeTensor(tensor: Tensor): WholeTensor {
  const { dtype, shape } = tensor;
  if (dtype !== "f32" && dtype !== "bf16") throw new MoeError("internal", `writing a tensor of ${dtype}`);
  return { dtype, shape, read: (into, fromByte) => tensor.engine.backend.read(into, tensor.ptr + fromByte) };
}

/** `saveModel` for a model whose parameters may be anywhere. Throws `internal` where one is missing. */
export function saveWholeModel({ config, dtype, parameters }: WholeModel, directory: string, { maxShardBytes }: SaveOptions = {}): void {
  const configJson = toHuggingFaceConfig(config, dtype === "f32" ? "float32" : "bfloat16");
  const entries = parameterSpecs(config, dtype).flatMap((spec) => {
    const tensor = parameters.get(spec.name);
    if (tensor === undefined || tensor.shape.join() !== spec.shape.join())
      throw new MoeError("internal", `saving a model: expected ${spec.name} [${spec.shape.join(", ")}], got [${tensor?.shape.join(", ")}]`);
    return huggingFacePieces(spec, "per-expert", config).map((piece) => ({ tensor, piece }));
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
  writeJson(join(directory, "generation_config.json"), generationConfig(config));
  writer.commit();
}

function writePiece(tensor: WholeTensor, piece: Piece, write: (bytes: Uint8Array) => void): void {
  const bytes = dtypeBytes[tensor.dtype];
  const end = (piece.offset + piece.numElements) * bytes;
  for (let at = piece.offset * bytes; at < end; at += chunkBytes) {
    const chunk = new Uint8Array(Math.min(chunkBytes, end - at));
    tensor.read(chunk, at);
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

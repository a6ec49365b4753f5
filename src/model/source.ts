/**
 * A model's files, open: what loading, upcycling and exporting read from, whatever the format. Configuration, tensors under
 * Hugging Face names with their values in f32, and where possible the bytes themselves. Opening checks that the tensors are
 * exactly those of the configuration: a missing, unexpected or misshapen one is an error that names the file and the tensor.
 *
 * Not here: memory and engines (load.ts), what is in files that do not make a model (inspect.ts).
 */
import type { ActivationScaling } from "../backend/kernels.ts";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { GgufWeights } from "../checkpoint/gguf-weights.ts";
import { openGgufWeights } from "../checkpoint/gguf-weights.ts";
import { resolveModelPath } from "../checkpoint/model-path.ts";
import type { ModelWeights } from "../checkpoint/model-weights.ts";
import { openModelWeights } from "../checkpoint/model-weights.ts";
import { fromHuggingFaceConfig } from "../config/model-huggingface.ts";
import type { ModelConfig } from "../config/model.ts";
import { activationScheme, checkQuantizationConfig } from "../quant/index.ts";
import { fileError } from "../util/errors.ts";
import { systemError } from "../util/files.ts";
import { didYouMean } from "../util/nearest.ts";
import { expertLayoutOf, huggingFacePieces, isIgnorableName, type ExpertLayout, type Piece } from "./names.ts";
import { parameterSpecs, type ModelDType } from "./parameters.ts";
import { StoredFp8, type StoredRun, type StoredScales } from "./stored-fp8.ts";

/** Bytes of a tensor that are stored exactly as a parameter of type `dtype` is. */
export interface RawTensor {
  /** `fp8`: E4M3 codes, of a tensor with scales (`ModelSource.scales`). */
  readonly dtype: ModelDType | "fp8";
  /** File that holds them, and where. */
  readonly path: string;
  readonly offset: number;
  read(into: Uint8Array, fromByte: number): void;
}

/** An open model. Dispose it when done. */
export interface ModelSource extends Disposable {
  /** For messages. */
  readonly path: string;
  readonly config: ModelConfig;
  /** Whether experts are stored one by one or stacked. */
  readonly layout: ExpertLayout;
  /** What to compute in unless another type is asked for: f32 where matrices are stored so, bf16 where they have 16 bits or fewer. */
  readonly dtype: ModelDType;
  /** Nearest plain type to what matrices are stored in; F16 for quantized ones, whose scales have that type. */
  readonly storedAs: "F32" | "F16" | "BF16";
  readonly tensors: ReadonlyMap<string, { readonly shape: readonly number[] }>;
  /** How the files ask activations before FP8 matrices to be rounded; null: not at all. Throws `unsupported` where that is not known here. */
  activations(): ActivationScaling | null;
  /** Scales of a tensor that is stored as FP8 codes, or of a run of its matrices; null for other tensors, and for a run that cuts a block. */
  scales(name: string, run?: StoredRun): StoredScales | null;
  /** Fills `into` with elements from element `from` on, converted to f32: of an FP8 matrix the weights, scales applied. */
  readFloat32(name: string, into: Float32Array, from: number): void;
  /** Null where the tensor is stored as something else than f32, bf16 or FP8 (E4M3) in our order. */
  raw(name: string): RawTensor | null;
}

/** `config.json` of a model folder, parsed. Throws `file` where it is missing or not JSON. */
export function readConfigJson(directory: string): { json: unknown; path: string } {
  const path = join(directory, "config.json");
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw systemError(path, "a model's config.json", error);
  }
  try {
    return { json: JSON.parse(text) as unknown, path };
  } catch (error) {
    throw fileError(path, "JSON", error instanceof Error ? error.message : String(error), error);
  }
}

/**
 * Opens a model: a folder with `config.json` and safetensors, a GGUF file, or a folder with nothing but one GGUF file.
 * Throws `file` (missing or broken files, tensors that do not fit the configuration), `configuration`, `unsupported`.
 *
 * ```ts
 * using source = openModelSource("SmolLM2-135M");
 * const norm = new Float32Array(source.config.hiddenSize);
 * source.readFloat32("model.norm.weight", norm, 0);
 * ```
 */
export function openModelSource(path: string): ModelSource {
  const found = resolveModelPath(path);
  if (found.format === "gguf") return ggufSource(openGgufWeights(found.file));
  const { json, path: configPath } = readConfigJson(found.folder);
  const config = fromHuggingFaceConfig(json, configPath);
  const quantization = (json as Record<string, unknown>)["quantization_config"];
  checkQuantizationConfig(quantization, configPath);
  return safetensorsSource(openModelWeights(found.folder), config, () => activationScheme(quantization, configPath));
}

/** What names the type of all matrices. */
const embedding = "model.embed_tokens.weight";

function typeOf(stored: string | undefined): Pick<ModelSource, "dtype" | "storedAs"> {
  if (stored === "F32" || stored === "F64") return { dtype: "f32", storedAs: "F32" };
  return { dtype: "bf16", storedAs: stored === "BF16" ? "BF16" : "F16" };
}

/** Takes ownership of `weights`, also when it throws. */
function safetensorsSource(weights: ModelWeights, config: ModelConfig, activations: ModelSource["activations"]): ModelSource {
  return owned(weights, () => {
    const quantized = new StoredFp8(weights, config);
    return { ...safetensorsReader(weights, config, quantized, checkTensors(quantized.withoutScales, config)), activations };
  });
}

const rawTypes: Readonly<Record<string, RawTensor["dtype"]>> = { F32: "f32", BF16: "bf16", F8_E4M3: "fp8" };

function safetensorsReader(
  weights: ModelWeights,
  config: ModelConfig,
  quantized: StoredFp8,
  layout: ExpertLayout,
): Omit<ModelSource, "activations" | typeof Symbol.dispose> {
  return {
    path: weights.path,
    config,
    layout,
    ...typeOf(weights.tensors.get(embedding)?.dtype),
    tensors: quantized.withoutScales.tensors,
    scales: (name, run) => quantized.scales(name, run),
    readFloat32: (name, into, from) => {
      if (weights.tensors.get(name)?.dtype === "F8_E4M3") quantized.readFloat32(name, into, from);
      else weights.readFloat32(name, into, from);
    },
    raw: (name) => {
      const entry = weights.entry(name);
      const file = weights.files.find((candidate) => candidate.tensors.get(name) === entry);
      const dtype = rawTypes[entry.dtype];
      if (file === undefined || dtype === undefined) return null;
      return {
        dtype,
        path: file.path,
        offset: entry.offset,
        read: (into, fromByte) => weights.read(name, into, fromByte),
      };
    },
  };
}

/**
 * GGUF is always converted: blocks are dequantized, and rows of queries and keys may be in another order. Takes ownership
 * of `weights`, also when it throws.
 */
function ggufSource(weights: GgufWeights): ModelSource {
  return owned(weights, () => {
    const config = fromHuggingFaceConfig(weights.config, weights.path);
    const layout = checkTensors(weights, config);
    return {
      path: weights.path,
      config,
      layout,
      ...typeOf(weights.file.entry(weights.entry(embedding).ggufName).type),
      tensors: weights.tensors,
      activations: () => null,
      scales: () => null,
      readFloat32: (name, into, from) => weights.readFloat32(name, into, from),
      raw: () => null,
    };
  });
}

function owned(weights: Disposable, describe: () => Omit<ModelSource, typeof Symbol.dispose>): ModelSource {
  try {
    return {
      ...describe(),
      [Symbol.dispose]: () => {
        weights[Symbol.dispose]();
      },
    };
  } catch (error) {
    weights[Symbol.dispose]();
    throw error;
  }
}

/** Every tensor of the configuration, and nothing else that counts; gives the layout of the experts. */
function checkTensors(weights: Pick<ModelSource, "path" | "tensors">, config: ModelConfig): ExpertLayout {
  const layout = expertLayoutOf(config, (name) => weights.tensors.has(name));
  const pieces = parameterSpecs(config, "f32").flatMap((spec) => huggingFacePieces(spec, layout, config));
  const expected = new Set(pieces.map(({ name }) => name));
  const unexpected = [...weights.tensors.keys()].filter((name) => !expected.has(name) && !isIgnorableName(name, config));
  for (const piece of pieces) checkTensor(weights, config, piece, unexpected);
  if (unexpected.length === 0) return layout;
  const some = unexpected.slice(0, 5).join(", ") + (unexpected.length > 5 ? `, ... (${unexpected.length} in all)` : "");
  throw fileError(weights.path, `only tensors of a ${config.architecture} model with ${config.numLayers} layers`, `also ${some}`);
}

function checkTensor(
  weights: Pick<ModelSource, "path" | "tensors">,
  config: ModelConfig,
  { name, shape }: Piece,
  unexpected: readonly string[],
): void {
  const entry = weights.tensors.get(name);
  if (entry === undefined) throw fileError(weights.path, `tensor ${name} [${shape.join(", ")}]`, `none${didYouMean(name, unexpected)}`);
  if (entry.shape.join() === shape.join()) return;
  const isVocabulary = (name === embedding || name === "lm_head.weight") && entry.shape[0] !== config.vocabSize;
  const reason = isVocabulary ? ` (the configuration has vocab_size ${config.vocabSize}, the tensor ${entry.shape[0]} rows)` : "";
  throw fileError(
    weights.path,
    `tensor ${name} of shape [${shape.join(", ")}], from the configuration`,
    `[${entry.shape.join(", ")}]${reason}`,
  );
}

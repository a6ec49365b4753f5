/**
 * A model from a folder in Hugging Face form (`config.json` and safetensors, one file or shards), or from one GGUF file.
 *
 * Where a parameter is one tensor of the file in the type and layout that the model wants, and the backend can map files, its
 * memory is the file's own and nothing is copied; everything else is read in pieces of a few megabytes and converted on the
 * way. Every tensor of the files is accounted for: a missing, unexpected or misshapen one is an error that names the file and
 * the tensor.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { MappedFile } from "../backend/backend.ts";
import { dtypeBytes } from "../backend/kernels.ts";
import { openGgufWeights } from "../checkpoint/gguf-weights.ts";
import { openModelWeights } from "../checkpoint/model-weights.ts";
import { fromHuggingFaceConfig } from "../config/model-huggingface.ts";
import type { ModelConfig } from "../config/model.ts";
import type { Engine, Tensor } from "../tensor/index.ts";
import { fileError, MoeError } from "../util/errors.ts";
import { systemError } from "../util/files.ts";
import { didYouMean } from "../util/nearest.ts";
import { Decoder } from "./decoder.ts";
import { expertLayoutOf, huggingFacePieces, isIgnorableName, type Piece } from "./names.ts";
import { asParameter, parameterSpecs, writeElements, type ModelDType, type ParameterSpec } from "./parameters.ts";
import { ggufSource, safetensorsSource, type RawTensor, type WeightSource } from "./weight-source.ts";

export interface LoadOptions {
  /** What matrices are computed in. Default: f32 where the file stores f32, else bf16. */
  readonly dtype?: ModelDType;
  /**
   * True (default): for inference. The file's memory is used where possible, and no parameter asks for a gradient, copied ones
   * included. False: every parameter is a copy that trains.
   */
  readonly mapped?: boolean;
}

/** Elements read and converted at once. */
const chunkElements = 1 << 20;

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
 * Loads a model: a folder with `config.json` and safetensors, or a `.gguf` file. The caller disposes it. Errors: `file`
 * (missing or broken files, tensors that do not fit the configuration), `configuration`, `unsupported`.
 *
 * ```ts
 * using model = loadModel(engine, "SmolLM2-135M", { dtype: "bf16" });
 * ```
 */
export function loadModel(engine: Engine, path: string, options: LoadOptions = {}): Decoder {
  if (path.endsWith(".gguf")) {
    using weights = openGgufWeights(path);
    return build(engine, ggufSource(weights), fromHuggingFaceConfig(weights.config, path), options);
  }
  const { json, path: configPath } = readConfigJson(path);
  const config = fromHuggingFaceConfig(json, configPath);
  using weights = openModelWeights(path);
  return build(engine, safetensorsSource(weights), config, options);
}
function build(engine: Engine, source: WeightSource, config: ModelConfig, options: LoadOptions): Decoder {
  const dtype = options.dtype ?? (source.isFloat32 ? "f32" : "bf16");
  return new Decoder(engine, config, dtype, loadParameters(engine, source, config, parameterSpecs(config, dtype), options));
}

/** Parameters by our names from open weights with Hugging Face names. The caller disposes them. Throws `file`. */
export function loadParameters(
  engine: Engine,
  source: WeightSource,
  config: ModelConfig,
  specs: readonly ParameterSpec[],
  { mapped = true }: LoadOptions = {},
): Map<string, Tensor> {
  const layout = expertLayoutOf(config, (name) => source.tensors.has(name));
  const pieces = new Map(specs.map((spec) => [spec, huggingFacePieces(spec, layout)]));
  checkTensors(source, config, [...pieces.values()].flat());
  const maps = mapped ? new FileMaps(engine) : null;
  const parameters = new Map<string, Tensor>();
  try {
    for (const [spec, list] of pieces) {
      const tensor = (maps === null ? null : mappedTensor(maps, source, spec, list)) ?? copiedTensor(engine, source, spec, list);
      asParameter(tensor, spec.name).requiresGrad = !mapped;
      parameters.set(spec.name, tensor);
    }
  } catch (error) {
    for (const tensor of parameters.values()) tensor.dispose();
    throw error;
  } finally {
    maps?.release();
  }
  return parameters;
}

function checkTensors(weights: WeightSource, config: ModelConfig, pieces: readonly Piece[]): void {
  const expected = new Set(pieces.map(({ name }) => name));
  const unexpected = [...weights.tensors.keys()].filter((name) => !expected.has(name) && !isIgnorableName(name, config));
  const scale = unexpected.find((name) => name.endsWith(".weight_scale"));
  if (scale !== undefined) throw new MoeError("unsupported", `${weights.path}: quantized weights (${scale})`);
  for (const { name, shape } of pieces) {
    const entry = weights.tensors.get(name);
    if (entry === undefined) throw fileError(weights.path, `tensor ${name} [${shape.join(", ")}]`, `none${didYouMean(name, unexpected)}`);
    if (entry.shape.join() === shape.join()) continue;
    const isVocabulary = (name === "model.embed_tokens.weight" || name === "lm_head.weight") && entry.shape[0] !== config.vocabSize;
    const reason = isVocabulary ? ` (the configuration has vocab_size ${config.vocabSize}, the tensor ${entry.shape[0]} rows)` : "";
    throw fileError(
      weights.path,
      `tensor ${name} of shape [${shape.join(", ")}], from the configuration`,
      `[${entry.shape.join(", ")}]${reason}`,
    );
  }
  if (unexpected.length === 0) return;
  const some = unexpected.slice(0, 5).join(", ") + (unexpected.length > 5 ? `, ... (${unexpected.length} in all)` : "");
  throw fileError(weights.path, `only tensors of a ${config.architecture} model with ${config.numLayers} layers`, `also ${some}`);
}

/** File mappings shared by the tensors that lie in them: a file is unmapped when its last tensor and the loader are done. */
class FileMaps {
  readonly engine: Engine;
  readonly #maps = new Map<string, { readonly file: MappedFile | null; users: number }>();

  constructor(engine: Engine) {
    this.engine = engine;
  }
  /** A tensor over bytes of a file, or null where this backend maps no files. Unowned: the caller disposes it. */
  tensor(path: string, offset: number, spec: ParameterSpec): Tensor | null {
    let map = this.#maps.get(path);
    if (map === undefined) {
      map = { file: this.engine.backend.mapFile(path), users: 1 };
      this.#maps.set(path, map);
    }
    const { file } = map;
    if (file === null || (file.ptr + offset) % dtypeBytes[spec.dtype] !== 0) return null;
    const shared = map;
    shared.users++;
    // Retained out of the scope that may be open: parameters belong to their model.
    return this.engine.scope(() => {
      const wrapped = this.engine.wrap(file.ptr + offset, spec.shape, spec.dtype, () => this.#done(shared));
      const kept = wrapped.retain();
      wrapped.dispose();
      return { kept };
    }).kept;
  }
  #done(map: { readonly file: MappedFile | null; users: number }): void {
    if (--map.users === 0) map.file?.close();
  }
  /** The loader needs no more tensors. */
  release(): void {
    for (const map of this.#maps.values()) this.#done(map);
  }
}

function mappedTensor(maps: FileMaps, source: WeightSource, spec: ParameterSpec, [piece, ...more]: readonly Piece[]): Tensor | null {
  if (piece === undefined || more.length > 0) return null;
  const raw = source.raw(piece.name);
  return raw === null || raw.dtype !== spec.dtype ? null : maps.tensor(raw.path, raw.offset, spec);
}

function copiedTensor(engine: Engine, source: WeightSource, spec: ParameterSpec, pieces: readonly Piece[]): Tensor {
  const tensor = engine.detached(spec.shape, spec.dtype);
  try {
    for (const piece of pieces) {
      const raw = source.raw(piece.name);
      if (raw !== null && raw.dtype === spec.dtype) copyBytes(tensor, raw, piece);
      else convert(tensor, source, piece);
    }
  } catch (error) {
    tensor.dispose();
    throw error;
  }
  return tensor;
}
function copyBytes(tensor: Tensor, raw: RawTensor, piece: Piece): void {
  const bytes = dtypeBytes[tensor.dtype];
  for (let done = 0; done < piece.numElements; done += chunkElements) {
    const chunk = new Uint8Array(Math.min(chunkElements, piece.numElements - done) * bytes);
    raw.read(chunk, (piece.fileOffset + done) * bytes);
    tensor.engine.backend.write(tensor.ptr + (piece.offset + done) * bytes, chunk);
  }
}
function convert(tensor: Tensor, source: WeightSource, piece: Piece): void {
  for (let done = 0; done < piece.numElements; done += chunkElements) {
    const chunk = new Float32Array(Math.min(chunkElements, piece.numElements - done));
    source.readFloat32(piece.name, chunk, piece.fileOffset + done);
    writeElements(tensor, piece.offset + done, chunk);
  }
}

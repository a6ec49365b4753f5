/**
 * A model from a folder in Hugging Face form: `config.json` and safetensors (one file or shards).
 *
 * Where a parameter is one tensor of the file in the type and layout that the model wants, and the backend can map files, its memory is
 * the file's own and nothing is copied; everything else is read in pieces of a few megabytes and converted on the way. Every
 * tensor of the files is accounted for: a missing, unexpected or misshapen one is an error that names the file and the tensor.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { MappedFile } from "../backend/backend.ts";
import { dtypeBytes } from "../backend/kernels.ts";
import { fromHuggingFaceConfig, storedDType } from "../config/model-huggingface.ts";
import type { ModelConfig } from "../config/model.ts";
import { openModelWeights, type ModelWeights } from "../checkpoint/model-weights.ts";
import type { Engine, Tensor } from "../tensor/index.ts";
import { fileError, MoeError } from "../util/errors.ts";
import { systemError } from "../util/files.ts";
import { didYouMean } from "../util/nearest.ts";
import { Decoder } from "./decoder.ts";
import { expertLayoutOf, huggingFacePieces, isIgnorableName, type Piece } from "./names.ts";
import { asParameter, parameterSpecs, writeElements, type ModelDType, type ParameterSpec } from "./parameters.ts";

export interface LoadOptions {
  /** What matrices are computed in. Default: bf16 where the file stores bf16 or f16, else f32. */
  readonly dtype?: ModelDType;
  /** Use the file's memory where possible (read-only: not for training). Default true. */
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
 * Loads the model of a folder. The caller disposes it. Errors: `file` (missing or broken files, tensors that do not fit
 * `config.json`), `configuration`, `unsupported`.
 *
 * ```ts
 * using model = loadModel(engine, "SmolLM2-135M", { dtype: "bf16" });
 * ```
 */
export function loadModel(engine: Engine, directory: string, options: LoadOptions = {}): Decoder {
  const { json, path } = readConfigJson(directory);
  const config = fromHuggingFaceConfig(json, path);
  using weights = openModelWeights(directory);
  const dtype = options.dtype ?? (storedMatricesAre(weights, storedDType(json, path)) === "f32" ? "f32" : "bf16");
  return new Decoder(engine, config, dtype, loadParameters(engine, weights, config, parameterSpecs(config, dtype), options));
}

/** The type of the stored embedding, which speaks for all matrices; `stated` where it is not there. */
function storedMatricesAre(weights: ModelWeights, stated: string | null): "f32" | "half" {
  const stored = weights.tensors.get("model.embed_tokens.weight")?.dtype;
  if (stored !== undefined) return stored === "F32" || stored === "F64" ? "f32" : "half";
  return stated === null || stated === "float32" ? "f32" : "half";
}

/** Parameters by our names from open weights with Hugging Face names. The caller disposes them. Throws `file`. */
export function loadParameters(
  engine: Engine,
  weights: ModelWeights,
  config: ModelConfig,
  specs: readonly ParameterSpec[],
  { mapped = true }: LoadOptions = {},
): Map<string, Tensor> {
  const layout = expertLayoutOf(config, (name) => weights.tensors.has(name));
  const pieces = new Map(specs.map((spec) => [spec, huggingFacePieces(spec, layout)]));
  checkTensors(weights, config, [...pieces.values()].flat());
  const maps = mapped ? new FileMaps(engine) : null;
  const parameters = new Map<string, Tensor>();
  try {
    for (const [spec, list] of pieces) {
      const tensor = (maps === null ? null : mappedTensor(maps, weights, spec, list)) ?? copiedTensor(engine, weights, spec, list);
      parameters.set(spec.name, asParameter(tensor, spec.name));
    }
  } catch (error) {
    for (const tensor of parameters.values()) tensor.dispose();
    throw error;
  } finally {
    maps?.release();
  }
  return parameters;
}

function checkTensors(weights: ModelWeights, config: ModelConfig, pieces: readonly Piece[]): void {
  const expected = new Set(pieces.map(({ name }) => name));
  const unexpected = [...weights.tensors.keys()].filter((name) => !expected.has(name) && !isIgnorableName(name, config));
  const scale = unexpected.find((name) => name.endsWith(".weight_scale"));
  if (scale !== undefined) throw new MoeError("unsupported", `${weights.path}: quantized weights (${scale})`);
  for (const { name, shape } of pieces) {
    const entry = weights.tensors.get(name);
    if (entry === undefined) throw fileError(weights.path, `tensor ${name} [${shape.join(", ")}]`, `none${didYouMean(name, unexpected)}`);
    if (entry.shape.join() === shape.join()) continue;
    const isVocabulary = (name === "model.embed_tokens.weight" || name === "lm_head.weight") && entry.shape[0] !== config.vocabSize;
    const reason = isVocabulary ? ` (config.json has vocab_size ${config.vocabSize}, the tensor ${entry.shape[0]} rows)` : "";
    throw fileError(weights.path, `tensor ${name} of shape [${shape.join(", ")}], from config.json`, `[${entry.shape.join(", ")}]${reason}`);
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

function mappedTensor(maps: FileMaps, weights: ModelWeights, spec: ParameterSpec, [piece, ...more]: readonly Piece[]): Tensor | null {
  if (piece === undefined || more.length > 0) return null;
  const entry = weights.entry(piece.name);
  const file = weights.files.find((candidate) => candidate.tensors.get(piece.name) === entry);
  if (file === undefined || entry.dtype !== (spec.dtype === "f32" ? "F32" : "BF16")) return null;
  return maps.tensor(file.path, entry.offset, spec);
}

function copiedTensor(engine: Engine, weights: ModelWeights, spec: ParameterSpec, pieces: readonly Piece[]): Tensor {
  const tensor = engine.detached(spec.shape, spec.dtype);
  try {
    for (const piece of pieces) copyPiece(tensor, weights, piece);
  } catch (error) {
    tensor.dispose();
    throw error;
  }
  return tensor;
}
function copyPiece(tensor: Tensor, weights: ModelWeights, piece: Piece): void {
  const { backend } = tensor.engine;
  const bytes = dtypeBytes[tensor.dtype];
  const sameType = weights.entry(piece.name).dtype === (tensor.dtype === "f32" ? "F32" : "BF16");
  for (let done = 0; done < piece.numElements; done += chunkElements) {
    const n = Math.min(chunkElements, piece.numElements - done);
    if (sameType) {
      const chunk = new Uint8Array(n * bytes);
      weights.read(piece.name, chunk, (piece.fileOffset + done) * bytes);
      backend.write(tensor.ptr + (piece.offset + done) * bytes, chunk);
    } else {
      const chunk = new Float32Array(n);
      weights.readFloat32(piece.name, chunk, piece.fileOffset + done);
      writeElements(tensor, piece.offset + done, chunk);
    }
  }
}

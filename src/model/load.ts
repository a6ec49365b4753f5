/**
 * A model from a folder in Hugging Face form (`config.json` and safetensors, one file or shards), or from one GGUF file.
 *
 * Where a parameter is one tensor of the file in the type and layout that the model wants, and the backend can map files, its
 * memory is the file's own and nothing is copied (experts that lie one after another in a file, too); everything else is read in pieces of a few megabytes and converted on the
 * way. FP8 matrices stay one byte a weight, with their scales beside them. That the files fit the configuration is checked where they are opened (source.ts).
 */
import type { MappedFile } from "../backend/backend.ts";
import { activationScalings, dtypeBytes, type Fp8Scaling } from "../backend/kernels.ts";
import type { Engine, Tensor } from "../tensor/index.ts";
import { fileError, MoeError } from "../util/errors.ts";
import type { Interval } from "../util/partition.ts";
import { Decoder, decoderSpecs } from "./decoder.ts";
import { huggingFacePieces, type Piece } from "./names.ts";
import { asParameter, mayBeFp8, writeElements, type ModelDType, type ParameterSpec } from "./parameters.ts";
import { scalesCanBeCut, slicedPieces, slicedScales, wholeSpec, type ModelShard } from "./shard.ts";
import { openModelSource, type ModelSource, type RawTensor } from "./source.ts";
import { wholeSpan } from "./span.ts";

export interface LoadOptions {
  /** What matrices are computed in. Default: f32 where the file stores f32, else bf16. */
  readonly dtype?: ModelDType;
  /**
   * True (default): for inference. The file's memory is used where possible, and no parameter asks for a gradient, copied ones
   * included. False: every parameter is a copy that trains.
   */
  readonly mapped?: boolean;
  /** What to do with FP8 matrices: "keep" (default) their codes and scales, or make plain matrices of them. */
  readonly quantized?: "keep" | "dequantize";
  /**
   * What to do with what is multiplied with FP8 matrices: "keep" (default) it as it is, round it as the checkpoint's scheme says ("scheme"), or with
   * dynamic scales of this kind. Rounding shows what engines with FP8 matrix units give; here it is neither faster nor better.
   */
  readonly activations?: ActivationChoice;
  /** What a rank of a group has of the model: it reads its own bytes only. Absent or null: all of it. */
  readonly shard?: ModelShard | null;
  /** What a stage of a pipeline has of it: it reads these layers only (`span.ts`). Absent: all. */
  readonly layers?: Interval;
}

export const activationChoices = ["keep", "scheme", ...activationScalings] as const;
export type ActivationChoice = (typeof activationChoices)[number];

/** Elements read and converted at once. */
const chunkElements = 1 << 20;

/**
 * Loads a model: a folder with `config.json` and safetensors, or a GGUF file. The caller disposes it. Errors: `file`
 * (missing or broken files, tensors that do not fit the configuration), `configuration`, `unsupported`.
 *
 * ```ts
 * using model = loadModel(engine, "SmolLM2-135M", { dtype: "bf16" });
 * ```
 */
export function loadModel(engine: Engine, path: string, options: LoadOptions = {}): Decoder {
  using source = openModelSource(path);
  const dtype = options.dtype ?? source.dtype;
  if (options.mapped === false && options.quantized !== "dequantize") refuseToTrain(source);
  const { shard = null, layers = wholeSpan(source.config) } = options;
  const parts = { shard, layers };
  const parameters = loadParameters(engine, source, decoderSpecs(source.config, dtype, parts), options);
  return new Decoder(engine, source.config, dtype, parameters, parts);
}

function refuseToTrain(source: ModelSource): void {
  const name = [...source.tensors.keys()].find((tensor) => source.scales(tensor) !== null);
  if (name === undefined) return;
  throw new MoeError(
    "unsupported",
    `${source.path}: training a model of FP8 weights (${name}): train the model that it was made from, or load it with quantized: "dequantize"`,
  );
}

/** Parameters, or a rank's parts of them, by our names from an open model. The caller disposes them. Throws `file`. */
export function loadParameters(
  engine: Engine,
  source: ModelSource,
  specs: readonly ParameterSpec[],
  { mapped = true, quantized = mapped ? "keep" : "dequantize", activations = "keep" }: LoadOptions = {},
): Map<string, Tensor> {
  const rounding = activations === "keep" ? null : activations === "scheme" ? source.activations() : activations;
  const maps = mapped ? new FileMaps(engine) : null;
  const parameters = new Map<string, Tensor>();
  try {
    for (const spec of specs) {
      const whole = huggingFacePieces(wholeSpec(spec), source.layout, source.config);
      const pieces = slicedPieces(spec, whole);
      const scaling = quantized === "keep" ? fp8ScalingOf(source, spec, whole) : null;
      const stored = scaling === null ? spec : { ...spec, dtype: "fp8" as const };
      const tensor = (maps === null ? null : mappedTensor(maps, source, stored, pieces)) ?? copiedTensor(engine, source, stored, pieces);
      if (scaling !== null)
        tensor.scales = { scaling, values: scalesTensor(engine, source, spec, scaling, whole), ...(rounding && { activations: rounding }) };
      if (spec.name.includes(".moe.router.")) requireFinite(source, pieces);
      if (spec.trains) asParameter(tensor, spec.name).requiresGrad = !mapped;
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

/**
 * Routers are small, and one value in them that is not a number sends every token to experts that nobody chose, which reads like a
 * bad model and not like a broken file. So they are looked at; the large matrices are not.
 */
function requireFinite(source: ModelSource, pieces: readonly Piece[]): void {
  for (const { name, fileOffset, numElements } of pieces) {
    for (let done = 0; done < numElements; done += chunkElements) {
      const chunk = new Float32Array(Math.min(chunkElements, numElements - done));
      source.readFloat32(name, chunk, fileOffset + done);
      const wrong = chunk.findIndex((value) => !Number.isFinite(value));
      if (wrong >= 0) throw fileError(source.path, `finite values in the router ${name}`, `${chunk[wrong]} in element ${done + wrong}`);
    }
  }
}

/** File mappings shared by the tensors that lie in them: a file is unmapped when its last tensor and the loader are done. */
class FileMaps {
  readonly engine: Engine;
  readonly #maps = new Map<string, { readonly file: MappedFile | null; users: number }>();

  constructor(engine: Engine) {
    this.engine = engine;
  }
  /** A tensor over bytes of a file, or null where this backend maps no files. Unowned: the caller disposes it. */
  tensor(path: string, offset: number, spec: StoredSpec): Tensor | null {
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

/** A parameter as it lies in memory. */
type StoredSpec = Omit<ParameterSpec, "dtype"> & { readonly dtype: ModelDType | "fp8" };

/** The kind of scales of a matrix of a layer all of whose pieces are FP8 with the same kind; null for others, which become plain. */
function fp8ScalingOf(source: ModelSource, spec: ParameterSpec, pieces: readonly Piece[]): Fp8Scaling | null {
  if (!mayBeFp8(spec)) return null;
  const kinds = new Set(pieces.map((piece) => source.scales(piece.name, piece)?.scaling ?? null));
  const [kind = null] = kinds;
  return kinds.size === 1 && kind !== null && scalesCanBeCut(spec, kind) ? kind : null;
}

/** The scales of the whole parameter's pieces, one after another, cut as the parameter is, as an f32 tensor of no scope. */
function scalesTensor(engine: Engine, source: ModelSource, spec: ParameterSpec, scaling: Fp8Scaling, whole: readonly Piece[]): Tensor {
  const all = whole.map((piece) => source.scales(piece.name, piece)?.values ?? new Float32Array(0));
  const joined = new Float32Array(all.reduce((n, { length }) => n + length, 0));
  let at = 0;
  for (const part of all) {
    joined.set(part, at);
    at += part.length;
  }
  const values = slicedScales(spec, scaling, joined);
  const tensor = engine.detached([values.length], "f32");
  engine.backend.write(tensor.ptr, values);
  return tensor;
}

/** Null where the pieces are not one run of bytes of one file, of the parameter's type. */
function mappedTensor(maps: FileMaps, source: ModelSource, spec: StoredSpec, pieces: readonly Piece[]): Tensor | null {
  const bytes = dtypeBytes[spec.dtype];
  let first: { readonly path: string; readonly start: number } | null = null;
  for (const { name, fileOffset, offset } of pieces) {
    const raw = source.raw(name);
    if (raw === null || raw.dtype !== spec.dtype) return null;
    const start = raw.offset + (fileOffset - offset) * bytes;
    first ??= { path: raw.path, start };
    if (raw.path !== first.path || start !== first.start) return null;
  }
  return first === null ? null : maps.tensor(first.path, first.start, spec);
}

function copiedTensor(engine: Engine, source: ModelSource, spec: StoredSpec, pieces: readonly Piece[]): Tensor {
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
function convert(tensor: Tensor, source: ModelSource, piece: Piece): void {
  for (let done = 0; done < piece.numElements; done += chunkElements) {
    const chunk = new Float32Array(Math.min(chunkElements, piece.numElements - done));
    source.readFloat32(piece.name, chunk, piece.fileOffset + done);
    writeElements(tensor, piece.offset + done, chunk);
  }
}

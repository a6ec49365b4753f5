/**
 * The parameters of a model as a list: name, shape, type and initial distribution, in the order of the forward pass. The
 * decoder is built from a map of tensors by these names; initialization, loading, saving, optimizers and sharding all work
 * on the list and never look inside the modules.
 *
 * Matrices and embeddings have the model's dtype. Norm weights, biases and router gates are f32 always: they are small, and
 * rounding them costs more than it saves.
 */
import { dtypeCodes, type DType } from "../backend/kernels.ts";
import { hasExperts, type MoeConfig, type ModelConfig } from "../config/model.ts";
import { numElements, type Engine, type Shape, type Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { boxRuns } from "../util/box.ts";
import { Random } from "../util/random.ts";

/** What matrices are stored and computed in. */
export type ModelDType = "f32" | "bf16";

export interface ParameterSpec {
  /** Our name, for example `layers.3.attention.query.weight`. */
  readonly name: string;
  readonly shape: Shape;
  readonly dtype: ModelDType;
  /** Initial values: normal with the configuration's `initStd`, or a constant. */
  readonly init: "normal" | "ones" | "zeros";
  /** Matrices decay in AdamW; norms and biases do not. */
  readonly decays: boolean;
  /** False for a buffer that no gradient reaches: the bias that a router chooses with (`moe.router.bias`). */
  readonly trains: boolean;
  /** Where this is a rank's part of a parameter: `shape` is the part's, cut in these dimensions (ascending) out of the whole. */
  readonly slices?: readonly ParameterSlice[];
}
/** From `start` on, out of `size`, in dimension `dim`. */
export interface ParameterSlice {
  readonly dim: number;
  readonly start: number;
  readonly size: number;
}

/** Whether a parameter may be kept in FP8: the matrices of layers that linear layers and experts multiply by. Not routers, embeddings, head or norms. */
export function mayBeFp8({ name }: Pick<ParameterSpec, "name">): boolean {
  return /^layers\.\d+\.(attention\.(query|key|value|output)\.weight|feedForward\.\w+\.weight|moe\.experts\.\w+|moe\.shared\.(gate|up|down)\.weight)$/.test(
    name,
  );
}

/** All parameters of a model. A tied embedding is one parameter, `embedding.weight`. */
export function parameterSpecs(config: ModelConfig, dtype: ModelDType): ParameterSpec[] {
  const specs: ParameterSpec[] = [];
  const matrix = (name: string, ...shape: number[]): void => {
    specs.push({ name, shape, dtype, init: "normal", decays: true, trains: true });
  };
  const norm = (name: string, size: number): void => {
    specs.push({ name, shape: [size], dtype: "f32", init: "ones", decays: false, trains: true });
  };
  const { hiddenSize: H, vocabSize } = config;
  matrix("embedding.weight", vocabSize, H);
  for (let layer = 0; layer < config.numLayers; layer++) layerSpecs(specs, config, dtype, layer);
  norm("norm.weight", H);
  if (!config.tiedEmbeddings) matrix("head.weight", vocabSize, H);
  return specs;
}

function layerSpecs(specs: ParameterSpec[], config: ModelConfig, dtype: ModelDType, layer: number): void {
  const { hiddenSize: H, headDim, moe } = config;
  const add: AddSpec = (name, shape, init, type) => {
    const trains = name !== "moe.router.bias";
    specs.push({ name: `layers.${layer}.${name}`, shape, dtype: type, init, decays: init === "normal", trains });
  };
  const projection = (name: string, N: number, K: number, bias: boolean): void => {
    add(`attention.${name}.weight`, [N, K], "normal", dtype);
    if (bias) add(`attention.${name}.bias`, [N], "zeros", "f32");
  };
  add("attentionNorm.weight", [H], "ones", "f32");
  projection("query", config.numHeads * headDim, H, config.qkvBias);
  projection("key", config.numKvHeads * headDim, H, config.qkvBias);
  projection("value", config.numKvHeads * headDim, H, config.qkvBias);
  projection("output", H, config.numHeads * headDim, false);
  if (config.qkNorm !== "none") {
    const all = config.qkNorm === "all";
    add("attention.queryNorm.weight", [all ? config.numHeads * headDim : headDim], "ones", "f32");
    add("attention.keyNorm.weight", [all ? config.numKvHeads * headDim : headDim], "ones", "f32");
  }
  add("feedForwardNorm.weight", [H], "ones", "f32");
  if (moe !== null && hasExperts(config, layer)) moeSpecs(add, moe, H, dtype);
  else {
    add("feedForward.gate.weight", [config.ffnSize, H], "normal", dtype);
    add("feedForward.up.weight", [config.ffnSize, H], "normal", dtype);
    add("feedForward.down.weight", [H, config.ffnSize], "normal", dtype);
  }
}

type AddSpec = (name: string, shape: Shape, init: ParameterSpec["init"], type: ModelDType) => void;

function moeSpecs(add: AddSpec, moe: MoeConfig, H: number, dtype: ModelDType): void {
  const { numExperts: E, expertFfnSize: F, sharedExpert } = moe;
  if (moe.gateLayers === 2) add("moe.router.hidden.weight", [8 * E, H], "normal", "f32");
  add("moe.router.weight", [E, moe.gateLayers === 2 ? 8 * E : H], "normal", "f32");
  if (moe.selectionBias) add("moe.router.bias", [E], "zeros", "f32");
  add("moe.experts.gate", [E, F, H], "normal", dtype);
  add("moe.experts.up", [E, F, H], "normal", dtype);
  add("moe.experts.down", [E, H, F], "normal", dtype);
  if (sharedExpert === null) return;
  add("moe.shared.gate.weight", [sharedExpert.ffnSize, H], "normal", dtype);
  add("moe.shared.up.weight", [sharedExpert.ffnSize, H], "normal", dtype);
  add("moe.shared.down.weight", [H, sharedExpert.ffnSize], "normal", dtype);
  if (sharedExpert.gate) add("moe.shared.router.weight", [1, H], "normal", "f32");
}

/** Makes `tensor` a trainable parameter of this name. The caller keeps owning it. */
export function asParameter(tensor: Tensor, name: string): Tensor {
  tensor.requiresGrad = true;
  tensor.parameter = { name, grad: null, gradIsSet: false };
  return tensor;
}

/** Elements that pass through JavaScript at once. Even, so that pairs of normal deviates are not cut. */
const chunkElements = 1 << 20;

/**
 * Fresh parameters. Values depend on the seed and on a parameter's place among `all` (default: `specs`) only (rounded when bf16), the
 * same on every machine, and in a part of a model the same as in the whole. No scope owns them: whoever builds the model disposes them.
 */
export function initialParameters(
  engine: Engine,
  specs: readonly ParameterSpec[],
  options: { initStd: number; seed: number; all?: readonly ParameterSpec[] },
): Map<string, Tensor> {
  const parameters = new Map<string, Tensor>();
  const places = new Map((options.all ?? specs).map(({ name }, place) => [name, place]));
  for (const spec of specs) {
    const index = places.get(spec.name);
    if (index === undefined) throw new MoeError("internal", `initial parameters: ${spec.name} is not one of the model's`);
    const tensor = engine.detached(spec.shape, spec.dtype);
    if (spec.trains) asParameter(tensor, spec.name);
    parameters.set(spec.name, tensor);
    if (spec.init === "normal") fillNormal(tensor, Random.keyed(options.seed, index), options.initStd, spec);
    else if (spec.init === "zeros") engine.fillZero(tensor);
    else engine.backend.kernels.fillF32(tensor.ptr, tensor.size, 1);
  }
  return parameters;
}
/** The values of the whole parameter, of which a part keeps its own. */
function fillNormal(tensor: Tensor, random: Random, std: number, { slices, shape }: ParameterSpec): void {
  if (slices === undefined) {
    for (let from = 0; from < tensor.size; from += chunkElements) {
      const values = new Float32Array(Math.min(chunkElements, tensor.size - from));
      writeElements(tensor, from, random.fillNormal(values, std));
    }
    return;
  }
  const whole = slices.reduce<Shape>((cut, { dim, size }) => cut.with(dim, size), shape);
  const box = shape.map((size, dim) => {
    const start = slices.find((slice) => slice.dim === dim)?.start ?? 0;
    return { start, end: start + size };
  });
  const own = new Float32Array(tensor.size);
  let values: Float32Array = new Float32Array(0);
  let first = 0;
  for (const { whole: from, part, length } of boxRuns(whole, box)) {
    for (let done = 0; done < length;) {
      while (from + done >= first + values.length) {
        first += values.length;
        values = random.fillNormal(new Float32Array(Math.min(chunkElements, numElements(whole) - first)), std);
      }
      const at = from + done - first;
      const n = Math.min(length - done, values.length - at);
      own.set(values.subarray(at, at + n), part + done);
      done += n;
    }
  }
  if (own.length > 0) writeElements(tensor, 0, own);
}

/** Writes f32 values into elements from..from+values.length-1 of a tensor, rounded to its type. */
export function writeElements(tensor: Tensor, from: number, values: Float32Array): void {
  const { engine, dtype } = tensor;
  const ptr = tensor.ptr + from * (dtype === "bf16" ? 2 : 4);
  if (dtype === "f32") {
    engine.backend.write(ptr, values);
    return;
  }
  using source = engine.detached([values.length], "f32");
  engine.backend.write(source.ptr, values);
  engine.backend.kernels.cast(ptr, source.ptr, values.length, dtypeCodes[dtype satisfies DType], dtypeCodes.f32);
}

/** Elements of all parameters together. */
export function totalElements(specs: readonly ParameterSpec[]): number {
  return specs.reduce((n, spec) => n + numElements(spec.shape), 0);
}

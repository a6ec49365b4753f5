/**
 * FP8 matrices of a checkpoint: which tensors are their scales, checked when the model is opened, and their weights as f32.
 *
 * A matrix of dtype F8_E4M3 named `m.weight` has its scales in `m.weight_scale` or `m.weight_scale_inv`, whichever the layout calls them;
 * both are factors. Their shape says what they belong to. In Skywork-MoE's files w1 and w3 of an expert share one scale, and a file may
 * hold it once, under w1. Scales of activations (`input_scale`) are passed over: activations are not quantized here.
 */
import type { Fp8Scaling } from "../backend/kernels.ts";
import type { ModelWeights } from "../checkpoint/model-weights.ts";
import type { ModelConfig } from "../config/model.ts";
import { dequantize, numScales, scalingOfShape } from "../quant/index.ts";
import { fileError, MoeError } from "../util/errors.ts";

export interface StoredScales {
  readonly scaling: Fp8Scaling;
  /** Name of the tensor that holds them. */
  readonly name: string;
  /** By row, then by column; finite. */
  readonly values: Float32Array;
}

/** Elements converted at once. */
const chunkElements = 1 << 20;

export class StoredFp8 {
  readonly #weights: ModelWeights;
  readonly #scales = new Map<string, StoredScales>();
  /** The tensors that are parameters: all but scales. */
  readonly withoutScales: { readonly path: string; readonly tensors: ModelWeights["tensors"] };

  /** Finds and reads the scales of every FP8 matrix. Throws `file` where one has none, or some that do not fit or are not finite. */
  constructor(weights: ModelWeights, config: ModelConfig) {
    this.#weights = weights;
    const used = new Set<string>();
    for (const [name, { dtype, shape }] of weights.tensors) {
      if (dtype === "F8_E5M2") throw new MoeError("unsupported", `${weights.path}: tensor ${name} is F8_E5M2; weights are read as F8_E4M3`);
      if (dtype !== "F8_E4M3") continue;
      const [N, K, ...more] = shape;
      if (N === undefined || K === undefined || more.length > 0 || !name.endsWith(".weight"))
        throw new MoeError(
          "unsupported",
          `${weights.path}: FP8 tensor ${name} [${shape.join(", ")}]; expected matrices named *.weight, experts one by one`,
        );
      const scaleName = this.#find(name, config);
      used.add(scaleName);
      this.#scales.set(name, this.#read(scaleName, name, N, K));
    }
    if (this.#scales.size === 0) this.withoutScales = weights;
    else {
      const isInput = (name: string): boolean => /\.(input|activation)_scale(_inv)?$/.test(name);
      const tensors = new Map([...weights.tensors].filter(([name]) => !used.has(name) && !isInput(name)));
      this.withoutScales = { path: weights.path, tensors };
    }
  }

  scales(name: string): StoredScales | null {
    return this.#scales.get(name) ?? null;
  }

  #find(name: string, { architecture }: ModelConfig): string {
    const shared = architecture === "skywork_moe" && name.endsWith(".w3.weight") ? [name.replace(/\.w3\.weight$/, ".w1.weight")] : [];
    const candidates = [name, ...shared].flatMap((matrix) => [`${matrix}_scale_inv`, `${matrix}_scale`]);
    const found = candidates.find((candidate) => this.#weights.tensors.has(candidate));
    if (found === undefined)
      throw fileError(this.#weights.path, `scales of the FP8 matrix ${name} (${name}_scale or ${name}_scale_inv)`, "none");
    return found;
  }

  #read(name: string, matrix: string, N: number, K: number): StoredScales {
    const { path } = this.#weights;
    const { shape } = this.#weights.entry(name);
    const scaling = scalingOfShape(shape, N, K);
    if (scaling === null) {
      const expected = `${name} of shape [], [${N}, 1] or [${Math.ceil(N / 128)}, ${Math.ceil(K / 128)}] for ${matrix} [${N}, ${K}]`;
      throw fileError(path, expected, `[${shape.join(", ")}]`);
    }
    const values = new Float32Array(numScales(scaling, N, K));
    this.#weights.readFloat32(name, values, 0);
    const wrong = values.findIndex((value) => !Number.isFinite(value));
    if (wrong >= 0) throw fileError(path, `finite scales in ${name}`, `${values[wrong]} in element ${wrong}`);
    return { scaling, name, values };
  }

  /** Fills `into` with weights from element `from` on. Throws `internal` for a tensor that is not FP8. */
  readFloat32(name: string, into: Float32Array, from: number): void {
    const scales = this.#scales.get(name);
    if (scales === undefined) throw new MoeError("internal", `${this.#weights.path}: no scales of ${name}`);
    const K = this.#weights.entry(name).shape[1] ?? 1;
    const codes = new Uint8Array(Math.min(chunkElements, into.length));
    for (let done = 0; done < into.length; done += codes.length) {
      const piece = into.subarray(done, done + codes.length);
      this.#weights.read(name, codes.subarray(0, piece.length), from + done);
      dequantize(piece, codes, scales.scaling, scales.values, K, from + done);
    }
  }
}

/**
 * FP8 matrices of a checkpoint: which tensors are their scales, checked when the model is opened, and their weights as f32.
 *
 * A matrix of dtype F8_E4M3 named `m.weight` has its scales in `m.weight_scale` or `m.weight_scale_inv`, whichever the layout calls them;
 * both are factors. Their shape says what they belong to. In Skywork-MoE's files w1 and w3 of an expert share one scale, and a file may
 * hold it once, under w1. Experts may be stacked, as transformers has them in memory: `experts.gate_up_proj` [E, 2F, H], whose scales
 * (`gate_up_proj_scale_inv`) are those of each matrix of the stack in turn, one for each half where they are one a matrix.
 * Scales of activations (`input_scale`) are passed over: where activations are quantized, their scales are dynamic.
 */
import { fp8Block, type Fp8Scaling } from "../backend/kernels.ts";
import type { ModelWeights } from "../checkpoint/model-weights.ts";
import type { ModelConfig } from "../config/model.ts";
import { dequantize, numScales, scalingOfShape } from "../quant/index.ts";
import { fileError, MoeError } from "../util/errors.ts";

export interface StoredScales {
  readonly scaling: Fp8Scaling;
  /** Name of the tensor that holds them. */
  readonly name: string;
  /** By matrix of a stack, then by row, then by column; finite. */
  readonly values: Float32Array;
}

/** A run of elements of a tensor: rows of one or more matrices. */
export interface StoredRun {
  readonly fileOffset: number;
  readonly numElements: number;
}

interface StoredMatrices extends StoredScales {
  /** The matrices of a stack; a fused one counts as two where each half has a scale of its own. */
  readonly N: number;
  readonly K: number;
}

/** Elements converted at once. */
const chunkElements = 1 << 20;

export class StoredFp8 {
  readonly #weights: ModelWeights;
  readonly #scales = new Map<string, StoredMatrices>();
  /** The tensors that are parameters: all but scales. */
  readonly withoutScales: { readonly path: string; readonly tensors: ModelWeights["tensors"] };

  /** Finds and reads the scales of every FP8 matrix. Throws `file` where one has none, or some that do not fit or are not finite. */
  constructor(weights: ModelWeights, config: ModelConfig) {
    this.#weights = weights;
    const used = new Set<string>();
    for (const [name, { dtype, shape }] of weights.tensors) {
      if (dtype === "F8_E5M2") throw new MoeError("unsupported", `${weights.path}: tensor ${name} is F8_E5M2; weights are read as F8_E4M3`);
      if (dtype !== "F8_E4M3") continue;
      if (!isMatrix(name, shape) && !isStack(name, shape))
        throw new MoeError(
          "unsupported",
          `${weights.path}: FP8 tensor ${name} [${shape.join(", ")}]; expected matrices named *.weight, or experts stacked as experts.gate_up_proj and experts.down_proj`,
        );
      const scaleName = this.#find(name, config);
      used.add(scaleName);
      this.#scales.set(name, this.#read(scaleName, name, shape));
    }
    if (this.#scales.size === 0) this.withoutScales = weights;
    else {
      const isInput = (name: string): boolean => /(\.|_)(input|activation)_scale(_inv)?$/.test(name);
      const tensors = new Map([...weights.tensors].filter(([name]) => !used.has(name) && !isInput(name)));
      this.withoutScales = { path: weights.path, tensors };
    }
  }

  /**
   * The scales of an FP8 tensor, or of a run of whole matrices (or of a half) of its elements. Null for other tensors, and for a run that begins within
   * a block: such a part has no scales of its own.
   */
  scales(name: string, run?: StoredRun): StoredScales | null {
    const stored = this.#scales.get(name);
    if (stored === undefined || run === undefined) return stored ?? null;
    const { scaling, values, N, K } = stored;
    const [firstRow, numRows] = [run.fileOffset / K, run.numElements / K];
    const each = numScales(scaling, N, K);
    const matrix = Math.floor(firstRow / N);
    const withinRow = firstRow - matrix * N;
    if (withinRow === 0 && numRows % N === 0) {
      return { scaling, name: stored.name, values: values.subarray(matrix * each, (matrix + numRows / N) * each) };
    }
    // A part of one matrix: its rows' scales, where they are whole.
    if (scaling === "tensor") return { scaling, name: stored.name, values: values.subarray(matrix, matrix + 1) };
    const unit = scaling === "channel" ? 1 : fp8Block;
    if (withinRow % unit !== 0) return null;
    const perUnit = scaling === "channel" ? 1 : Math.ceil(K / fp8Block);
    const from = matrix * each + (withinRow / unit) * perUnit;
    return { scaling, name: stored.name, values: values.subarray(from, from + Math.ceil(numRows / unit) * perUnit) };
  }

  #find(name: string, { architecture }: ModelConfig): string {
    const shared = architecture === "skywork_moe" && name.endsWith(".w3.weight") ? [name.replace(/\.w3\.weight$/, ".w1.weight")] : [];
    const candidates = [name, ...shared].flatMap((matrix) => [`${matrix}_scale_inv`, `${matrix}_scale`]);
    const found = candidates.find((candidate) => this.#weights.tensors.has(candidate));
    if (found === undefined)
      throw fileError(this.#weights.path, `scales of the FP8 matrix ${name} (${name}_scale or ${name}_scale_inv)`, "none");
    return found;
  }

  #read(name: string, matrix: string, of: readonly number[]): StoredMatrices {
    const { path } = this.#weights;
    const { shape } = this.#weights.entry(name);
    const kind = of.length === 2 ? kindOfMatrix(shape, of) : kindOfStack(shape, of, matrix.endsWith("gate_up_proj"));
    if (kind === null) {
      const [K = 0, N = 0, ...stack] = of.toReversed();
      const [most, blocks] = [
        [...stack, N, 1],
        [...stack, Math.ceil(N / fp8Block), Math.ceil(K / fp8Block)],
      ];
      const one = stack.length === 0 ? "[]" : `[${[...stack, 1, 1].join(", ")}]`;
      const expected = `${name} of shape ${one}, [${most.join(", ")}] or [${blocks.join(", ")}] for ${matrix} [${of.join(", ")}]`;
      throw fileError(path, expected, `[${shape.join(", ")}]`);
    }
    const values = new Float32Array(shape.reduce((n, size) => n * size, 1));
    this.#weights.readFloat32(name, values, 0);
    const wrong = values.findIndex((value) => !Number.isFinite(value));
    if (wrong >= 0) throw fileError(path, `finite scales in ${name}`, `${values[wrong]} in element ${wrong}`);
    return { ...kind, name, values };
  }

  /** Fills `into` with weights from element `from` on. Throws `internal` for a tensor that is not FP8. */
  readFloat32(name: string, into: Float32Array, from: number): void {
    const scales = this.#scales.get(name);
    if (scales === undefined) throw new MoeError("internal", `${this.#weights.path}: no scales of ${name}`);
    const { scaling, values, N, K } = scales;
    const each = numScales(scaling, N, K);
    const codes = new Uint8Array(Math.min(chunkElements, into.length));
    for (let done = 0; done < into.length;) {
      const at = from + done;
      const matrix = Math.floor(at / (N * K));
      const piece = into.subarray(done, done + Math.min(codes.length, (matrix + 1) * N * K - at));
      this.#weights.read(name, codes.subarray(0, piece.length), at);
      dequantize(piece, codes, scaling, values.subarray(matrix * each, (matrix + 1) * each), K, at - matrix * N * K);
      done += piece.length;
    }
  }
}

function isMatrix(name: string, shape: readonly number[]): boolean {
  return shape.length === 2 && name.endsWith(".weight");
}
/** Experts in one tensor. */
function isStack(name: string, shape: readonly number[]): boolean {
  return shape.length === 3 && /\.experts\.(gate_up_proj|down_proj)$/.test(name);
}

type Kind = Pick<StoredMatrices, "scaling" | "N" | "K">;

function kindOfMatrix(shape: readonly number[], [N = 0, K = 0]: readonly number[]): Kind | null {
  const scaling = scalingOfShape(shape, N, K);
  return scaling === null ? null : { scaling, N, K };
}
/** Scales [E, ..] of a stack [E, N, K]: [E, 1, 1], [E, N, 1], blocks, or [E, 2, 1] where two matrices lie in one. */
function kindOfStack([count, ...each]: readonly number[], [E = 0, N = 0, K = 0]: readonly number[], isPair: boolean): Kind | null {
  if (count !== E || each.length > 2) return null;
  if (isPair && each[0] === 2 && (each[1] ?? 1) === 1 && N !== 2) return { scaling: "tensor", N: N / 2, K };
  return kindOfMatrix(each, [N, K]);
}

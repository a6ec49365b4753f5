/**
 * A model's matrices into FP8 (E4M3), from files to files, a piece at a time: nothing of the model's size is ever in memory.
 *
 * Quantized are the matrices of layers (attention, feed-forward, experts, shared experts) that no pattern keeps out. Embedding, head and
 * patterns' matrices become bf16; norms, biases and routers stay in the type they are stored in (f32 or bf16). Each matrix is read twice:
 * for its scales, then to be rounded. The error of every matrix is measured on the way.
 *
 * Not here: what that does to the model's output (quantize-report.ts), which matrices (quantize-plan.ts), which layout says what (src/quant).
 */
import { dtypeCodes, fp8Block, fp8Formats, type Fp8Scaling } from "../backend/kernels.ts";
import { fromFloat32 } from "../checkpoint/dtypes.ts";
import { createModelWeights, type TensorDeclaration } from "../checkpoint/safetensors-writer.ts";
import type { TensorWriter } from "../checkpoint/tensor-file-writer.ts";
import { toHuggingFaceConfig } from "../config/model-huggingface.ts";
import {
  checkActivations,
  checkLayout,
  defaultLayout,
  dequantize,
  noteLargest,
  numScales,
  scaleIndex,
  scaleName,
  scaleShape,
  scalesFor,
  storedScaleShape,
  writeQuantizationConfig,
  type Fp8Layout,
  type RecordedActivations,
} from "../quant/index.ts";
import type { Engine } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { writeDirectoryAtomically, writeFileAtomically } from "../util/files.ts";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { huggingFacePieces, type ExpertLayout } from "./names.ts";
import { mayBeFp8 } from "./parameters.ts";
import { checkFused, moduleOf, planTensors, unquantizedModules, type Planned } from "./quantize-plan.ts";
import { generationConfig } from "./save.ts";
import { openModelSource, type ModelSource } from "./source.ts";

export interface QuantizeOptions {
  /** What one scale belongs to. Default: channel. */
  readonly scales?: Fp8Scaling;
  /** Names and configuration of the files. Default: compressed-tensors for channel scales, else huggingface. */
  readonly layout?: Fp8Layout;
  /**
   * How experts are written: one by one (default: everything reads that), or stacked as transformers has them in memory (`experts.gate_up_proj`
   * [E, 2F, H] with `gate_up_proj_scale_inv`), in layout huggingface only.
   */
  readonly experts?: ExpertLayout;
  /** What the files say of activations. Default: that they are rounded dynamically, as the layout has it. */
  readonly activations?: RecordedActivations;
  /** Modules (Hugging Face names without `.weight`, `*` for any text) that stay bf16. */
  readonly ignore?: readonly string[];
  /** Largest sum of tensor bytes in one file. Default 5 GB. */
  readonly maxShardBytes?: number;
  /** Called with elements done and in all. */
  readonly onProgress?: (done: number, total: number) => void;
}

/** What quantizing did to one matrix. */
export interface QuantizedTensor {
  readonly name: string;
  readonly shape: readonly number[];
  /** Signal-to-quantization-noise ratio in dB: 10 log10(sum w^2 / sum (w - w')^2); null where nothing was lost, or all is 0. */
  readonly sqnrDb: number | null;
}

export interface QuantizeReport {
  readonly out: string;
  readonly format: "fp8";
  readonly scales: Fp8Scaling;
  readonly layout: Fp8Layout;
  /** Bytes of the quantized matrices with their scales, and of the same matrices in bf16. */
  readonly quantizedBytes: number;
  readonly bf16Bytes: number;
  /** Bytes of all tensors. */
  readonly numBytes: number;
  readonly tensors: readonly QuantizedTensor[];
  /** Modules whose matrices were left in bf16. */
  readonly ignored: readonly string[];
}

/** Elements in memory at once, or one row where that is longer. */
const chunkElements = 1 << 20;

/**
 * Writes the model at `modelPath` (any format that loads) into the folder `out` with FP8 matrices, streamed, atomically; `finish` may add files
 * (tokenizer) before the folder appears. Throws `usage` (out exists, a pattern that fits nothing), `unsupported` (a model that is FP8
 * already, a layout without such scales), `file` (weights that are not finite), `resource`.
 *
 * ```ts
 * quantizeModel(engine, "models/moe", "models/moe-fp8", { scales: "channel", ignore: ["*.o_proj"] });
 * ```
 */
export function quantizeModel(
  engine: Engine,
  modelPath: string,
  out: string,
  options: QuantizeOptions = {},
  finish: (folder: string) => void = () => undefined,
): QuantizeReport {
  const { scales: scaling = "channel" } = options;
  const layout = options.layout ?? defaultLayout(scaling);
  checkLayout(layout, scaling);
  const { experts = "per-expert", activations = "dynamic" } = options;
  checkActivations(layout, activations);
  if (experts === "fused" && layout !== "huggingface")
    throw new MoeError("unsupported", `fused experts in layout ${layout}: only layout huggingface has them`);
  if (existsSync(out)) throw new MoeError("usage", `${out}: expected a folder that does not exist yet`);
  using source = openModelSource(modelPath);
  const already = [...source.tensors.keys()].find((name) => source.scales(name) !== null);
  if (already !== undefined)
    throw new MoeError("unsupported", `${modelPath}: quantizing a model that is FP8 already (${already}); take the one it was made from`);
  const plan = planTensors(source, experts, options.ignore ?? []);
  if (experts === "fused") checkFused(source, plan, scaling);
  const report = writeDirectoryAtomically(out, (folder) => {
    using run = new Quantizer(engine, source, plan, { ...options, scaling, layout });
    const result = run.write(folder);
    const ignored = unquantizedModules(plan);
    const config = {
      ...toHuggingFaceConfig(source.config, "bfloat16"),
      quantization_config: writeQuantizationConfig(layout, scaling, ignored, activations),
    };
    writeFileAtomically(join(folder, "config.json"), `${JSON.stringify(config, null, 2)}\n`);
    writeFileAtomically(join(folder, "generation_config.json"), `${JSON.stringify(generationConfig(source.config), null, 2)}\n`);
    finish(folder);
    return result;
  });
  return { out, format: "fp8", scales: scaling, layout, ...report };
}

interface RunOptions extends QuantizeOptions {
  readonly scaling: Fp8Scaling;
  readonly layout: Fp8Layout;
}

/** One run: buffers, the writer's order, what was measured. */
class Quantizer implements Disposable {
  readonly #engine: Engine;
  readonly #source: ModelSource;
  readonly #plan: readonly Planned[];
  readonly #options: RunOptions;
  readonly #values: number;
  readonly #codes: number;
  readonly #capacity: number;
  readonly #tensors: QuantizedTensor[] = [];
  /** Largest magnitudes that were found early, by name: those of w3, which shares its scale with w1. */
  readonly #known = new Map<string, Float32Array>();
  /** Scales of the matrices of a stack, which are written after it. */
  readonly #held: Float32Array[] = [];
  #done = 0;

  constructor(engine: Engine, source: ModelSource, plan: readonly Planned[], options: RunOptions) {
    this.#engine = engine;
    this.#source = source;
    this.#plan = plan;
    this.#options = options;
    this.#capacity = plan.reduce((most, { piece }) => Math.max(most, piece.shape.at(-1) ?? 1), chunkElements);
    this.#values = engine.backend.alloc(this.#capacity * 4);
    this.#codes = engine.backend.alloc(this.#capacity);
  }

  write(folder: string): Pick<QuantizeReport, "quantizedBytes" | "bf16Bytes" | "numBytes" | "tensors" | "ignored"> {
    const { layout, scaling, maxShardBytes, onProgress } = this.#options;
    const total = this.#plan.reduce((n, { piece }) => n + piece.numElements, 0);
    const firsts = this.#plan.filter(({ piece: { fileOffset } }) => fileOffset === 0);
    const declarations = firsts.flatMap(({ piece: { name, shape }, matrix: [N, K], dtype, quantized }): TensorDeclaration[] => {
      if (!quantized) return [{ name, dtype, shape }];
      const each = scaleShape(scaling, N, K);
      const [E = 1, rows = N] = shape;
      const stacked = [E, (rows / N) * (each[0] ?? 1), each[1] ?? 1];
      const scales = shape.length === 3 ? stacked : storedScaleShape(layout, scaling, each);
      return [
        { name, dtype, shape },
        { name: scaleName(name, layout), dtype: "F32", shape: scales },
      ];
    });
    using writer = createModelWeights(folder, declarations, maxShardBytes === undefined ? {} : { maxShardBytes });
    let [quantizedBytes, bf16Bytes, numBytes] = [0, 0, 0];
    for (const planned of this.#plan) {
      const { piece, dtype, quantized } = planned;
      if (quantized) {
        const bytes = this.#writeQuantized(planned, writer);
        quantizedBytes += bytes;
        bf16Bytes += 2 * piece.numElements;
        numBytes += bytes;
      } else {
        this.#writePlain(planned, writer);
        numBytes += piece.numElements * (dtype === "F32" ? 4 : 2);
      }
      this.#done += piece.numElements;
      onProgress?.(this.#done, total);
    }
    writer.commit();
    const ignored = this.#plan.filter(({ spec, quantized }) => mayBeFp8(spec) && !quantized).map(({ piece }) => moduleOf(piece.name));
    return { quantizedBytes, bf16Bytes, numBytes, tensors: this.#tensors, ignored };
  }

  /** Calls `visit` with runs of whole rows of a tensor, in order: values and the first element's index in it. */
  #forEachChunk({ spec, piece, matrix: [, K] }: Planned, visit: (values: Float32Array, from: number) => void): void {
    const step = Math.max(1, Math.floor(chunkElements / K)) * K;
    const stored = huggingFacePieces(spec, this.#source.layout, this.#source.config);
    const holder = stored.find(({ offset, numElements }) => offset <= piece.offset && piece.offset < offset + numElements);
    if (holder === undefined) throw new MoeError("internal", `quantize: no stored tensor holds ${piece.name}`);
    for (let from = 0; from < piece.numElements; from += step) {
      const values = new Float32Array(Math.min(step, piece.numElements - from));
      this.#source.readFloat32(holder.name, values, holder.fileOffset + piece.offset - holder.offset + from);
      visit(values, from);
    }
  }

  #largest(planned: Planned): Float32Array {
    const { piece } = planned;
    const known = this.#known.get(piece.name);
    if (known !== undefined) return known;
    const { scaling } = this.#options;
    const [N, K] = planned.matrix;
    const largest = new Float32Array(numScales(scaling, N, K));
    this.#forEachChunk(planned, (values, from) => {
      noteLargest(largest, scaling, values, from / K, K, `${this.#source.path}: ${piece.name}`);
    });
    return largest;
  }

  /** Scales of a matrix; in the skywork layout w1 and w3 of an expert have one. */
  #scales(planned: Planned): Float32Array {
    const { name } = planned.piece;
    const largest = this.#largest(planned);
    if (this.#options.layout === "skywork" && name.endsWith(".w1.weight")) {
      const partner = this.#plan.find(({ piece }) => piece.name === name.replace(/\.w1\.weight$/, ".w3.weight"));
      if (partner?.quantized === true) {
        const shared = this.#largest(partner).map((value, i) => Math.max(value, largest[i] ?? 0));
        this.#known.set(partner.piece.name, shared);
        return scalesFor(shared);
      }
    }
    return scalesFor(largest);
  }

  #writeQuantized(planned: Planned, writer: TensorWriter): number {
    const { scaling, layout } = this.#options;
    const { name, shape, fileOffset, numElements } = planned.piece;
    const [N, K] = planned.matrix;
    const scales = this.#scales(planned);
    let [signal, noise] = [0, 0];
    const restored = new Float32Array(Math.min(this.#capacity, numElements));
    this.#forEachChunk(planned, (values, from) => {
      const codes = this.#encode(values, scales, from, K);
      writer.write(name, codes);
      const back = restored.subarray(0, values.length);
      dequantize(back, codes, scaling, scales, K, from);
      for (let i = 0; i < values.length; i++) {
        const value = values[i] ?? 0;
        signal += value * value;
        noise += (value - (back[i] ?? 0)) ** 2;
      }
    });
    this.#held.push(scales);
    const isLast = fileOffset + numElements === shape.reduce((n, size) => n * size, 1);
    if (isLast)
      for (const one of this.#held.splice(0))
        writer.write(scaleName(name, layout), new Uint8Array(one.buffer, one.byteOffset, one.byteLength));
    this.#known.delete(name);
    this.#tensors.push({ name, shape: [N, K], sqnrDb: noise === 0 ? null : 10 * Math.log10(signal / noise) });
    return numElements + scales.byteLength;
  }

  /** Codes of whole rows from element `from` on: runs under one scale go through the kernel together. */
  #encode(values: Float32Array, scales: Float32Array, from: number, K: number): Uint8Array {
    const { backend } = this.#engine;
    const { scaling } = this.#options;
    backend.write(this.#values, values);
    const run = scaling === "tensor" ? values.length : K;
    for (let row = 0; row < values.length; row += run) {
      for (let at = row; at < row + run; at += scaling === "block128" ? fp8Block : run) {
        const n = scaling === "block128" ? Math.min(fp8Block, row + run - at) : run;
        const scale = scales[scaleIndex(scaling, K, Math.floor((from + at) / K), (from + at) % K)] ?? Number.NaN;
        backend.kernels.castToFp8(this.#codes + at, this.#values + 4 * at, n, scale, dtypeCodes.f32, fp8Formats.e4m3);
      }
    }
    const codes = new Uint8Array(values.length);
    backend.read(codes, this.#codes);
    return codes;
  }

  #writePlain(planned: Planned, writer: TensorWriter): void {
    const type = planned.dtype === "F32" ? "F32" : "BF16";
    this.#forEachChunk(planned, (values) => {
      const bytes = new Uint8Array(values.length * (type === "F32" ? 4 : 2));
      fromFloat32(type, values, bytes);
      writer.write(planned.piece.name, bytes);
    });
  }

  [Symbol.dispose](): void {
    this.#engine.backend.free(this.#values);
    this.#engine.backend.free(this.#codes);
  }
}

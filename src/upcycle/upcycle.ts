/**
 * Sparse upcycling (arXiv 2212.05055; Skywork-MoE, arXiv 2406.06563, section 3): a dense checkpoint becomes a MoE whose
 * experts all start as copies of the dense feed-forward network, with a router drawn from a small normal. Combine weights
 * sum to 1 over the chosen experts, so the MoE computes exactly what the dense model does until training tells the copies apart.
 *
 * Streams: memory stays at a few megabytes whatever the size of the model. The output folder appears whole or not at all,
 * with a receipt (`upcycle-receipt.json`) that says where every tensor came from.
 */
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fromFloat32 } from "../checkpoint/dtypes.ts";
import { createModelWeights, type TensorDeclaration } from "../checkpoint/safetensors-writer.ts";
import { toHuggingFaceConfig } from "../config/model-huggingface.ts";
import { numActiveParams, numParams } from "../config/model-counts.ts";
import { checkModelConfig, plainRouting, type ModelConfig } from "../config/model.ts";
import {
  generationConfig,
  huggingFacePieces,
  openModelSource,
  parameterSpecs,
  type ModelSource,
  type ParameterSpec,
  type Piece,
} from "../model/index.ts";
import { MoeError } from "../util/errors.ts";
import { removeTemporaries, writeDirectoryAtomically, writeFileAtomically } from "../util/files.ts";
import { Random } from "../util/random.ts";

/** Families that an upcycled model can be written as. */
export const upcycleTargets = ["skywork_moe", "mixtral"] as const;
export type UpcycleTarget = (typeof upcycleTargets)[number];

export interface UpcycleOptions {
  readonly numExperts: number;
  readonly topK: number;
  /** Default `skywork_moe`. */
  readonly target?: UpcycleTarget;
  /** Gating logit normalization (section 4.1 of the report). Default true for `skywork_moe`; `mixtral` has none. */
  readonly gateNormalization?: boolean;
  /** Standard deviation of the router's initial weights. Default 0.02. */
  readonly routerStd?: number;
  /** Experts in layers l with (l + 1) a multiple of this. Default 1. */
  readonly layerInterval?: number;
  readonly seed?: number;
  /**
   * Element type of matrices in the output. Default: the one that keeps the source's values exactly, bf16 for bf16 and f32 for
   * everything else (f16, quantized), so that the MoE starts as the dense model.
   */
  readonly dtype?: "f32" | "bf16";
}

/** Where one tensor of the output came from. */
export interface TensorOrigin {
  readonly name: string;
  readonly shape: readonly number[];
  readonly origin: "copied" | "router";
  /** Tensor of the dense model, for copies. */
  readonly source: string | null;
  /** SHA-256 of the bytes written. */
  readonly sha256: string;
}

export interface UpcycleReceipt {
  readonly source: string;
  readonly options: Required<UpcycleOptions>;
  readonly dense: { readonly architecture: string; readonly numParams: number };
  readonly moe: { readonly architecture: string; readonly numParams: number; readonly numActiveParams: number };
  readonly tensors: readonly TensorOrigin[];
}

/**
 * Configuration of the upcycled model. Throws `configuration` for a source that has experts already or that the target's
 * `config.json` cannot express, with every value.
 */
export function upcycledConfig(dense: ModelConfig, options: UpcycleOptions): ModelConfig {
  if (dense.moe !== null)
    throw new MoeError("configuration", `upcycle: expected a dense model, got ${dense.architecture} with ${dense.moe.numExperts} experts`);
  const target = options.target ?? "skywork_moe";
  const normalize = options.gateNormalization ?? target === "skywork_moe";
  const config = checkModelConfig({
    ...dense,
    architecture: target,
    moe: {
      ...plainRouting,
      numExperts: options.numExperts,
      topK: options.topK,
      expertFfnSize: dense.ffnSize,
      layerInterval: options.layerInterval ?? 1,
      gateNormalization: normalize && options.numExperts > 1 ? { lambda: 1, eps: 1e-6, unbiased: true } : null,
    },
  });
  toHuggingFaceConfig(config, "float32");
  return config;
}

/** Elements that pass through JavaScript at once. */
const chunkElements = 1 << 20;

/**
 * Writes the upcycled model of `densePath` (a folder with safetensors, or a GGUF file) into `outFolder`, which must not exist.
 * `copyTokenizer` is called with the unfinished folder. Throws `usage` where `outFolder` exists, `file`, `configuration`,
 * `resource`.
 */
export function upcycle(
  densePath: string,
  outFolder: string,
  options: UpcycleOptions,
  copyTokenizer: (folder: string) => void = () => undefined,
): UpcycleReceipt {
  if (existsSync(outFolder)) throw new MoeError("usage", `upcycle: ${outFolder}: expected a folder that does not exist yet`);
  using source = openModelSource(densePath);
  const config = upcycledConfig(source.config, options);
  const complete: Required<UpcycleOptions> = {
    numExperts: options.numExperts,
    topK: options.topK,
    target: options.target ?? "skywork_moe",
    gateNormalization: config.moe?.gateNormalization !== null,
    routerStd: options.routerStd ?? 0.02,
    layerInterval: options.layerInterval ?? 1,
    seed: options.seed ?? 1,
    dtype: options.dtype ?? (source.storedAs === "BF16" ? "bf16" : "f32"),
  };
  // Gigabytes that a killed process left under way to this name.
  if (existsSync(dirname(outFolder))) removeTemporaries(dirname(outFolder), basename(outFolder));
  return writeDirectoryAtomically(outFolder, (folder) => {
    const tensors = writeWeights(source, config, complete, folder);
    const receipt: UpcycleReceipt = {
      source: densePath,
      options: complete,
      dense: { architecture: source.config.architecture, numParams: numParams(source.config) },
      moe: { architecture: config.architecture, numParams: numParams(config), numActiveParams: numActiveParams(config) },
      tensors,
    };
    const stored = complete.dtype === "f32" ? "float32" : "bfloat16";
    writeFileAtomically(join(folder, "config.json"), `${JSON.stringify(toHuggingFaceConfig(config, stored), null, 2)}\n`);
    writeFileAtomically(join(folder, "generation_config.json"), `${JSON.stringify(generationConfig(config), null, 2)}\n`);
    writeFileAtomically(join(folder, "upcycle-receipt.json"), `${JSON.stringify(receipt, null, 2)}\n`);
    copyTokenizer(folder);
    return receipt;
  });
}

interface OutputTensor {
  readonly spec: ParameterSpec;
  readonly piece: Piece;
  readonly declaration: TensorDeclaration;
}

function writeWeights(source: ModelSource, config: ModelConfig, options: Required<UpcycleOptions>, folder: string): TensorOrigin[] {
  const outputs: OutputTensor[] = parameterSpecs(config, options.dtype).flatMap((spec) =>
    huggingFacePieces(spec, "per-expert", config).map((piece) => {
      const dtype = spec.dtype === "f32" ? ("F32" as const) : ("BF16" as const);
      return { spec, piece, declaration: { name: piece.name, dtype, shape: piece.shape } };
    }),
  );
  using writer = createModelWeights(
    folder,
    outputs.map(({ declaration }) => declaration),
  );
  const origins: TensorOrigin[] = [];
  for (const [index, output] of outputs.entries()) {
    const hash = createHash("sha256");
    const write = (values: Float32Array): void => {
      const bytes = encoded(values, output.declaration.dtype === "F32" ? "F32" : "BF16");
      hash.update(bytes);
      writer.write(output.piece.name, bytes);
    };
    const sourceName = sourceOf(output);
    if (sourceName === null) writeNormal(output.piece.numElements, Random.keyed(options.seed, index), options.routerStd, write);
    else copyTensor(source, sourceName, output.piece.numElements, write);
    const origin = sourceName === null ? "router" : "copied";
    origins.push({ name: output.piece.name, shape: output.piece.shape, origin, source: sourceName, sha256: hash.digest("hex") });
  }
  writer.commit();
  return origins;
}

const expertSource: Readonly<Record<string, string>> = { w1: "gate_proj", w3: "up_proj", w2: "down_proj" };

/** Dense tensor that an output tensor is a copy of; null for routers. */
function sourceOf({ spec, piece }: OutputTensor): string | null {
  if (spec.name.endsWith("moe.router.weight")) return null;
  const [, prefix, matrix = ""] = /^(.*)\.block_sparse_moe\.experts\.\d+\.(w\d)\.weight$/.exec(piece.name) ?? [];
  return prefix === undefined ? piece.name : `${prefix}.mlp.${expertSource[matrix]}.weight`;
}

function copyTensor(source: ModelSource, name: string, numElements: number, write: (values: Float32Array) => void): void {
  for (let at = 0; at < numElements; at += chunkElements) {
    const values = new Float32Array(Math.min(chunkElements, numElements - at));
    source.readFloat32(name, values, at);
    write(values);
  }
}
function writeNormal(numElements: number, random: Random, std: number, write: (values: Float32Array) => void): void {
  for (let at = 0; at < numElements; at += chunkElements) {
    write(random.fillNormal(new Float32Array(Math.min(chunkElements, numElements - at)), std));
  }
}
function encoded(values: Float32Array, dtype: "F32" | "BF16"): Uint8Array {
  const bytes = new Uint8Array(values.length * (dtype === "F32" ? 4 : 2));
  fromFloat32(dtype, values, bytes);
  return bytes;
}

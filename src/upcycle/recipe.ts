/**
 * How each tensor of the output is made, as data: from which tensor of which source, which part of it, and what is done to it.
 * `maker.ts` carries recipes out; here is only who gets which.
 */
import { hasExperts, type ModelConfig } from "../config/model.ts";
import { huggingFacePieces, parameterSpecs, type ModelDType, type ParameterSpec, type Piece } from "../model/index.ts";
import { MoeError } from "../util/errors.ts";
import type { UpcycleTargetPlan } from "./target.ts";

/** A part of a dense network's matrix. */
export interface Shard {
  readonly index: number;
  readonly count: number;
  /** Gate and up [F, H] are cut into runs of rows, down [H, F] of columns. */
  readonly by: "rows" | "columns";
}

/** What happens to a copied matrix. */
export interface Change {
  readonly factor: number;
  /** As the options say; `clear`: zero where `drop` draws anew (an optimizer's moments of what is no more). */
  readonly method: UpcycleTargetPlan["options"]["method"] | { readonly type: "clear"; readonly ratio: number };
  /** Key of the expert's own random numbers: layer and expert. Dropped dimensions depend on it, noise also on the matrix. */
  readonly key: readonly [layer: number, expert: number, matrix: number];
}

export type Recipe =
  /** Elements of a tensor of source `from` (0: the dense model itself). */
  | { readonly type: "copy"; readonly from: number; readonly name: string }
  /** A shard of a dense network's matrix [rows, columns], changed. */
  | {
      readonly type: "expert";
      readonly from: number;
      readonly name: string;
      readonly rows: number;
      readonly columns: number;
      readonly shard: Shard;
      readonly change: Change;
    }
  /** Router rows [E, H] of a layer: as `options.router` says. */
  | { readonly type: "router"; readonly layer: number }
  | { readonly type: "normal"; readonly std: number; readonly key: number }
  | { readonly type: "zero" }
  /** One after the other, along a new first dimension. */
  | { readonly type: "stack"; readonly parts: readonly Recipe[] };

export interface OutputTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: ModelDType;
  readonly recipe: Recipe;
}

interface Matrix {
  readonly dense: string;
  readonly by: Shard["by"];
  readonly number: number;
}
const matrices: Readonly<Record<string, Matrix>> = {
  gate: { dense: "gate_proj", by: "rows", number: 0 },
  up: { dense: "up_proj", by: "rows", number: 1 },
  down: { dense: "down_proj", by: "columns", number: 2 },
};

/** Every tensor of the output, in the order in which it is written: experts of one matrix together. */
export function outputTensors(dense: ModelConfig, plan: UpcycleTargetPlan, dtype: ModelDType): OutputTensor[] {
  const outputs: OutputTensor[] = [];
  for (const [index, spec] of parameterSpecs(plan.config, dtype).entries()) {
    for (const [e, piece] of huggingFacePieces(spec, "per-expert", plan.config).entries()) {
      outputs.push({ name: piece.name, shape: piece.shape, dtype: spec.dtype, recipe: recipeOf(dense, plan, spec, piece, index, e) });
    }
  }
  return outputs;
}

function recipeOf(dense: ModelConfig, plan: UpcycleTargetPlan, spec: ParameterSpec, piece: Piece, index: number, e: number): Recipe {
  const [, layerText = "", rest = ""] = /^layers\.(\d+)\.(.+)$/.exec(spec.name) ?? [];
  const layer = Number(layerText);
  if (rest === "moe.router.weight") return { type: "router", layer };
  if (rest === "moe.shared.router.weight") return { type: "zero" };
  const [, kind, matrix = ""] = /^moe\.(experts|shared)\.(gate|up|down)/.exec(rest) ?? [];
  const found = matrices[matrix];
  if (found !== undefined && kind === "experts") return expertRecipe(dense, plan, found, layer, e);
  if (found !== undefined) return sharedRecipe(dense, plan, found, layer, index);
  if (rest.startsWith("moe.")) throw new MoeError("internal", `upcycle: no recipe for ${spec.name}`);
  if (/^attention\.\w+\.bias$/.test(rest) && !dense.qkvBias) return { type: "zero" };
  return { type: "copy", from: 0, name: piece.name };
}

function denseName(layer: number, { dense }: Matrix): string {
  return `model.layers.${layer}.mlp.${dense}.weight`;
}
function sizes({ ffnSize, hiddenSize }: ModelConfig, { by }: Matrix): { rows: number; columns: number } {
  return by === "rows" ? { rows: ffnSize, columns: hiddenSize } : { rows: hiddenSize, columns: ffnSize };
}

/** Recipe of one matrix of expert `e`: shard e mod G of copy floor(e / G). */
function expertRecipe(dense: ModelConfig, { options, share }: UpcycleTargetPlan, matrix: Matrix, layer: number, e: number): Recipe {
  const { granularity: G, method } = options;
  const from = Math.floor(e / G) % Math.max(1, options.expertSources.length);
  return {
    type: "expert",
    // Source 0 is the dense model; the list of other experts' sources follows it.
    from: options.expertSources.length === 0 ? 0 : from + 1,
    name: denseName(layer, matrix),
    ...sizes(dense, matrix),
    shard: { index: e % G, count: G, by: matrix.by },
    change: { factor: matrix.by === "columns" ? G * (1 - share) : 1, method, key: [layer, e, matrix.number] },
  };
}

function sharedRecipe(
  dense: ModelConfig,
  { config, options, share }: UpcycleTargetPlan,
  matrix: Matrix,
  layer: number,
  index: number,
): Recipe {
  if (share === 0) return matrix.by === "columns" ? { type: "zero" } : { type: "normal", std: config.initStd, key: index };
  // A gate of zeros is open by half.
  const factor = matrix.by === "columns" ? share * (config.moe?.sharedExpert?.gate === true ? 2 : 1) : 1;
  return {
    type: "expert",
    from: 0,
    name: denseName(layer, matrix),
    ...sizes(dense, matrix),
    shard: { index: 0, count: 1, by: matrix.by },
    change: { factor, method: { type: "copy" }, key: [layer, options.numExperts, matrix.number] },
  };
}

/** Layers with experts, from 0. */
export function moeLayers(config: ModelConfig): number[] {
  return Array.from({ length: config.numLayers }, (_, layer) => layer).filter((layer) => hasExperts(config, layer));
}

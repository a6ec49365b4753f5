/**
 * The optimizer's state of a training checkpoint (`optimizer.safetensors` beside the weights), carried over: what is copied keeps its
 * moments and f32 master, every expert gets those of the dense network it is a copy of (sparse upcycling, arXiv 2212.05055, does
 * so), and what is new (routers) starts at zero. Dimensions that drop-upcycling draws anew have no history either.
 *
 * The output has `optimizer.safetensors` under our parameter names, as `AdamW.state()` names them, and `optimizer.json` with
 * the number of updates.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { openSafetensors } from "../checkpoint/safetensors.ts";
import type { ModelConfig } from "../config/model.ts";
import { huggingFacePieces, parameterSpecs, type ModelDType, type ParameterSpec } from "../model/index.ts";
import { fileError, MoeError } from "../util/errors.ts";
import type { TensorReader } from "./maker.ts";
import { outputTensors, type OutputTensor, type Recipe } from "./recipe.ts";
import type { UpcycleTargetPlan } from "./target.ts";

export const optimizerFile = "optimizer.safetensors";

/** What is known of the training that made a checkpoint. */
export interface TrainedState {
  /** Updates behind the optimizer's moments. */
  readonly step: number;
  readonly tokens: number;
}

/** `state.json` of a training checkpoint, or null where `path` is none. */
export function trainedState(path: string): TrainedState | null {
  const file = join(path, "state.json");
  if (!existsSync(file)) return null;
  try {
    const { step, tokens, optimizerStep = step } = JSON.parse(readFileSync(file, "utf8")) as Record<string, unknown>;
    return typeof optimizerStep === "number" && typeof tokens === "number" ? { step: optimizerStep, tokens } : null;
  } catch {
    return null;
  }
}

/** An optimizer's tensors, open. */
export interface OptimizerSource extends Disposable {
  readonly reader: TensorReader;
  readonly has: (name: string) => boolean;
  readonly step: number;
}

/** Throws `configuration` where `path` has no optimizer state, `file` where it is broken or of another model. */
export function openOptimizer(path: string, dense: ModelConfig): OptimizerSource {
  const state = trainedState(path);
  const filePath = join(path, optimizerFile);
  if (state === null || !existsSync(filePath)) {
    throw new MoeError(
      "configuration",
      `upcycle: optimizer carry: expected a training checkpoint with ${optimizerFile} and state.json, got ${path}`,
    );
  }
  const file = openSafetensors(filePath);
  try {
    for (const { name, shape } of parameterSpecs(dense, "f32")) {
      const entry = file.tensors.get(`${name}.exp_avg`);
      if (entry?.dtype === "F32" && entry.shape.join() === shape.join()) continue;
      const got = entry === undefined ? "none" : `${entry.dtype} [${entry.shape.join(", ")}]`;
      throw fileError(filePath, `${name}.exp_avg as F32 [${shape.join(", ")}]`, got);
    }
  } catch (error) {
    file[Symbol.dispose]();
    throw error;
  }
  return {
    step: state.step,
    has: (name) => file.tensors.has(name),
    reader: {
      readFloat32: (name, into, from) => {
        file.readFloat32(name, into, from);
      },
      raw: () => null,
    },
    [Symbol.dispose]: () => {
      file[Symbol.dispose]();
    },
  };
}

/**
 * The tensors of the output's `optimizer.safetensors`: moments of every parameter, and masters of those stored in bf16. `reader` is
 * the optimizer's place among the maker's readers.
 */
export function optimizerTensors(
  dense: ModelConfig,
  plan: UpcycleTargetPlan,
  dtype: ModelDType,
  { has }: Pick<OptimizerSource, "has">,
  reader: number,
): OutputTensor[] {
  const byName = new Map(outputTensors(dense, plan, dtype).map((output) => [output.name, output.recipe]));
  const denseNames = new Map(
    parameterSpecs(dense, "f32").flatMap((spec) => huggingFacePieces(spec, "per-expert", dense).map(({ name }) => [name, spec.name])),
  );
  return parameterSpecs(plan.config, dtype).flatMap((spec) =>
    (spec.dtype === "bf16" ? ["exp_avg", "exp_avg_sq", "master"] : ["exp_avg", "exp_avg_sq"]).map((kind) => ({
      name: `${spec.name}.${kind}`,
      shape: spec.shape,
      dtype: "f32" as const,
      recipe: stateRecipe(spec, plan, kind, (name) => byName.get(name), denseNames, { has, reader }),
    })),
  );
}

function stateRecipe(
  spec: ParameterSpec,
  plan: UpcycleTargetPlan,
  kind: string,
  recipeOf: (name: string) => Recipe | undefined,
  denseNames: ReadonlyMap<string, string>,
  { has, reader }: { readonly has: (name: string) => boolean; readonly reader: number },
): Recipe {
  const pieces = huggingFacePieces(spec, "per-expert", plan.config);
  const parts = pieces.map(({ name }): Recipe => {
    const recipe = recipeOf(name);
    if (recipe === undefined) throw new MoeError("internal", `upcycle: no recipe for ${name}`);
    if (recipe.type !== "copy" && recipe.type !== "expert") return kind === "master" ? recipe : { type: "zero" };
    const state = `${denseNames.get(recipe.name) ?? ""}.${kind}`;
    // The weights of an f32 run are their own masters.
    if (kind === "master" && !has(state)) return recipe;
    if (recipe.type === "copy") return { type: "copy", from: reader, name: state };
    const { method } = recipe.change;
    const change =
      kind === "master"
        ? recipe.change
        : {
            ...recipe.change,
            factor: 1,
            method: method.type === "drop" ? ({ type: "clear", ratio: method.ratio } as const) : ({ type: "copy" } as const),
          };
    return { ...recipe, from: reader, name: state, change };
  });
  const [only] = parts;
  return only !== undefined && parts.length === 1 && !spec.name.includes(".moe.experts.") ? only : { type: "stack", parts };
}

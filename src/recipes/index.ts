/** Runs as named functions. `moe train <name>` takes one; `--set` changes single fields of what it returns. */
import { MoeError } from "../util/errors.ts";
import { didYouMean } from "../util/nearest.ts";
import { smollm2Finetune } from "./finetune.ts";
import type { Recipe } from "./recipe.ts";
import { tinyDense, tinyMoe } from "./tiny.ts";

export type { Recipe, RecipeInputs } from "./recipe.ts";
export { smollm2Finetune, tinyDense, tinyMoe };

export const recipes = {
  "tiny-dense": tinyDense,
  "tiny-moe": tinyMoe,
  "smollm2-finetune": smollm2Finetune,
} as const satisfies Readonly<Record<string, Recipe>>;

/** The recipe of this name. Throws `usage` with all names, and the nearest. */
export function findRecipe(name: string): Recipe {
  const names = Object.keys(recipes);
  const found = Object.entries(recipes).find(([key]) => key === name);
  if (found !== undefined) return found[1];
  throw new MoeError("usage", `train: no recipe or file "${name}"${didYouMean(name, names)}; recipes: ${names.join(", ")}`);
}

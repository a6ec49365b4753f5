/** What a recipe is: a named function from what only the user knows (paths) to a complete run configuration. */
import type { RunConfigInput } from "../config/run.ts";
import { MoeError } from "../util/errors.ts";

/** Paths that a recipe cannot know. */
export interface RecipeInputs {
  /** Model folder or GGUF file. */
  readonly model?: string | undefined;
  /** Training text: a text, JSONL, chat JSONL or Parquet file. */
  readonly text?: string | undefined;
  /** Held-out text, for the validation loss. Without it there is none. */
  readonly validation?: string | undefined;
}

/** Throws `usage` where an input that it needs is missing. */
export type Recipe = (inputs: RecipeInputs) => RunConfigInput;

/** An input that the recipe cannot do without. */
export function required(recipe: string, inputs: RecipeInputs, name: keyof RecipeInputs): string {
  const value = inputs[name];
  if (value === undefined) throw new MoeError("usage", `recipe ${recipe}: needs --${name} <path>`);
  return value;
}

/** The data section for sequences of this length. */
export function dataOf(recipe: string, inputs: RecipeInputs, sequenceLength: number): RunConfigInput["data"] {
  const { validation } = inputs;
  return {
    train: [{ path: required(recipe, inputs, "text") }],
    validation: validation === undefined ? {} : { validation: [{ path: validation }] },
    sequenceLength,
  };
}

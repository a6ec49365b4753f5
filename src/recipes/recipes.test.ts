import { expect, test } from "vitest";
import { fromHuggingFaceConfig } from "../config/model-huggingface.ts";
import { checkAgainstModel, parseRunConfig } from "../config/run.ts";
import { findRecipe, recipes, type Recipe } from "./index.ts";

const inputs = { model: "a-model", text: "a.txt", validation: "b.txt" };

test.each(Object.entries(recipes) as [string, Recipe][])("%s returns a complete configuration that fits its model", (name, recipe) => {
  const config = parseRunConfig(recipe(inputs), name);
  expect(config.data.train).toEqual([{ path: "a.txt" }]);
  expect(config.data.validation).toEqual({ validation: [{ path: "b.txt" }] });
  if (config.model.config !== undefined) expect(checkAgainstModel(config, fromHuggingFaceConfig(config.model.config, name))).toEqual([]);
  else expect(config.model.from).toBe("a-model");
});

test("a recipe says which input it lacks, and does without validation", () => {
  expect(() => recipes["tiny-dense"]({})).toThrow("recipe tiny-dense: needs --text <path>");
  expect(() => recipes["smollm2-finetune"]({ text: "a.txt" })).toThrow("recipe smollm2-finetune: needs --model <path>");
  expect(recipes["tiny-moe"]({ text: "a.txt" }).data.validation).toEqual({});
});

test("an unknown name is answered with the nearest and all of them", () => {
  expect(findRecipe("tiny-moe")).toBe(recipes["tiny-moe"]);
  expect(() => findRecipe("tiny-mo")).toThrow(
    'no recipe or file "tiny-mo" (did you mean "tiny-moe"?); recipes: tiny-dense, tiny-moe, smollm2-finetune',
  );
  expect(() => findRecipe("toString")).toThrow(/no recipe or file/);
});

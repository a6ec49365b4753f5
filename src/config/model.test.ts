import fc from "fast-check";
import { expect, test } from "vitest";
import { checkModelConfig, hasExperts, parseModelConfig, windowOfLayer, type ModelConfig } from "./model.ts";
import { modelPresets } from "./model-presets.ts";
import { MoeError } from "../util/errors.ts";

const moe = modelPresets["skywork-moe"];

test("every preset agrees with itself and passes through JSON", () => {
  for (const preset of Object.values(modelPresets)) expect(parseModelConfig(JSON.parse(JSON.stringify(preset)))).toEqual(preset);
});

test("an unknown key is an error that names the nearest known one, wherever it stands", () => {
  expect(() => parseModelConfig({ ...moe, numLayer: 3 })).toThrow(/unknown key "numLayer" \(did you mean "numLayers"\?\)/);
  expect(() => parseModelConfig({ ...moe, moe: { ...moe.moe, topk: 2 } })).toThrow(/moe: unknown key "topk" \(did you mean "topK"\?\)/);
  const gateNormalization = { ...moe.moe.gateNormalization, lamda: 1 };
  expect(() => parseModelConfig({ ...moe, moe: { ...moe.moe, gateNormalization } })).toThrow(/did you mean "lambda"/);
  expect(() => parseModelConfig({ ...moe, moe: { ...moe.moe, groups: { numGroups: 2, topGroup: 1 } } })).toThrow(
    /moe.groups: unknown key "topGroup" \(did you mean "topGroups"\?\)/,
  );
  expect(() => parseModelConfig({ ...moe, moe: { ...moe.moe, sharedExpert: { ffnsize: 2 } } })).toThrow(/did you mean "ffnSize"/);
  expect(() => parseModelConfig({ ...moe, moe: { ...moe.moe, gateLayers: 3 } })).toThrow(/moe.gateLayers/);
  expect(() => parseModelConfig({ ...moe, ropeScaling: { type: "linear", factor: 2, facter: 2 } })).toThrow(/did you mean "factor"/);
});

test("a missing or mistyped value names its key", () => {
  const { vocabSize: _, ...rest } = moe;
  expect(() => parseModelConfig(rest)).toThrow(/vocabSize/);
  expect(() => parseModelConfig({ ...moe, numHeads: "many" })).toThrow(/numHeads/);
  expect(() => parseModelConfig(null)).toThrow(MoeError);
});

test("values that contradict each other are errors that print all of them", () => {
  const contradictions: [Partial<ModelConfig>, RegExp][] = [
    [{ numHeads: 36, numKvHeads: 5 }, /numHeads 36 is not a multiple of numKvHeads 5/],
    [{ headDim: 127 }, /headDim 127/],
    [{ moe: { ...moe.moe, topK: 17 } }, /topK 17 is above moe.numExperts 16/],
    [{ moe: { ...moe.moe, numExperts: 1e9 } }, /numExperts 1000000000 in numLayers 52 are more than 1048576 experts together/],
    [{ moe: { ...moe.moe, layerInterval: 53 } }, /layerInterval 53 with numLayers 52/],
    [{ moe: { ...moe.moe, numExperts: 1, topK: 1 } }, /numExperts 1/],
    [{ eosTokenIds: [2, 70_000] }, /eosTokenIds \[2,70000\] is not below vocabSize 65532/],
    [{ slidingWindow: { size: 4, firstLayer: 52 } }, /firstLayer 52 with numLayers 52/],
    [{ moe: { ...moe.moe, groups: { numGroups: 3, topGroups: 1 } } }, /numExperts 16 is not a multiple of moe.groups.numGroups 3/],
    [{ moe: { ...moe.moe, groups: { numGroups: 4, topGroups: 5 } } }, /topGroups 5 is above moe.groups.numGroups 4/],
    [{ moe: { ...moe.moe, topK: 5, groups: { numGroups: 4, topGroups: 1 } } }, /topK 5 is above the 4 experts of moe.groups.topGroups 1/],
    [{ moe: { ...moe.moe, scoring: "softmaxOfTopK", renormalize: false } }, /softmaxOfTopK with moe.renormalize false/],
    [{ numKvHeads: 5, headDim: 3 }, /numKvHeads 5; headDim 3/],
  ];
  for (const [change, message] of contradictions) expect(() => checkModelConfig({ ...moe, ...change })).toThrow(message);
});

test("whatever is parsed, the answer is a configuration or a MoeError", () => {
  fc.assert(
    fc.property(fc.dictionary(fc.constantFrom(...Object.keys(moe)), fc.jsonValue()), (change) => {
      try {
        parseModelConfig({ ...moe, ...change });
      } catch (error) {
        expect(error).toBeInstanceOf(MoeError);
      }
    }),
    { numRuns: 300 },
  );
});

test("experts and windows are where the configuration puts them", () => {
  const config: ModelConfig = { ...moe, numLayers: 5, moe: { ...moe.moe, layerInterval: 2 }, slidingWindow: { size: 7, firstLayer: 3 } };
  expect([0, 1, 2, 3, 4].map((layer) => hasExperts(config, layer))).toEqual([false, true, false, true, false]);
  expect([0, 1, 2, 3, 4].map((layer) => windowOfLayer(config, layer))).toEqual([0, 0, 0, 7, 7]);
});

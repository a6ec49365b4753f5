import { expect, test } from "vitest";
import type { ModelConfig } from "./model.ts";
import { modelPresets } from "./model-presets.ts";
import { applySettings, checkAgainstModel, parseRunConfig, type RunConfigInput } from "./run.ts";

const minimal: RunConfigInput = {
  model: { from: "model" },
  data: { train: [{ path: "text.txt" }], sequenceLength: 64 },
  batchSequences: 8,
  numSteps: 10,
  optimizer: { learningRate: 1e-3 },
};

test("a parsed configuration is complete and parses to itself", () => {
  const config = parseRunConfig(minimal);
  expect(config.microBatchSequences).toBe(8);
  expect(config.schedule).toEqual({ name: "cosine", warmupSteps: 0, decaySteps: 0, decay: "sqrt", finalFraction: 0.1 });
  expect(parseRunConfig(JSON.parse(JSON.stringify(config)))).toEqual(config);
});

test.each([
  ["an unknown key", { learnigRate: 1 }, /recipe x: unknown key "learnigRate"/],
  ["an unknown key with its nearest", { numStep: 5 }, /unknown key "numStep" \(did you mean "numSteps"\?\)/],
  [
    "a nested one",
    { optimizer: { learningRate: 1, weightDeacy: 0 } },
    /unknown key "optimizer\.weightDeacy" \(did you mean "weightDecay"\?\)/,
  ],
  [
    "one in a list",
    { data: { train: [{ path: "a", fromat: "text" }], sequenceLength: 4 } },
    /unknown key "data\.train\.0\.fromat" \(did you mean "format"\?\)/,
  ],
  [
    "one in a validation set",
    { data: { ...minimal.data, validation: { a: [{ pth: "a", path: "a" }] } } },
    /unknown key "data\.validation\.a\.0\.pth" \(did you mean "path"\?\)/,
  ],
  ["a value out of range", { numSteps: 0 }, /numSteps: .*got 0/],
  ["a value that is not one of a set", { precision: "fp16" }, /precision: .*"f32"\|"bf16".*got "fp16"/],
  ["a micro-batch that does not divide", { microBatchSequences: 3 }, /microBatchSequences 3 does not divide batchSequences 8/],
  ["a model from two places", { model: { from: "a", config: {} } }, /exactly one of model\.from .* and model\.config/],
  ["a model from nowhere", { model: {} }, /exactly one of/],
  ["a new tokenizer for a model that has one", { newTokenizer: { vocabSize: 300 } }, /newTokenizer contradicts model\.from "model"/],
  ["two tokenizers", { model: { config: {} }, tokenizer: "t", newTokenizer: { vocabSize: 300 } }, /newTokenizer contradicts tokenizer "t"/],
  [
    "more warm-up and decay than steps",
    { schedule: { name: "wsd", warmupSteps: 6, decaySteps: 6 } },
    /warmupSteps 6 \+ decaySteps 6 exceed numSteps 10/,
  ],
  [
    "a decay that the schedule does not have",
    { schedule: { name: "cosine", decaySteps: 2 } },
    /decaySteps 2 needs schedule\.name "wsd", got "cosine"/,
  ],
  ["a WSD schedule that never decays", { schedule: { name: "wsd" } }, /schedule\.name "wsd" needs schedule\.decaySteps, got 0/],
  [
    "a schedule that is only simulated",
    { layout: { pp: 2, schedule: "zeroBubble" } },
    /layout\.schedule "zeroBubble" .* simulated, not run; use "1f1b"/,
  ],
  [
    "a balance group that a micro-batch cuts",
    { microBatchSequences: 4, moe: { balanceGroupSequences: 3 } },
    /moe\.balanceGroupSequences 3 does not divide microBatchSequences 4/,
  ],
  [
    "a coefficient that follows drops where nothing drops",
    { moe: { auxiliaryLossCoefficient: { type: "adaptive" } } },
    /adaptive follows a drop rate: give moe\.capacityFactor, or moe\.virtualCapacityFactor/,
  ],
  [
    "a coefficient of another form",
    { moe: { auxiliaryLossCoefficient: { type: "fixd", value: 1 } } },
    /moe\.auxiliaryLossCoefficient\.type: /,
  ],
  [
    "a misspelt field of it",
    { moe: { auxiliaryLossCoefficient: { type: "adaptive", alpha: 1 } } },
    /unknown key "moe\.auxiliaryLossCoefficient\.alpha"/,
  ],
])("is refused: %s", (_, changes, message) => {
  expect(() => parseRunConfig({ ...minimal, ...changes }, "recipe x")).toThrow(message);
});

test("all problems are named at once", () => {
  expect(() => parseRunConfig({ ...minimal, numSteps: -1, precison: "f32" })).toThrow(
    /numSteps: .*; unknown key "precison" \(did you mean "precision"\?\)/,
  );
});

test("what contradicts the model is refused, what has no effect on it is told", () => {
  const dense = modelPresets.quickstart;
  const config = (changes: Partial<RunConfigInput>): string[] => checkAgainstModel(parseRunConfig({ ...minimal, ...changes }), dense);
  expect(config({})).toEqual([]);
  expect(config({ moe: { capacityFactor: 1.5 } })).toEqual(["moe.capacityFactor 1.5 has no effect: the model has no experts"]);
  expect(() => config({ data: { ...minimal.data, sequenceLength: 513 } })).toThrow(
    /sequenceLength 513 exceeds the model's max_position_embeddings 512/,
  );
  expect(() => config({ recomputeLayers: 5 })).toThrow(/recomputeLayers 5 exceeds the model's 4 layers/);
  const moe = parseRunConfig({ ...minimal, moe: { dropBy: "position" } });
  expect(checkAgainstModel(moe, modelPresets["skywork-moe"])).toEqual(['moe.dropBy "position" has no effect without moe.capacityFactor']);
});

test("options of routing that change nothing are told, those that the model lacks the parts for are refused", () => {
  const warnings = (changes: Partial<RunConfigInput>, model: ModelConfig = modelPresets["skywork-moe"]): string[] =>
    checkAgainstModel(parseRunConfig({ ...minimal, ...changes }), model);
  expect(warnings({ moe: { auxiliaryLossCoefficient: { type: "adaptive" }, capacityFactor: 1 }, microBatchSequences: 4 })).toEqual([]);
  expect(warnings({ moe: { padToCapacity: true } })).toEqual(["moe.padToCapacity has no effect without moe.capacityFactor"]);
  expect(warnings({ moe: { capacityFactor: 2, virtualCapacityFactor: 1 } })).toEqual([
    "moe.virtualCapacityFactor 1 has no effect: moe.capacityFactor 2 drops",
  ]);
  expect(warnings({ moe: { forcedBalance: true } })).toEqual([expect.stringMatching(/forcedBalance is on: .* for benchmarks only/)]);
  // 64 tokens, top-2 of 16 experts: a fair share of 8, of which a twentieth is less than one.
  expect(warnings({ moe: { capacityFactor: 0.05, balanceGroupSequences: 1 } })).toEqual([
    expect.stringMatching(/is 0\.40 tokens an expert/),
  ]);
  expect(() => warnings({ moe: { biasUpdateRate: 1e-3 } })).toThrow(/moe\.biasUpdateRate 0\.001 needs a model with a selection bias/);
  expect(warnings({ moe: { auxiliaryLossCoefficient: 0.02, zLossCoefficient: 1 } }, modelPresets.quickstart)).toEqual([
    'moe.auxiliaryLossCoefficient {"type":"fixed","value":0.02} has no effect: the model has no experts',
    "moe.zLossCoefficient 1 has no effect: the model has no experts",
  ]);
  expect(warnings({ schedule: { name: "constant", finalFraction: 0.5 } })).toEqual([
    'schedule.finalFraction 0.5 has no effect: a "constant" schedule does not decay',
  ]);
  expect(warnings({ schedule: { decay: "linear" } })).toEqual([
    'schedule.decay "linear" has no effect: schedule.name is "cosine", not "wsd"',
  ]);
});

test("a number is a fixed coefficient, and the balance group is the micro-batch unless it is given", () => {
  const moe = (changes: RunConfigInput["moe"]): object => parseRunConfig({ ...minimal, microBatchSequences: 4, moe: changes }).moe;
  expect(moe({})).toMatchObject({ auxiliaryLossCoefficient: { type: "fixed", value: 0.01 }, balanceGroupSequences: 4 });
  expect(moe({ auxiliaryLossCoefficient: 0.5, balanceGroupSequences: 2 })).toMatchObject({
    auxiliaryLossCoefficient: { type: "fixed", value: 0.5 },
    balanceGroupSequences: 2,
  });
  expect(moe({ auxiliaryLossCoefficient: { type: "adaptive", xi: 1 }, virtualCapacityFactor: 1 })).toMatchObject({
    auxiliaryLossCoefficient: { type: "adaptive", xi: 1, alphaMax: 0.01, beta: 0.99, alpha0: null },
  });
});

test("settings change single fields, of lists too, and leave the original alone", () => {
  const changed = applySettings(minimal, [
    "numSteps=5",
    "data.train.0.path=b.txt",
    "optimizer.clipNorm=null",
    "schedule.name=wsd",
    "schedule.decaySteps=2",
  ]);
  expect(parseRunConfig(changed)).toMatchObject({
    numSteps: 5,
    optimizer: { clipNorm: null },
    data: { train: [{ path: "b.txt" }] },
    schedule: { decaySteps: 2 },
  });
  expect(minimal.numSteps).toBe(10);
  expect(() => parseRunConfig(applySettings(minimal, ["optimizer.leaningRate=1"]))).toThrow(
    /unknown key "optimizer\.leaningRate" \(did you mean "learningRate"\?\)/,
  );
  expect(() => applySettings(minimal, ["numSteps"])).toThrow(/--set numSteps: expected key=value/);
  expect(() => applySettings([1], ["a=1"])).toThrow(/expected an object, got \[1\]/);
});

test("settings cannot reach the prototype of objects", () => {
  const changed = applySettings(minimal, ["__proto__.polluted=1", "constructor.prototype.polluted=1"]);
  expect(Object.hasOwn(Object.prototype, "polluted")).toBe(false);
  expect(() => parseRunConfig(changed)).toThrow(/unknown key/);
});

/**
 * Every architecture against Hugging Face transformers (`make.py`), on every engine: logits, loss and gradients. Then the
 * test of the test: with any single part of the computation left out, the comparison must fail.
 */
import { afterAll, describe, expect, test } from "vitest";
import type { BackendName } from "../../../src/backend/backend.ts";
import type { ModelConfig, MoeConfig } from "../../../src/config/model.ts";
import { Decoder, loadModel, parameterSpecs, writeElements } from "../../../src/model/index.ts";
import type { Engine } from "../../../src/tensor/index.ts";
import { backendNames, startEngines } from "./engines.ts";
import {
  computeGradients,
  computeLogits,
  goldenFolder,
  goldenNames,
  readGolden,
  readGoldenGradients,
  relativeDistance,
  relativeGap,
  type GoldenName,
} from "./golden.ts";

/** Largest gap of logits over the largest logit, f32. */
const logitsTolerance = 1e-4;
/** Largest gap of a gradient over its largest element, per tensor, f32. */
const gradientTolerance = 1e-3;
/**
 * bf16 has 8 bits: the loss, relative, and the distance of a gradient over its length, per tensor. Where tokens are routed, some
 * go to another expert after rounding, which the gradient of a small router shows. (Measured: 0.002, 0.12, 0.42.)
 */
const bf16LossTolerance = 5e-3;
const bf16GradientTolerance = 0.2;
const bf16RoutedGradientTolerance = 0.6;

const { engines, missing } = await startEngines();
afterAll(() => {
  for (const engine of engines.values()) engine[Symbol.dispose]();
});

describe.each(backendNames)("on the %s engine", (backendName) => {
  test.skipIf(missing.has(backendName)).each(goldenNames)("%s gives the logits, loss and gradients of the golden file", (name) => {
    const engine = engineOf(backendName);
    const golden = readGolden(name);
    {
      using model = loadModel(engine, goldenFolder(name), { dtype: "f32", mapped: false });
      expect(relativeGap(computeLogits(engine, model, golden.sequences), golden.logits)).toBeLessThan(logitsTolerance);
      const { loss, gradients } = computeGradients(engine, model, golden.sequences);
      expect(Math.abs(loss - golden.loss)).toBeLessThan(1e-5 * golden.loss);
      for (const [parameter, expected] of readGoldenGradients(name, model)) {
        const gradient = gradients.get(parameter);
        expect(gradient, parameter).toBeDefined();
        expect(relativeGap(gradient ?? expected, expected), parameter).toBeLessThan(gradientTolerance);
      }
    }
    expect(engine.backend.liveBytes).toBe(0);
  });

  test.skipIf(missing.has(backendName)).each(goldenNames)("%s in bf16 gives gradients that point the same way", (name) => {
    const engine = engineOf(backendName);
    const golden = readGolden(name);
    {
      using model = loadModel(engine, goldenFolder(name), { dtype: "bf16", mapped: false });
      const { loss, gradients } = computeGradients(engine, model, golden.sequences);
      expect(Math.abs(loss - golden.loss)).toBeLessThan(bf16LossTolerance * golden.loss);
      const tolerance = model.config.moe === null ? bf16GradientTolerance : bf16RoutedGradientTolerance;
      for (const [parameter, expected] of readGoldenGradients(name, model)) {
        expect(relativeDistance(gradients.get(parameter) ?? new Float32Array(expected.length), expected), parameter).toBeLessThan(
          tolerance,
        );
      }
    }
    expect(engine.backend.liveBytes).toBe(0);
  });
});

/** Each way to get a model wrong, and the models that have the part. */
interface Mutation {
  readonly left: string;
  readonly models: readonly GoldenName[];
  readonly config?: (config: ModelConfig) => ModelConfig;
  readonly weights?: (model: Decoder) => void;
}
const moeModels: readonly GoldenName[] = ["skywork-moe", "skywork-moe-lambda2", "skywork-moe-gate2"];
const qwenMoeModels: readonly GoldenName[] = ["qwen2-moe", "qwen3-moe", "olmoe"];
/** The same model but for a part of its experts. */
function routed(change: (moe: MoeConfig) => Partial<MoeConfig>): (config: ModelConfig) => ModelConfig {
  return (config) => ({ ...config, moe: config.moe === null ? null : { ...config.moe, ...change(config.moe) } });
}
const mutations: readonly Mutation[] = [
  // Frequencies of next to nothing: every angle is 0.
  { left: "the rotation", models: goldenNames, config: (c) => ({ ...c, ropeScaling: { type: "linear", factor: 1e30 } }) },
  { left: "the rope scaling", models: ["llama3"], config: (c) => ({ ...c, ropeScaling: null }) },
  { left: "norm weights", models: goldenNames, weights: (model) => fill(model, /[nN]orm\.weight$/, 1) },
  { left: "one norm weight", models: goldenNames, weights: (model) => fill(model, /^layers\.0\.feedForwardNorm\.weight$/, 1) },
  { left: "biases", models: ["qwen2", "qwen2-moe"], weights: (model) => fill(model, /(query|key|value)\.bias$/, 0) },
  { left: "the value bias", models: ["qwen2", "qwen2-moe"], weights: (model) => fill(model, /value\.bias$/, 0) },
  { left: "QK norm", models: ["qwen3", "qwen3-moe", "olmoe"], config: (c) => ({ ...c, qkNorm: "none" }) },
  {
    left: "the weights of the query norm",
    models: ["qwen3", "qwen3-moe", "olmoe"],
    weights: (model) => fill(model, /queryNorm\.weight$/, 1),
  },
  {
    left: "the weights of the key norm",
    models: ["qwen3", "qwen3-moe", "olmoe"],
    weights: (model) => fill(model, /keyNorm\.weight$/, 1),
  },
  { left: "the window", models: ["mistral", "qwen2"], config: (c) => ({ ...c, slidingWindow: null }) },
  {
    left: "the first windowed layer",
    models: ["qwen2"],
    config: (c) => ({ ...c, slidingWindow: c.slidingWindow === null ? null : { ...c.slidingWindow, firstLayer: 0 } }),
  },
  { left: "gating normalization", models: moeModels, config: routed(() => ({ gateNormalization: null })) },
  {
    left: "the unbiased deviation",
    models: moeModels,
    config: routed(({ gateNormalization }) => ({ gateNormalization: { lambda: gateNormalization?.lambda ?? 1, eps: 0, unbiased: false } })),
  },
  {
    left: "the second expert",
    models: ["mixtral", ...qwenMoeModels, ...moeModels, "skywork-moe-sigmoid"],
    config: routed(({ topK }) => ({ topK: topK - 1 })),
  },
  // Each way round: two of them divide by the sum of the chosen, two do not.
  {
    left: "the right renormalization",
    models: ["mixtral", "skywork-moe", ...qwenMoeModels, "skywork-moe-sigmoid"],
    config: routed(({ renormalize }) => ({ renormalize: !renormalize })),
  },
  { left: "the shared expert", models: ["qwen2-moe", "skywork-moe-sigmoid"], config: routed(() => ({ sharedExpert: null })) },
  {
    left: "the gate of the shared expert",
    models: ["qwen2-moe", "skywork-moe-sigmoid"],
    config: routed(({ sharedExpert }) => ({ sharedExpert: sharedExpert === null ? null : { ...sharedExpert, gate: false } })),
  },
  {
    left: "the factor of the shared expert",
    models: ["skywork-moe-sigmoid"],
    config: routed(({ sharedExpert }) => ({ sharedExpert: sharedExpert === null ? null : { ...sharedExpert, scale: 1 } })),
  },
  { left: "sigmoid scores", models: ["skywork-moe-sigmoid"], config: routed(() => ({ scoring: "softmax" })) },
  { left: "the groups of experts", models: ["skywork-moe-sigmoid"], config: routed(() => ({ groups: null })) },
  { left: "the bias for choosing", models: ["skywork-moe-sigmoid"], config: routed(() => ({ selectionBias: false })) },
  { left: "the factor of the routed experts", models: ["skywork-moe-sigmoid"], config: routed(() => ({ routedScale: 1 })) },
  { left: "the factor of the experts' input", models: ["skywork-moe-gate2"], config: routed(() => ({ inputScale: 1 })) },
  {
    left: "the first layer of the gate",
    models: ["skywork-moe-gate2"],
    weights: (model) => fill(model, /router\.hidden\.weight$/, 0.1),
  },
  { left: "the norm's epsilon", models: ["llama2"], config: (c) => ({ ...c, normEps: 1e-2 }) },
];
const cases = mutations.flatMap((mutation) => mutation.models.map((name) => ({ ...mutation, name })));

test.each(cases)("the comparison fails without $left ($name)", ({ name, config, weights }) => {
  const engine = engineOf("reference");
  const golden = readGolden(name);
  using model = loadModel(engine, goldenFolder(name), { dtype: "f32", mapped: false });
  weights?.(model);
  using mutant = mutate(model, config ?? ((c) => c));
  expect(relativeGap(computeLogits(engine, mutant, golden.sequences), golden.logits)).toBeGreaterThan(10 * logitsTolerance);
});

function engineOf(name: BackendName): Engine {
  const engine = engines.get(name);
  if (engine === undefined) throw new Error(missing.get(name) ?? "no engine");
  return engine;
}
/** The same weights under another configuration (parameters that it does not have are left out). */
function mutate(model: Decoder, change: (config: ModelConfig) => ModelConfig): Decoder {
  const config = change(model.config);
  const names = new Set(parameterSpecs(config, model.dtype).map((spec) => spec.name));
  const kept = [...model.parameters].filter(([name]) => names.has(name));
  return new Decoder(model.engine, config, model.dtype, new Map(kept.map(([name, tensor]) => [name, tensor.retain()])));
}
function fill(model: Decoder, pattern: RegExp, value: number): void {
  const tensors = [...model.parameters].filter(([name]) => pattern.test(name));
  expect(tensors.length).toBeGreaterThan(0);
  for (const [, tensor] of tensors) writeElements(tensor, 0, new Float32Array(tensor.size).fill(value));
}

import { expect, test } from "vitest";
import {
  activationBytes,
  flopsPerToken,
  forwardFlopsPerToken,
  kvBytesPerToken,
  numActiveParams,
  numMoeLayers,
  numParams,
} from "./model-counts.ts";
import { fromHuggingFaceConfig } from "./model-huggingface.ts";
import { modelPresets } from "./model-presets.ts";
import type { ModelConfig, MoeConfig } from "./model.ts";

test("the presets have the published numbers of parameters", () => {
  // Skywork-MoE: derived in the report's terms, 146.36B and 22.69B. Mixtral: arXiv 2401.04088 (47B, 13B). SmolLM2: its model card.
  expect(numParams(modelPresets["skywork-moe"]) / 1e9).toBeCloseTo(146.36, 2);
  expect(numActiveParams(modelPresets["skywork-moe"]) / 1e9).toBeCloseTo(22.69, 2);
  expect(numParams(modelPresets["mixtral-8x7b"])).toBe(46_702_792_704);
  expect(numActiveParams(modelPresets["mixtral-8x7b"]) / 1e9).toBeCloseTo(12.88, 2);
  expect(numParams(modelPresets["smollm2-135m"])).toBe(134_515_008);
  expect(numParams(modelPresets["skywork-13b"]) / 1e9).toBeCloseTo(13.85, 2);
});

test("published models with shared experts and with norms of queries and keys have their published numbers of parameters", () => {
  // Model cards: Qwen1.5-MoE-A2.7B 14.3B in all and 2.7B active, Qwen3-30B-A3B 30.5B and 3.3B, OLMoE-1B-7B (arXiv 2409.02060) 6.92B and 1.28B.
  const of = (json: Record<string, unknown>): number[] => {
    const config = fromHuggingFaceConfig(json);
    return [numParams(config) / 1e9, numActiveParams(config) / 1e9];
  };
  const qwen = { vocab_size: 151_936, hidden_size: 2048, num_key_value_heads: 16, num_attention_heads: 16, num_hidden_layers: 24 };
  const [qwen2 = 0, qwen2Active = 0] = of({ ...qwen, model_type: "qwen2_moe", intermediate_size: 5632 });
  expect(qwen2).toBeCloseTo(14.32, 2);
  expect(qwen2Active).toBeCloseTo(2.69, 2);
  const large = { ...qwen, num_attention_heads: 32, num_key_value_heads: 4, head_dim: 128, num_hidden_layers: 48 };
  const [qwen3 = 0, qwen3Active = 0] = of({ ...large, model_type: "qwen3_moe", intermediate_size: 6144 });
  expect(qwen3).toBeCloseTo(30.53, 2);
  expect(qwen3Active).toBeCloseTo(3.35, 2);
  const [olmoe = 0, olmoeActive = 0] = of({
    model_type: "olmoe",
    vocab_size: 50_304,
    hidden_size: 2048,
    intermediate_size: 1024,
    num_hidden_layers: 16,
    num_attention_heads: 16,
  });
  expect(olmoe).toBeCloseTo(6.92, 2);
  expect(olmoeActive).toBeCloseTo(1.28, 2);
});

test("a two-layer gate, a shared expert and a bias for choosing are counted, in parameters and in FLOPs", () => {
  const base = modelPresets["skywork-moe"];
  const changed = (moe: Partial<MoeConfig>): ModelConfig => ({ ...base, moe: { ...base.moe, ...moe } });
  const { hiddenSize: H, numLayers: L } = base;
  const difference = (moe: Partial<MoeConfig>): number[] => [
    numParams(changed(moe)) - numParams(base),
    (forwardFlopsPerToken(changed(moe), 1) - forwardFlopsPerToken(base, 1)) / 2,
  ];
  const gate = L * (128 * H + 16 * 128 - 16 * H);
  expect(difference({ gateLayers: 2 })).toEqual([gate, gate]);
  const shared = L * (3 * H * 100 + H);
  expect(difference({ sharedExpert: { ffnSize: 100, gate: true, scale: 1 } })).toEqual([shared, shared]);
  expect(difference({ sharedExpert: { ffnSize: 100, gate: false, scale: 1 } })).toEqual([shared - L * H, shared - L * H]);
  expect(difference({ selectionBias: true })).toEqual([L * 16, 0]);
});

test("a dense model's active parameters are all of them", () => {
  expect(numActiveParams(modelPresets.quickstart)).toBe(numParams(modelPresets.quickstart));
});

test("FLOPs of a token are 6 times the active matrix parameters, and attention grows with the sequence", () => {
  const c = modelPresets["mixtral-8x7b"];
  const matrices = numActiveParams(c) - c.vocabSize * c.hiddenSize - (2 * c.numLayers + 1) * c.hiddenSize;
  // At length 1 a token sees one key: 4 * heads * headDim FLOPs a layer forward.
  expect(flopsPerToken(c, 1)).toBe(6 * matrices + 3 * 4 * c.numLayers * c.numHeads * c.headDim);
  const perKey = forwardFlopsPerToken(c, 3) - forwardFlopsPerToken(c, 1);
  expect(perKey).toBe(4 * c.numLayers * c.numHeads * c.headDim);
});

test("a window bounds the keys that are counted", () => {
  const c: ModelConfig = { ...modelPresets["mixtral-8x7b"], slidingWindow: { size: 3, firstLayer: 0 } };
  // Positions 0..4 see 1, 2, 3, 3, 3 keys: 2.4 on average, against 3 without the window.
  const difference = forwardFlopsPerToken(modelPresets["mixtral-8x7b"], 5) - forwardFlopsPerToken(c, 5);
  expect(difference).toBeCloseTo(0.6 * 4 * c.numLayers * c.numHeads * c.headDim, 0);
});

test("Skywork-MoE leaves 958,464 bytes of bf16 keys and values a token", () => {
  // 2 * 52 layers * 36 heads * 128 * 2 bytes. Over 8 ranks by heads, 5 of 36: 133 KB, the report's upper figure.
  expect(kvBytesPerToken(modelPresets["skywork-moe"], 2)).toBe(958_464);
});

test("an interval leaves dense layers between those with experts", () => {
  const base = modelPresets["skywork-moe"];
  const c: ModelConfig = { ...base, moe: { ...base.moe, layerInterval: 2 } };
  expect(numMoeLayers(c)).toBe(26);
  const oneLayer = 15 * 3 * 4608 * 12_288 + 16 * 4608;
  expect(numParams(base) - numParams(c)).toBe(26 * oneLayer);
});

test("recomputing every layer keeps little more than each layer's input", () => {
  const c = modelPresets["skywork-13b"];
  const whole = activationBytes(c, { numTokens: 4096, elementBytes: 2 });
  const recomputed = activationBytes(c, { numTokens: 4096, elementBytes: 2, recomputeLayers: c.numLayers });
  expect(recomputed / (4096 * 2 * c.hiddenSize)).toBeCloseTo(c.numLayers + 2, 0);
  expect(whole).toBeGreaterThan(10 * recomputed);
});

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
import { modelPresets } from "./model-presets.ts";
import type { ModelConfig } from "./model.ts";

test("the presets have the published numbers of parameters", () => {
  // Skywork-MoE: derived in the report's terms, 146.36B and 22.69B. Mixtral: arXiv 2401.04088 (47B, 13B). SmolLM2: its model card.
  expect(numParams(modelPresets["skywork-moe"]) / 1e9).toBeCloseTo(146.36, 2);
  expect(numActiveParams(modelPresets["skywork-moe"]) / 1e9).toBeCloseTo(22.69, 2);
  expect(numParams(modelPresets["mixtral-8x7b"])).toBe(46_702_792_704);
  expect(numActiveParams(modelPresets["mixtral-8x7b"]) / 1e9).toBeCloseTo(12.88, 2);
  expect(numParams(modelPresets["smollm2-135m"])).toBe(134_515_008);
  expect(numParams(modelPresets["skywork-13b"]) / 1e9).toBeCloseTo(13.85, 2);
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

import { describe, expect, test } from "vitest";
import { findClusterPreset, parseClusterConfig, withNumDevices, type ClusterConfig } from "../config/cluster.ts";
import { kvBytesPerToken, numParams } from "../config/model-counts.ts";
import { modelPresets } from "../config/model-presets.ts";
import { planServing, type ServingRequest } from "./serving.ts";

const cards = findClusterPreset("rtx-4090");
const request: ServingRequest = {
  model: modelPresets["skywork-moe"],
  cluster: cards,
  weights: "fp8",
  kvElementBytes: 2,
  promptTokens: 512,
  outputTokens: 512,
  memoryReserve: 0.05,
};
const sum = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0);

describe("serving Skywork-MoE, 146B in FP8, on 8 cards of 24 GB", () => {
  const report = planServing(request);

  test("heads go [5, 5, 5, 5, 4, 4, 4, 4]; weights are 18.4 GB a card in the mean, the cache 106 to 133 KB a token", () => {
    expect(report.heads).toEqual([5, 5, 5, 5, 4, 4, 4, 4]);
    // 146.36 GB of FP8 and 0.6 GB more of bf16 embeddings and f32 routers and norms.
    expect(sum(report.weightBytes) / 1e9).toBeCloseTo(147, 0);
    for (const bytes of report.weightBytes) expect(Math.abs(bytes / 18.4e9 - 1)).toBeLessThan(0.05);
    expect(Math.min(...report.kvBytesPerToken)).toBe(106_496);
    expect(Math.max(...report.kvBytesPerToken)).toBe(133_120);
    expect(sum(report.kvBytesPerToken)).toBe(kvBytesPerToken(request.model, 2));
  });

  test("the largest batch fits every card, and one more token than the room does not fit some card", () => {
    const { roomBytes, cacheTokens, kvBytesPerToken: each, largestBatch } = report;
    expect(largestBatch).toBe(Math.floor(cacheTokens / 1024));
    for (const [rank, room] of roomBytes.entries()) expect(largestBatch * 1024 * (each[rank] ?? 0)).toBeLessThanOrEqual(room);
    expect(roomBytes.some((room, rank) => (cacheTokens + 1) * (each[rank] ?? 0) > room)).toBe(true);
  });

  test("the announced 2200 tokens a second lie between what short and long contexts allow", () => {
    const rate = (promptTokens: number, outputTokens: number): number =>
      planServing({ ...request, promptTokens, outputTokens }).batches.at(-1)?.decodeTokensPerSecond ?? 0;
    expect(rate(64, 64)).toBeGreaterThan(2200);
    expect(rate(1024, 1024)).toBeLessThan(2200);
  });

  test("a step is never faster than reading what it must at the card's bandwidth", () => {
    for (const { batch, stepMs, decodeTokensPerSecond, tokensPerSecond, weightsMs, cacheMs, communicationMs } of report.batches) {
      expect(stepMs).toBeGreaterThan(communicationMs);
      expect(stepMs).toBeGreaterThan(weightsMs);
      const cache = (batch * 768 * Math.max(...report.kvBytesPerToken)) / 1.008e12;
      expect(cacheMs).toBeGreaterThan(1e3 * cache);
      expect(decodeTokensPerSecond).toBeCloseTo(batch / (stepMs / 1e3), 6);
      expect(tokensPerSecond).toBeLessThan(decodeTokensPerSecond);
    }
    const steps = report.batches.map(({ stepMs }) => stepMs);
    expect(steps).toEqual(steps.toSorted((a, b) => a - b));
  });
});

test("one dense model on one card: a step reads all weights once, and that is its time", () => {
  const cluster: ClusterConfig = withNumDevices(
    parseClusterConfig({ ...cards, efficiency: { ...cards.efficiency, kernelSeconds: 0, memory: 1, gemm: 1 } }),
    1,
  );
  const model = { ...modelPresets["skywork-13b"], numLayers: 20 };
  const { batches, weightBytes, heads } = planServing({
    ...request,
    model,
    cluster,
    weights: "bf16",
    promptTokens: 1,
    outputTokens: 1,
    memoryReserve: 0,
  });
  expect(heads).toEqual([36]);
  expect((weightBytes[0] ?? 0) / (2 * numParams(model))).toBeCloseTo(1, 3);
  // All but the embedding, of which a token reads one row.
  const read = 2 * (numParams(model) - model.vocabSize * model.hiddenSize);
  expect((batches[0]?.stepMs ?? 0) / ((1e3 * read) / 1.008e12)).toBeCloseTo(1, 2);
});

test("FP8 keys and values hold twice the sequences", () => {
  const [two, one] = [planServing(request), planServing({ ...request, kvElementBytes: 1 })];
  expect(one.largestBatch / two.largestBatch).toBeCloseTo(2, 1);
});

test("what cannot be held says how many cards would do, and that many do", () => {
  let message = "";
  try {
    planServing({ ...request, weights: "bf16" });
  } catch (error) {
    message = String(error);
  }
  expect(message).toMatch(/8 x RTX-4090 cannot hold the weights in bf16 and one sequence; the smallest number that does is \d+/);
  const count = Number(/is (\d+)$/.exec(message)?.[1]);
  const group = cards.nodes[0];
  const of = (devicesPerNode: number): ClusterConfig => parseClusterConfig({ ...cards, nodes: [{ ...group, devicesPerNode }] });
  expect(planServing({ ...request, weights: "bf16", cluster: of(count) }).largestBatch).toBeGreaterThan(0);
  expect(() => planServing({ ...request, weights: "bf16", cluster: of(count - 1) })).toThrow("cannot hold");
});

test("sequences beyond the model, several kinds of cards and a reserve of all memory are refused", () => {
  expect(() => planServing({ ...request, memoryReserve: 1 })).toThrow("expected a share of at least 0 and below 1, got 1");
  expect(() => planServing({ ...request, promptTokens: 8000 })).toThrow("8000 + 512 tokens exceed the model's 8192 positions");
  expect(() => planServing({ ...request, cluster: { ...cards, nodes: [...cards.nodes, ...cards.nodes] } })).toThrow("devices of one kind");
});

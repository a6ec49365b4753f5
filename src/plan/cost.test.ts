import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { findClusterPreset, withNumDevices, type ClusterConfig } from "../config/cluster.ts";
import { flopsPerToken, forwardFlopsPerToken, numParams } from "../config/model-counts.ts";
import { modelPresets } from "../config/model-presets.ts";
import { createCostModel } from "./cost.ts";
import { gptShape, shapeOf } from "./shape.ts";
import { softwarePresets } from "./software.ts";
import { evenStages, stepTime } from "./step-time.ts";
import type { CostModel, PlanLayout, Software, StagePlan, Workload } from "./types.ts";

const one: PlanLayout = { pp: 1, dp: 1, tp: 1, ep: 1, etp: 1, microBatch: 1, interleave: 1, sequenceParallel: false, zero: 0 };
const a800 = findClusterPreset("a800");
const skyworkMoe: Workload = {
  model: shapeOf(modelPresets["skywork-moe"]),
  sequenceLength: 8192,
  batchSequences: 1024,
  software: softwarePresets.megatron,
};
/** The run of arXiv 2406.06563: PP 12, TP = EP 4, DP 32, ZeRO-1. */
const skyworkLayout: PlanLayout = { ...one, pp: 12, dp: 32, tp: 4, ep: 4, zero: 1 };
const stage: StagePlan = { firstLayer: 5, numLayers: 4, fullRecompute: 0, selectiveRecompute: 0, embedding: false, head: false };

function costOf(workload: Workload, layout: PlanLayout, cluster = a800): CostModel {
  return createCostModel({ workload, cluster, layout });
}

describe("cost model", () => {
  test("bytes and parameters of Skywork-MoE's layout are those of hand arithmetic", () => {
    const cost = costOf(skyworkMoe, skyworkLayout);
    const layer = cost.layer(0, "none");
    const [H, F] = [4608, 12_288];
    // A quarter of four H x H projections; two norms; the whole gate. Four whole experts of three H x F matrices.
    expect(layer.parameters).toBe(H * H + 2 * H + 16 * H);
    expect(layer.expertParameters).toBe(4 * 3 * H * F);
    // Two all-reduces of 8192 x 4608 bf16 a pass, each rank sending 2 * 3/4 of them; no tokens travel.
    const reduce = 2 * 0.75 * 8192 * H * 2;
    expect(layer.forward.sentBytes).toEqual({ tp: 2 * reduce, ep: 0, pp: 0, dp: 0 });
    // Backward also the gradients of two combine weights a token, in f32.
    expect(layer.backward.sentBytes).toEqual({ tp: 2 * reduce + 2 * 0.75 * 8192 * 2 * 4, ep: 0, pp: 0, dp: 0 });
    expect(cost.boundary().bytes).toBe((8192 * H * 2) / 4);
    // ZeRO-1 over 32: f32 gradients reduced and scattered, bf16 weights gathered.
    const parameters = 4 * (layer.parameters + layer.expertParameters);
    expect(cost.stepEnd(stage).sentBytes).toBeCloseTo((parameters * (4 + 2) * 31) / 32, 3);
    const memory = cost.stageMemory(stage, 1);
    expect(memory.weights).toBe(2 * parameters);
    expect(memory.gradients).toBe(4 * parameters);
    expect(memory.optimizer).toBeCloseTo((12 * parameters) / 32, 3);
  });

  test("with sequence parallelism EDP's tokens travel inside the group, and are as many bytes as the formula says", () => {
    const cost = costOf(skyworkMoe, { ...skyworkLayout, sequenceParallel: true });
    const { sentBytes } = cost.layer(0, "none").forward;
    const tokenBytes = 4608 * 2;
    // Each rank has 2048 tokens, sends two copies of each, three quarters of them to others, and gets the results back.
    expect(sentBytes.ep).toBe(2 * 2048 * 2 * 0.75 * tokenBytes);
    // Attention's gather and scattered sum.
    expect(sentBytes.tp).toBe(2 * 0.75 * 8192 * tokenBytes);
  });

  test.each(Object.entries(modelPresets))("parameters and FLOPs of %s on one device are the model's own", (_, config) => {
    const workload: Workload = { model: shapeOf(config), sequenceLength: 256, batchSequences: 1, software: softwarePresets.megatron };
    const cost = costOf(workload, one);
    const parts = [cost.embedding(), cost.head(), ...Array.from({ length: config.numLayers }, (_2, i) => cost.layer(i, "none"))];
    const counted = parts.reduce((sum, part) => sum + part.parameters + part.expertParameters, 0);
    const tied = config.tiedEmbeddings ? config.vocabSize * config.hiddenSize : 0;
    // The shape has no biases and norms of queries and keys: next to nothing.
    expect(counted - tied).toBeLessThanOrEqual(numParams(config));
    expect((counted - tied) / numParams(config)).toBeGreaterThan(0.9999);
    const forward = parts.reduce((sum, part) => sum + part.forward.flops, 0);
    expect(forward / 256 / forwardFlopsPerToken(config, 256)).toBeCloseTo(1, 6);
    // Fused attention computes scores again in its backward pass: more than twice the forward pass by a little.
    const all = forward + parts.reduce((sum, part) => sum + part.backward.flops, 0);
    expect(all / 256 / flopsPerToken(config, 256)).toBeGreaterThanOrEqual(1);
    expect(all / 256 / flopsPerToken(config, 256)).toBeLessThan(1.05);
  });

  test("a parameter costs 18 bytes in Megatron's mixed precision, 6 + 12 / dp under ZeRO-1, 18 / dp under ZeRO-3", () => {
    const model = gptShape({ numLayers: 4, hiddenSize: 1024, numHeads: 16, vocabSize: 51_200 });
    const workload: Workload = { model, sequenceLength: 512, batchSequences: 8, software: softwarePresets.megatron };
    const whole: StagePlan = { ...stage, firstLayer: 0, embedding: true, head: true };
    const perParameter = (zero: 0 | 1 | 2 | 3): number => {
      const cost = costOf(workload, { ...one, dp: 8, zero });
      const { weights, gradients, optimizer } = cost.stageMemory(whole, 1);
      const parameters = 4 * cost.layer(0, "none").parameters + cost.embedding().parameters + 2 * 1024;
      return (weights + gradients + optimizer) / parameters;
    };
    expect(perParameter(0)).toBeCloseTo(18, 9);
    expect(perParameter(1)).toBeCloseTo(6 + 12 / 8, 9);
    expect(perParameter(2)).toBeCloseTo(2 + 16 / 8, 9);
    expect(perParameter(3)).toBeCloseTo(18 / 8, 9);
  });

  test("GPT-3 175B keeps S b H (10 + 24 / t + 5 a S / (H t)) bytes a layer, times p micro-batches on the first of p stages (arXiv 2205.05198)", () => {
    const model = gptShape({ numLayers: 96, hiddenSize: 12_288, numHeads: 96, vocabSize: 51_200 });
    const software = softwarePresets["megatron-deepspeed"];
    const workload: Workload = { model, sequenceLength: 2048, batchSequences: 64, software };
    const cost = costOf(workload, { ...one, pp: 8, tp: 8 });
    const perLayer = cost.layer(0, "none").activationBytes;
    // S b H (10 + 24/8 + 5 * 96 * 2048 / (12288 * 8)) = 2048 * 12288 * 23 bytes.
    expect(perLayer).toBe(2048 * 12_288 * 23);
    const first: StagePlan = { ...stage, firstLayer: 0, numLayers: 12 };
    expect(cost.stageMemory(first, 8).activations).toBe(8 * 12 * perLayer);
  });

  test("more work never takes less time or memory", () => {
    const size = fc.record({
      layers: fc.integer({ min: 2, max: 12 }),
      heads: fc.constantFrom(8, 16, 24),
      microBatch: fc.constantFrom(1, 2, 4),
      microBatches: fc.integer({ min: 1, max: 12 }),
      tp: fc.constantFrom(1, 2, 4),
      pp: fc.constantFrom(1, 2),
      experts: fc.constantFrom(0, 8),
    });
    fc.assert(
      fc.property(size, ({ layers, heads, microBatch, microBatches, tp, pp, experts }) => {
        const run = (L: number, M: number): { seconds: number; bytes: number } => {
          const config = { ...modelPresets["mixtral-8x7b"], numLayers: L, numHeads: heads, hiddenSize: heads * 128 };
          const model = shapeOf(experts === 0 ? { ...config, moe: null } : config);
          const workload: Workload = { model, sequenceLength: 1024, batchSequences: M * microBatch, software: softwarePresets.megatron };
          const cost = costOf(workload, { ...one, tp, pp, ep: experts === 0 ? 1 : tp, microBatch });
          const stages = evenStages(L, pp, "none");
          const [first] = stages;
          return { seconds: stepTime(cost, stages).seconds, bytes: first === undefined ? 0 : cost.stageMemory(first, pp).total };
        };
        const base = run(layers, microBatches);
        const deeper = run(layers + pp, microBatches);
        expect(deeper.seconds).toBeGreaterThan(base.seconds);
        expect(deeper.bytes).toBeGreaterThan(base.bytes);
        expect(run(layers, microBatches + 1).seconds).toBeGreaterThan(base.seconds);
      }),
      { numRuns: 60 },
    );
  });

  test("recomputation costs a forward pass and frees what a layer keeps; selective lies between", () => {
    const software = softwarePresets["megatron-deepspeed"];
    const model = gptShape({ numLayers: 8, hiddenSize: 4096, numHeads: 32, vocabSize: 51_200 });
    const cost = costOf({ model, sequenceLength: 2048, batchSequences: 8, software }, { ...one, tp: 4 });
    const [none, selective, full] = [cost.layer(0, "none"), cost.layer(0, "selective"), cost.layer(0, "full")];
    expect(none.recompute.seconds).toBe(0);
    expect(full.recompute).toEqual(full.forward);
    expect(selective.recompute.seconds).toBeGreaterThan(0);
    expect(selective.recompute.seconds).toBeLessThan(full.recompute.seconds / 2);
    expect(none.activationBytes).toBeGreaterThan(selective.activationBytes);
    expect(selective.activationBytes).toBeGreaterThan(full.activationBytes);
  });

  test("of our trainer the head's products all run in the forward pass, and products add up gradients themselves", () => {
    const cpu = findClusterPreset("cpu");
    const model = shapeOf({
      ...modelPresets["mixtral-8x7b"],
      numLayers: 4,
      hiddenSize: 256,
      numHeads: 4,
      numKvHeads: 4,
      vocabSize: 4096,
      moe: null,
    });
    const of = (software: Software, layout: Partial<PlanLayout> = {}): CostModel =>
      costOf({ model, sequenceLength: 256, batchSequences: 8, software }, { ...one, ...layout }, cpu);
    const own = softwarePresets["moe.ts"];
    const kept: Software = { ...own, logits: "kept", fusedAccumulation: false };
    const [ours, other] = [of(own), of(kept)];
    expect(ours.head().backward.flops).toBe(0);
    expect(ours.head().forward.flops).toBe(other.head().forward.flops + other.head().backward.flops);
    expect(ours.layer(0, "none").backward.seconds).toBeLessThan(other.layer(0, "none").backward.seconds);
    expect(ours.layer(0, "none").backward.flops).toBe(other.layer(0, "none").backward.flops);
    // Blocks of keys cost most where sequences are short.
    const blocked = (S: number): number => {
      const workload = { model, sequenceLength: S, batchSequences: 8, software: own };
      const plain = { ...workload, software: { ...own, attentionBlock: 1 } };
      const attention = (work: Workload): number => costOf(work, one, cpu).layer(0, "selective").recompute.seconds;
      return attention(workload) / attention(plain);
    };
    expect(blocked(128)).toBeGreaterThan(1.3);
    expect(blocked(1024)).toBeLessThan(1.1);
  });

  test("devices that leave each other less than their own speed are slower the more of a node compute", () => {
    const a100 = findClusterPreset("a100-80");
    const seconds = (dp: number, together: number): number =>
      costOf(skyworkMoe, { ...one, dp }, { ...a100, efficiency: { ...a100.efficiency, together } }).layer(0, "none").forward.seconds;
    expect(seconds(1, 0.5)).toBe(seconds(1, 1));
    expect(seconds(4, 0.5)).toBeGreaterThan(seconds(2, 0.5));
    expect(seconds(8, 0.5) / seconds(1, 0.5)).toBeCloseTo(2, 1);
    // Beyond a node nothing more is shared.
    expect(seconds(16, 0.5)).toBe(seconds(8, 0.5));
  });

  test("pipeline ranks slow each other down while they compute, which is more of the time the more micro-batches there are", () => {
    const a100 = findClusterPreset("a100-80");
    const halved = { ...a100, efficiency: { ...a100.efficiency, together: 0.5 } };
    const seconds = (layout: Partial<PlanLayout>, cluster: ClusterConfig): number =>
      costOf(skyworkMoe, { ...one, ...layout }, cluster).layer(0, "none").forward.seconds;
    const slowdown = (layout: Partial<PlanLayout>): number => seconds(layout, halved) / seconds(layout, a100);
    // 8 ranks of a node: 1 + (m / (m + 7)), m = 1024 / micro-batch.
    expect(slowdown({ pp: 8, microBatch: 1024 })).toBeCloseTo(1 + 1 / 8, 2);
    expect(slowdown({ pp: 8, microBatch: 128 })).toBeCloseTo(1 + 8 / 15, 2);
    expect(slowdown({ pp: 2, dp: 4, microBatch: 256 })).toBeCloseTo(1 + (3 + 4 / 2) / 7, 2);
  });

  test("a layout that does not fit the batch, the model or the device is refused with the values", () => {
    const refused =
      (layout: Partial<PlanLayout>, workload = skyworkMoe): (() => unknown) =>
      () =>
        costOf(workload, { ...one, ...layout });
    expect(refused({ dp: 3, microBatch: 2 })).toThrow("layout: dp 3 * micro-batch 2 does not divide the batch of 1024 sequences");
    expect(refused({ pp: 64 })).toThrow("layout: pp 64 for 52 layers: some stages would have none");
    expect(refused({ tp: 64 })).toThrow("layout: tp 64 for 36 heads");
    expect(refused({ tp: 4, ep: 8 })).toThrow("layout: ep 8 * etp 1 does not divide dp 1 * tp 4");
    expect(refused({ dp: 32, ep: 32 })).toThrow("layout: ep 32 for 16 experts");
    const fp8 = costOf({ ...skyworkMoe, software: { ...skyworkMoe.software, computeType: "fp8" } }, one);
    expect(() => fp8.layer(0, "none")).toThrow("device A800 does not compute in fp8; it has f32, bf16, f16");
  });

  test("groups that span nodes are slower than those inside one, and small clusters have no network to wait for", () => {
    const cost = (tp: number): number =>
      costOf({ ...skyworkMoe, software: { ...skyworkMoe.software } }, { ...one, tp, ep: 1, etp: tp }).layer(0, "none").forward
        .communicationSeconds;
    expect(cost(8)).toBeGreaterThan(cost(4));
    // Twelve ranks share two nodes: the sum goes through the network.
    expect(cost(12)).toBeGreaterThan(1.5 * cost(8));
    const boundary = (devices: number): number =>
      costOf(skyworkMoe, { ...one, pp: 2, tp: 4, ep: 4 }, withNumDevices(a800, devices)).boundary().seconds;
    expect(boundary(4)).toBeGreaterThan(boundary(8));
  });

  test("a pipeline of short stages over several nodes waits for the boundaries between nodes, though others lie inside", () => {
    // Two stages of 4 ranks on a node of 8: every second boundary goes through the network, with a quarter of 8192 x 4608 bf16 a rank.
    const boundary = (pp: number): number => costOf(skyworkMoe, { ...one, pp, tp: 4, ep: 4, sequenceParallel: true }).boundary().seconds;
    const { inter, efficiency } = a800;
    const throughNetwork = (8192 * 4608 * 2) / 4 / (inter.bandwidth * efficiency.interLink);
    expect(boundary(2)).toBeLessThan(throughNetwork / 2);
    for (const pp of [3, 16]) expect(boundary(pp) / throughNetwork).toBeCloseTo(1, 1);
  });
});

import { describe, expect, test } from "vitest";
import { findClusterPreset } from "../config/cluster.ts";
import { modelPresets } from "../config/model-presets.ts";
import type { SharedExpertConfig } from "../config/model.ts";
import { createCostModel } from "./cost.ts";
import { shapeOf } from "./shape.ts";
import { softwarePresets } from "./software.ts";
import type { PlanLayout } from "./types.ts";

const sequenceLength = 4096;
const { hiddenSize: H, moe } = modelPresets["mixtral-8x7b"];
const shared = { ffnSize: 2048, gate: false, scale: 1 };
const usual: PlanLayout = { pp: 1, dp: 2, tp: 4, ep: 1, etp: 1, microBatch: 1, interleave: 1, sequenceParallel: false, zero: 0 };

/** Bytes that a rank sends over tp and ep in a forward and a backward pass of a layer, over those of its attention. */
function sentBytes(layout: Partial<PlanLayout>, sharedExpert: SharedExpertConfig | null = null): Record<"tp" | "ep", number>[] {
  const model = shapeOf({ ...modelPresets["mixtral-8x7b"], moe: { ...moe, sharedExpert } });
  const workload = { model, sequenceLength, batchSequences: 2, software: softwarePresets.megatron };
  const cost = createCostModel({ workload, cluster: findClusterPreset("a800"), layout: { ...usual, ...layout } });
  const { forward, backward } = cost.layer(0, "none");
  // Attention's sum, or its gather and scattered sum, which are as many bytes.
  return [forward, backward].map(({ sentBytes: { tp, ep } }) => ({ tp: tp - sum, ep }));
}
/** Of [T, H] in bf16 over 4 ranks: a gather, as many for a scattered sum, twice as many for a sum. */
const gather = (3 / 4) * 2 * sequenceLength * H;
const sum = 2 * gather;
/** The sum of the gradients of two combine weights a token, in f32. */
const weights = 2 * (3 / 4) * 4 * sequenceLength * moe.topK;
/** Rows to the experts and back in bf16, of a rank that has a quarter of the tokens, where each of n ranks has as many of the experts. */
const rows = (n: number): number => ((2 * (n - 1)) / n) * 2 * (sequenceLength / 4) * moe.topK * H;

describe("experts", () => {
  test.each([
    ["EDP", { ep: 4 }],
    ["TP", { etp: 4 }],
    ["ep 2, etp 2", { ep: 2, etp: 2 }],
  ])("of %s on all tokens of the tensor-parallel group are one sum, and backward that of the combine weights' gradients", (_, layout) => {
    expect(sentBytes(layout)).toEqual([
      { tp: sum, ep: 0 },
      { tp: sum + weights, ep: 0 },
    ]);
  });

  test("of which every rank has columns gather tokens and scatter the sum under sequence parallelism, as a dense network does", () => {
    expect(sentBytes({ etp: 4, sequenceParallel: true })).toEqual([
      { tp: 2 * gather, ep: 0 },
      { tp: 2 * gather + weights, ep: 0 },
    ]);
  });

  test("which every rank has all of send nothing, and are gathered where ranks hold the tokens alike", () => {
    const nothing = { tp: 0, ep: 0 };
    expect(sentBytes({ sequenceParallel: true })).toEqual([nothing, nothing]);
    expect(sentBytes({})).toEqual([
      { tp: gather, ep: 0 },
      { tp: gather, ep: 0 },
    ]);
  });

  test.each([
    ["fewer ranks than the tensor-parallel ones", 2],
    ["more", 8],
  ])("over %s exchange tokens, which are cut before and gathered behind where ranks hold them alike", (_, ep) => {
    const cut = { tp: gather, ep: rows(ep) };
    expect(sentBytes({ ep })).toEqual([cut, cut]);
    expect(sentBytes({ ep, sequenceParallel: true })).toEqual([cut, cut].map((bytes) => ({ ...bytes, tp: 0 })));
  });
});

describe("a shared expert", () => {
  const added = (layout: Partial<PlanLayout>): number[] => {
    const without = sentBytes(layout);
    return sentBytes(layout, shared).map(({ tp }, i) => tp - (without[i]?.tp ?? 0));
  };

  test("is in the gather and the sum of the routed experts where they have them", () => {
    expect(added({ ep: 4 })).toEqual([0, 0]);
    for (const sequenceParallel of [false, true]) expect(added({ etp: 4, sequenceParallel })).toEqual([0, 0]);
  });
  test("needs a sum of its own where tokens are exchanged or every rank has all experts", () => {
    expect(added({ ep: 8 })).toEqual([sum, sum]);
    expect(added({})).toEqual([sum, sum]);
  });
  test("gathers its tokens and scatters its sum under sequence parallelism", () => {
    for (const ep of [1, 4, 8]) expect(added({ ep, sequenceParallel: true })).toEqual([2 * gather, 2 * gather]);
  });
});

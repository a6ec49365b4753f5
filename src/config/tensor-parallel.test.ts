import fc from "fast-check";
import { expect, test } from "vitest";
import { modelPresets } from "./model-presets.ts";
import type { ModelConfig } from "./model.ts";
import { intervalLength, type Interval } from "../util/partition.ts";
import { describePlan, tensorParallelPlan } from "./tensor-parallel.ts";
import { headSegments, kvHeadsOf, ownedKvHeads } from "./rank-share.ts";

const skywork = modelPresets["skywork-moe"];
const smollm = modelPresets["smollm2-135m"];
const lengths = (list: readonly Interval[]): number[] => list.map(intervalLength);

test("Skywork-MoE, 146B, in FP8 on 8 cards of 24 GB: 18.3 to 18.4 GB of weights and 106 to 133 KB of cache a token and card", () => {
  const plan = tensorParallelPlan(skywork, {
    ranks: 8,
    memoryBytes: 24e9,
    cacheTokens: 8192,
    format: { weights: "fp8", kvElementBytes: 2 },
  });
  expect(plan.mode).toBe("experts");
  expect(lengths(plan.ranks.map(({ share }) => share.heads))).toEqual([5, 5, 5, 5, 4, 4, 4, 4]);
  // 52 layers x 2 x 128 x 2 bytes, times 5 and 4 heads.
  expect(plan.ranks.map(({ kvBytesPerToken }) => kvBytesPerToken)).toEqual([
    133_120, 133_120, 133_120, 133_120, 106_496, 106_496, 106_496, 106_496,
  ]);
  for (const { weightBytes, totalBytes } of plan.ranks) {
    expect(weightBytes / 1e9).toBeGreaterThan(18.25);
    expect(weightBytes / 1e9).toBeLessThan(18.45);
    expect(totalBytes).toBeLessThan(24e9);
  }
  expect(plan.notes[0]).toContain("[5, 5, 5, 5, 4, 4, 4, 4]: the same critical path as padding to 40, 10.0% less memory");
  expect(describePlan(plan).length).toBe(1 + 8 + plan.notes.length);
});

test("9 query heads over 3 key heads on 2 ranks are 5 and 4, with the middle key head on both", () => {
  const { ranks } = tensorParallelPlan(smollm, { ranks: 2, format: { weights: "bf16" } });
  expect(ranks.map(({ share }) => [share.heads, share.kvHeads])).toEqual([
    [
      { start: 0, end: 5 },
      { start: 0, end: 2 },
    ],
    [
      { start: 5, end: 9 },
      { start: 1, end: 3 },
    ],
  ]);
  expect(headSegments({ start: 0, end: 5 }, smollm)).toEqual([
    { numHeads: 3, numKvHeads: 1 },
    { numHeads: 2, numKvHeads: 1 },
  ]);
});

test("padding keeps groups of query heads whole: 9 over 3 on 2 ranks are 12, and the uneven cut is faster", () => {
  const { notes, slowdown, paddedSlowdown } = tensorParallelPlan(smollm, { ranks: 2, format: { weights: "bf16" } });
  expect(notes[0]).toContain("[5, 4]: a shorter critical path than padding to 12, 25.0% less memory");
  expect(slowdown).toBeLessThan(paddedSlowdown);
});

test("segments are the heads, in order, and key heads are owned once", () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 8 }), fc.integer({ min: 1, max: 8 }), fc.integer({ min: 1, max: 12 }), (kv, group, ranks) => {
      const config = { numHeads: kv * group, numKvHeads: kv };
      const bounds = Array.from({ length: ranks + 1 }, (_, r) => Math.floor((r * config.numHeads) / ranks));
      const owned: number[] = [];
      for (let r = 0; r < ranks; r++) {
        const heads = { start: bounds[r] ?? 0, end: bounds[r + 1] ?? 0 };
        const segments = headSegments(heads, config);
        const held = kvHeadsOf(heads, config);
        expect(segments.length).toBeLessThanOrEqual(3);
        let [head, key] = [heads.start, held.start];
        for (const { numHeads, numKvHeads } of segments) {
          for (let h = 0; h < numHeads; h++) expect(Math.floor((head + h) / group)).toBe(key + Math.floor(h / (numHeads / numKvHeads)));
          head += numHeads;
          key += numKvHeads;
        }
        expect([head, key]).toEqual([heads.end, held.end]);
        const { start, end } = ownedKvHeads(heads, config);
        for (let k = start; k < end; k++) {
          owned.push(k);
          expect(k >= held.start && k < held.end).toBe(true);
        }
      }
      expect(owned).toEqual(Array.from({ length: kv }, (_, k) => k));
    }),
  );
});

test("faster ranks get more, and a rank of speed 0 gets nothing", () => {
  const plan = tensorParallelPlan(skywork, { ranks: 3, weights: [2, 1, 0], format: { weights: "fp8" }, mode: "experts" });
  expect(lengths(plan.ranks.map(({ share }) => share.heads))).toEqual([24, 12, 0]);
  expect(lengths(plan.ranks.map(({ share }) => share.experts))).toEqual([11, 5, 0]);
  expect(plan.ranks[2]?.kvBytesPerToken).toBe(0);
  expect(plan.notes).toEqual([]);
});

test("where whole experts do not divide, slices are faster and chosen", () => {
  expect(tensorParallelPlan(skywork, { ranks: 5, format: { weights: "fp8" } }).mode).toBe("slices");
  expect(tensorParallelPlan(skywork, { ranks: 4, format: { weights: "fp8" } }).mode).toBe("experts");
});

test("every plan keeps its memory limits, and is refused only where the whole does not fit", () => {
  const config: ModelConfig = { ...skywork, numLayers: 2, hiddenSize: 64, headDim: 4, vocabSize: 301 };
  const whole = tensorParallelPlan(config, { ranks: 1, format: { weights: "bf16" } }).ranks[0]?.weightBytes ?? 0;
  fc.assert(
    fc.property(fc.array(fc.double({ min: 0.02, max: 1, noNaN: true }), { minLength: 1, maxLength: 6 }), (parts) => {
      const memoryBytes = parts.map((part) => part * whole);
      const room = parts.reduce((a, b) => a + b, 0);
      try {
        const plan = tensorParallelPlan(config, { ranks: parts.length, memoryBytes, format: { weights: "bf16" } });
        for (const [r, { totalBytes }] of plan.ranks.entries()) expect(totalBytes).toBeLessThanOrEqual(memoryBytes[r] ?? 0);
        for (const what of ["heads", "experts", "expertColumns", "vocab"] as const) {
          const sum = lengths(plan.ranks.map(({ share }) => share[what])).reduce((a, b) => a + b, 0);
          expect(sum).toBeGreaterThan(0);
        }
      } catch (error) {
        expect(String(error)).toContain("tensor parallelism: the model needs");
        // Norms and routers are on every rank, and an expert is no small thing.
        expect(room).toBeLessThan(1.25 + 0.05 * parts.length);
      }
    }),
    { numRuns: 200 },
  );
});

test("uneven shares take less than padding, by what the arithmetic says", () => {
  for (const ranks of [5, 7]) {
    for (const config of [smollm, skywork]) {
      const plan = tensorParallelPlan(config, { ranks, format: { weights: "bf16" } });
      const used = plan.ranks.reduce((sum, { weightBytes }) => sum + weightBytes, 0);
      expect(used).toBeLessThan(ranks * plan.padded.weightBytes);
      const cache = plan.ranks.reduce((sum, { kvBytesPerToken }) => sum + kvBytesPerToken, 0);
      // A key head whose group is cut is on two ranks: at most one more a cut than there are.
      expect(cache).toBeLessThanOrEqual((config.numKvHeads + ranks - 1) * config.headDim * 4 * config.numLayers);
      expect(plan.slowdown).toBeLessThanOrEqual(plan.paddedSlowdown * (1 + 1e-9));
    }
  }
});

test("under FP8 block scales no cut goes through a block", () => {
  for (const [config, ranks] of [
    [smollm, 2],
    [skywork, 7],
    [{ ...skywork, headDim: 96 }, 5],
  ] as const) {
    for (const mode of ["experts", "slices"] as const) {
      const plan = tensorParallelPlan(config, { ranks, mode, format: { weights: "fp8", scales: "block128" } });
      for (const { share } of plan.ranks.slice(0, -1)) {
        expect((share.heads.end * config.headDim) % 128 === 0 || share.heads.end === config.numHeads).toBe(true);
        expect((share.kvHeads.end * config.headDim) % 128 === 0 || share.kvHeads.end === config.numKvHeads).toBe(true);
        expect(share.ffn.end % 128 === 0 || share.ffn.end === config.ffnSize).toBe(true);
        expect(share.expertColumns.end % 128).toBe(0);
      }
    }
  }
});

test("options that make no sense are refused", () => {
  expect(() => tensorParallelPlan(smollm, { ranks: 0, format: { weights: "bf16" } })).toThrow(/got 0/);
  expect(() => tensorParallelPlan(smollm, { ranks: 2, weights: [1], format: { weights: "bf16" } })).toThrow(/2 speeds/);
  expect(() => tensorParallelPlan(smollm, { ranks: 2, memoryBytes: 1e6, format: { weights: "bf16" } })).toThrow(/needs 0.27 GB/);
});

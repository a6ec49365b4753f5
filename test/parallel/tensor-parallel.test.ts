/**
 * Models cut over 1 to 12 ranks give one rank's logits, whatever divides: every golden model, one with 9 query heads over 3 key heads, and
 * one of Skywork-MoE's shape.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { loadBackend } from "../../src/backend/load.ts";
import { modelPresets } from "../../src/config/model-presets.ts";
import { plainRouting, type ModelConfig } from "../../src/config/model.ts";
import { Decoder, loadModel, quantizeModel, saveModel, type ModelDType } from "../../src/model/index.ts";
import {
  startRanks,
  tensorParallelPlan,
  type ExpertMode,
  type TensorParallelPlan,
  type ScaleLayout,
  type WeightFormat,
} from "../../src/parallel/index.ts";
import { Engine } from "../../src/tensor/index.ts";
import { intervalLength } from "../../src/util/partition.ts";
import { goldenFolder, goldenNames, relativeDistance, relativeGap } from "../golden/models/golden.ts";
import { cacheTokens, runJob, weightBytes, type Job, type JobResult } from "./rank-logits.ts";

const engine = new Engine(await loadBackend({ numThreads: 1 }));
const entry = new URL("./rank.ts", import.meta.url);
const sequences = [Array.from({ length: 17 }, (_, i) => (i * 7 + 3) % 61), [5], [60, 0, 31, 2, 2, 9]];

/** Heads, key heads, columns, experts and vocabulary of which hardly anything divides. */
const smollm: ModelConfig = {
  ...modelPresets["smollm2-135m"],
  vocabSize: 101,
  hiddenSize: 36,
  ffnSize: 50,
  numLayers: 2,
  numHeads: 9,
  numKvHeads: 3,
  headDim: 4,
  bosTokenId: 1,
  eosTokenIds: [2],
  padTokenId: null,
  initStd: 0.2,
};
const skywork: ModelConfig = {
  ...modelPresets["skywork-moe"],
  vocabSize: 131,
  hiddenSize: 72,
  ffnSize: 44,
  numLayers: 2,
  numHeads: 36,
  numKvHeads: 36,
  headDim: 2,
  moe: { ...modelPresets["skywork-moe"].moe, expertFfnSize: 44 },
  initStd: 0.2,
};
/** 8 experts of 128 columns with 128 hidden: FP8 blocks. */
const blocky: ModelConfig = {
  ...modelPresets["mixtral-8x7b"],
  vocabSize: 75,
  hiddenSize: 256,
  ffnSize: 384,
  numLayers: 2,
  numHeads: 6,
  numKvHeads: 3,
  headDim: 64,
  moe: { ...plainRouting, numExperts: 5, topK: 2, expertFfnSize: 384 },
  initStd: 0.08,
};

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-parallel-"));
  for (const [name, config] of Object.entries({ smollm, skywork, blocky })) {
    using model = Decoder.initialize(engine, config, { dtype: "f32", seed: 7 });
    saveModel(model, join(folder, name));
  }
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(engine.backend.liveBytes).toBe(0);
  engine[Symbol.dispose]();
});

interface Case {
  readonly path: string;
  readonly dtype: ModelDType;
  readonly mode?: ExpertMode;
  readonly format?: WeightFormat;
  readonly scales?: ScaleLayout;
  readonly weights?: readonly number[];
  readonly ffnUnit?: number;
}
interface CaseResult {
  readonly plan: TensorParallelPlan;
  readonly ranks: readonly JobResult[];
}
/** All cases in one group of `size` ranks. */
async function runCases(size: number, cases: readonly Case[], texts = sequences, mapped = size % 2 === 0): Promise<CaseResult[]> {
  const plans = cases.map(({ path, dtype, format = dtype, scales = "channel", ...rest }) => {
    using model = loadModel(engine, path, { dtype });
    return tensorParallelPlan(model.config, {
      ranks: size,
      format: { weights: format, scales, kvElementBytes: dtype === "f32" ? 4 : 2 },
      ...rest,
    });
  });
  const jobs = cases.map(({ path, dtype, format }, i): Job => {
    const shares = plans[i]?.ranks.map(({ share }) => share) ?? [];
    return { path, dtype, mapped: mapped || format === "fp8", shares, sequences: texts };
  });
  const results = (await startRanks({ size, entry, data: jobs, timeoutMs: 500_000, backend: { numThreads: 1 } }).results) as {
    results: JobResult[];
    leaked: number;
  }[];
  expect(results.map(({ leaked }) => leaked)).toEqual(results.map(() => 0));
  return plans.map((plan, i) => ({ plan, ranks: results.flatMap(({ results: list }) => list[i] ?? []) }));
}
/** What one rank gives, and the bytes that it holds. */
function alone({ path, dtype }: Pick<Case, "path" | "dtype">, texts = sequences): ReturnType<typeof runJob> {
  using model = loadModel(engine, path, { dtype });
  return runJob(model, texts);
}

/** One rank's, by path: the same for every count of ranks. */
const oneRank = new Map<string, ReturnType<typeof runJob>>();
/** Twelve threads on two cores take a while: three counts by default, all of them with MOE_LONG=1. */
const sizes = process.env["MOE_LONG"] === "1" ? [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] : [1, 2, 7];
test.each(sizes)(
  "%i ranks give one rank's f32 logits, with and without a cache, and hold what was predicted",
  async (size) => {
    // Every family on a few counts of ranks; on the others those with parts of their own.
    const families = size <= 3 || size === 5 ? goldenNames : (["smollm2", "qwen3-moe", "qwen2-moe", "olmoe", "mixtral"] as const);
    const golden = families.map((name): Case => ({ path: goldenFolder(name), dtype: "f32" }));
    const cases: Case[] = [
      ...golden,
      { path: join(folder, "smollm"), dtype: "f32" },
      { path: join(folder, "skywork"), dtype: "f32", mode: "experts" },
      { path: join(folder, "skywork"), dtype: "f32", mode: "slices", ffnUnit: 3 },
      { path: goldenFolder("qwen2-moe"), dtype: "f32", weights: Array.from({ length: size }, (_, r) => (r % 3 === 1 ? 0 : 1 + r)) },
    ];
    for (const [i, { plan, ranks }] of (await runCases(size, cases)).entries()) {
      const { path, dtype } = cases[i] ?? { path: "", dtype: "f32" };
      const expected = oneRank.get(path) ?? alone({ path, dtype });
      oneRank.set(path, expected);
      for (const [r, rank] of ranks.entries()) {
        expect(relativeGap(rank.logits, expected.logits), `${path} rank ${r}`).toBeLessThan(2e-5);
        expect(relativeGap(rank.cached, expected.cached), `${path} rank ${r}`).toBeLessThan(2e-5);
        expect(rank.logits, path).toEqual(ranks[0]?.logits);
        expect(rank.choices).toEqual(expected.choices);
        expect(rank.weightBytes, path).toBe(plan.ranks[r]?.weightBytes);
        expect(rank.cacheBytes).toBe(cacheTokens * (plan.ranks[r]?.kvBytesPerToken ?? 0));
        if (size % 2 === 1) expect(rank.liveBytes).toBe(rank.weightBytes);
      }
    }
  },
  600_000,
);

test("Skywork-MoE's shape over 8 ranks: 5, 5, 5, 5, 4, 4, 4, 4 heads and 2 whole experts each", () => {
  const { ranks } = tensorParallelPlan(skywork, { ranks: 8, format: { weights: "f32" } });
  expect(ranks.map(({ share }) => intervalLength(share.heads))).toEqual([5, 5, 5, 5, 4, 4, 4, 4]);
  expect(ranks.map(({ share }) => intervalLength(share.experts))).toEqual([2, 2, 2, 2, 2, 2, 2, 2]);
});

test("bf16 and FP8 logits of many ranks are no further from one rank's f32 logits than 1.2 times one rank's, and flips are counted", async () => {
  const quantized = join(folder, "blocky-fp8");
  const blocks = join(folder, "blocky-fp8-blocks");
  quantizeModel(engine, join(folder, "blocky"), quantized, { scales: "channel" });
  quantizeModel(engine, join(folder, "blocky"), blocks, { scales: "block128" });
  const pairs: { of: string; test: Case }[] = [
    { of: join(folder, "skywork"), test: { path: join(folder, "skywork"), dtype: "bf16" } },
    { of: join(folder, "smollm"), test: { path: join(folder, "smollm"), dtype: "bf16" } },
    { of: join(folder, "blocky"), test: { path: join(folder, "blocky"), dtype: "bf16", mode: "slices" } },
    { of: join(folder, "blocky"), test: { path: quantized, dtype: "bf16", format: "fp8" } },
    { of: join(folder, "blocky"), test: { path: quantized, dtype: "bf16", format: "fp8", mode: "slices" } },
    { of: join(folder, "blocky"), test: { path: blocks, dtype: "bf16", format: "fp8", scales: "block128", mode: "slices" } },
  ];
  // Many tokens: a token whose two best experts are almost level goes one way or the other, and one such token is far off in either run.
  const texts = Array.from({ length: 20 }, (_, s) => Array.from({ length: 20 }, (_, i) => (i * i * (s + 3) + 11 * s) % 75));
  const references: { truth: ReturnType<typeof runJob>; single: ReturnType<typeof runJob> }[] = [];
  for (const size of [2, 3, 7]) {
    const results = await runCases(
      size,
      pairs.map((pair) => pair.test),
      texts,
    );
    for (const [i, { ranks, plan }] of results.entries()) {
      const pair = pairs[i];
      if (pair === undefined) throw new Error("a result without a case");
      const { truth, single } = references[i] ?? { truth: alone({ path: pair.of, dtype: "f32" }, texts), single: alone(pair.test, texts) };
      references[i] = { truth, single };
      const [far, near] = [
        relativeDistance(ranks[0]?.logits ?? new Float32Array(0), truth.logits),
        relativeDistance(single.logits, truth.logits),
      ];
      const flips = (run: Pick<JobResult, "choices"> | undefined): number =>
        truth.choices.reduce((n, layer, l) => n + layer.filter((e, slot) => run?.choices[l]?.[slot] !== e).length, 0);
      const text = `${pair.test.path} on ${size}: ${far} against ${near}, flips ${flips(ranks[0])} against ${flips(single)}`;
      expect(far, text).toBeLessThan(1.2 * near);
      for (const [r, rank] of ranks.entries()) expect(rank.weightBytes, text).toBe(plan.ranks[r]?.weightBytes);
    }
  }
}, 600_000);

test("a rank that fails ends the others, and its error comes out", async () => {
  const job: Job = { path: join(folder, "nowhere"), dtype: "f32", mapped: true, shares: [], sequences };
  await expect(startRanks({ size: 3, entry, data: [job] }).results).rejects.toThrow(/nowhere/);
});

test("memory of a loaded model is that of a plan for one rank", () => {
  using model = loadModel(engine, join(folder, "smollm"), { dtype: "bf16" });
  const plan = tensorParallelPlan(model.config, { ranks: 1, format: { weights: "bf16" } });
  expect(weightBytes(model)).toBe(plan.ranks[0]?.weightBytes);
});

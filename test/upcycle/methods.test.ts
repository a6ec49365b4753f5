/** What the options of upcycling do to the weights, and whether the label of exactness is true. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { loadBackend } from "../../src/backend/load.ts";
import { batchOfDocuments, loadModel, openModelSource } from "../../src/model/index.ts";
import { Engine } from "../../src/tensor/index.ts";
import {
  parseUpcycleOptions,
  probeUpcycled,
  promptRouterRows,
  upcycle,
  upcycledConfig,
  type UpcycleExtras,
  type UpcycleOptions,
  type UpcycleReceipt,
} from "../../src/upcycle/index.ts";
import { streamedForward } from "../../src/upcycle/streamed.ts";
import { MoeError } from "../../src/util/errors.ts";
import { decoderGap, probeIds, smallConfig, tensorOf, writeDense } from "./fixtures.ts";

let folder = "";
let engine: Engine;
let dense = "";
let bf16 = "";
let other = "";
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "moe-methods-"));
  engine = new Engine(await loadBackend({ numThreads: 1 }));
  [dense, bf16, other] = ["dense", "bf16", "other"].map((name) => join(folder, name)) as [string, string, string];
  writeDense(engine, smallConfig, "f32", dense);
  writeDense(engine, smallConfig, "bf16", bf16);
  writeDense(engine, smallConfig, "f32", other, 5);
});
afterEach(() => {
  expect(engine.backend.liveBytes).toBe(0);
});
afterAll(() => {
  engine[Symbol.dispose]();
  rmSync(folder, { recursive: true, force: true });
});

let runs = 0;
function upcycled(options: Partial<UpcycleOptions>, from = dense, extras: UpcycleExtras = {}): { out: string; receipt: UpcycleReceipt } {
  const out = join(folder, `moe-${runs++}`);
  return { out, receipt: upcycle(from, out, { numExperts: 4, topK: 2, ...options }, undefined, extras) };
}
function gap(out: string, from = dense): number {
  return decoderGap(engine, from, out);
}
const expertName = (e: number, matrix: string, layer = 1): string => `model.layers.${layer}.block_sparse_moe.experts.${e}.${matrix}.weight`;
const denseName = (matrix: string, layer = 1): string => `model.layers.${layer}.mlp.${matrix}.weight`;
function moments(x: ArrayLike<number>): { mean: number; std: number } {
  const n = x.length;
  const mean = Array.from(x).reduce((a, b) => a + b, 0) / n;
  return { mean, std: Math.sqrt(Array.from(x).reduce((a, b) => a + (b - mean) ** 2, 0) / n) };
}
function caught(fn: () => unknown): string {
  try {
    fn();
  } catch (error) {
    if (error instanceof MoeError && error.kind === "configuration") return error.message;
    throw error;
  }
  throw new Error("expected an error");
}

describe("granularity", () => {
  test.each([
    [2, 8, 2],
    [2, 8, 4],
    [2, 2, 2],
    [3, 6, 3],
    [4, 16, 8],
    [48, 96, 48],
  ])("%i shards, %i experts, top-%i: exact, in the three families that take it", (granularity, numExperts, topK) => {
    for (const target of ["skywork_moe", "mixtral", "qwen2_moe"] as const) {
      const { out, receipt } = upcycled({ granularity, numExperts, topK, target });
      expect(receipt.exactness.verdict).toBe("exact");
      expect(gap(out)).toBeLessThan(1e-5);
    }
  });
  test.each([
    [2, 8, 3, /topK 3 is not a multiple of 2/],
    [2, 8, 1, /topK 1 is not a multiple of 2/],
    [2, 7, 2, /numExperts 7 is not a multiple of 2/],
  ])("%i shards, %i experts, top-%i: approximate, says why, and has a gap", (granularity, numExperts, topK, reason) => {
    const { out, receipt } = upcycled({ granularity, numExperts, topK });
    expect(receipt.exactness.verdict).toBe("approximate");
    expect(receipt.exactness.reasons.join()).toMatch(reason);
    const measured = probeUpcycled(engine, dense, out, probeIds).maxOutputGap;
    expect(measured).toBeGreaterThan(1e-3);
    expect(measured / gap(out)).toBeCloseTo(1, 3);
  });
  test("cuts rows of gate and up, columns of down, scales only down, and gives the shards of one copy one router row", () => {
    const { out } = upcycled({ granularity: 2, numExperts: 6, topK: 2 });
    const [H, F] = [smallConfig.hiddenSize, smallConfig.ffnSize];
    const [up, down] = [tensorOf(dense, denseName("up_proj")), tensorOf(dense, denseName("down_proj"))];
    const router = tensorOf(out, "model.layers.1.block_sparse_moe.gate.weight");
    const row = (e: number): number[] => [...router.subarray(e * H, (e + 1) * H)];
    for (const e of [0, 1, 2, 3, 4, 5]) {
      const shard = e % 2;
      expect([...tensorOf(out, expertName(e, "w3"))]).toEqual([...up.subarray((shard * F * H) / 2, ((shard + 1) * F * H) / 2)]);
      const expected = Array.from({ length: (H * F) / 2 }, (_, i) => {
        const [r, c] = [Math.floor(i / (F / 2)), i % (F / 2)];
        return 2 * (down[r * F + (shard * F) / 2 + c] ?? Number.NaN);
      });
      expect([...tensorOf(out, expertName(e, "w2"))]).toEqual(expected);
      expect(row(e)).toEqual(row(e - shard));
    }
    expect(row(0)).not.toEqual(row(2));
  });
});

describe("a shared expert", () => {
  test.each([
    ["skywork_moe", { share: 0 }],
    ["skywork_moe", { share: 0, ffnSize: 16 }],
    ["skywork_moe", { share: 0.5 }],
    ["skywork_moe", { share: 0.25, gate: true }],
    ["qwen2_moe", { share: 0.5 }],
    ["qwen2_moe", { share: 0, ffnSize: 16 }],
  ] as const)("in %s as %j starts exactly as the dense network", (target, sharedExpert) => {
    for (const granularity of [1, 2]) {
      const { out, receipt } = upcycled({ target, sharedExpert, granularity });
      expect(receipt.exactness.verdict).toBe("exact");
      expect(gap(out)).toBeLessThan(1e-5);
    }
  });
  test("of a share computes that share: without it the rest is missing", () => {
    const { out } = upcycled({ sharedExpert: { share: 0.5 } });
    const down = tensorOf(out, "model.layers.1.block_sparse_moe.shared_expert.down_proj.weight");
    expect([...down]).toEqual(Array.from(tensorOf(dense, denseName("down_proj")), (x) => 0.5 * x));
    expect([...tensorOf(out, expertName(3, "w2"))]).toEqual([...down]);
  });
  test("has no place in Mixtral, Qwen3-MoE and OLMoE", () => {
    expect(caught(() => upcycledConfig(smallConfig, { numExperts: 4, topK: 2, target: "mixtral", sharedExpert: {} }))).toMatch(
      /check target\.sharedExpert failed: mixtral has no shared expert/,
    );
  });
});

describe("copy with noise", () => {
  test("adds what was asked for, in standard deviations of each matrix, to every expert its own", () => {
    const { out, receipt } = upcycled({ method: { type: "noise", std: 0.1 } });
    expect(receipt.exactness.verdict).toBe("approximate");
    for (const [matrix, source] of [
      ["w1", "gate_proj"],
      ["w2", "down_proj"],
    ] as const) {
      const original = tensorOf(dense, denseName(source));
      const noise = [0, 1].map((e) => tensorOf(out, expertName(e, matrix)).map((x, i) => x - (original[i] ?? 0)));
      // 1536 draws: the deviation within 6% (three standard errors of 1 / sqrt(2 n)), the mean within four of its own.
      for (const one of noise) {
        const { mean, std } = moments(one);
        expect(Math.abs(std / (0.1 * moments(original).std) - 1)).toBeLessThan(0.06);
        expect(Math.abs(mean)).toBeLessThan((4 * std) / Math.sqrt(original.length));
      }
      expect(noise[0]).not.toEqual(noise[1]);
    }
    expect(gap(out)).toBeGreaterThan(1e-3);
    expect(gap(upcycled({ method: { type: "noise", std: 0 } }).out)).toBeLessThan(1e-5);
  });
});

describe("drop-upcycling", () => {
  const [H, F] = [smallConfig.hiddenSize, smallConfig.ffnSize];
  /** Intermediate dimensions of an expert that are not the dense network's any more, by each of its matrices. */
  function changed(out: string, e: number, layer = 1): number[][] {
    return (["gate_proj", "up_proj", "down_proj"] as const).map((name, i) => {
      const [a, b] = [tensorOf(dense, denseName(name, layer)), tensorOf(out, expertName(e, ["w1", "w3", "w2"][i] ?? "", layer))];
      const dimension = (at: number): number => (name === "down_proj" ? at % F : Math.floor(at / H));
      return [
        ...new Set(
          Array.from(a.keys())
            .filter((at) => a[at] !== b[at])
            .map(dimension),
        ),
      ].sort((x, y) => x - y);
    });
  }
  test("draws the same ratio of dimensions anew in all three matrices, others in every expert and layer, and keeps the rest", () => {
    const { out, receipt } = upcycled({ method: { type: "drop", ratio: 0.25 } });
    expect(receipt.exactness).toMatchObject({ verdict: "approximate" });
    const sets = [0, 1, 2, 3].map((e) => changed(out, e));
    for (const [gate, up, down] of sets) {
      expect(gate).toHaveLength(F / 4);
      expect(up).toEqual(gate);
      expect(down).toEqual(gate);
    }
    expect(new Set(sets.map(([gate]) => String(gate))).size).toBe(4);
    expect(changed(out, 0, 2)[0]).not.toEqual(sets[0]?.[0]);
  });
  test("draws them with the mean and deviation of the dropped part", () => {
    // A dense model whose dimensions differ: of mean f and deviation 0.3, so the dropped part's moments are not the matrix's.
    const { out } = upcycled({ method: { type: "drop", ratio: 1 }, numExperts: 1, topK: 1 });
    for (const [name, matrix] of [
      ["gate_proj", "w1"],
      ["down_proj", "w2"],
    ] as const) {
      const [before, after] = [moments(tensorOf(dense, denseName(name))), moments(tensorOf(out, expertName(0, matrix)))];
      expect(Math.abs(after.std / before.std - 1)).toBeLessThan(0.06);
      expect(Math.abs(after.mean - before.mean)).toBeLessThan((4 * before.std) / Math.sqrt(H * F));
    }
    const [half] = [upcycled({ method: { type: "drop", ratio: 0.5 } }).out];
    const dropped = changed(half, 2)[0] ?? [];
    const part = (path: string, name: string): number[] =>
      Array.from(tensorOf(path, name)).filter((_, at) => dropped.includes(Math.floor(at / H)));
    const [before, after] = [moments(part(dense, denseName("gate_proj"))), moments(part(half, expertName(2, "w1")))];
    // 768 draws: four standard errors.
    expect(Math.abs(after.mean - before.mean)).toBeLessThan((4 * before.std) / Math.sqrt(768));
    expect(Math.abs(after.std / before.std - 1)).toBeLessThan(0.11);
  });
  test("works on shards, and a ratio of 0 drops nothing", () => {
    const { out } = upcycled({ method: { type: "drop", ratio: 0.5 }, granularity: 2 });
    expect(Number.isFinite(gap(out))).toBe(true);
    expect(gap(upcycled({ method: { type: "drop", ratio: 0 } }).out)).toBeLessThan(1e-5);
  });
});

describe("experts of several dense models", () => {
  test("are taken in turn, everything else is the first model's", () => {
    const { out, receipt } = upcycled({ expertSources: [dense, other] });
    expect(receipt.exactness.reasons.join()).toMatch(/expertSources/);
    for (const e of [0, 1, 2, 3]) {
      expect(tensorOf(out, expertName(e, "w2"))).toEqual(tensorOf(e % 2 === 0 ? dense : other, denseName("down_proj")));
    }
    expect(tensorOf(out, "model.layers.1.self_attn.q_proj.weight")).toEqual(tensorOf(dense, "model.layers.1.self_attn.q_proj.weight"));
    const origin = receipt.tensors.find(({ name }) => name === expertName(1, "w2"));
    expect(origin).toMatchObject({ origin: "expert", sourceModel: 2 });
  });
  test("of another shape or family are refused with what differs", () => {
    const wider = join(folder, "wider");
    writeDense(engine, { ...smallConfig, ffnSize: 64 }, "f32", wider);
    const qwen = join(folder, "qwen");
    writeDense(engine, { ...smallConfig, architecture: "qwen2", qkvBias: true }, "f32", qwen);
    for (const [path, message] of [
      [wider, /check expertSources\.architecture failed: .* differ in ffnSize 48 and 64/],
      [qwen, /differ in architecture "llama" and "qwen2", .*qkvBias false and true/],
    ] as const) {
      expect(caught(() => upcycled({ expertSources: [dense, path] }))).toMatch(message);
    }
  });
});

describe("routers", () => {
  test("of zeros send every token to the first experts, which is said; with normalization they are refused", () => {
    const { out } = upcycled({ router: { type: "zero" }, target: "mixtral" });
    expect(gap(out)).toBeLessThan(1e-5);
    const [layer] = probeUpcycled(engine, dense, out, probeIds).routing;
    expect(layer).toMatchObject({ load: [60, 60, 0, 0], symmetricExperts: [[0, 1, 2, 3]], numDistinctExperts: 1, meanTopWeight: 0.5 });
    expect(caught(() => upcycled({ router: { type: "zero" } }))).toMatch(/check router\.zero failed/);
    expect(caught(() => upcycled({ granularity: 4, gateNormalization: true }))).toMatch(/check router\.rows failed/);
  });
  test("from prompts are the centred means of what enters each feed-forward network, prompt by prompt", () => {
    const prompts = [
      [[1, 2, 3, 4, 5]],
      [
        [7, 8],
        [9, 10, 11, 12, 13, 14, 15],
      ],
      [[20]],
      [[33, 34, 35]],
    ];
    const rows = promptRouterRows(engine, dense, prompts, 2);
    const texts = prompts.map((list) => list.map(String));
    const { out } = upcycled({ router: { type: "prompts", prompts: texts, norm: 2 } }, dense, { promptRows: rows });
    expect(gap(out)).toBeLessThan(1e-5);
    const H = smallConfig.hiddenSize;
    const router = tensorOf(out, "model.layers.2.block_sparse_moe.gate.weight");
    // The definition, one prompt at a time: no batch, no other prompt, no padding.
    using source = openModelSource(dense);
    const means = prompts.map((list) => {
      const mean = new Float64Array(H);
      for (const ids of list) {
        streamedForward(
          engine,
          source,
          [ids],
          {
            onFeedForwardInput: (layer, x) => {
              if (layer === 2) for (const [i, value] of x.entries()) mean[i % H] = (mean[i % H] ?? 0) + value / ids.length / list.length;
            },
          },
          null,
        );
      }
      return mean;
    });
    for (const [e, mean] of means.entries()) {
      const centred = Array.from(mean, (x, h) => x - means.reduce((sum, m) => sum + (m[h] ?? 0), 0) / means.length);
      const length = Math.hypot(...centred);
      for (const [h, x] of centred.entries()) expect(router[e * H + h]).toBeCloseTo((2 * x) / length, 5);
    }
  });
  test("from prompts send a prompt's tokens to its own expert more often than chance", () => {
    const prompts = [0, 1, 2, 3].map((e) => [Array.from({ length: 12 }, (_, i) => 30 * e + 2 * i)]);
    const promptRows = promptRouterRows(engine, dense, prompts, 1);
    const options = { router: { type: "prompts" as const, prompts: prompts.map(() => ["x"]) }, topK: 1 };
    const { out } = upcycled(options, dense, { promptRows });
    using model = loadModel(engine, out, { dtype: "f32" });
    const hits = prompts.map(([ids = []], e) =>
      engine.scope(() => {
        const { routing } = model.forwardHidden(batchOfDocuments(engine, [ids], { vocabSize: smallConfig.vocabSize }));
        return routing.reduce((sum, { indices_TK }) => sum + indices_TK.toInt32Array().filter((index) => index === e).length, 0);
      }),
    );
    // 144 tokens and layers; chance is 36.
    expect(hits.reduce((a, b) => a + b, 0)).toBeGreaterThan(60);
  });
  test("from prompts that do not differ are refused", () => {
    expect(caught(() => promptRouterRows(engine, dense, [[[1, 2]], [[1, 2]]], 1))).toMatch(/list 0 gives the mean of all lists/);
  });
});

test("the probe refuses routers that it would compute as plain ones, and prompts for no copy", () => {
  const sigmoid = join(import.meta.dirname, "../golden/models/skywork-moe-sigmoid");
  expect(() => probeUpcycled(engine, sigmoid, sigmoid, [1, 2])).toThrow(
    /skywork-moe-sigmoid\S*: expected a router as upcycling makes it, got moe\.scoring sigmoid, moe\.routedScale 1\.7, moe\.groups, moe\.selectionBias/,
  );
  expect(caught(() => promptRouterRows(engine, dense, [[[1, 2]], []], 1))).toMatch(/at least one prompt in list 1, got none/);
});

describe("weights that are not divided by their sum", () => {
  test("are approximate, unless all experts are chosen, and refused for Mixtral", () => {
    const some = upcycled({ target: "qwen2_moe", renormalize: false });
    expect(some.receipt.exactness.verdict).toBe("approximate");
    expect(gap(some.out)).toBeGreaterThan(1e-3);
    const all = upcycled({ target: "qwen2_moe", renormalize: false, topK: 4 });
    expect(all.receipt.exactness.verdict).toBe("exact");
    expect(gap(all.out)).toBeLessThan(1e-5);
    expect(caught(() => upcycled({ target: "mixtral", renormalize: false }))).toMatch(/check target\.renormalize failed/);
  });
});

describe("options", () => {
  test.each([
    [{ numExpert: 4, topK: 2 }, /unknown key "numExpert" \(did you mean "numExperts"\?\)/],
    [{ numExperts: 4, topK: 5 }, /topK 5 is above numExperts 4/],
    [{ numExperts: 0, topK: 1 }, /numExperts/],
    [{ numExperts: 2.5, topK: 1 }, /numExperts/],
    [{ numExperts: 4, topK: 2, method: { type: "noise", std: -1 } }, /method\.std/],
    [{ numExperts: 4, topK: 2, method: { type: "drop", ratio: 2 } }, /method\.ratio/],
    [{ numExperts: 4, topK: 2, method: { type: "drop", ratio: Number.NaN } }, /method\.ratio/],
    [{ numExperts: 4, topK: 2, granularity: 8 }, /granularity 8 is above numExperts 4/],
    [{ numExperts: 4, topK: 2, router: { type: "prompts", prompts: [["a"]] } }, /a list of prompts for each of 4 copies .* got 1/],
    [{ numExperts: 4, topK: 2, router: { type: "prompts", prompts: [["a"], [], ["b"], ["c"]] } }, /router\.prompts\.1/],
    [{ numExperts: 4, topK: 2, sharedExpert: { share: 1 } }, /sharedExpert\.share/],
    [{ numExperts: 4, topK: 2, sharedExpert: { share: 0.5, ffnSize: 8 } }, /a share is a copy of the whole network/],
    [{ numExperts: 4, topK: 2, target: "gpt" }, /target/],
    [{ numExperts: 4, topK: 2, __proto__: { x: 1 }, constructor: 1 }, /constructor/],
    ["numExperts: 4", /expected object/],
    [null, /expected object/],
    [[], /expected object/],
  ])("%j is refused with its place", (value, message) => {
    expect(caught(() => parseUpcycleOptions(value))).toMatch(message);
  });
  test("a width that shards do not divide names the check", () => {
    expect(caught(() => upcycled({ granularity: 5, numExperts: 10 }))).toMatch(/check granularity\.width failed: ffnSize 48 .* 5/);
  });
});

test("the receipt says what a person needs: gaps, loads, warnings, memory and cost", () => {
  const probe = (out: string): ReturnType<typeof probeUpcycled> => probeUpcycled(engine, bf16, out, probeIds);
  const { receipt } = upcycled({ denseTokens: 1e9, budgetTokens: 1e8 }, bf16, { probe });
  expect(receipt.maxOutputGap).toBe(receipt.probe?.maxOutputGap);
  expect(receipt.maxOutputGap).toBeLessThan(1e-5);
  expect(receipt.meanOutputGap).toBeGreaterThan(0);
  expect(receipt.meanOutputGap).toBeLessThan(receipt.maxOutputGap ?? 0);
  expect(receipt.probe?.routing.map(({ layer }) => layer)).toEqual([0, 1, 2]);
  for (const { load, numDistinctExperts, symmetricExperts } of receipt.probe?.routing ?? []) {
    expect(load.reduce((a, b) => a + b, 0)).toBe(2 * probeIds.length);
    expect([numDistinctExperts, symmetricExperts]).toEqual([1, []]);
  }
  expect(receipt.warnings.join("\n")).toMatch(/identical experts in 3 of 3 layers \(1 distinct of 4\)/);
  // Every bf16 element: weight 2, gradient 4, moments 8, master 4; f32: 16. Norms and routers are f32 in both.
  const { numParamsAfter: P } = receipt;
  const small = 7 * 32 + 3 * 4 * 32;
  expect(receipt.memory.trainingF32Bytes).toBe(16 * P);
  expect(receipt.memory.trainingBf16Bytes).toBe(18 * (P - small) + 16 * small);
  // Embedding, head, norms and routers in bf16; a scale for each of q, k, v, o and two for each expert.
  const kept = 2 * 120 * 32 + small;
  expect(receipt.memory.servingFp8Bytes).toBe(2 * kept + (P - kept) + 4 * 3 * (4 + 2 * 4));
  expect(receipt.cost.budgetOverDenseCost).toBeCloseTo((0.1 * receipt.cost.moeFlopsPerToken) / receipt.cost.denseFlopsPerToken, 10);
  expect(receipt.cost.advice).toMatch(/far below it, the report upcycles/);
});

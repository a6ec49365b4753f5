import { createHash } from "node:crypto";
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { decoderGap, probeIds as ids, smallConfig as config, tensorOf, writeDense } from "../../test/upcycle/fixtures.ts";
import { loadBackend } from "../backend/load.ts";
import { openModelWeights } from "../checkpoint/model-weights.ts";
import { numActiveParams, numParams } from "../config/model-counts.ts";
import { loadModel, type ModelDType } from "../model/index.ts";
import { Engine } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { upcycle, upcycledConfig, upcycleGap, type UpcycleOptions, type UpcycleReceipt } from "./index.ts";

let folder = "";
let engine: Engine;
const dense: Record<ModelDType, string> = { f32: "", bf16: "" };
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "moe-upcycle-"));
  engine = new Engine(await loadBackend({ numThreads: 1 }));
  for (const dtype of ["f32", "bf16"] as const) {
    dense[dtype] = join(folder, `dense-${dtype}`);
    writeDense(engine, config, dtype, dense[dtype]);
  }
});
afterEach(() => {
  expect(engine.backend.liveBytes).toBe(0);
});
afterAll(() => {
  engine[Symbol.dispose]();
  rmSync(folder, { recursive: true, force: true });
});

let runs = 0;
function upcycled(options: Partial<UpcycleOptions> = {}, from = dense.f32): { out: string; receipt: UpcycleReceipt } {
  const out = join(folder, `moe-${runs++}`);
  return { out, receipt: upcycle(from, out, { numExperts: 4, topK: 2, ...options }) };
}
function gap(out: string, from = dense.f32): number {
  return decoderGap(engine, from, out);
}
/** Everything in a folder, by name. */
function contents(path: string): Record<string, string> {
  return Object.fromEntries(readdirSync(path).map((name) => [name, readFileSync(join(path, name)).toString("base64")]));
}

describe("the upcycled model computes what the dense one does", () => {
  const cases = (["skywork_moe", "mixtral"] as const).flatMap((target) => [1, 2, 4].map((topK) => ({ target, topK })));
  test.each(cases)("as $target with top-$topK of 4", ({ target, topK }) => {
    const { out, receipt } = upcycled({ target, topK });
    expect(gap(out)).toBeLessThan(1e-5);
    using model = loadModel(engine, out);
    expect(model.config).toMatchObject({ architecture: target, moe: { numExperts: 4, topK, expertFfnSize: config.ffnSize } });
    expect(model.config.moe?.gateNormalization === null).toBe(target === "mixtral");
    expect(receipt).toMatchObject({
      architecture: target,
      numParamsBefore: numParams(config),
      numParamsAfter: numParams(model.config),
      numActiveParams: numActiveParams(model.config),
      exactness: { verdict: "exact" },
    });
  });
  test("without gating logit normalization, with one expert, and with experts in every second layer", () => {
    expect(gap(upcycled({ gateNormalization: false }).out)).toBeLessThan(1e-5);
    expect(gap(upcycled({ numExperts: 1, topK: 1 }).out)).toBeLessThan(1e-5);
    const { out, receipt } = upcycled({ layerInterval: 2 });
    expect(gap(out)).toBeLessThan(1e-5);
    const routers = receipt.tensors.filter(({ origin }) => origin === "router").map(({ name }) => name);
    expect(routers).toEqual(["model.layers.1.block_sparse_moe.gate.weight"]);
    for (const layer of [0, 2]) {
      const name = `model.layers.${layer}.mlp.up_proj.weight`;
      expect(tensorOf(out, name)).toEqual(tensorOf(dense.f32, name));
    }
  });
  test("from bf16, which stays bf16, and where it is asked to become f32", () => {
    const { out, receipt } = upcycled({}, dense.bf16);
    expect(receipt.options.dtype).toBe("bf16");
    expect(gap(out, dense.bf16)).toBeLessThan(1e-5);
    expect(gap(upcycled({ dtype: "f32" }, dense.bf16).out, dense.bf16)).toBeLessThan(1e-5);
  });
  test("and the gap shows when it does not", () => {
    const { out } = upcycled();
    using before = loadModel(engine, dense.f32);
    using after = loadModel(engine, out, { mapped: false });
    const name = [...after.parameters.keys()].find((key) => key.endsWith("experts.down")) ?? "";
    const experts = after.parameters.get(name);
    if (experts === undefined) throw new Error("no experts");
    engine.backend.write(
      experts.ptr,
      experts.toFloat32Array().map((x) => 1.01 * x),
    );
    expect(upcycleGap(before, after, ids).maxGap).toBeGreaterThan(1e-4);
    engine.backend.write(experts.ptr, new Float32Array(experts.size).fill(Number.NaN));
    expect(upcycleGap(before, after, ids).maxGap).toBe(Number.POSITIVE_INFINITY);
  });
});

describe("the files", () => {
  test("hold the dense feed-forward network in every expert, and everything else unchanged", () => {
    const { out, receipt } = upcycled({ numExperts: 3 });
    const matrices = { w1: "gate_proj", w3: "up_proj", w2: "down_proj" };
    for (let layer = 0; layer < config.numLayers; layer++) {
      for (const [matrix, name] of Object.entries(matrices)) {
        const source = tensorOf(dense.f32, `model.layers.${layer}.mlp.${name}.weight`);
        for (const expert of [0, 1, 2]) {
          expect(tensorOf(out, `model.layers.${layer}.block_sparse_moe.experts.${expert}.${matrix}.weight`)).toEqual(source);
        }
      }
    }
    const same = receipt.tensors.filter(({ name, source }) => name === source).map(({ name }) => name);
    expect(same).toContain("model.embed_tokens.weight");
    expect(same).toContain("model.layers.2.self_attn.k_proj.weight");
    for (const name of same) expect(tensorOf(out, name), name).toEqual(tensorOf(dense.f32, name));
  });
  test("are what the receipt says: every tensor, its origin and the hash of its bytes", () => {
    for (const [from, dtype] of [
      [dense.f32, "f32"],
      [dense.bf16, "bf16"],
    ] as const) {
      const { out, receipt } = upcycled({ seed: 7 }, from);
      expect(JSON.parse(readFileSync(join(out, "upcycling.json"), "utf8"))).toEqual(receipt);
      expect(receipt).toMatchObject({
        source: from,
        options: { numExperts: 4, topK: 2, seed: 7, dtype },
        sourceArchitecture: "llama",
      });
      using weights = openModelWeights(out);
      expect(receipt.tensors.map(({ name }) => name).sort()).toEqual([...weights.tensors.keys()].sort());
      for (const { name, shape, sha256, origin, source } of receipt.tensors) {
        const entry = weights.entry(name);
        const bytes = new Uint8Array(shape.reduce((a, b) => a * b, 1) * (entry.dtype === "F32" ? 4 : 2));
        weights.read(name, bytes, 0);
        expect(entry.shape, name).toEqual(shape);
        expect(createHash("sha256").update(bytes).digest("hex"), name).toBe(sha256);
        expect(origin === "router", name).toBe(name.endsWith("block_sparse_moe.gate.weight"));
        expect(source === null).toBe(origin === "router");
        expect(origin === "expert").toBe(name.includes(".experts."));
      }
    }
  });
  test("hold routers drawn from a normal of the stated deviation, new for each layer and seed", () => {
    const gate = (layer: number): string => `model.layers.${layer}.block_sparse_moe.gate.weight`;
    const options: Partial<UpcycleOptions> = { numExperts: 128, router: { type: "normal", std: 0.05 }, seed: 3 };
    const { out } = upcycled(options);
    const weights = tensorOf(out, gate(0));
    const n = weights.length;
    const mean = weights.reduce((a, x) => a + x, 0) / n;
    const std = Math.sqrt(weights.reduce((a, x) => a + (x - mean) ** 2, 0) / n);
    const kurtosis = weights.reduce((a, x) => a + ((x - mean) / std) ** 4, 0) / n;
    // 4096 draws: the mean within 4 standard errors, the deviation within 5%, the fourth moment that of a normal (3 +- 0.08 s.e.).
    expect(n).toBe(4096);
    expect(Math.abs(mean)).toBeLessThan((4 * 0.05) / Math.sqrt(n));
    expect(std / 0.05).toBeCloseTo(1, 1);
    expect(Math.abs(std / 0.05 - 1)).toBeLessThan(0.05);
    expect(Math.abs(kurtosis - 3)).toBeLessThan(0.35);
    expect(tensorOf(out, gate(1))).not.toEqual(weights);
    expect(tensorOf(upcycled(options).out, gate(0))).toEqual(weights);
    expect(tensorOf(upcycled({ ...options, seed: 4 }).out, gate(0))).not.toEqual(weights);
  });
});

describe("what cannot be", () => {
  const kindOf = (fn: () => unknown): { kind: string; message: string } => {
    try {
      fn();
    } catch (error) {
      if (error instanceof MoeError) return { kind: error.kind, message: error.message };
      throw error;
    }
    throw new Error("expected an error");
  };
  const leftovers = (): string[] => readdirSync(folder).filter((name) => name.endsWith(".tmp") || name.endsWith(".partial"));

  test("a source that has experts is refused, and so is what the target cannot express", () => {
    const { out } = upcycled();
    const again = join(folder, "again");
    expect(kindOf(() => upcycle(out, again, { numExperts: 4, topK: 2 }))).toMatchObject({
      kind: "configuration",
      message: expect.stringContaining("check source.dense failed: expected a dense model, got skywork_moe with 4 experts") as unknown,
    });
    for (const [options, message] of [
      [{ topK: 5 }, /topK 5 is above numExperts 4/],
      [{ layerInterval: 4 }, /layerInterval 4 with numLayers 3: no layer has experts/],
      [{ target: "mixtral", gateNormalization: true }, /check target\.gateNormalization failed/],
      [{ target: "mixtral", layerInterval: 2 }, /check target\.layerInterval failed/],
    ] as const) {
      const got = kindOf(() => upcycledConfig(config, { numExperts: 4, topK: 2, ...options }));
      expect(got.kind).toBe("configuration");
      expect(got.message).toMatch(message);
    }
    expect(existsSync(again)).toBe(false);
  });
  test("a folder that exists is refused and stays as it is", () => {
    const before = contents(dense.bf16);
    for (const out of [dense.bf16, join(dense.bf16, "config.json")]) {
      expect(kindOf(() => upcycle(dense.f32, out, { numExperts: 4, topK: 2 }))).toEqual({
        kind: "usage",
        message: `upcycle: ${out}: expected a folder that does not exist yet`,
      });
    }
    expect(contents(dense.bf16)).toEqual(before);
  });
  test("an error after the weights leaves nothing", () => {
    const out = join(folder, "failed");
    const fail = (): never => {
      throw new MoeError("file", "no tokenizer");
    };
    expect(kindOf(() => upcycle(dense.f32, out, { numExperts: 4, topK: 2 }, fail)).message).toBe("no tokenizer");
    expect([existsSync(out), leftovers()]).toEqual([false, []]);
  });
  test("a source with a tensor missing leaves nothing and names it", () => {
    const broken = join(folder, "broken");
    mkdirSync(broken);
    for (const name of readdirSync(dense.f32)) copyFileSync(join(dense.f32, name), join(broken, name));
    const configPath = join(broken, "config.json");
    const json = JSON.parse(readFileSync(configPath, "utf8")) as Record<string, unknown>;
    writeFileSync(configPath, JSON.stringify({ ...json, num_hidden_layers: 4 }));
    const out = join(folder, "of-broken");
    expect(kindOf(() => upcycle(broken, out, { numExperts: 4, topK: 2 })).message).toMatch(/expected tensor model\.layers\.3\./);
    expect([existsSync(out), leftovers()]).toEqual([false, []]);
  });
});

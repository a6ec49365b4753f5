/** Models with experts, from files and into files: every family's layouts, and what is broken in them. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeEach, expect, test } from "vitest";
import { createGguf } from "../checkpoint/gguf-writer.ts";
import { openModelWeights } from "../checkpoint/model-weights.ts";
import { createModelWeights } from "../checkpoint/safetensors-writer.ts";
import { modelPresets } from "../config/model-presets.ts";
import { plainRouting, type MoeConfig, type ModelConfig } from "../config/model.ts";
import { numParams } from "../config/model-counts.ts";
import type { Engine } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { backendNames, startEngines } from "../../test/golden/models/engines.ts";
import {
  computeGradients,
  computeLogits,
  goldenFolder,
  goldenNames,
  readGolden,
  type GoldenName,
} from "../../test/golden/models/golden.ts";
import { batchOfDocuments, Decoder, exportModel, inspectModel, loadModel, saveModel, writeElements } from "./index.ts";

const { engines, missing } = await startEngines();
afterAll(() => {
  for (const engine of engines.values()) engine[Symbol.dispose]();
});
function anyEngine(): Engine {
  const engine = engines.get("native") ?? engines.get("wasm") ?? engines.get("reference");
  if (engine === undefined) throw new Error("no engine started");
  return engine;
}
let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-experts-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
  for (const engine of engines.values()) expect(engine.backend.liveBytes).toBe(0);
});

const tiny = { vocabSize: 40, hiddenSize: 16, ffnSize: 12, numLayers: 2, numHeads: 2, numKvHeads: 2, headDim: 8, maxPositions: 64 };

function contents(model: Decoder): Map<string, Float32Array> {
  return new Map([...model.parameters].map(([name, tensor]) => [name, tensor.toFloat32Array()]));
}
function thrown(fn: () => unknown): MoeError {
  try {
    fn();
  } catch (error) {
    if (error instanceof MoeError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}
type Tensors = Map<string, { shape: readonly number[]; values: Float32Array }>;
/** A copy of a golden model with other tensors, or other keys in its configuration. */
function changed(name: GoldenName, change: (tensors: Tensors) => void, keys: Record<string, unknown> = {}): string {
  const directory = mkdtempSync(join(folder, `${name}-`));
  const tensors: Tensors = new Map();
  {
    using weights = openModelWeights(goldenFolder(name));
    for (const [tensor, { shape }] of weights.tensors) {
      const values = new Float32Array(shape.reduce((a, b) => a * b, 1));
      weights.readFloat32(tensor, values);
      tensors.set(tensor, { shape, values });
    }
  }
  change(tensors);
  const json = JSON.parse(readFileSync(join(goldenFolder(name), "config.json"), "utf8")) as Record<string, unknown>;
  writeFileSync(join(directory, "config.json"), JSON.stringify({ ...json, ...keys }));
  using writer = createModelWeights(
    directory,
    [...tensors].map(([tensor, { shape }]) => ({ name: tensor, dtype: "F32", shape })),
  );
  for (const [tensor, { values }] of tensors) writer.write(tensor, new Uint8Array(values.buffer));
  writer.commit();
  return directory;
}

test("Qwen2-MoE's fused expert tensors are the per-expert ones", () => {
  const engine = anyEngine();
  cpSync(join(goldenFolder("qwen2-moe"), "config.json"), join(folder, "config.json"));
  cpSync(join(goldenFolder("qwen2-moe"), "fused.safetensors"), join(folder, "model.safetensors"));
  using fused = loadModel(engine, folder);
  using perExpert = loadModel(engine, goldenFolder("qwen2-moe"));
  expect(contents(fused)).toEqual(contents(perExpert));
  expect(perExpert.parameters.has("layers.1.moe.shared.router.weight")).toBe(true);
});

test.each(goldenNames)("%s: inspection counts the parameters that are in the file", (name) => {
  const report = inspectModel(goldenFolder(name));
  const elements = report.tensors.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  expect(report.numParams).toBe(elements);
  expect(report.numParams).toBe(numParams(report.config));
  expect(report.numActiveParams < report.numParams).toBe(report.config.moe !== null);
});

test("a checkpoint with an expert too few, too many or of another size names the tensor", () => {
  const engine = anyEngine();
  const mixtral = "model.layers.1.block_sparse_moe.experts";
  const qwen = "model.layers.0.mlp";
  const one = { shape: [20, 32], values: new Float32Array(640) };
  const cases: [GoldenName, (tensors: Tensors) => void, RegExp][] = [
    [
      "mixtral",
      (t) => t.delete(`${mixtral}.3.w2.weight`),
      /expected tensor model.layers.1.block_sparse_moe.experts.3.w2.weight \[32, 20\], got none/,
    ],
    [
      "mixtral",
      (t) => t.set(`${mixtral}.5.w1.weight`, one),
      /only tensors of a mixtral model with 2 layers, got also \S+experts.5.w1.weight/,
    ],
    [
      "mixtral",
      (t) => t.set(`${mixtral}.0.w1.weight`, { ...one, shape: [32, 20] }),
      /experts.0.w1.weight of shape \[20, 32\].*got \[32, 20\]/,
    ],
    [
      "qwen2-moe",
      (t) => t.delete(`${qwen}.experts.5.up_proj.weight`),
      /expected tensor \S+mlp.experts.5.up_proj.weight \[20, 32\], got none/,
    ],
    [
      "qwen2-moe",
      (t) => t.delete(`${qwen}.shared_expert_gate.weight`),
      /expected tensor \S+mlp.shared_expert_gate.weight \[1, 32\], got none/,
    ],
    ["qwen2-moe", (t) => t.delete(`${qwen}.gate.weight`), /expected tensor model.layers.0.mlp.gate.weight \[6, 32\], got none/],
    // A dense network where the configuration has experts: the names of one expert without its number.
    ["qwen3-moe", (t) => t.set("model.layers.1.mlp.up_proj.weight", one), /got also model.layers.1.mlp.up_proj.weight/],
    ["olmoe", (t) => t.delete("model.layers.0.self_attn.k_norm.weight"), /k_norm.weight \[16\], got none/],
    [
      "skywork-moe-sigmoid",
      (t) => t.delete("model.layers.1.block_sparse_moe.gate.e_score_correction_bias"),
      /gate.e_score_correction_bias \[8\], got none/,
    ],
    ["skywork-moe-gate2", (t) => t.delete("model.layers.0.block_sparse_moe.gate.0.weight"), /gate.0.weight \[48, 32\], got none/],
  ];
  for (const [name, change, message] of cases) {
    const error = thrown(() => loadModel(engine, changed(name, change)));
    expect(error.kind).toBe("file");
    expect(error.message).toMatch(message);
  }
});

test("a configuration with another number of experts than the file, or more chosen than there are, is an error", () => {
  const engine = anyEngine();
  const keep = (): void => undefined;
  expect(thrown(() => loadModel(engine, changed("mixtral", keep, { num_local_experts: 4 }))).message).toMatch(
    /block_sparse_moe.gate.weight of shape \[4, 32\].*got \[5, 32\]/,
  );
  expect(thrown(() => loadModel(engine, changed("mixtral", keep, { num_experts_per_tok: 6 })))).toMatchObject({
    kind: "configuration",
    message: expect.stringMatching(/topK 6 is above moe.numExperts 5/) as unknown,
  });
  expect(thrown(() => loadModel(engine, changed("qwen3-moe", keep, { decoder_sparse_step: 5 }))).message).toMatch(/layerInterval 5/);
});

test("a router with NaN or infinity in its file is an error that names it; in another tensor nobody looks", () => {
  const engine = anyEngine();
  const put = (tensor: string, value: number) => (tensors: Tensors) => tensors.get(tensor)?.values.fill(value, 3, 4);
  const gate = "model.layers.1.block_sparse_moe.gate.weight";
  expect(thrown(() => loadModel(engine, changed("mixtral", put(gate, Number.NaN))))).toMatchObject({
    kind: "file",
    message: expect.stringMatching(
      /finite values in the router model.layers.1.block_sparse_moe.gate.weight, got NaN in element 3/,
    ) as unknown,
  });
  expect(thrown(() => loadModel(engine, changed("mixtral", put(gate, Number.POSITIVE_INFINITY)))).message).toMatch(/got Infinity/);
  const bias = "model.layers.1.block_sparse_moe.gate.e_score_correction_bias";
  expect(thrown(() => loadModel(engine, changed("skywork-moe-sigmoid", put(bias, Number.NaN)))).message).toMatch(/e_score_correction_bias/);
  using model = loadModel(engine, changed("mixtral", put("model.norm.weight", Number.NaN)));
  expect(model.parameters.get("norm.weight")?.toFloat32Array()[3]).toBeNaN();
});

/** Several ways to choose, since each treats a NaN at another place. */
const routedModels = ["mixtral", "qwen2-moe", "skywork-moe", "skywork-moe-gate2", "skywork-moe-sigmoid"] as const;
const cases = backendNames.flatMap((backend) => routedModels.map((name) => ({ backend, name })));
test.for(cases)(
  "$name on $backend: a router that became NaN in memory still chooses existing experts, and the logits are NaN",
  ({ backend, name }, { skip }) => {
    const engine = engines.get(backend) ?? skip(missing.get(backend));
    using model = loadModel(engine, goldenFolder(name), { mapped: false });
    const router = model.parameters.get("layers.1.moe.router.weight");
    if (router === undefined) throw new Error("no router");
    writeElements(router, 0, new Float32Array(router.size).fill(Number.NaN));
    const { sequences } = readGolden(name);
    expect(computeLogits(engine, model, sequences).every((value) => Number.isNaN(value))).toBe(true);
    expectExistingChoices(model, sequences);
    expect(computeGradients(engine, model, sequences).loss).toBeNaN();
  },
);
test.for(cases)(
  "$name on $backend: one expert's row of NaN leaves choices among existing experts, each at most once a token",
  ({ backend, name }, { skip }) => {
    const engine = engines.get(backend) ?? skip(missing.get(backend));
    using model = loadModel(engine, goldenFolder(name), { mapped: false });
    const router = model.parameters.get("layers.1.moe.router.weight");
    if (router === undefined) throw new Error("no router");
    writeElements(router, 2 * router.dim(1), new Float32Array(router.dim(1)).fill(Number.NaN));
    expectExistingChoices(model, readGolden(name).sequences);
  },
);
function expectExistingChoices(model: Decoder, sequences: readonly Int32Array[]): void {
  const { numExperts = 0, topK = 0 } = model.config.moe ?? {};
  model.engine.scope(() => {
    const { routing } = model.forwardHidden(batchOfDocuments(model.engine, sequences, model.config));
    expect(routing.length).toBeGreaterThan(0);
    for (const { indices_TK } of routing) {
      const indices = indices_TK.toInt32Array();
      expect(indices.every((expert) => expert >= 0 && expert < numExperts)).toBe(true);
      for (let at = 0; at < indices.length; at += topK) expect(new Set(indices.subarray(at, at + topK)).size).toBe(topK);
    }
  });
}

test("the bias that a router chooses with is a buffer: no gradient, and it keeps its bits in f32 through a bf16 model", () => {
  const engine = anyEngine();
  using model = loadModel(engine, goldenFolder("skywork-moe-sigmoid"), { dtype: "bf16", mapped: false });
  const bias = model.parameters.get("layers.1.moe.router.bias");
  expect(bias).toMatchObject({ dtype: "f32", requiresGrad: false, parameter: null });
  const { gradients } = computeGradients(engine, model, readGolden("skywork-moe-sigmoid").sequences);
  expect(gradients.has("layers.1.moe.router.weight")).toBe(true);
  expect(gradients.has("layers.1.moe.router.bias")).toBe(false);
});

test("Qwen2-MoE keeps its bits and its configuration through GGUF, fused or not", () => {
  const engine = anyEngine();
  const path = join(folder, "model.gguf");
  exportModel(goldenFolder("qwen2-moe"), path, { name: "m" });
  using expected = loadModel(engine, goldenFolder("qwen2-moe"));
  using model = loadModel(engine, path);
  expect(contents(model)).toEqual(contents(expected));
  const { initStd: _, bosTokenId: _bos, eosTokenIds: _eos, ...rest } = expected.config;
  expect(model.config).toMatchObject(rest);
  const fused = join(folder, "fused");
  cpSync(join(goldenFolder("qwen2-moe"), "config.json"), join(fused, "config.json"));
  cpSync(join(goldenFolder("qwen2-moe"), "fused.safetensors"), join(fused, "model.safetensors"));
  exportModel(fused, join(folder, "fused.gguf"), { name: "m" });
  expect(readFileSync(join(folder, "fused.gguf")).equals(readFileSync(path))).toBe(true);
});

test("Qwen3-MoE and OLMoE as llama.cpp knows them pass through GGUF, and their configuration with them", () => {
  const engine = anyEngine();
  const base: ModelConfig = { ...modelPresets.quickstart, ...tiny, tiedEmbeddings: false };
  const moe: MoeConfig = { ...plainRouting, numExperts: 3, topK: 2, expertFfnSize: base.ffnSize };
  const configs: ModelConfig[] = [
    { ...base, architecture: "qwen3_moe", qkNorm: "head", moe: { ...moe, expertFfnSize: 7 } },
    { ...base, architecture: "olmoe", qkNorm: "all", moe: { ...moe, renormalize: false } },
  ];
  for (const config of configs) {
    const [directory, path] = [join(folder, config.architecture), join(folder, `${config.architecture}.gguf`)];
    using model = Decoder.initialize(engine, config, { dtype: "f32", seed: 5 });
    saveModel(model, directory);
    exportModel(directory, path);
    using again = loadModel(engine, path);
    expect(contents(again)).toEqual(contents(model));
    expect(again.config).toMatchObject({ qkNorm: config.qkNorm, moe: config.moe });
  }
});

test("what llama.cpp takes for granted of a family is refused otherwise, and so are families that it does not have", () => {
  const keep = (): void => undefined;
  const cases: [string, RegExp][] = [
    [changed("qwen2-moe", keep, { norm_topk_prob: true }), /qwen2_moe model with norm_topk_prob false, as llama.cpp computes it, got true/],
    [goldenFolder("qwen3-moe"), /qwen3_moe model with experts in every layer.*got decoder_sparse_step 2/],
    [changed("qwen3-moe", keep, { norm_topk_prob: false }), /qwen3_moe model with norm_topk_prob true.*got false/],
    [goldenFolder("olmoe"), /olmoe model with as many key-value heads as heads.*got 2 of 4/],
    [goldenFolder("skywork-moe-sigmoid"), /model_type to be one of .*olmoe, got "skywork_moe"/],
  ];
  for (const [path, message] of cases) {
    expect(thrown(() => exportModel(path, join(folder, "out.gguf")))).toMatchObject({
      kind: "unsupported",
      message: expect.stringMatching(message) as unknown,
    });
  }
  const path = join(folder, "other.gguf");
  {
    using writer = createGguf(path, new Map([["general.architecture", { type: "string", value: "deepseek2" }]]), []);
    writer.commit();
  }
  expect(thrown(() => inspectModel(path))).toMatchObject({
    kind: "unsupported",
    message: expect.stringMatching(/general.architecture to be one of llama, .*olmoe, got "deepseek2"/) as unknown,
  });
});

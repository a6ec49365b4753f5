/** Models out of folders and into folders: every layout, broken files, and the bits of a round trip. */
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeEach, expect, test } from "vitest";
import { exportGguf } from "../checkpoint/gguf-export.ts";
import { openModelWeights } from "../checkpoint/model-weights.ts";
import { createModelWeights } from "../checkpoint/safetensors-writer.ts";
import { modelPresets } from "../config/model-presets.ts";
import type { ModelConfig } from "../config/model.ts";
import type { Engine } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { startEngines } from "../../test/golden/models/engines.ts";
import { computeLogits, goldenFolder, goldenNames, readGolden } from "../../test/golden/models/golden.ts";
import { Decoder, loadModel, readConfigJson, saveModel } from "./index.ts";

const { engines } = await startEngines();
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
  folder = mkdtempSync(join(tmpdir(), "moe-model-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
  for (const engine of engines.values()) expect(engine.backend.liveBytes).toBe(0);
});

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
/** Rewrites the weights of a folder. */
function rewrite(directory: string, change: (tensors: Map<string, { shape: readonly number[]; bytes: Uint8Array }>) => void): void {
  const tensors = new Map<string, { shape: readonly number[]; bytes: Uint8Array }>();
  {
    using weights = openModelWeights(directory);
    for (const [name, { shape, byteLength }] of weights.tensors) {
      const bytes = new Uint8Array(byteLength);
      weights.read(name, bytes);
      tensors.set(name, { shape, bytes });
    }
  }
  change(tensors);
  using writer = createModelWeights(
    directory,
    [...tensors].map(([name, { shape }]) => ({ name, dtype: "F32", shape })),
  );
  for (const [name, { bytes }] of tensors) writer.write(name, bytes);
  writer.commit();
}

test.each(goldenNames)("%s: saved and loaded, a model has the same configuration and bits, mapped or copied", (name) => {
  const engine = anyEngine();
  for (const dtype of ["f32", "bf16"] as const) {
    using model = loadModel(engine, goldenFolder(name), { dtype });
    const directory = join(folder, dtype);
    saveModel(model, directory);
    expect(readdirSync(directory).toSorted()).toEqual(["config.json", "generation_config.json", "model.safetensors"]);
    for (const mapped of [true, false]) {
      using again = loadModel(engine, directory, { mapped });
      expect(again.config).toEqual(model.config);
      expect(again.dtype).toBe(dtype);
      expect(contents(again)).toEqual(contents(model));
    }
  }
});

test("layers without experts between layers with them are saved and loaded, and the router's own settings too", () => {
  const engine = anyEngine();
  const preset = modelPresets["skywork-moe"];
  const config: ModelConfig = {
    ...preset,
    vocabSize: 20,
    hiddenSize: 8,
    ffnSize: 6,
    numLayers: 4,
    numHeads: 2,
    numKvHeads: 1,
    headDim: 4,
    moe: {
      ...preset.moe,
      numExperts: 3,
      expertFfnSize: 6,
      layerInterval: 2,
      gateNormalization: { lambda: 0.5, eps: 1e-6, unbiased: false },
    },
  };
  using model = Decoder.initialize(engine, config, { dtype: "bf16", seed: 4 });
  saveModel(model, folder);
  using again = loadModel(engine, folder);
  expect(again.config).toEqual(config);
  expect(contents(again)).toEqual(contents(model));
  expect(again.parameters.has("layers.2.feedForward.up.weight")).toBe(true);
  expect(again.parameters.has("layers.3.moe.experts.up")).toBe(true);
});

test("a sharded model is the same model, and replaces a single file", () => {
  const engine = anyEngine();
  using model = loadModel(engine, goldenFolder("mixtral"));
  saveModel(model, folder);
  saveModel(model, folder, { maxShardBytes: 20_000 });
  expect(readdirSync(folder).filter((file) => file.endsWith(".safetensors")).length).toBeGreaterThan(3);
  expect(readdirSync(folder)).not.toContain("model.safetensors");
  using again = loadModel(engine, folder);
  expect(contents(again)).toEqual(contents(model));
});

const ggufNames = ["llama2", "llama3", "mistral", "qwen3", "smollm2", "mixtral"] as const;
test.each(ggufNames)("%s: through GGUF a model keeps its bits and its configuration", (name) => {
  const engine = anyEngine();
  const path = join(folder, `${name}.gguf`);
  const { json } = readConfigJson(goldenFolder(name));
  {
    using weights = openModelWeights(goldenFolder(name));
    exportGguf(path, weights, json as Record<string, unknown>, { type: "F32" });
  }
  using model = loadModel(engine, path);
  using expected = loadModel(engine, goldenFolder(name));
  expect(model.dtype).toBe("f32");
  expect(contents(model)).toEqual(contents(expected));
  // GGUF has no place for the initial deviation, and token ids come from the tokenizer, which is not here.
  const { initStd: _, bosTokenId: _bos, eosTokenIds: _eos, ...rest } = expected.config;
  expect(model.config).toMatchObject(rest);
});

test("Mixtral's fused expert tensors are the per-expert ones", () => {
  const engine = anyEngine();
  cpSync(join(goldenFolder("mixtral"), "config.json"), join(folder, "config.json"));
  cpSync(join(goldenFolder("mixtral"), "fused.safetensors"), join(folder, "model.safetensors"));
  using fused = loadModel(engine, folder);
  using perExpert = loadModel(engine, goldenFolder("mixtral"));
  expect(contents(fused)).toEqual(contents(perExpert));
  const { sequences } = readGolden("mixtral");
  expect(computeLogits(engine, fused, sequences)).toEqual(computeLogits(engine, perExpert, sequences));
});

test("matrices take the type asked for, the file's otherwise; norms, biases and routers stay f32", () => {
  const engine = anyEngine();
  using f32 = loadModel(engine, goldenFolder("qwen2"));
  using bf16 = loadModel(engine, goldenFolder("qwen2"), { dtype: "bf16" });
  expect([f32.dtype, bf16.dtype]).toEqual(["f32", "bf16"]);
  const [all, some] = [f32, bf16].map((model) => new Set([...model.parameters.values()].map(({ dtype }) => dtype)));
  expect(all).toEqual(new Set(["f32"]));
  expect(some).toEqual(new Set(["f32", "bf16"]));
  expect(bf16.numBytes).toBeLessThan(0.6 * f32.numBytes);
  const { sequences, logits } = readGolden("qwen2");
  const got = computeLogits(engine, bf16, sequences);
  const rms = (of: (i: number) => number): number => Math.sqrt(logits.reduce((sum, _, i) => sum + of(i) ** 2, 0) / logits.length);
  // bf16 has 8 bits: two layers of it stay within a few percent of the logits.
  expect(rms((i) => (got[i] ?? 0) - (logits[i] ?? 0)) / rms((i) => logits[i] ?? 0)).toBeLessThan(0.06);
});

test("a mapped model is not copied, where the engine maps files", () => {
  const engine = anyEngine();
  const before = engine.backend.liveBytes;
  using mapped = loadModel(engine, goldenFolder("llama2"));
  const grown = engine.backend.liveBytes - before;
  using probe = openModelWeights(goldenFolder("llama2"));
  const map = engine.backend.mapFile(probe.path);
  expect(grown < mapped.numBytes / 10).toBe(map !== null);
  map?.close();
});

test("wrong tensors are errors that name the file and the tensor, and leave nothing behind", () => {
  const engine = anyEngine();
  const cases: [(tensors: Map<string, { shape: readonly number[]; bytes: Uint8Array }>) => void, RegExp][] = [
    [
      (t) => t.delete("model.layers.1.mlp.up_proj.weight"),
      /model.safetensors: expected tensor model.layers.1.mlp.up_proj.weight \[44, 32\], got none/,
    ],
    [
      (t) => t.set("model.layers.2.mlp.up_proj.weight", { shape: [1], bytes: new Uint8Array(4) }),
      /with 2 layers, got also model.layers.2.mlp.up_proj.weight/,
    ],
    [(t) => t.set("model.norm.weight", { shape: [33], bytes: new Uint8Array(132) }), /model.norm.weight of shape \[32\].*got \[33\]/],
    [
      (t) => t.set("model.embed_tokens.weight", { shape: [50, 32], bytes: new Uint8Array(6400) }),
      /model.embed_tokens.weight.*vocab_size 61, the tensor 50 rows/,
    ],
    [(t) => t.set("lm_head.weight_scale", { shape: [1], bytes: new Uint8Array(4) }), /also lm_head.weight_scale/],
    [(t) => t.delete("lm_head.weight"), /expected tensor lm_head.weight/],
  ];
  for (const [index, [change, message]] of cases.entries()) {
    const directory = join(folder, String(index));
    cpSync(goldenFolder("llama2"), directory, { recursive: true });
    rewrite(directory, change);
    expect(thrown(() => loadModel(engine, directory)).message).toMatch(message);
  }
});

test("buffers of old files and the copy of a tied embedding are passed over", () => {
  const engine = anyEngine();
  cpSync(goldenFolder("smollm2"), folder, { recursive: true });
  rewrite(folder, (tensors) => {
    const embedding = tensors.get("model.embed_tokens.weight");
    if (embedding !== undefined) tensors.set("lm_head.weight", embedding);
    tensors.set("model.layers.0.self_attn.rotary_emb.inv_freq", { shape: [4], bytes: new Uint8Array(16) });
  });
  using model = loadModel(engine, folder);
  expect(model.parameters.has("head.weight")).toBe(false);
});

test("a folder without config.json, with broken JSON or without weights says so", () => {
  const engine = anyEngine();
  expect(thrown(() => loadModel(engine, folder))).toMatchObject({
    kind: "file",
    message: expect.stringContaining("config.json") as unknown,
  });
  writeFileSync(join(folder, "config.json"), "{");
  expect(thrown(() => loadModel(engine, folder)).message).toMatch(/config.json: expected JSON/);
  writeFileSync(join(folder, "config.json"), readFileSync(join(goldenFolder("llama2"), "config.json")));
  expect(thrown(() => loadModel(engine, folder)).message).toMatch(/model.safetensors/);
  expect(thrown(() => loadModel(engine, join(folder, "nowhere"))).kind).toBe("file");
});

test("a model that its family's config.json cannot express is refused before anything is written", () => {
  const config: ModelConfig = {
    ...modelPresets.quickstart,
    vocabSize: 8,
    hiddenSize: 4,
    ffnSize: 4,
    numLayers: 1,
    numHeads: 1,
    numKvHeads: 1,
    headDim: 4,
    qkNorm: "head",
  };
  using model = Decoder.initialize(anyEngine(), config, { dtype: "f32", seed: 0 });
  expect(thrown(() => saveModel(model, join(folder, "out"))).message).toMatch(/qkNorm head/);
  expect(readdirSync(folder)).toEqual([]);
});

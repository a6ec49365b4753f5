/** Quantizing to FP8 and loading what came of it: every layout and kind of scales, the bits of PyTorch, broken files. */
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeEach, describe, expect, test } from "vitest";
import { startEngines } from "../../test/golden/models/engines.ts";
import { goldenFolder } from "../../test/golden/models/golden.ts";
import { openModelWeights } from "../checkpoint/model-weights.ts";
import { createModelWeights, type TensorDeclaration } from "../checkpoint/safetensors-writer.ts";
import { fromHuggingFaceConfig } from "../config/model-huggingface.ts";
import type { ModelConfig } from "../config/model.ts";
import { fp8Layouts } from "../quant/index.ts";
import { Tape, type Engine } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import {
  batchOfDocuments,
  compareOutputs,
  Decoder,
  loadModel,
  openModelSource,
  quantizeModel,
  saveModel,
  suggestions,
  type QuantizeOptions,
} from "./index.ts";

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
  folder = mkdtempSync(join(tmpdir(), "moe-fp8-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
  for (const engine of engines.values()) expect(engine.backend.liveBytes).toBe(0);
});
function thrown(fn: () => unknown): MoeError {
  try {
    fn();
  } catch (error) {
    if (error instanceof MoeError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}
interface Contents {
  dtype: TensorDeclaration["dtype"];
  shape: readonly number[];
  bytes: Uint8Array<ArrayBuffer>;
}
function readAll(directory: string): Map<string, Contents> {
  using weights = openModelWeights(directory);
  return new Map(
    [...weights.tensors].map(([name, { dtype, shape, byteLength }]) => {
      const bytes = new Uint8Array(byteLength);
      weights.read(name, bytes);
      return [name, { dtype, shape, bytes }];
    }),
  );
}
function rewrite(directory: string, change: (tensors: Map<string, Contents>) => void): void {
  const tensors = readAll(directory);
  change(tensors);
  using writer = createModelWeights(
    directory,
    [...tensors].map(([name, { dtype, shape }]) => ({ name, dtype, shape })),
  );
  for (const [name, { bytes }] of tensors) writer.write(name, bytes);
  writer.commit();
}
function logitsOf(model: Decoder): Float32Array {
  const { engine } = model;
  return engine.scope(() => {
    const batch = batchOfDocuments(
      engine,
      [
        [1, 5, 9, 2, 7],
        [3, 3],
      ],
      { vocabSize: model.config.vocabSize },
    );
    return model.logits(model.forwardHidden(batch).hidden_TH).toFloat32Array();
  });
}
function relativeGap(got: Float32Array, want: Float32Array): number {
  const largest = want.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  return want.reduce((most, value, i) => Math.max(most, Math.abs(value - (got[i] ?? 0))), 0) / largest;
}
/** Matrices that blocks of 128 do not divide; sizes by the names of config.json. */
function configOf(sizes: Readonly<Record<string, unknown>>): ModelConfig {
  const common = { hidden_size: 192, intermediate_size: 160, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2 };
  return fromHuggingFaceConfig({ model_type: "llama", vocab_size: 61, max_position_embeddings: 64, ...common, ...sizes });
}
/** A fresh model, saved. */
function savedModel(config: ModelConfig, dtype: "f32" | "bf16"): string {
  using model = Decoder.initialize(anyEngine(), config, { dtype, seed: 5 });
  const directory = join(folder, "plain");
  saveModel(model, directory);
  return directory;
}
/** A matrix of some size with the words of test/golden/fp8/make_scaled.py. */
function goldenWeights(N: number, K: number): Float32Array {
  const w = new Float32Array(N * K);
  let x = 88172645;
  for (let i = 0; i < w.length; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    const u = Math.fround((x >>> 8) / 2 ** 23 - 1);
    w[i] = Math.fround(Math.fround(Math.fround(u * u) * u) * 2 ** ((Math.floor(i / K) % 7) - 3));
  }
  return w;
}
const sha = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

const combinations = [
  ["huggingface", "tensor"],
  ["huggingface", "block128"],
  ["compressed-tensors", "tensor"],
  ["compressed-tensors", "channel"],
  ["compressed-tensors", "block128"],
  ["skywork", "tensor"],
] as const;

describe.each(combinations)("layout %s with %s scales", (layout, scales) => {
  test("keeps one byte a weight in memory and gives the logits of the dequantized model, on every engine", () => {
    const out = join(folder, "fp8");
    const plainFolder = savedModel(configOf({ model_type: "mixtral", num_local_experts: 4, num_experts_per_tok: 2 }), "bf16");
    const report = quantizeModel(anyEngine(), plainFolder, out, { layout, scales });
    expect(report.tensors.every(({ sqnrDb }) => sqnrDb !== null && sqnrDb > 28 && sqnrDb < 36)).toBe(true);
    for (const engine of engines.values()) {
      using model = loadModel(engine, out, { dtype: "f32" });
      using plain = loadModel(engine, out, { dtype: "f32", quantized: "dequantize" });
      const gate = model.parameters.get("layers.0.moe.experts.gate");
      expect([gate?.dtype, gate?.scales?.scaling]).toEqual(["fp8", scales]);
      expect(gate?.byteLength).toBe(gate?.size);
      expect(model.parameters.get("layers.0.attention.query.weight")?.dtype).toBe("fp8");
      for (const name of ["embedding.weight", "layers.0.moe.router.weight", "norm.weight"])
        expect(model.parameters.get(name)?.dtype).toBe("f32");
      expect(plain.parameters.get("layers.0.moe.experts.gate")?.dtype).toBe("f32");
      // A scale is applied to the sum here and to every weight there: f32 rounding apart.
      expect(relativeGap(logitsOf(model), logitsOf(plain))).toBeLessThan(1e-5);
      using original = loadModel(engine, plainFolder, { dtype: "f32" });
      expect(relativeGap(logitsOf(model), logitsOf(original))).toBeLessThan(0.15);
    }
  });
});

test("scales and codes are PyTorch's for the same weights", () => {
  interface Golden {
    readonly shape: [number, number];
    readonly weights: string;
  }
  const golden = JSON.parse(readFileSync(new URL("../../test/golden/fp8/scaled.json", import.meta.url), "utf8")) as Golden &
    Record<"tensor" | "channel" | "block128", { scales: string; codes: string }>;
  const [N, K] = golden.shape;
  const weights = goldenWeights(N, K);
  expect(sha(new Uint8Array(weights.buffer))).toBe(golden.weights);
  const engine = anyEngine();
  const config = configOf({ hidden_size: K, intermediate_size: N, num_attention_heads: 6, head_dim: 20 });
  {
    using model = Decoder.initialize(engine, config, { dtype: "f32", seed: 1 });
    const tensor = model.parameters.get("layers.0.feedForward.up.weight");
    if (tensor === undefined) throw new Error("no such parameter");
    engine.backend.write(tensor.ptr, weights);
    saveModel(model, join(folder, "plain"));
  }
  for (const scales of ["tensor", "channel", "block128"] as const) {
    const out = join(folder, scales);
    quantizeModel(engine, join(folder, "plain"), out, { scales, layout: "compressed-tensors" });
    const tensors = readAll(out);
    const name = "model.layers.0.mlp.up_proj.weight";
    expect(sha(tensors.get(`${name}_scale`)?.bytes ?? new Uint8Array()), scales).toBe(golden[scales].scales);
    expect(sha(tensors.get(name)?.bytes ?? new Uint8Array()), scales).toBe(golden[scales].codes);
  }
});

test("w1 and w3 of an expert share one scale in the skywork layout, and a file may hold it once", () => {
  const engine = anyEngine();
  const out = join(folder, "fp8");
  quantizeModel(engine, goldenFolder("skywork-moe"), out, { layout: "skywork", scales: "tensor" });
  const tensors = readAll(out);
  const scaleOf = (matrix: string): Uint8Array | undefined =>
    tensors.get(`model.layers.0.block_sparse_moe.experts.1.${matrix}.weight_scale`)?.bytes;
  expect(scaleOf("w1")).toEqual(scaleOf("w3"));
  expect(scaleOf("w1")).not.toEqual(scaleOf("w2"));
  const whole = ((): Float32Array => {
    using model = loadModel(engine, out);
    return logitsOf(model);
  })();
  rewrite(out, (all) => {
    for (const name of all.keys()) if (name.endsWith("w3.weight_scale")) all.delete(name);
  });
  using model = loadModel(engine, out);
  expect(logitsOf(model)).toEqual(whole);
});

test("matrices and scales take half the bytes of bf16, and the file what arithmetic says", () => {
  const out = join(folder, "fp8");
  const engine = anyEngine();
  const plain = savedModel(configOf({ hidden_size: 512, intermediate_size: 512 }), "bf16");
  const report = quantizeModel(engine, plain, out, { maxShardBytes: 400_000 });
  expect(report.quantizedBytes / report.bf16Bytes).toBeLessThan(0.51);
  const files = readdirSync(out).filter((name) => name.endsWith(".safetensors"));
  expect(files.length).toBeGreaterThan(1);
  using weights = openModelWeights(out);
  expect(weights.numBytes).toBe(report.numBytes);
  using model = loadModel(engine, out);
  expect(Math.abs(model.numBytes / report.numBytes - 1)).toBeLessThan(0.001);
});

test("patterns keep modules in bf16, which the configuration lists; others stay FP8 beside them", () => {
  const engine = anyEngine();
  const out = join(folder, "fp8");
  const report = quantizeModel(engine, goldenFolder("llama2"), out, { ignore: ["*.k_proj", "model.layers.1.*"] });
  expect(report.ignored).toContain("model.layers.0.self_attn.k_proj");
  expect(report.ignored).toContain("model.layers.1.mlp.up_proj");
  const config = JSON.parse(readFileSync(join(out, "config.json"), "utf8")) as { quantization_config: { ignore: string[] } };
  expect(config.quantization_config.ignore).toContain("lm_head");
  expect(config.quantization_config.ignore).toContain("model.layers.0.self_attn.k_proj");
  using model = loadModel(engine, out);
  const types = ["query", "key"].map((name) => model.parameters.get(`layers.0.attention.${name}.weight`)?.dtype);
  expect(types).toEqual(["fp8", "bf16"]);
  expect(logitsOf(model).every(Number.isFinite)).toBe(true);
});

test("what cannot be quantized is refused before anything is written", () => {
  const engine = anyEngine();
  const out = join(folder, "fp8");
  const refuse = (options: QuantizeOptions, from = goldenFolder("llama2"), to = out): MoeError =>
    thrown(() => quantizeModel(engine, from, to, options));
  expect(refuse({ ignore: ["model.layers.0.mlp.up_prj"] }).message).toMatch(/ignore model.layers.0.mlp.up_prj: .*did you mean .*up_proj/i);
  expect(refuse({ ignore: ["*"] })).toMatchObject({ kind: "usage", message: expect.stringMatching(/leave something/) as string });
  expect(refuse({ layout: "skywork", scales: "channel" })).toMatchObject({ kind: "unsupported" });
  expect(refuse({ layout: "huggingface", scales: "channel" }).message).toMatch(/compressed-tensors/);
  expect(refuse({}, goldenFolder("llama2"), folder).message).toMatch(/does not exist yet/);
  expect(existsSync(out)).toBe(false);
  quantizeModel(engine, goldenFolder("llama2"), out);
  expect(refuse({}, out, join(folder, "again")).message).toMatch(/FP8 already/);
});

test("weights that are not finite are an error that names the matrix, and leave nothing behind", () => {
  const broken = join(folder, "broken");
  cpSync(goldenFolder("llama2"), broken, { recursive: true });
  rewrite(broken, (tensors) => {
    const tensor = tensors.get("model.layers.1.mlp.down_proj.weight");
    if (tensor !== undefined) new Float32Array(tensor.bytes.buffer)[7] = Number.POSITIVE_INFINITY;
  });
  const error = thrown(() => quantizeModel(anyEngine(), broken, join(folder, "fp8")));
  expect(error).toMatchObject({
    kind: "file",
    message: expect.stringMatching(/down_proj.weight: expected finite weights, got Infinity/) as string,
  });
  expect(readdirSync(folder)).toEqual(["broken"]);
});

test("missing, misshapen and non-finite scales are errors that name the tensor", () => {
  const engine = anyEngine();
  const good = join(folder, "good");
  quantizeModel(engine, goldenFolder("llama2"), good);
  const name = "model.layers.1.self_attn.v_proj.weight";
  const cases: [(tensors: Map<string, Contents>) => void, RegExp][] = [
    [(t) => t.delete(`${name}_scale`), /scales of the FP8 matrix model.layers.1.self_attn.v_proj.weight \(.*\), got none/],
    [(t) => t.set(`${name}_scale`, { dtype: "F32", shape: [3], bytes: new Uint8Array(12) }), /v_proj.weight_scale of shape .* got \[3\]/],
    ...[Number.NaN, Number.POSITIVE_INFINITY].map((value): [(tensors: Map<string, Contents>) => void, RegExp] => [
      (t) => new Float32Array(t.get(`${name}_scale`)?.bytes.buffer ?? new ArrayBuffer(16)).set([value], 2),
      /finite scales in .*v_proj.weight_scale, got (NaN|Infinity) in element 2/,
    ]),
    [(t) => t.set("stray.weight_scale", { dtype: "F32", shape: [1], bytes: new Uint8Array(4) }), /also stray.weight_scale/],
  ];
  for (const [index, [change, message]] of cases.entries()) {
    const directory = join(folder, String(index));
    cpSync(good, directory, { recursive: true });
    rewrite(directory, change);
    expect(thrown(() => loadModel(engine, directory)).message).toMatch(message);
  }
});

test("other quantization is unsupported and says what was expected", () => {
  const engine = anyEngine();
  const out = join(folder, "fp8");
  quantizeModel(engine, goldenFolder("llama2"), out);
  const path = join(out, "config.json");
  const json = JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;
  const cases: [unknown, RegExp][] = [
    [{ quant_method: "fp8", fmt: "e5m2" }, /fmt: expected "e4m3", got "e5m2"/],
    [{ quant_method: "fp8", weight_block_size: [64, 64] }, /weight_block_size: expected null or \[128,128\], got \[64,64\]/],
    [
      { quant_method: "compressed-tensors", config_groups: { g: { weights: { num_bits: 4, type: "int" } } } },
      /config_groups.g.weights: expected 8-bit/,
    ],
    [{ quant_method: "gptq" }, /quantization_config/],
  ];
  for (const [value, message] of cases) {
    writeFileSync(path, JSON.stringify({ ...json, quantization_config: value }));
    expect(thrown(() => loadModel(engine, out))).toMatchObject({ kind: "unsupported", message: expect.stringMatching(message) as string });
  }
});

test("an FP8 model does not train, and says what would", () => {
  const engine = anyEngine();
  const out = join(folder, "fp8");
  quantizeModel(engine, goldenFolder("llama2"), out);
  expect(thrown(() => loadModel(engine, out, { mapped: false }))).toMatchObject({
    kind: "unsupported",
    message: expect.stringMatching(/training a model of FP8 weights \(.*\): .*dequantize/) as string,
  });
  using model = loadModel(engine, out);
  const run = (): void =>
    engine.scope(() => {
      const batch = batchOfDocuments(engine, [[1, 2, 3]], { vocabSize: model.config.vocabSize });
      engine.withTape(new Tape(engine), () => logitsOfBatch(model, batch));
    });
  expect(thrown(run)).toMatchObject({ kind: "unsupported", message: expect.stringMatching(/training with FP8 weights/) as string });
  expect(thrown(() => saveModel(model, join(folder, "saved"))).kind).toBe("unsupported");
  using plain = loadModel(engine, out, { mapped: false, quantized: "dequantize" });
  expect(plain.parameters.get("layers.0.attention.query.weight")?.requiresGrad).toBe(true);
});
function logitsOfBatch(model: Decoder, batch: Parameters<Decoder["forwardHidden"]>[0]): void {
  model.forwardHidden(batch);
}

test("weights read from an open model are code times scale, from any element on", () => {
  const out = join(folder, "fp8");
  quantizeModel(anyEngine(), savedModel(configOf({}), "f32"), out, { scales: "block128" });
  using source = openModelSource(out);
  const name = "model.layers.0.mlp.up_proj.weight";
  const scales = source.scales(name);
  expect(scales?.scaling).toBe("block128");
  const [N = 0, K = 0] = source.tensors.get(name)?.shape ?? [];
  const whole = new Float32Array(N * K);
  source.readFloat32(name, whole, 0);
  const part = new Float32Array(N * K - 37);
  source.readFloat32(name, part, 37);
  expect(part).toEqual(whole.slice(37));
  expect(source.tensors.has(`${name}_scale_inv`)).toBe(false);
});

test("the report compares outputs, and advises where the error is", () => {
  const engine = anyEngine();
  const out = join(folder, "fp8");
  const report = quantizeModel(engine, goldenFolder("mixtral"), out, { scales: "tensor" });
  const outputs = compareOutputs(engine, goldenFolder("mixtral"), out, [1, 5, 9, 2, 7, 4, 4, 8]);
  expect(outputs.numTokens).toBe(8);
  expect(outputs.layers.map(({ layer }) => layer)).toEqual([0, 1]);
  for (const { relativeError, divergence } of outputs.layers) {
    expect(relativeError).toBeGreaterThan(1e-4);
    expect(relativeError).toBeLessThan(0.2);
    expect(divergence).toBeGreaterThan(0);
    expect(divergence).toBeLessThan(0.1);
  }
  expect(Math.abs(outputs.perplexityAfter / outputs.perplexityBefore - 1)).toBeLessThan(0.4);
  const quiet = {
    ...outputs,
    perplexityBefore: 10,
    perplexityAfter: 10.2,
    layers: [1, 1, 9, 1, 1].map((d, layer) => ({ layer, relativeError: 0.1, divergence: d * 1e-4 })),
  };
  const tensors = [30, 31, 12, 31, 31].map((sqnrDb, i) => ({ name: `model.layers.${i}.mlp.up_proj.weight`, shape: [2, 2], sqnrDb }));
  const lines = suggestions({ scales: report.scales, tensors }, quiet);
  expect(lines[0]).toMatch(/rose by 2.00%: --scales channel/);
  expect(lines[1]).toMatch(/--ignore model.layers.2.mlp.up_proj: its SQNR of 12.0 dB/);
  expect(lines[2]).toMatch(/--ignore "model.layers.2.\*"/);
  expect(lines).toHaveLength(3);
  expect(thrown(() => compareOutputs(engine, goldenFolder("mixtral"), out, [1])).kind).toBe("usage");
});

test("every layout has combinations that are tested here", () => {
  expect(new Set(combinations.map(([layout]) => layout))).toEqual(new Set(fp8Layouts));
});

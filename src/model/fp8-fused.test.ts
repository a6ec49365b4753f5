/** Experts in one FP8 tensor a layer, as transformers has them in memory: written, read, cut, and refused where they cannot be. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeEach, expect, test } from "vitest";
import { loadBackend } from "../backend/load.ts";
import { openModelWeights } from "../checkpoint/model-weights.ts";
import { createModelWeights, type TensorDeclaration } from "../checkpoint/safetensors-writer.ts";
import { modelPresets } from "../config/model-presets.ts";
import { plainRouting, type ModelConfig } from "../config/model.ts";
import { Engine } from "../tensor/index.ts";
import { batchOfDocuments, Decoder, loadModel, openModelSource, quantizeModel, saveModel } from "./index.ts";

const engine = new Engine(await loadBackend({ numThreads: 1 }));
let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-fused-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(engine.backend.liveBytes).toBe(0);
});
afterAll(() => {
  engine[Symbol.dispose]();
});

function savedModel(architecture: "mixtral" | "qwen3_moe", expertFfnSize = 128): string {
  const size = {
    vocabSize: 61,
    hiddenSize: 192,
    ffnSize: expertFfnSize,
    numLayers: 2,
    numHeads: 4,
    numKvHeads: 2,
    headDim: 48,
    maxPositions: 64,
  };
  const moe = { ...plainRouting, numExperts: 3, topK: 2, expertFfnSize };
  const preset = modelPresets["mixtral-8x7b"];
  const config: ModelConfig = { ...preset, ...size, architecture, moe, initStd: 0.1, qkNorm: architecture === "mixtral" ? "none" : "head" };
  using model = Decoder.initialize(engine, config, { dtype: "bf16", seed: 5 });
  const path = join(folder, `plain-${architecture}-${expertFfnSize}`);
  saveModel(model, path);
  return path;
}
interface Contents {
  readonly dtype: TensorDeclaration["dtype"];
  readonly shape: readonly number[];
  readonly bytes: Uint8Array<ArrayBuffer>;
}
function readAll(path: string): Map<string, Contents> {
  using weights = openModelWeights(path);
  return new Map(
    [...weights.tensors].map(([name, { dtype, shape, byteLength }]) => {
      const bytes = new Uint8Array(byteLength);
      weights.read(name, bytes);
      return [name, { dtype, shape, bytes }];
    }),
  );
}
function rewrite(path: string, change: (tensors: Map<string, Contents>) => void): void {
  const tensors = readAll(path);
  change(tensors);
  using writer = createModelWeights(
    path,
    [...tensors].map(([name, { dtype, shape }]) => ({ name, dtype, shape })),
  );
  for (const [name, { bytes }] of tensors) writer.write(name, bytes);
  writer.commit();
}
function logitsAt(path: string, quantized: "keep" | "dequantize" = "keep"): Float32Array {
  using model = loadModel(engine, path, { dtype: "f32", quantized });
  return engine.scope(() => {
    const batch = batchOfDocuments(
      engine,
      [
        [1, 5, 9, 2, 7],
        [3, 3],
      ],
      model.config,
    );
    return model.logits(model.forwardHidden(batch).hidden_TH).toFloat32Array();
  });
}
const layer = "model.layers.0.mlp.experts";

test.each(["tensor", "block128"] as const)("%s scales: the same codes, scales and logits as experts one by one", (scales) => {
  for (const architecture of ["mixtral", "qwen3_moe"] as const) {
    const plain = savedModel(architecture);
    const [fused, single] = [join(folder, `fused-${architecture}`), join(folder, `single-${architecture}`)];
    const report = quantizeModel(engine, plain, fused, { scales, layout: "huggingface", experts: "fused" });
    const { quantizedBytes } = quantizeModel(engine, plain, single, { scales, layout: "huggingface" });
    expect(report.quantizedBytes).toBe(quantizedBytes);
    const tensors = readAll(fused);
    const stored = [`${layer}.gate_up_proj`, `${layer}.down_proj`].map((name) => [tensors.get(name), tensors.get(`${name}_scale_inv`)]);
    expect(stored.map((pair) => pair.map((one) => [one?.dtype, one?.shape]))).toEqual([
      [
        ["F8_E4M3", [3, 256, 192]],
        ["F32", scales === "tensor" ? [3, 2, 1] : [3, 2, 2]],
      ],
      [
        ["F8_E4M3", [3, 192, 128]],
        ["F32", scales === "tensor" ? [3, 1, 1] : [3, 2, 1]],
      ],
    ]);
    using model = loadModel(engine, fused);
    for (const part of ["gate", "up", "down"]) {
      const tensor = model.parameters.get(`layers.1.moe.experts.${part}`);
      expect([tensor?.dtype, tensor?.scales?.scaling]).toEqual(["fp8", scales]);
    }
    expect(logitsAt(fused)).toEqual(logitsAt(single));
    expect(logitsAt(fused, "dequantize")).toEqual(logitsAt(single, "dequantize"));
  }
});

test("a fused checkpoint is quantized as one of experts one by one is", () => {
  const plain = savedModel("mixtral");
  const fused = join(folder, "fused-plain");
  quantizeModel(engine, plain, fused, { scales: "tensor", layout: "huggingface", experts: "fused", ignore: ["*.experts.*"] });
  using source = openModelSource(fused);
  expect(source.layout).toBe("fused");
  const { quantization_config: written } = JSON.parse(readFileSync(join(fused, "config.json"), "utf8")) as {
    quantization_config: { modules_to_not_convert: string[] };
  };
  // The module that transformers looks for.
  expect(written.modules_to_not_convert).toContain(layer);
  using weights = openModelWeights(fused);
  expect(weights.tensors.get(`${layer}.gate_up_proj`)?.dtype).toBe("BF16");
});

test("one scale for gate and up together, and scales of every row, are read", () => {
  const plain = savedModel("mixtral");
  const [fused, other] = [join(folder, "fused"), join(folder, "other")];
  for (const path of [fused, other]) quantizeModel(engine, plain, path, { scales: "tensor", layout: "huggingface", experts: "fused" });
  const f32 = (shape: readonly number[], valueAt: (i: number) => number): Contents => {
    const values = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => valueAt(i));
    return { dtype: "F32", shape, bytes: new Uint8Array(values.buffer) };
  };
  rewrite(fused, (tensors) => {
    tensors.set(
      `${layer}.gate_up_proj_scale_inv`,
      f32([3, 1, 1], (e) => (e + 1) / 1000),
    );
  });
  rewrite(other, (tensors) => {
    tensors.set(
      `${layer}.gate_up_proj_scale_inv`,
      f32([3, 256, 1], (i) => (Math.floor(i / 256) + 1) / 1000),
    );
  });
  using model = loadModel(engine, other);
  expect(model.parameters.get("layers.0.moe.experts.up")?.scales?.scaling).toBe("channel");
  expect(logitsAt(other, "dequantize")).toEqual(logitsAt(fused, "dequantize"));
  const [a, b] = [logitsAt(other), logitsAt(fused)];
  for (const [i, value] of a.entries()) expect(value).toBeCloseTo(b[i] ?? 0, 5);
});

test("what stacked experts cannot be is refused", () => {
  const plain = savedModel("mixtral");
  const odd = savedModel("mixtral", 160);
  const out = join(folder, "no");
  const quantize =
    (from: string, options: Parameters<typeof quantizeModel>[3]): (() => unknown) =>
    () =>
      quantizeModel(engine, from, out, { experts: "fused", layout: "huggingface", scales: "tensor", ...options });
  expect(quantize(odd, { scales: "block128" })).toThrow(/width of whole blocks of 128, got 160/);
  expect(quantize(plain, { layout: "compressed-tensors", scales: "channel" })).toThrow(/fused experts in layout compressed-tensors/);
  expect(quantize(plain, { ignore: ["*.down_proj"] })).toThrow(/quantized all or not at all/);
  quantizeModel(engine, plain, out, { experts: "fused", layout: "huggingface", scales: "tensor" });
  for (const [change, message] of [
    [(t: Map<string, Contents>) => void t.delete(`${layer}.down_proj_scale_inv`), /scales of the FP8 matrix .*down_proj .* got none/],
    [
      (t: Map<string, Contents>) =>
        void t.set(`${layer}.down_proj_scale_inv`, { dtype: "F32", shape: [3, 7, 1], bytes: new Uint8Array(84) }),
      /down_proj_scale_inv of shape \[3, 1, 1\], \[3, 192, 1\] or \[3, 2, 1\] for .* got \[3, 7, 1\]/,
    ],
    [
      (t: Map<string, Contents>) =>
        new Float32Array(t.get(`${layer}.gate_up_proj_scale_inv`)?.bytes.buffer ?? new ArrayBuffer(24)).fill(Number.NaN),
      /finite scales in .*gate_up_proj_scale_inv, got NaN/,
    ],
  ] as const) {
    const kept = readAll(out);
    rewrite(out, change);
    expect(() => loadModel(engine, out)).toThrow(message);
    rewrite(out, (tensors) => {
      for (const [name, contents] of kept) tensors.set(name, contents);
    });
  }
});

/** Activations rounded to FP8 with dynamic scales: PyTorch's bits, what files say of them, what is done when a model is loaded. */
import { createHash } from "node:crypto";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeEach, describe, expect, test } from "vitest";
import { startEngines } from "../../test/golden/models/engines.ts";
import { goldenFolder } from "../../test/golden/models/golden.ts";
import { activationScalings, dtypeCodes, type ActivationScaling } from "../backend/kernels.ts";
import { ServingEngine } from "../serve/index.ts";
import { groupedLinear, linear, linearMany, type Engine, type Tensor } from "../tensor/index.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { encodeFp8 } from "../util/fp8.ts";
import { batchOfDocuments, compareOutputs, loadModel, openModelSource, quantizeModel, type Decoder, type LoadOptions } from "./index.ts";

const { engines } = await startEngines();
let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-fp8-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
  for (const engine of engines.values()) expect(engine.backend.liveBytes).toBe(0);
});
afterAll(() => {
  for (const engine of engines.values()) engine[Symbol.dispose]();
});
const [anyEngine] = engines.values();
if (anyEngine === undefined) throw new Error("no engine started");
const engineOfAny: Engine = anyEngine;

interface Golden {
  readonly shape: readonly [M: number, K: number, N: number];
  readonly schemes: Readonly<Record<ActivationScaling, { readonly rounded: string; readonly product: readonly number[] }>>;
}
const golden = JSON.parse(readFileSync(new URL("../../test/golden/fp8/activations.json", import.meta.url), "utf8")) as Golden;
const [M, K, N] = golden.shape;

/** The values of test/golden/fp8/make_activations.py: x [M, K] and w [N, K]. */
function goldenValues(): { readonly x: Float32Array; readonly w: Float32Array } {
  let word = 88172645;
  const cubed = Float32Array.from({ length: (M + N) * K }, () => {
    word ^= word << 13;
    word ^= word >>> 17;
    word ^= word << 5;
    const u = Math.fround((word >>> 8) / 2 ** 23 - 1);
    return Math.fround(Math.fround(u * u) * u);
  });
  const x = cubed.slice(0, M * K).map((value, i) => value * 2 ** ((Math.floor(i / K) % 7) - 3));
  return { x, w: cubed.slice(M * K) };
}
/** The FP8 weight [N, K] (or [1, N, K]) with channel scales. */
function weight(engine: Engine, w: Float32Array, activations: ActivationScaling, shape: readonly number[]): Tensor {
  const scales = Float32Array.from(
    { length: N },
    (_, n) => w.subarray(n * K, (n + 1) * K).reduce((most, v) => Math.max(most, Math.abs(v)), 0) / 448,
  );
  const codes = Uint8Array.from(w, (value, i) => encodeFp8("e4m3", Math.fround(value / (scales[Math.floor(i / K)] ?? 1))));
  const tensor = engine.empty(shape, "fp8");
  engine.backend.write(tensor.ptr, codes);
  const values = engine.detached([N], "f32");
  engine.backend.write(values.ptr, scales);
  tensor.scales = { scaling: "channel", values, activations };
  return tensor;
}

describe.each(activationScalings)("one scale a %s", (scheme) => {
  test.each([...engines.keys()])("rounds to PyTorch's bits and multiplies what it rounded (%s)", (name) => {
    const engine = engines.get(name) ?? engineOfAny;
    const { x, w } = goldenValues();
    const expected = golden.schemes[scheme];
    engine.scope(() => {
      const input = engine.from(x, [M, K], "f32");
      const rounded = engine.empty([M, K], "f32");
      const [rows, width] = scheme === "tensor" ? [1, M * K] : [M, K];
      engine.backend.kernels.roundRowsToFp8(rounded.ptr, input.ptr, rows, width, scheme === "group128" ? 128 : width, dtypeCodes.f32);
      expect(createHash("sha256").update(new Uint8Array(rounded.toFloat32Array().buffer)).digest("hex")).toBe(expected.rounded);
      const matrix = weight(engine, w, scheme, [N, K]);
      const operand = { weight_NK: matrix, bias_N: null };
      const offsets = engine.from([0, M], [2], "i32");
      const outputs = [
        linear(input, matrix),
        ...linearMany(input, [operand, operand]),
        groupedLinear(input, weight(engine, w, scheme, [1, N, K]), offsets),
      ];
      const largest = expected.product.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      for (const output of outputs)
        for (const [i, value] of output.toFloat32Array().entries())
          expect(Math.abs(value - (expected.product[i] ?? 0))).toBeLessThan(1e-6 * largest);
    });
  });
});

function logitsOf(model: Decoder): Float32Array {
  const { engine, config } = model;
  return engine.scope(() => {
    const batch = batchOfDocuments(
      engine,
      [
        [1, 5, 9, 2, 7],
        [3, 3],
      ],
      { vocabSize: config.vocabSize },
    );
    return model.logits(model.forwardHidden(batch).hidden_TH).toFloat32Array();
  });
}
function logitsAt(path: string, options: LoadOptions): Float32Array {
  using model = loadModel(engineOfAny, path, options);
  return logitsOf(model);
}
function distance(got: Float32Array, want: Float32Array): number {
  let [difference, size] = [0, 0];
  for (const [i, value] of want.entries()) [difference, size] = [difference + (value - (got[i] ?? 0)) ** 2, size + value ** 2];
  return Math.sqrt(difference / size);
}

test.each([
  ["compressed-tensors", "channel", "dynamic", "token"],
  ["compressed-tensors", "block128", "dynamic", "group128"],
  ["compressed-tensors", "channel", "tensor", "tensor"],
  ["compressed-tensors", "channel", "none", null],
  ["huggingface", "tensor", "dynamic", "token"],
  ["huggingface", "block128", "dynamic", "group128"],
  ["skywork", "tensor", "dynamic", "tensor"],
] as const)("layout %s with %s scales and %s activations is read back as %s", (layout, scales, activations, scheme) => {
  const out = join(folder, "fp8");
  quantizeModel(engineOfAny, goldenFolder("mixtral"), out, { layout, scales, activations });
  {
    using source = openModelSource(out);
    expect(source.activations()).toBe(scheme);
  }
  const kept = logitsAt(out, {});
  const asSaid = logitsAt(out, { activations: "scheme" });
  if (scheme === null) expect(asSaid).toEqual(kept);
  else {
    expect(asSaid).toEqual(logitsAt(out, { activations: scheme }));
    // Rounded: another 3 bits of mantissa at every matrix, and no more than that.
    expect(distance(asSaid, kept)).toBeGreaterThan(1e-3);
    expect(distance(asSaid, kept)).toBeLessThan(0.3);
  }
  const report = compareOutputs(engineOfAny, goldenFolder("mixtral"), out, [1, 5, 9, 2, 7, 4, 4, 8]);
  expect(report.perplexityRounded === null).toBe(scheme === null);
});

test("with a scale a token, a token's logits do not depend on its neighbours; with one for all they do, and serving refuses that", () => {
  const out = join(folder, "fp8");
  quantizeModel(engineOfAny, goldenFolder("mixtral"), out);
  const lastOf = (documents: readonly (readonly number[])[], activations: ActivationScaling): Float32Array => {
    using model = loadModel(engineOfAny, out, { activations });
    return engineOfAny.scope(() => {
      const batch = batchOfDocuments(engineOfAny, documents, { vocabSize: model.config.vocabSize });
      const { hidden_TH } = model.forwardHidden(batch);
      return model.logits(hidden_TH, [hidden_TH.dim(0) - 1]).toFloat32Array();
    });
  };
  const [alone, beside] = [
    [[3, 3, 8]],
    [
      [1, 5, 9, 2, 7],
      [3, 3, 8],
    ],
  ];
  expect(lastOf(beside, "token")).toEqual(lastOf(alone, "token"));
  expect(lastOf(beside, "tensor")).not.toEqual(lastOf(alone, "tensor"));
  using model = loadModel(engineOfAny, out, { activations: "tensor" });
  const tokenizer = { endIds: new Set<number>() } as unknown as Tokenizer;
  expect(() => new ServingEngine(model, tokenizer, { cacheBytes: 1 << 20 })).toThrow(
    /one activation scale for all tokens .* round by token/,
  );
});

test("what files cannot say is refused, and static scales are not taken for dynamic ones", () => {
  const quantize = (layout: "huggingface" | "skywork", activations: "tensor" | "none"): void =>
    void quantizeModel(engineOfAny, goldenFolder("llama2"), join(folder, "no"), { layout, scales: "tensor", activations });
  expect(() => quantize("huggingface", "none")).toThrow(
    /activations none in layout huggingface: expected dynamic, or layout compressed-tensors/,
  );
  expect(() => quantize("skywork", "tensor")).toThrow(/activations tensor in layout skywork/);
  const out = join(folder, "fp8");
  quantizeModel(engineOfAny, goldenFolder("llama2"), out, { layout: "huggingface", scales: "tensor" });
  const isStatic = join(folder, "static");
  cpSync(out, isStatic, { recursive: true });
  const path = join(isStatic, "config.json");
  writeFileSync(path, readFileSync(path, "utf8").replace('"activation_scheme": "dynamic"', '"activation_scheme": "static"'));
  expect(logitsAt(isStatic, {})).toEqual(logitsAt(out, {}));
  expect(() => logitsAt(isStatic, { activations: "scheme" })).toThrow(/expected dynamic activation scales .* got "static"/);
});

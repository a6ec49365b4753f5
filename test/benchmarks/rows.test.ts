/** The benchmark's own arithmetic: names, turns, medians, and what counts as a bar met. Nothing is timed here. */
import { describe, expect, test } from "vitest";
import { engineNames } from "../../benchmarks/engine.ts";
import { fp8BytesOf } from "../../benchmarks/fp8-size.ts";
import { bytesPerToken } from "../../benchmarks/fp8-text.ts";
import { inferenceNames } from "../../benchmarks/inference.ts";
import { fastest, interleave, median, type Row } from "../../benchmarks/measure.ts";
import { isMet, judgements, ratioOf, roofFractionOf, textTable } from "../../benchmarks/report.ts";
import { modelPresets } from "../../src/config/model-presets.ts";
import { checkModelConfig, plainRouting } from "../../src/config/model.ts";
import { mayBeFp8, parameterSpecs, type ParameterSpec } from "../../src/model/parameters.ts";

const row = (fields: Partial<Row>): Row => ({
  name: "gemm.f32.t1.m64.n576.k576",
  ours: [90],
  rival: [100],
  unit: "GFLOP/s",
  bar: 0.75,
  ...fields,
});

describe("rows of the engine", () => {
  test("there are 108 products, two memory-bound products, three of training, two of text and one of WebAssembly, all named differently", () => {
    const names = engineNames();
    expect(new Set(names).size).toBe(names.length);
    const counts = new Map<string, number>();
    for (const name of names) counts.set(name.split(".")[0] ?? "", (counts.get(name.split(".")[0] ?? "") ?? 0) + 1);
    expect(Object.fromEntries(counts)).toEqual({ gemm: 108, gemv: 2, train: 3, decode: 1, prefill: 1, wasm: 1 });
    for (const name of ["gemm.bf16.t2.m2048.n4096.k1536", "gemv.bf16", "train.memory", "decode.bf16", "prefill.bf16", "wasm.gemm"])
      expect(names).toContain(name);
  });
});

describe("rows of inference", () => {
  test("all are named differently, those of the issue among them", () => {
    const names = inferenceNames();
    expect(new Set(names).size).toBe(names.length);
    const wanted = [
      "decode.fp8",
      "prefill.fp8",
      "serve.throughput",
      "serve.ttft",
      "fp8.bytes",
      "fp8.perplexity",
      "tp.memory.5",
      "tp.memory.7",
    ];
    for (const name of wanted) expect(names).toContain(name);
  });
  test("arithmetic of an FP8 model's bytes is that of the parameters that a quantized model has", () => {
    const config = checkModelConfig({
      ...modelPresets["smollm2-135m"],
      architecture: "mixtral",
      vocabSize: 50,
      hiddenSize: 24,
      numLayers: 2,
      numHeads: 3,
      numKvHeads: 1,
      headDim: 8,
      ffnSize: 20,
      moe: { ...plainRouting, numExperts: 4, topK: 2, expertFfnSize: 20 },
    });
    const ofSpec = (spec: ParameterSpec): number => {
      const { shape, dtype } = spec;
      const size = shape.reduce((n, dim) => n * dim, 1);
      // A scale for each output: all dimensions but the last.
      if (mayBeFp8(spec)) return size + (4 * size) / (shape.at(-1) ?? 1);
      return size * (dtype === "f32" ? 4 : 2);
    };
    expect(fp8BytesOf(config)).toBe(parameterSpecs(config, "bf16").reduce((bytes, spec) => bytes + ofSpec(spec), 0));
  });
  test("a token reads everything but the experts that it does not visit", () => {
    const parameter = (byteLength: number): { byteLength: number; scales: null } => ({ byteLength, scales: null });
    const parameters = new Map([
      ["embedding.weight", parameter(100)],
      ["layers.0.moe.experts.gate", parameter(80)],
      ["layers.0.moe.router.weight", parameter(7)],
    ]);
    const config = { moe: { topK: 2, numExperts: 8 } };
    expect(bytesPerToken({ config, parameters } as unknown as Parameters<typeof bytesPerToken>[0])).toBe(127);
  });
});

describe("samples", () => {
  test("sides take turns, and turns of the warm-up do not count", async () => {
    const turns: string[] = [];
    const side = (name: string): { sample: () => number } => ({ sample: () => turns.push(name) });
    const taken = await interleave([side("a"), side("b")], { samples: 2, warmups: 1 });
    expect(turns.join("")).toBe("ababab");
    expect(taken).toEqual([
      [3, 5],
      [4, 6],
    ]);
  });
  test("a median is the middle of an odd number of samples and the mean of the two middle ones of an even number", () => {
    expect(median([9, 1, 5])).toBe(5);
    expect(median([1, 100, 3, 5])).toBe(4);
    expect(median([])).toBeNaN();
  });
  test("the fastest of several ways to run a rival is the one with the larger median, whatever its best sample", () => {
    expect(fastest([[], [1, 50, 2], [3, 4, 5]])).toEqual([3, 4, 5]);
    expect(fastest([])).toEqual([]);
  });
});

describe("bars", () => {
  test("a rate must reach its bar; bytes, times and perplexities must not exceed it", () => {
    expect(isMet(row({ ours: [75] }))).toBe(true);
    expect(isMet(row({ ours: [74] }))).toBe(false);
    expect(isMet(row({ unit: "bytes", bar: 0.8, ours: [80] }))).toBe(true);
    expect(isMet(row({ unit: "bytes", bar: 0.8, ours: [81] }))).toBe(false);
    expect(isMet(row({ unit: "ms", bar: 0.5, ours: [50] }))).toBe(true);
    expect(isMet(row({ unit: "ms", bar: 0.5, ours: [51] }))).toBe(false);
    expect(isMet(row({ unit: "perplexity", bar: 1.01, ours: [102] }))).toBe(false);
  });
  test("a row without a rival is neither met nor missed, and the table says so", () => {
    const alone = row({ rival: [], note: "no python" });
    expect(ratioOf(alone)).toBeNaN();
    expect(isMet(alone)).toBeNull();
    expect(textTable([alone])).toMatch(/no rival[\s\S]*no python/);
  });
  test("products are also judged together: geometric mean, share of rows, least ratio, fraction of the roof", () => {
    const rows = [row({ ours: [50] }), row({ ours: [200], roof: [250] })];
    expect(roofFractionOf(rows[1] ?? row({}))).toBe(0.8);
    expect(judgements(rows).map(({ value, met }) => [value, met])).toEqual([
      ["1.00", true],
      ["50%", false],
      ["0.50", false],
      ["0.80", false],
    ]);
    expect(judgements([row({ name: "wasm.gemm" })])).toEqual([]);
  });
});

/** The benchmark's own arithmetic: names, turns, medians, and what counts as a bar met. Nothing is timed here. */
import { describe, expect, test } from "vitest";
import { engineNames } from "../../benchmarks/engine.ts";
import { fastest, interleave, median, type Row } from "../../benchmarks/measure.ts";
import { isMet, judgements, ratioOf, roofFractionOf, textTable } from "../../benchmarks/report.ts";

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
  test("a rate must reach its bar and bytes must not exceed it", () => {
    expect(isMet(row({ ours: [75] }))).toBe(true);
    expect(isMet(row({ ours: [74] }))).toBe(false);
    expect(isMet(row({ unit: "bytes", bar: 0.8, ours: [80] }))).toBe(true);
    expect(isMet(row({ unit: "bytes", bar: 0.8, ours: [81] }))).toBe(false);
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

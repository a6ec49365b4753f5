/** Every cell of the table of pairs, on small random models: what is called exact is, and what is refused names its check. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { loadBackend } from "../../src/backend/load.ts";
import type { ModelDType } from "../../src/model/index.ts";
import { Engine } from "../../src/tensor/index.ts";
import { configOfSource, decoderGap, probeIds, windowSize, writeDense } from "./fixtures.ts";
import {
  pairFindings,
  pairTableMarkdown,
  probeUpcycled,
  upcycle,
  upcycledConfig,
  upcyclePairs,
  upcycleTargets,
} from "../../src/upcycle/index.ts";
import { pairSources, type PairSource } from "../../src/upcycle/pairs.ts";
import { MoeError } from "../../src/util/errors.ts";

let folder = "";
let engine: Engine;
const denseOf = (source: PairSource, dtype: ModelDType): string => join(folder, `${source}-${dtype}`);
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "moe-pairs-"));
  engine = new Engine(await loadBackend({ numThreads: 1 }));
  for (const source of pairSources) {
    for (const dtype of ["f32", "bf16"] as const) writeDense(engine, configOfSource(source), dtype, denseOf(source, dtype));
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

test("the table has one cell for each row and target, and the documentation shows it as it is", () => {
  const cells = upcyclePairs.map(({ source, target }) => `${source} -> ${target}`);
  expect(cells).toEqual(pairSources.flatMap((source) => upcycleTargets.map((target) => `${source} -> ${target}`)));
  const documentation = readFileSync(new URL("../../docs/upcycling.md", import.meta.url), "utf8");
  expect(documentation).toContain(pairTableMarkdown());
});

describe("a cell is what happens", () => {
  test.each(upcyclePairs)("$source to $target: $verdict", ({ source, target, verdict, check }) => {
    const config = configOfSource(source);
    const [worst] = pairFindings(config, target);
    expect([worst?.verdict ?? "exact", worst?.check ?? null]).toEqual([verdict, check]);
    const options = { numExperts: 4, topK: 2, target };
    if (verdict === "impossible") {
      const out = join(folder, `impossible-${runs++}`);
      const message = `upcycle: ${config.architecture} to ${target} is impossible: check ${String(check)} failed: `;
      expect(() => upcycle(denseOf(source, "f32"), out, options)).toThrow(message);
      return;
    }
    for (const dtype of ["f32", "bf16"] as const) {
      const [dense, out] = [denseOf(source, dtype), join(folder, `moe-${runs++}`)];
      const { exactness } = upcycle(dense, out, options);
      expect(exactness.verdict).toBe(verdict);
      const streamed = probeUpcycled(engine, dense, out, probeIds).maxOutputGap;
      const gap = decoderGap(engine, dense, out, "f32");
      if (verdict === "exact") {
        expect(gap).toBeLessThan(1e-5);
        expect(streamed).toBeLessThan(1e-5);
        expect(decoderGap(engine, dense, out, "bf16")).toBeLessThan(2e-2);
      } else {
        // What the label says: equal up to the window, and not beyond.
        expect(gap).toBeGreaterThan(1e-3);
        expect(Math.abs(streamed / gap - 1)).toBeLessThan(1e-2);
        expect(decoderGap(engine, dense, out, "f32", probeIds.slice(0, windowSize))).toBeLessThan(1e-5);
      }
    }
  });
});

describe("beside the table", () => {
  test("a Qwen3 with one head is exact as OLMoE: one norm, whatever its name", () => {
    const dense = join(folder, "one-head");
    writeDense(engine, { ...configOfSource("qwen3"), numHeads: 1, numKvHeads: 1, headDim: 32 }, "f32", dense);
    const out = join(folder, `moe-${runs++}`);
    expect(upcycle(dense, out, { numExperts: 4, topK: 2, target: "olmoe" }).exactness.verdict).toBe("exact");
    expect(decoderGap(engine, dense, out, "f32")).toBeLessThan(1e-5);
  });
  test("a window as long as the context is none, and one that begins in a later layer is left out", () => {
    const mistral = configOfSource("mistral");
    const wide = { ...mistral, slidingWindow: { size: mistral.maxPositions, firstLayer: 0 } };
    expect(pairFindings(wide, "skywork_moe")).toEqual([]);
    const late = { ...configOfSource("qwen3"), slidingWindow: { size: 8, firstLayer: 1 } };
    expect(pairFindings(late, "qwen3_moe")).toMatchObject([{ check: "attention.slidingWindow", verdict: "approximate" }]);
    expect(upcycledConfig(late, { numExperts: 2, topK: 1, target: "qwen3_moe" }).slidingWindow).toBeNull();
  });
  test("heads of another size than hidden / heads have no place in OLMoE, and one in the others", () => {
    const qwen = { ...configOfSource("qwen3"), numHeads: 1, numKvHeads: 1, headDim: 16 };
    const thrown = (): unknown => upcycledConfig(qwen, { numExperts: 2, topK: 1, target: "olmoe" });
    expect(thrown).toThrow(MoeError);
    expect(thrown).toThrow(/check attention\.headDim failed: .*1 of 16 with hiddenSize 32/);
    const dense = join(folder, "wide-heads");
    writeDense(engine, { ...configOfSource("llama"), headDim: 16 }, "f32", dense);
    for (const target of ["skywork_moe", "mixtral", "qwen2_moe"] as const) {
      const out = join(folder, `moe-${runs++}`);
      upcycle(dense, out, { numExperts: 4, topK: 2, target });
      expect(decoderGap(engine, dense, out, "f32")).toBeLessThan(1e-5);
    }
  });
});

/** FP8 caches of keys and values: the same values in pages and in a row, in one call and in many, near those of an exact cache. */
import { afterAll, afterEach, expect, test } from "vitest";
import { startEngines } from "../../test/golden/models/engines.ts";
import { goldenFolder } from "../../test/golden/models/golden.ts";
import { KvCache, loadModel, PagedCache, type Decoder } from "./index.ts";

const { engines } = await startEngines();
afterAll(() => {
  for (const engine of engines.values()) engine[Symbol.dispose]();
});
afterEach(() => {
  for (const engine of engines.values()) expect(engine.backend.liveBytes).toBe(0);
});

const ids = Array.from({ length: 70 }, (_, i) => (i * 7 + 3) % 50);

/** Logits of the last token, the prompt taken in these chunks. */
function contiguous(model: Decoder, dtype: "f32" | "bf16" | "fp8", chunks: readonly number[]): Float32Array {
  using cache = new KvCache(model.engine, model.config, { numSequences: 3, capacity: 80, dtype });
  let from = 0;
  let logits = new Float32Array(0);
  for (const size of chunks) {
    logits = model.engine.scope(() => {
      const batch = cache.extend([{ slot: 1, ids: ids.slice(from, from + size) }]);
      const { hidden_TH } = model.forwardHidden(batch, { cache });
      return model.logits(hidden_TH, [size - 1]).toFloat32Array() as Float32Array<ArrayBuffer>;
    });
    from += size;
  }
  return logits;
}
function paged(model: Decoder): Float32Array {
  using cache = new PagedCache(model.engine, model.config, { numBlocks: 5, dtype: "fp8" });
  // Another sequence first and between, so that the blocks do not lie in order.
  const other = cache.begin(ids);
  const sequence = cache.begin(ids);
  expect(cache.reserve(other, 3) && cache.reserve(sequence, 60) && cache.reserve(other, 3)).toBe(true);
  let logits = new Float32Array(0);
  for (const [from, to] of [
    [0, 60],
    [60, 70],
  ] as const) {
    expect(cache.reserve(sequence, to - from)).toBe(true);
    logits = model.engine.scope(() => {
      const batch = cache.extend([...(from === 0 ? [{ sequence: other, ids: [4, 5, 6] }] : []), { sequence, ids: ids.slice(from, to) }]);
      const { hidden_TH } = model.forwardHidden(batch, { cache });
      return model.logits(hidden_TH, [batch.ids.size - 1]).toFloat32Array() as Float32Array<ArrayBuffer>;
    });
  }
  cache.release(sequence);
  cache.release(other);
  return logits;
}

test.each([...engines.keys()])("%s: an FP8 cache gives the same bits in pages and in a row, however the prompt is cut", (name) => {
  const engine = engines.get(name);
  if (engine === undefined) throw new Error(`no engine ${name}`);
  using model = loadModel(engine, goldenFolder("llama2"), { dtype: "f32" });
  const whole = contiguous(model, "fp8", [70]);
  expect(contiguous(model, "fp8", [1, 63, 1, 5])).toEqual(whole);
  expect(paged(model)).toEqual(whole);
  const exact = contiguous(model, "f32", [70]);
  const largest = exact.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const gap = exact.reduce((most, value, i) => Math.max(most, Math.abs(value - (whole[i] ?? 0))), 0) / largest;
  // Three bits of mantissa through two layers of random weights (11% measured): not the exact values, and not others.
  expect(gap).toBeGreaterThan(1e-5);
  expect(gap).toBeLessThan(0.2);
});

test("an FP8 cache takes a quarter of the bytes of f32, and half of bf16", () => {
  const engine = engines.get("wasm") ?? engines.get("reference");
  if (engine === undefined) throw new Error("no engine");
  using model = loadModel(engine, goldenFolder("llama2"));
  const bytes = (dtype: "f32" | "bf16" | "fp8"): number => PagedCache.blockBytes(model.config, dtype);
  expect([bytes("bf16") / bytes("fp8"), bytes("f32") / bytes("fp8")]).toEqual([2, 4]);
  const sizes = (["f32", "fp8"] as const).map((dtype) => {
    const before = engine.backend.liveBytes;
    using cache = new KvCache(engine, model.config, { numSequences: 2, capacity: 128, dtype });
    expect(cache.length(0)).toBe(0);
    return engine.backend.liveBytes - before;
  });
  expect((sizes[0] ?? 0) / (sizes[1] ?? 1)).toBe(4);
});

import { afterAll, afterEach, describe, expect, test } from "vitest";
import { loadBackend } from "../backend/load.ts";
import { modelPresets } from "../config/model-presets.ts";
import { Engine } from "../tensor/index.ts";
import { Random } from "../util/random.ts";
import { Decoder, KvCache, PagedCache, type PagedSequence } from "./index.ts";

const engine = new Engine(await loadBackend({ numThreads: 1 }));
const size = {
  vocabSize: 50,
  hiddenSize: 24,
  ffnSize: 32,
  numLayers: 2,
  numHeads: 4,
  numKvHeads: 2,
  headDim: 6,
  maxPositions: 600,
  initStd: 0.4,
};
const config = { ...modelPresets.quickstart, ...size, bosTokenId: null, eosTokenIds: [], padTokenId: null };
const model = Decoder.initialize(engine, config, { dtype: "f32", seed: 3 });
const windowed = new Decoder(
  engine,
  { ...config, architecture: "mistral", slidingWindow: { size: 70, firstLayer: 0 } },
  "f32",
  model.parameters,
);
for (const one of [model, windowed]) {
  // The table of rotations grows with the longest sequence.
  using cache = new KvCache(engine, config, { numSequences: 1, capacity: 512, dtype: "f32" });
  engine.scope(() => {
    one.forwardHidden(cache.extend([{ slot: 0, ids: idsOf(512, 0) }]), { cache });
  });
}
const liveBytes = engine.backend.liveBytes;
afterEach(() => {
  expect(engine.backend.liveBytes).toBe(liveBytes);
});
afterAll(() => {
  windowed[Symbol.dispose]();
  engine[Symbol.dispose]();
});

function idsOf(length: number, seed: number): number[] {
  const random = new Random(seed);
  return Array.from({ length }, () => random.integer(50));
}
function open(numBlocks: number, dtype: "f32" | "bf16" = "f32"): PagedCache {
  return new PagedCache(engine, config, { numBlocks, dtype });
}
/** Hidden states of new tokens, sequence after sequence. */
function run(cache: PagedCache, entries: readonly { sequence: PagedSequence; ids: number[] }[], on = model): Float32Array {
  for (const { sequence, ids } of entries) expect(cache.reserve(sequence, ids.length)).toBe(true);
  return engine.scope(() => on.forwardHidden(cache.extend(entries), { cache }).hidden_TH.toFloat32Array());
}
function plain(ids: number[], from: number, dtype: "f32" | "bf16" = "f32", on = model): Float32Array {
  using cache = new KvCache(engine, config, { numSequences: 1, capacity: 512, dtype });
  return engine.scope(() =>
    on
      .forwardHidden(cache.extend([{ slot: 0, ids }]), { cache })
      .hidden_TH.toFloat32Array()
      .slice(from * 24),
  );
}

describe("a paged cache gives the bits of a contiguous one", () => {
  test.each([
    ["f32", model],
    ["bf16", model],
    ["f32", windowed],
  ] as const)("%s, in chunks that cross blocks, among others, in blocks of any order", (dtype, on) => {
    using cache = open(16, dtype);
    const [a, b] = [idsOf(150, 1), idsOf(200, 2)];
    // Blocks that lie in between, freed in another order.
    const gaps = [0, 1, 2, 3].map(() => cache.begin([]));
    for (const gap of gaps) cache.reserve(gap, 64);
    for (const gap of [...gaps.slice(2), ...gaps.slice(0, 2)]) cache.release(gap);
    const [one, two] = [cache.begin(a), cache.begin(b)];
    const parts = [
      run(cache, [{ sequence: two, ids: b.slice(0, 63) }], on),
      run(
        cache,
        [
          { sequence: one, ids: a.slice(0, 70) },
          { sequence: two, ids: b.slice(63, 64) },
        ],
        on,
      ),
      run(
        cache,
        [
          { sequence: two, ids: b.slice(64, 199) },
          { sequence: one, ids: a.slice(70, 150) },
        ],
        on,
      ),
      run(cache, [{ sequence: two, ids: b.slice(199) }], on),
    ];
    const row = (part: number, from: number, to: number): number[] => [...(parts[part]?.slice(from * 24, to * 24) ?? [])];
    expect([...row(1, 0, 70), ...row(2, 135, 215)]).toEqual([...plain(a, 0, dtype, on)]);
    expect([...row(0, 0, 63), ...row(1, 70, 71), ...row(2, 0, 135), ...row(3, 0, 1)]).toEqual([...plain(b, 0, dtype, on)]);
  });
  test("from a published beginning, which is never the whole text", () => {
    using cache = open(10);
    const ids = idsOf(192, 4);
    const first = cache.begin(ids);
    run(cache, [{ sequence: first, ids }]);
    cache.publish(first, ids);
    cache.release(first);
    expect([cache.numFreeBlocks, cache.numIdleBlocks]).toEqual([10, 3]);
    const again = cache.begin(ids);
    expect(again.length).toBe(128);
    expect(run(cache, [{ sequence: again, ids: ids.slice(128) }])).toEqual(plain(ids, 128));
    expect(cache.begin([...ids.slice(0, 100), ...idsOf(92, 5)]).length).toBe(64);
  });
  test("after a fork, to which either side may add without the other noticing", () => {
    using cache = open(8);
    const ids = idsOf(100, 6);
    const original = cache.begin([]);
    run(cache, [{ sequence: original, ids }]);
    const fork = cache.fork(original, 90);
    expect(cache.numFreeBlocks).toBe(6);
    const [x, y] = [idsOf(30, 7), idsOf(30, 8)];
    expect(cache.blocksFor(fork, 30)).toBe(1);
    expect(run(cache, [{ sequence: fork, ids: x }])).toEqual(plain([...ids.slice(0, 90), ...x], 90));
    expect(run(cache, [{ sequence: original, ids: y }])).toEqual(plain([...ids, ...y], 100));
    // One block is shared, and each has a second and, from 128 tokens on, a third.
    expect(cache.numFreeBlocks).toBe(8 - 1 - 1 - 2);
  });
  test("after tokens were taken back", () => {
    using cache = open(4);
    const ids = idsOf(130, 9);
    const sequence = cache.begin([]);
    run(cache, [{ sequence, ids: [...ids.slice(0, 60), ...idsOf(80, 10)] }]);
    cache.truncate(sequence, 60);
    expect(cache.numFreeBlocks).toBe(3);
    expect(run(cache, [{ sequence, ids: ids.slice(60) }])).toEqual(plain(ids, 60));
  });
});

describe("a paged cache refuses", () => {
  test("more tokens than it has blocks for, and changes nothing", () => {
    using cache = open(2);
    const sequence = cache.begin([]);
    expect([cache.reserve(sequence, 129), cache.numFreeBlocks]).toEqual([false, 2]);
    expect([cache.reserve(sequence, 128), cache.numFreeBlocks]).toEqual([true, 0]);
    expect(cache.reserve(cache.begin([]), 1)).toBe(false);
  });
  test("tokens without room, ids outside the vocabulary, and use after release", () => {
    using cache = open(2);
    const sequence = cache.begin([]);
    expect(() => engine.scope(() => void cache.extend([{ sequence, ids: [1] }]))).toThrow(/1 tokens after 0 were not reserved/);
    cache.reserve(sequence, 2);
    expect(() => engine.scope(() => void cache.extend([{ sequence, ids: [1, 50] }]))).toThrow(/expected an id from 0 to 49/);
    expect(sequence.length).toBe(0);
    cache.release(sequence);
    expect(() => cache.reserve(sequence, 1)).toThrow(/a sequence that was released/);
  });
  test("to take back what was published, and to fork more than there is", () => {
    using cache = open(4);
    const ids = idsOf(70, 11);
    const sequence = cache.begin([]);
    run(cache, [{ sequence, ids }]);
    cache.publish(sequence, ids);
    expect(() => cache.truncate(sequence, 63)).toThrow(/truncating 70 tokens to 63, of which 64 are published/);
    expect(() => cache.fork(sequence, 71)).toThrow(/forking 71 tokens of a sequence that holds 70/);
    expect(() => cache.publish(sequence, ids.slice(1))).toThrow(/69 ids for a sequence of 70 tokens/);
  });
});

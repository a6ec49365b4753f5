/** Runs of layers as models of their own: their parameters, their bits in a chain, and what they refuse. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, expect, test } from "vitest";
import { loadBackend } from "../backend/load.ts";
import { modelPresets } from "../config/model-presets.ts";
import type { ModelConfig } from "../config/model.ts";
import { Engine, type Tensor } from "../tensor/index.ts";
import { equalSpeeds, partition, type Interval } from "../util/partition.ts";
import { batchOfDocuments, Decoder, loadModel, parameterSpecs, saveModel, spanSpecs } from "./index.ts";

const engine = new Engine(await loadBackend({ numThreads: 1 }));
afterAll(() => {
  expect(engine.backend.liveBytes).toBe(0);
  engine[Symbol.dispose]();
});

const config: ModelConfig = {
  ...modelPresets.quickstart,
  architecture: "skywork_moe",
  vocabSize: 50,
  hiddenSize: 24,
  ffnSize: 20,
  numLayers: 5,
  numHeads: 4,
  numKvHeads: 2,
  headDim: 6,
  maxPositions: 200,
  initStd: 0.3,
  tiedEmbeddings: true,
  slidingWindow: { size: 30, firstLayer: 3 },
  moe: { ...modelPresets["skywork-moe"].moe, numExperts: 5, expertFfnSize: 12, layerInterval: 2 },
};
const documents = [
  [1, 5, 9, 3],
  [1, 7, 22, 49, 30, 2, 4],
];

/** Logits of a chain of decoders, as numbers. */
function logits(chain: readonly Decoder[]): Float32Array {
  return engine.scope(() => {
    const batch = batchOfDocuments(engine, documents, config);
    let hidden: Tensor | undefined;
    for (const part of chain) hidden = part.forwardHidden(batch, hidden === undefined ? {} : { hidden }).hidden_TH;
    const last = chain.at(-1);
    if (hidden === undefined || last === undefined) throw new Error("no chain");
    return last.logits(hidden).toFloat32Array();
  });
}
function withChain<T>(spans: readonly Interval[], make: (layers: Interval) => Decoder, run: (chain: Decoder[]) => T): T {
  const chain = spans.map(make);
  try {
    return run(chain);
  } finally {
    for (const part of chain) part[Symbol.dispose]();
  }
}
const spansOf = (lengths: readonly number[]): Interval[] => {
  let start = 0;
  return lengths.map((length) => ({ start, end: (start += length) }));
};

test("stages of fresh weights, one after another, give the bits of the whole model", () => {
  using whole = Decoder.initialize(engine, config, { dtype: "f32", seed: 3 });
  const expected = logits([whole]);
  for (const lengths of [[5], [1, 4], [3, 2], [1, 3, 1], [1, 1, 1, 1, 1]]) {
    const got = withChain(spansOf(lengths), (layers) => Decoder.initialize(engine, config, { dtype: "f32", seed: 3, layers }), logits);
    expect(got).toEqual(expected);
  }
});

test("a stage reads its own tensors of a file, and routing keeps the layer's number in the model", () => {
  const folder = mkdtempSync(join(tmpdir(), "moe-span-"));
  try {
    using whole = Decoder.initialize(engine, { ...config, tiedEmbeddings: false, slidingWindow: null }, { dtype: "bf16", seed: 3 });
    saveModel(whole, folder);
    const spans = spansOf([2, 3]);
    withChain(
      spans,
      (layers) => loadModel(engine, folder, { mapped: false, layers }),
      (chain) => {
        expect(logits(chain)).toEqual(logits([whole]));
        expect([...(chain[0]?.parameters.keys() ?? [])].some((name) => name.startsWith("layers.2.") || name === "head.weight")).toBe(false);
        const numBytes = chain.reduce((sum, part) => sum + part.numBytes, 0);
        expect(numBytes).toBe(whole.numBytes);
        const layers = engine.scope(() => {
          const [first, last] = chain;
          const batch = batchOfDocuments(engine, documents, config);
          const { hidden_TH: hidden } = first?.forwardHidden(batch) ?? {};
          return hidden === undefined ? [] : last?.forwardHidden(batch, { hidden }).routing.map(({ layer }) => layer);
        });
        expect(layers).toEqual([3]);
      },
    );
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

test("stages have every parameter of the model once, in its order; a tied embedding is on the first and the last", () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 5 }), fc.boolean(), (numStages, tiedEmbeddings) => {
      const all = parameterSpecs({ ...config, tiedEmbeddings }, "bf16");
      const spans = partition(config.numLayers, equalSpeeds(numStages));
      const names = spans.flatMap((span) => spanSpecs(all, { ...config, tiedEmbeddings }, span).map(({ name }) => name));
      const twice = tiedEmbeddings && numStages > 1 ? ["embedding.weight"] : [];
      expect(names.toSorted()).toEqual([...all.map(({ name }) => name), ...twice].toSorted());
      expect(names[0]).toBe("embedding.weight");
    }),
  );
});

test("a stage without layers, or of layers that there are not, is refused", () => {
  for (const layers of [
    { start: 2, end: 2 },
    { start: 3, end: 6 },
    { start: -1, end: 2 },
  ])
    expect(() => Decoder.initialize(engine, config, { dtype: "f32", seed: 1, layers })).toThrow(
      `layers ${layers.start}..${layers.end}: expected at least one of the model's 5 layers`,
    );
});

test("hidden states are asked for where a stage is not the first, and a head only of the last", () => {
  using part = Decoder.initialize(engine, config, { dtype: "f32", seed: 1, layers: { start: 1, end: 3 } });
  using first = Decoder.initialize(engine, config, { dtype: "f32", seed: 1, layers: { start: 0, end: 3 } });
  engine.scope(() => {
    const batch = batchOfDocuments(engine, documents, config);
    expect(() => part.forwardHidden(batch)).toThrow(/without hidden states of layer 0/);
    const hidden = engine.zeros([11, 24], "f32");
    expect(() => first.forwardHidden(batch, { hidden })).toThrow(/first layer/);
    expect(() => part.logits(hidden)).toThrow(/no output head/);
  });
});

import { afterAll, describe, expect, test } from "vitest";
import { activationBytes, numParams } from "../config/model-counts.ts";
import { modelPresets } from "../config/model-presets.ts";
import type { ModelConfig } from "../config/model.ts";
import type { RoutingContext } from "../nn/index.ts";
import { balanceLoss, switchLoss, Tape, zLoss, type Engine } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { Random } from "../util/random.ts";
import { backendNames, startEngines } from "../../test/golden/models/engines.ts";
import { computeGradients, computeLogits, goldenFolder, goldenNames, readGolden } from "../../test/golden/models/golden.ts";
import { batchOfDocuments, Decoder, KvCache, loadModel, parameterSpecs, totalElements, type ModelDType } from "./index.ts";

const { engines, missing } = await startEngines();
afterAll(() => {
  for (const engine of engines.values()) engine[Symbol.dispose]();
});
/** The fastest that started: for tests of what is the same on all. */
function anyEngine(): Engine {
  const engine = engines.get("native") ?? engines.get("wasm") ?? engines.get("reference");
  if (engine === undefined) throw new Error("no engine started");
  return engine;
}

/** Small models that have every part between them. */
const small: ModelConfig = {
  ...modelPresets.quickstart,
  vocabSize: 50,
  hiddenSize: 24,
  ffnSize: 20,
  numLayers: 3,
  numHeads: 4,
  numKvHeads: 2,
  headDim: 6,
  maxPositions: 200,
  initStd: 0.3,
};
const smallMoe: ModelConfig = {
  ...small,
  architecture: "skywork_moe",
  tiedEmbeddings: false,
  slidingWindow: { size: 30, firstLayer: 1 },
  qkNorm: "head",
  qkvBias: true,
  moe: { ...modelPresets["skywork-moe"].moe, numExperts: 5, expertFfnSize: 12, layerInterval: 2 },
};
/** The parts of experts that the other has not. */
const smallShared: ModelConfig = {
  ...smallMoe,
  qkNorm: "all",
  moe: {
    ...smallMoe.moe,
    numExperts: 6,
    topK: 2,
    expertFfnSize: 12,
    layerInterval: 1,
    gateNormalization: null,
    scoring: "sigmoid",
    renormalize: false,
    routedScale: 1.5,
    groups: { numGroups: 3, topGroups: 2 },
    gateLayers: 2,
    selectionBias: true,
    inputScale: 1,
    sharedExpert: { ffnSize: 14, gate: true, scale: 0.8 },
  },
};
/** Everything that a router can have, in every layer. */
const fullMoe: ModelConfig = {
  ...smallMoe,
  moe: {
    ...modelPresets["skywork-moe"].moe,
    numExperts: 6,
    expertFfnSize: 12,
    layerInterval: 1,
    gateLayers: 2,
    selectionBias: true,
    groups: { numGroups: 3, topGroups: 2 },
    routedScale: 1.5,
    sharedExpert: { ffnSize: 10, gate: true, scale: 0.5 },
  },
};
const models = { small, smallMoe, smallShared, fullMoe } as const;

function randomIds(length: number, seed: number): number[] {
  const random = new Random(seed);
  return Array.from({ length }, () => random.integer(small.vocabSize));
}

describe.each(backendNames)("on the %s engine", (name) => {
  const run = (fn: (engine: Engine) => void): void => {
    const engine = engines.get(name);
    if (engine === undefined) throw new Error(missing.get(name));
    fn(engine);
    expect(engine.backend.liveBytes).toBe(0);
  };
  const cases = (["small", "smallMoe", "smallShared"] as const).flatMap((config) =>
    (["f32", "bf16"] as const).map((dtype) => ({ config, dtype })),
  );

  test.skipIf(missing.has(name)).each(cases)(
    "$config $dtype: prefill in chunks and decoding through the cache give the bits of the whole forward",
    ({ config, dtype }) => {
      run((engine) => {
        using model = Decoder.initialize(engine, models[config], { dtype, seed: 1 });
        const ids = randomIds(150, 2);
        const whole = computeLogits(engine, model, [ids]);
        using cache = new KvCache(engine, model.config, { numSequences: 2, capacity: 160, dtype });
        const V = model.config.vocabSize;
        let done = 0;
        // One long chunk, an odd one, single tokens over a block boundary, the rest; in slot 1, so that rows do not start at 0.
        for (const length of [60, 13, 1, 1, 1, 1, 1, 1, 71]) {
          const logits = engine.scope(() => {
            const batch = cache.extend([{ slot: 1, ids: ids.slice(done, done + length) }]);
            return model.logits(model.forwardHidden(batch, { cache }).hidden_TH).toFloat32Array();
          });
          expect(logits).toEqual(whole.subarray(done * V, (done + length) * V));
          done += length;
        }
        expect(done).toBe(150);
      });
    },
  );

  test.skipIf(missing.has(name)).each(cases)("$config $dtype: packed documents give the bits of separate ones", ({ config, dtype }) => {
    run((engine) => {
      using model = Decoder.initialize(engine, models[config], { dtype, seed: 3 });
      const documents = [randomIds(70, 4), randomIds(1, 5), randomIds(33, 6)];
      const separate = documents.flatMap((ids) => [...computeLogits(engine, model, [ids])]);
      expect([...computeLogits(engine, model, documents)]).toEqual(separate);
    });
  });

  test.skipIf(missing.has(name))("sequences decoded together give the bits of sequences decoded alone", () => {
    run((engine) => {
      using model = Decoder.initialize(engine, smallMoe, { dtype: "f32", seed: 7 });
      const sequences = [randomIds(9, 8), randomIds(17, 9), randomIds(12, 10)];
      const alone = sequences.map((ids) => computeLogits(engine, model, [ids]));
      using cache = new KvCache(engine, smallMoe, { numSequences: 3, capacity: 20, dtype: "f32" });
      engine.scope(() =>
        model.forwardHidden(cache.extend(sequences.map((ids, slot) => ({ slot, ids: ids.slice(0, -1) }))), { cache }).hidden_TH.dispose(),
      );
      const last = engine.scope(() => {
        const batch = cache.extend(sequences.map((ids, slot) => ({ slot, ids: ids.slice(-1) })));
        return model.logits(model.forwardHidden(batch, { cache }).hidden_TH).toFloat32Array();
      });
      const V = smallMoe.vocabSize;
      for (const [slot, logits] of alone.entries())
        expect(last.subarray(slot * V, (slot + 1) * V)).toEqual(logits.subarray(logits.length - V));
    });
  });
});

test("a cache of another type than the model's is close in bf16 and leaves nothing behind", () => {
  const engine = anyEngine();
  {
    using model = Decoder.initialize(engine, small, { dtype: "f32", seed: 1 });
    const ids = randomIds(40, 2);
    const whole = computeLogits(engine, model, [ids]);
    using cache = new KvCache(engine, small, { numSequences: 1, capacity: 40, dtype: "bf16" });
    const cached = engine.scope(() =>
      model.logits(model.forwardHidden(cache.extend([{ slot: 0, ids }]), { cache }).hidden_TH).toFloat32Array(),
    );
    const largest = whole.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const gap = cached.reduce((most, value, i) => Math.max(most, Math.abs(value - (whole[i] ?? 0))), 0) / largest;
    expect(gap).toBeGreaterThan(0);
    expect(gap).toBeLessThan(0.05);
  }
  expect(engine.backend.liveBytes).toBe(0);
});

test("logits of chosen rows are those rows of all logits", () => {
  const engine = anyEngine();
  using model = Decoder.initialize(engine, small, { dtype: "bf16", seed: 1 });
  engine.scope(() => {
    const { hidden_TH } = model.forwardHidden(batchOfDocuments(engine, [randomIds(5, 1), randomIds(4, 2)], small));
    const all = model.logits(hidden_TH).toFloat32Array();
    const row = (r: number): number[] => [...all.subarray(r * small.vocabSize, (r + 1) * small.vocabSize)];
    expect([...model.logits(hidden_TH, [8, 4]).toFloat32Array()]).toEqual([...row(8), ...row(4)]);
    expect(() => model.logits(hidden_TH, [9])).toThrow(/row 9, expected 0 to 8/);
  });
});

test("a cache that is rolled back continues as if the dropped tokens never were", () => {
  const engine = anyEngine();
  using model = Decoder.initialize(engine, small, { dtype: "f32", seed: 1 });
  using cache = new KvCache(engine, small, { numSequences: 1, capacity: 30, dtype: "f32" });
  const step = (ids: number[]): Float32Array =>
    engine.scope(() => model.logits(model.forwardHidden(cache.extend([{ slot: 0, ids }]), { cache }).hidden_TH).toFloat32Array());
  step([1, 2, 3, 4, 5]);
  const first = step([6, 7]);
  cache.truncate(0, 5);
  step([8, 9, 10]);
  cache.truncate(0, 5);
  expect(step([6, 7])).toEqual(first);
  expect(cache.length(0)).toBe(7);
});

test("a cache refuses what does not fit, and is as before", () => {
  const engine = anyEngine();
  using cache = new KvCache(engine, small, { numSequences: 2, capacity: 4, dtype: "f32" });
  expect(() => cache.extend([{ slot: 0, ids: [1, 2, 3, 4, 5] }])).toThrow(/5 tokens after 0 in slot 0 exceed its capacity 4/);
  expect(() =>
    cache.extend([
      { slot: 1, ids: [1] },
      { slot: 0, ids: [1] },
    ]),
  ).toThrow(/slots must ascend, got 0 after 1/);
  expect(() => cache.extend([{ slot: 2, ids: [1] }])).toThrow(/slot 2/);
  expect(() => cache.extend([{ slot: 0, ids: [50] }])).toThrow(/token 0 of document 0 is 50, expected an id from 0 to 49/);
  expect([cache.length(0), cache.length(1)]).toEqual([0, 0]);
});

test.each(goldenNames)("%s: recomputing layers changes no gradient bit", (name) => {
  const engine = anyEngine();
  {
    using model = loadModel(engine, goldenFolder(name), { dtype: "f32", mapped: false });
    const { sequences } = readGolden(name);
    const kept = computeGradients(engine, model, sequences);
    for (const recomputeLayers of [1, model.config.numLayers])
      expect(computeGradients(engine, model, sequences, recomputeLayers)).toEqual(kept);
  }
  expect(engine.backend.liveBytes).toBe(0);
});

test.each(
  (["softmax", "softmaxOfTopK", "sigmoid"] as const).flatMap((scoring) => (["f32", "bf16"] as const).map((dtype) => ({ scoring, dtype }))),
)("noise, capacity and padding: recomputed layers route the same, and give the same bits ($scoring, $dtype)", ({ scoring, dtype }) => {
  const engine = anyEngine();
  const config = { ...fullMoe, moe: fullMoe.moe === null ? null : { ...fullMoe.moe, scoring } };
  using model = Decoder.initialize(engine, config, { dtype, seed: 1 });
  const run = (recomputeLayers: number, epsilon: number) => {
    for (const tensor of model.parameters.values()) if (tensor.parameter) tensor.parameter.gradIsSet = false;
    using tape = new Tape(engine);
    return engine.scope(() => {
      const batch = batchOfDocuments(engine, [randomIds(20, 1), randomIds(20, 2)], small);
      const targets = engine.from(randomIds(40, 3), [40], "i32");
      const valid = engine.from(
        Array.from({ length: 40 }, (_, t) => Number(t < 17 || t >= 20)),
        [40],
        "i32",
      );
      const routing: RoutingContext = {
        groupOffsets: [0, 20, 40],
        capacity: { factor: 1, dropBy: "probability", pad: true },
        valid,
        jitter: { epsilon, seed: 1, step: 5, rowOffsets: [100, 120] },
      };
      const roots = engine.withTape(tape, () => {
        const output = model.loss(batch, targets, { scale: 1 / 40, recomputeLayers, routing });
        const losses = output.routing.flatMap(({ probs_TE, logits_TE, counts_GE }) => [
          { value: balanceLoss(probs_TE, { groupOffsets: [0, 20, 40], valid }), grad: 0.5 },
          { value: switchLoss(probs_TE, counts_GE, { groupOffsets: [0, 20, 40], valid }), grad: 0.1 },
          { value: zLoss(logits_TE, { valid }), grad: 1e-3 },
        ]);
        return [{ value: output.loss, grad: 1 }, ...losses];
      });
      tape.backward(roots);
      return [...model.parameters].map(([name, { parameter }]) => [name, parameter?.grad?.toFloat32Array() ?? null] as const);
    });
  };
  const kept = run(0, 0.05);
  const untouched = kept.filter(([, grad]) => grad === null || grad.every((value) => value === 0));
  expect(untouched.map(([name]) => name)).toEqual([0, 1, 2].map((layer) => `layers.${layer}.moe.router.bias`));
  for (const recomputeLayers of [1, 3]) expect(run(recomputeLayers, 0.05)).toEqual(kept);
  expect(run(0, 0)).not.toEqual(kept);
});

test("balance losses are roots of their own, recomputed or not, and reach the routers", () => {
  const engine = anyEngine();
  using model = Decoder.initialize(engine, smallMoe, { dtype: "f32", seed: 1 });
  const gradients = [0, 3].map((recomputeLayers) => {
    for (const tensor of model.parameters.values()) if (tensor.parameter) tensor.parameter.gradIsSet = false;
    using tape = new Tape(engine);
    return engine.scope(() =>
      engine.withTape(tape, () => {
        const batch = batchOfDocuments(engine, [randomIds(20, 1)], small);
        const targets = engine.from(new Int32Array(20).fill(-1), [20], "i32");
        const output = model.loss(batch, targets, { scale: 1, recomputeLayers });
        expect(output.routing.map(({ layer }) => layer)).toEqual([1]);
        expect(output.loss.item()).toBe(0);
        tape.backward([
          { value: output.loss, grad: 1 },
          ...output.routing.map(({ probs_TE }) => ({ value: balanceLoss(probs_TE), grad: 0.5 })),
        ]);
        return model.parameters.get("layers.1.moe.router.weight")?.parameter?.grad?.toFloat32Array();
      }),
    );
  });
  expect(gradients[0]?.some((value) => value !== 0)).toBe(true);
  expect(gradients[1]).toEqual(gradients[0]);
});

test.each(Object.entries(models))("%s: the configuration counts the parameters that are built", (_, config) => {
  const specs = parameterSpecs(config, "bf16");
  expect(totalElements(specs)).toBe(numParams(config));
  using model = Decoder.initialize(anyEngine(), config, { dtype: "bf16", seed: 0 });
  expect([...model.parameters.values()].reduce((n, tensor) => n + tensor.size, 0)).toBe(numParams(config));
  expect([...model.parameters.keys()]).toEqual(specs.map(({ name }) => name));
  const f32 = [...model.parameters].filter(([, tensor]) => tensor.dtype === "f32").map(([name]) => name);
  expect(f32.every((name) => /[nN]orm\.weight$|bias$|router\.(hidden\.)?weight$/.test(name))).toBe(true);
});
test.each(Object.entries(modelPresets))("%s: the configuration counts the parameters of its list", (_, config) => {
  expect(totalElements(parameterSpecs(config, "bf16"))).toBe(numParams(config));
});

const activationCases = (["small", "smallMoe", "smallShared", "fullMoe"] as const).flatMap((config) =>
  (["f32", "bf16"] as const).flatMap((dtype) => [0, 2].map((recomputeLayers) => ({ config, dtype, recomputeLayers }))),
);
test.each(activationCases)(
  "$config $dtype, $recomputeLayers layers recomputed: activationBytes is what a forward pass leaves on the tape",
  ({ config, dtype, recomputeLayers }) => {
    const numTokens = 512;
    const engine = anyEngine();
    using model = Decoder.initialize(engine, models[config], { dtype, seed: 0 });
    const measured = tapeBytes(engine, model, numTokens, recomputeLayers);
    const expected = activationBytes(models[config], { numTokens, elementBytes: dtype === "f32" ? 4 : 2, recomputeLayers });
    // Left over: offsets and counts of experts, rounding of allocations to 64 bytes.
    expect(Math.abs(measured / expected - 1)).toBeLessThan(0.005);
  },
);
/** Bytes that live after the forward pass and not before, apart from gradients, the batch and the outputs of the loss. */
function tapeBytes(engine: Engine, model: Decoder, numTokens: number, recomputeLayers: number): number {
  const forward = (): number => {
    using tape = new Tape(engine);
    return engine.scope(() => {
      const batch = batchOfDocuments(engine, [Array.from({ length: numTokens }, (_, i) => i % 50)], model.config);
      const targets = engine.from(new Int32Array(numTokens), [numTokens], "i32");
      const before = engine.backend.liveBytes;
      engine.withTape(tape, () => {
        const kept = model.loss(batch, targets, { scale: 1, recomputeLayers });
        kept.hidden_TH.dispose();
        kept.perToken.dispose();
      });
      return engine.backend.liveBytes - before;
    });
  };
  // The first pass also makes the rope table and the head's gradient.
  forward();
  return forward();
}

test("initial weights depend on the seed, not on the type, and have the configured deviation", () => {
  const engine = anyEngine();
  const weights = (seed: number, dtype: ModelDType): Float32Array => {
    using model = Decoder.initialize(engine, small, { dtype, seed });
    return model.parameters.get("layers.2.feedForward.up.weight")?.toFloat32Array() ?? new Float32Array();
  };
  const values = weights(1, "f32");
  expect(weights(1, "f32")).toEqual(values);
  expect(weights(2, "f32")).not.toEqual(values);
  expect(weights(1, "bf16").every((value, i) => Math.abs(value - (values[i] ?? 0)) <= Math.abs(value) / 128)).toBe(true);
  const variance = values.reduce((sum, value) => sum + value * value, 0) / values.length;
  expect(Math.abs(Math.sqrt(variance) - small.initStd)).toBeLessThan(0.03);
});

test("a batch refuses ids outside the vocabulary and empty documents", () => {
  const engine = anyEngine();
  engine.scope(() => {
    expect(() => batchOfDocuments(engine, [[1], [2, -1]], small)).toThrow(/token 1 of document 1 is -1/);
    expect(() => batchOfDocuments(engine, [[1], []], small)).toThrow(/document 1 of 2 has no tokens/);
    expect(() => batchOfDocuments(engine, [[1.5]], small)).toThrow(MoeError);
  });
});

test("a decoder refuses parameters that are not those of its configuration", () => {
  const engine = anyEngine();
  using model = Decoder.initialize(engine, small, { dtype: "f32", seed: 0 });
  expect(() => new Decoder(engine, { ...small, ffnSize: 21 }, "f32", model.parameters)).toThrow(
    /expected layers.0.feedForward.gate.weight \[21, 24\] f32, got \[20, 24\] f32/,
  );
  expect(() => new Decoder(engine, { ...small, numLayers: 2 }, "f32", model.parameters)).toThrow(/unexpected layers.2/);
  expect(() => new Decoder(engine, { ...small, tiedEmbeddings: false }, "f32", model.parameters)).toThrow(/head.weight, it is missing/);
});

test("a model loaded for inference refuses to train, and says how to load it", () => {
  const engine = anyEngine();
  using model = loadModel(engine, goldenFolder("llama2"), { dtype: "bf16" });
  expect(() => computeGradients(engine, model, readGolden("llama2").sequences)).toThrow(/load it with mapped: false/);
});

test("a cache under a tape is refused", () => {
  const engine = anyEngine();
  const config = smallMoe;
  using model = Decoder.initialize(engine, config, { dtype: "f32", seed: 0 });
  using tape = new Tape(engine);
  using cache = new KvCache(engine, config, { numSequences: 1, capacity: 4, dtype: "f32" });
  engine.scope(() => {
    const batch = cache.extend([{ slot: 0, ids: [1, 2] }]);
    engine.withTape(tape, () => {
      expect(() => model.forwardHidden(batch, { cache })).toThrow(/KV cache under a tape/);
    });
  });
});

/** What keeps experts in balance while a model trains: groups, losses, coefficients, biases, noise, and forced routing. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { loadBackend } from "../backend/load.ts";
import { fromHuggingFaceConfig } from "../config/model-huggingface.ts";
import { parseRunConfig, type RunConfig, type RunConfigInput } from "../config/run.ts";
import { Dataset } from "../data/index.ts";
import { Decoder } from "../model/index.ts";
import { compareRouting, selectionScores, type ChosenExperts } from "../nn/index.ts";
import { Engine } from "../tensor/index.ts";
import { tinyModel, tinyRun, unevenTokens } from "../../test/train/harness.ts";
import { toModelBatch } from "./batch.ts";
import { routingContext } from "./micro-step.ts";
import { Trainer, type LayerMetrics, type StepMetrics } from "./index.ts";

const sequenceLength = 32;
const batchSequences = 8;
let folder = "";
let engine: Engine;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "moe-balance-"));
  engine = new Engine(await loadBackend({ numThreads: 1 }));
});
afterEach(() => {
  expect(engine.backend.liveBytes).toBe(0);
  engine[Symbol.dispose]();
  rmSync(folder, { recursive: true, force: true });
});

type Moe = NonNullable<RunConfigInput["moe"]>;
function configOf(moe: Moe, changes: Partial<RunConfigInput> = {}): RunConfig {
  return parseRunConfig({ ...tinyRun(folder, "skywork"), batchSequences, moe, ...changes });
}
/** Runs `fn` with a fresh trainer of the tiny Skywork-MoE model. */
function withTrainer<T>(config: RunConfig, fn: (trainer: Trainer, model: Decoder) => T, seed = 1): T {
  using file = unevenTokens(folder);
  const data = new Dataset(file, { sequenceLength, seed: 1 });
  using model = Decoder.initialize(engine, fromHuggingFaceConfig(tinyModel("skywork"), "test"), { dtype: config.precision, seed });
  using trainer = new Trainer(config, model, data, { peakFlops: null });
  return fn(trainer, model);
}
function steps(moe: Moe, numSteps: number, changes: Partial<RunConfigInput> = {}): StepMetrics[] {
  return withTrainer(configOf(moe, changes), (trainer) => Array.from({ length: numSteps }, () => trainer.step()));
}
function biasOf(model: Decoder, layer: number): Float32Array {
  return model.parameters.get(`layers.${layer}.moe.router.bias`)?.toFloat32Array() ?? new Float32Array();
}
/** Largest relative difference of two numbers. */
function gap(a: number, b: number): number {
  return a === b ? 0 : Math.abs(a - b) / Math.max(Math.abs(a), Math.abs(b));
}

/** What each layer chose for the whole first global batch, run in micro-batches as `config` says. */
function choices(config: RunConfig, seed: number): ChosenExperts[] {
  return withTrainer(
    config,
    ({ data }, model) => {
      const layers: { indices: number[]; scores: number[] }[] = [];
      for (let firstSequence = 0; firstSequence < batchSequences; firstSequence += config.microBatchSequences) {
        engine.scope(() => {
          const tokens = data.batch(firstSequence, config.microBatchSequences);
          const routing = routingContext(config, tokens, { firstSequence, step: 0 });
          for (const [i, layer] of model.forwardHidden(toModelBatch(engine, tokens).batch, { routing }).routing.entries()) {
            const into = (layers[i] ??= { indices: [], scores: [] });
            into.indices.push(...layer.indices_TK.toInt32Array());
            into.scores.push(...selectionScores(layer, { scoring: "softmax", normalization: null }));
          }
        });
      }
      return layers.map(({ indices, scores }) => ({ indices: Int32Array.from(indices), scores: Float32Array.from(scores) }));
    },
    seed,
  );
}

describe("a balance group", () => {
  test("makes drops, losses and coefficients the same in micro-batches of one, two and four groups", () => {
    const anyMoe = fc.record({
      capacityFactor: fc.double({ min: 0.5, max: 1.5, noNaN: true }),
      dropBy: fc.constantFrom("probability" as const, "position" as const),
      padToCapacity: fc.boolean(),
      jitterEpsilon: fc.constantFrom(0, 0.1),
    });
    let flips = 0;
    fc.assert(
      fc.property(anyMoe, fc.constantFrom(1, 2), fc.integer({ min: 1, max: 1000 }), (some, balanceGroupSequences, seed) => {
        const losses = { switchLossCoefficient: 0.01, sequenceLossCoefficient: 0.01, zLossCoefficient: 0.001 };
        const auxiliaryLossCoefficient = { type: "adaptive" as const, beta: 0.5, alphaMax: 1 };
        const run = (numGroups: number): { config: RunConfig; metrics: StepMetrics; coefficients: readonly number[] } => {
          const moe = { ...some, ...losses, auxiliaryLossCoefficient, balanceGroupSequences };
          const config = configOf(moe, { microBatchSequences: numGroups * balanceGroupSequences });
          return withTrainer(config, (trainer) => ({ config, metrics: trainer.step(), coefficients: trainer.coefficients.values }), seed);
        };
        const one = run(1);
        const chosen = choices(one.config, seed);
        for (const other of [run(2), run(4)]) {
          const flipped = choices(other.config, seed).map((layer, i) => compareRouting(layer, chosen[i] ?? layer, 2));
          flips += flipped.reduce((n, { flips: of }) => n + of.length, 0);
          for (const { flips: of, largestMargin } of flipped)
            expect(largestMargin, `${of.length} flips, margins ${of.map(({ margin }) => margin).join(", ")}`).toBeLessThan(1e-5);
          // A token that flipped may move one drop and, behind it, everything: there only the margin can be said.
          if (flipped.some(({ flips: of }) => of.length > 0)) continue;
          expect(gap(other.metrics.loss, one.metrics.loss)).toBeLessThan(1e-5);
          expect(gap(other.metrics.auxiliaryLoss, one.metrics.auxiliaryLoss)).toBeLessThan(1e-5);
          expect(gap(other.metrics.gradNorm, one.metrics.gradNorm)).toBeLessThan(1e-5);
          for (const [i, layer] of one.metrics.layers.entries()) expectSame(other.metrics.layers[i], layer);
          for (const [i, alpha] of one.coefficients.entries()) expect(gap(other.coefficients[i] ?? 0, alpha)).toBeLessThan(1e-5);
        }
      }),
      { numRuns: 12, seed: 1 },
    );
    // Flips are rare: were there many, the comparison above would not have happened.
    expect(flips).toBeLessThan(4);
  });
  function expectSame(got: LayerMetrics | undefined, expected: LayerMetrics): void {
    expect(got?.numDropped).toBe(expected.numDropped);
    expect(got?.load).toEqual(expected.load);
    for (const key of ["auxiliaryLoss", "switchLoss", "sequenceLoss", "zLoss", "max1OverMax2", "max2OverMax3", "gateEntropy"] as const)
      expect(gap(got?.[key] ?? Number.NaN, expected[key] ?? 0), key).toBeLessThan(1e-5);
  }
  test("is what drops and losses depend on, and by default the micro-batch", () => {
    const first = (changes: Moe, microBatchSequences = 8): LayerMetrics | undefined =>
      steps({ capacityFactor: 1, ...changes }, 1, { microBatchSequences })[0]?.layers[0];
    const [whole, parts] = [first({ balanceGroupSequences: 8 }), first({ balanceGroupSequences: 1 })];
    // Room that one group has to spare is no use to another; a mean of squares is at least the square of the mean.
    expect(parts?.numDropped).toBeGreaterThan(whole?.numDropped ?? Infinity);
    expect(parts?.auxiliaryLoss).toBeGreaterThan(whole?.auxiliaryLoss ?? Infinity);
    expect(first({}, 1)?.numDropped).toBe(parts?.numDropped);
    expect(first({}, 8)?.numDropped).toBe(whole?.numDropped);
  });
});

describe("the adaptive coefficient", () => {
  const adaptive = { type: "adaptive", xi: 0.3, alphaMax: 0.05, beta: 0.8, alpha0: 0.02 } as const;
  test("of a step comes from the drop rates of the steps before it, layer by layer", () => {
    const metrics = steps({ auxiliaryLossCoefficient: adaptive, capacityFactor: 1.05 }, 5);
    for (const layer of [0, 1]) {
      let alpha = 0.02;
      for (const { layers } of metrics) {
        expect(layers[layer]?.coefficient).toBe(alpha);
        alpha = 0.8 * alpha + (1 - 0.8) * Math.min(0.3 * (layers[layer]?.dropRate ?? Number.NaN), 0.05);
      }
    }
    expect(metrics[4]?.layers[0]?.coefficient).not.toBe(metrics[4]?.layers[1]?.coefficient);
  });
  test("is the factor that the step trains with", () => {
    const at = (alpha0: number): StepMetrics | undefined =>
      steps({ auxiliaryLossCoefficient: { ...adaptive, alpha0 }, capacityFactor: 1 }, 1)[0];
    const [none, some, more] = [at(0), at(2), at(4)];
    expect(none?.auxiliaryLoss).toBe(0);
    const sum = (some?.layers ?? []).reduce((total, { auxiliaryLoss }) => total + auxiliaryLoss, 0);
    expect(some?.auxiliaryLoss).toBeCloseTo(2 * sum, 12);
    expect(more?.auxiliaryLoss).toBeCloseTo(4 * sum, 12);
    // And its gradient is there: the norm differs, the loss of the first step does not.
    expect(some?.loss).toBe(none?.loss);
    expect(some?.gradNorm).not.toBe(none?.gradNorm);
  });
  test("follows the virtual drop rate in dropless training: what the capacity would have dropped", () => {
    const real = steps({ capacityFactor: 1 }, 1)[0];
    const virtual = steps({ virtualCapacityFactor: 1, auxiliaryLossCoefficient: adaptive }, 2);
    // The first layer sees the same in both; nothing is really dropped behind it.
    expect(real?.layers[0]?.numDropped).toBeGreaterThan(0);
    expect(virtual[0]?.layers[0]?.numDropped).toBe(real?.layers[0]?.numDropped);
    expect(virtual[0]?.loss).toBe(steps({}, 1)[0]?.loss);
    expect(virtual[0]?.loss).not.toBe(real?.loss);
    expect(virtual[1]?.layers[0]?.coefficient).not.toBe(0.02);
    expect(steps({}, 1)[0]?.layers[0]?.dropRate).toBe(0);
  });
});

describe("each loss of the routers", () => {
  test.each([
    ["auxiliaryLoss", 0, { auxiliaryLossCoefficient: 30 }],
    ["switchLoss", 1, { auxiliaryLossCoefficient: 0, switchLossCoefficient: 1 }],
    ["sequenceLoss", 1, { auxiliaryLossCoefficient: 0, sequenceLossCoefficient: 1 }],
    ["zLoss", 0, { auxiliaryLossCoefficient: 0, zLossCoefficient: 1 }],
  ] as const)("goes down towards that of perfect balance where it is trained on: %s", (key, perfect, moe) => {
    const last = (coefficients: Moe): number => {
      // A coefficient too small to train with, so that the number is there.
      const metrics = steps({ switchLossCoefficient: 1e-30, sequenceLossCoefficient: 1e-30, ...coefficients }, 12);
      return (metrics.at(-1)?.layers ?? []).reduce((sum, layer) => sum + (layer[key] ?? Number.NaN) - perfect, 0);
    };
    expect(last(moe)).toBeLessThan(0.9 * last({ auxiliaryLossCoefficient: 0 }));
  });
  test("adds up in what the step says it trained on, and has no number where nobody asked for it", () => {
    const [metrics] = steps(
      { auxiliaryLossCoefficient: 0.5, switchLossCoefficient: 0.25, sequenceLossCoefficient: 0.125, zLossCoefficient: 2 },
      1,
    );
    const sum = (metrics?.layers ?? []).reduce(
      (total, l) =>
        total + 0.5 * l.auxiliaryLoss + 0.25 * (l.switchLoss ?? Number.NaN) + 0.125 * (l.sequenceLoss ?? Number.NaN) + 2 * l.zLoss,
      0,
    );
    expect(metrics?.auxiliaryLoss).toBeCloseTo(sum, 12);
    expect(steps({}, 1)[0]?.layers[0]).toMatchObject({ switchLoss: null, sequenceLoss: null });
  });
});

describe("loss-free balancing", () => {
  const off = { auxiliaryLossCoefficient: 0 };
  test("moves each bias by the rate against its expert's load, and nothing else does", () => {
    const config = configOf({ ...off, biasUpdateRate: 0.25 }, { optimizer: { learningRate: 1e-3, weightDecay: 10 } });
    withTrainer(config, (trainer, model) => {
      let expected = [0, 0, 0, 0];
      for (let i = 0; i < 3; i++) {
        const load = trainer.step().layers[1]?.load ?? [];
        expected = expected.map((bias, e) => bias + 0.25 * Math.sign(0.25 - (load[e] ?? Number.NaN)));
        expect([...biasOf(model, 1)]).toEqual(expected);
      }
      expect(expected.some((bias) => bias !== 0)).toBe(true);
      expect([...trainer.optimizer.state().tensors.keys()].filter((name) => name.includes("router.bias"))).toEqual([]);
    });
  });
  test("evens out the load of a router that sends most to a few", () => {
    const worst = (biasUpdateRate: number): number =>
      withTrainer(configOf({ ...off, biasUpdateRate }, { optimizer: { learningRate: 1e-30 } }), (trainer, model) => {
        for (const layer of [0, 1]) {
          const bias = model.parameters.get(`layers.${layer}.moe.router.bias`);
          engine.backend.write(bias?.ptr ?? 0, Float32Array.of(0.3, 0, 0, -0.3));
        }
        const metrics = Array.from({ length: 40 }, () => trainer.step()).slice(-5);
        const loads = metrics.flatMap(({ layers }) => layers.map(({ maxOverMeanLoad }) => maxOverMeanLoad));
        return loads.reduce((a, b) => a + b, 0) / loads.length;
      });
    const before = worst(0);
    expect(before).toBeGreaterThan(1.4);
    expect(worst(0.01) - 1).toBeLessThan(0.4 * (before - 1));
  });
  test("rests where the rate is 0", () => {
    withTrainer(configOf(off, { optimizer: { learningRate: 0.1, weightDecay: 1 } }), (trainer, model) => {
      trainer.step();
      expect([...biasOf(model, 0)]).toEqual([0, 0, 0, 0]);
    });
  });
});

describe("noise on the router", () => {
  test("is another in every step and with every seed, and none by default", () => {
    const still = { optimizer: { learningRate: 1e-30, weightDecay: 0 } };
    const probe = (jitterEpsilon: number, seed = 1): number[] =>
      withTrainer(configOf({ jitterEpsilon }, { ...still, seed, microBatchSequences: 2 }), ({ config, data }, model) =>
        [0, 1].map((step) =>
          engine.scope(() => {
            const tokens = data.batch(0, 2);
            const routing = routingContext(config, tokens, { firstSequence: 0, step });
            const { routing: layers } = model.forwardHidden(toModelBatch(engine, tokens).batch, { routing });
            return layers[0]?.probs_TE.toFloat32Array()[0] ?? Number.NaN;
          }),
        ),
      );
    const [first, second] = probe(0.2);
    expect(second).not.toBe(first);
    expect(probe(0.2)).toEqual([first, second]);
    expect(probe(0.2, 2)[0]).not.toBe(first);
    expect(probe(0)[0]).toBe(probe(0)[1]);
  });
  test("is replayed by recomputation: identical weights and gradients", () => {
    const losses = { switchLossCoefficient: 0.1, sequenceLossCoefficient: 0.1, zLossCoefficient: 0.1 };
    const weights = (recomputeLayers: number): number[][] =>
      withTrainer(configOf({ ...losses, jitterEpsilon: 0.2, capacityFactor: 1 }, { recomputeLayers }), (trainer, model) => {
        const norms = [trainer.step().gradNorm, trainer.step().gradNorm];
        return [norms, ...Array.from(model.parameters.values(), (tensor) => [...tensor.toFloat32Array()])];
      });
    expect(weights(2)).toEqual(weights(0));
    const [still, noisy] = [steps({ capacityFactor: 1 }, 1), steps({ jitterEpsilon: 0.2, capacityFactor: 1 }, 1)];
    expect(noisy[0]?.gradNorm).not.toBe(still[0]?.gradNorm);
  });
});

test("forced balance gives every expert the same, whatever the router says, and names itself in every step", () => {
  const [forced] = steps({ forcedBalance: true, capacityFactor: 1 }, 1);
  expect(forced?.forcedBalance).toBe(true);
  for (const layer of forced?.layers ?? [])
    expect(layer).toMatchObject({ load: [0.25, 0.25, 0.25, 0.25], numDropped: 0, loadEntropy: 1, maxOverMeanLoad: 1, deadExperts: 0 });
  expect(forced?.layers).toHaveLength(2);
  const [free] = steps({ capacityFactor: 1 }, 1);
  expect(free).not.toHaveProperty("forcedBalance");
  expect(free?.layers[0]?.maxOverMeanLoad).toBeGreaterThan(1);
});

test("every metric is a finite number, in extremes too", () => {
  const extremes: Moe[] = [{ capacityFactor: 1e-9 }, { capacityFactor: 1e9 }, { jitterEpsilon: 0.99 }, { biasUpdateRate: 1e6 }];
  for (const moe of extremes) {
    for (const { layers, ...rest } of steps({ switchLossCoefficient: 1, sequenceLossCoefficient: 1, zLossCoefficient: 1, ...moe }, 3)) {
      for (const [key, value] of Object.entries({ ...rest, mfu: 0 })) expect(Number.isFinite(value), key).toBe(true);
      for (const layer of layers)
        for (const [key, value] of Object.entries(layer)) expect([value].flat().every(Number.isFinite), key).toBe(true);
    }
  }
});

test("similarity is 1 for copied experts in every layer, below for random ones, and measuring changes nothing", () => {
  withTrainer(configOf({}), (trainer, model) => {
    const random = trainer.expertSimilarity();
    expect(random.map(({ layer }) => layer)).toEqual([0, 1]);
    for (const { weights, outputs } of random) for (const { mean } of [weights, outputs]) expect(Math.abs(mean)).toBeLessThan(0.9);
    for (const name of ["gate", "up", "down"]) {
      const tensor = model.parameters.get(`layers.0.moe.experts.${name}`);
      const values = tensor?.toFloat32Array() ?? new Float32Array();
      for (let e = 1; e < 4; e++) values.copyWithin(e * (values.length / 4), 0, values.length / 4);
      engine.backend.write(tensor?.ptr ?? 0, values);
    }
    const [copied, still] = trainer.expertSimilarity();
    for (const similarity of [copied?.weights, copied?.outputs]) {
      expect(similarity?.mean).toBeCloseTo(1, 5);
      expect(similarity?.matrix.flat()).toHaveLength(16);
    }
    expect(still?.weights).toEqual(random[1]?.weights);
  });
  const measured = withTrainer(configOf({}), (trainer) => {
    trainer.expertSimilarity();
    return trainer.step().gradNorm;
  });
  expect(measured).toBe(steps({}, 1)[0]?.gradNorm);
});

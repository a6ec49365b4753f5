/** Micro-batches through stages: the bits of the whole model, and nothing kept longer than needed. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { loadBackend } from "../backend/load.ts";
import { fromHuggingFaceConfig } from "../config/model-huggingface.ts";
import type { ModelConfig } from "../config/model.ts";
import { parseRunConfig, type RunConfig, type RunConfigInput } from "../config/run.ts";
import { Dataset, type TokenBatch, type TokenFile } from "../data/index.ts";
import { Decoder } from "../model/index.ts";
import { Engine, type Tensor } from "../tensor/index.ts";
import type { Interval } from "../util/partition.ts";
import { tinyModel, tinyRun, unevenTokens } from "../../test/train/harness.ts";
import { microForward, microStep, type MicroForward, type MicroStepInput } from "./micro-step.ts";

const folder = mkdtempSync(join(tmpdir(), "moe-micro-step-"));
const engine = new Engine(await loadBackend({ numThreads: 1 }));
let file: TokenFile;
let tokens: TokenBatch;
beforeAll(() => {
  file = unevenTokens(folder);
  tokens = new Dataset(file, { sequenceLength: 32, seed: 1 }).batch(0, 2);
});
afterAll(() => {
  file[Symbol.dispose]();
  expect(engine.backend.liveBytes).toBe(0);
  engine[Symbol.dispose]();
  rmSync(folder, { recursive: true, force: true });
});

const model = (tied: boolean): ModelConfig =>
  fromHuggingFaceConfig({ ...tinyModel("skywork"), num_hidden_layers: 3, tie_word_embeddings: tied }, "test");
const run = (changes: Partial<RunConfigInput> = {}): RunConfig =>
  parseRunConfig({ ...tinyRun(folder, "skywork"), batchSequences: 2, moe: { capacityFactor: 1, balanceGroupSequences: 1 }, ...changes });
const input = (): MicroStepInput => ({ tokens, firstSequence: 0, step: 3, scale: 1 / tokens.numTargets, coefficients: [0.1, 0.2, 0.3] });

function gradients(part: Decoder): Map<string, Float32Array> {
  const named = [...part.parameters].flatMap(([name, tensor]) => {
    const state = tensor.parameter;
    return state?.grad && state.gradIsSet ? [[name, state.grad.toFloat32Array()] as const] : [];
  });
  return new Map(named);
}

/** Loss, routing and gradients (those of a parameter on two stages added) of a micro-batch that goes through stages. */
function throughStages(config: ModelConfig, options: RunConfig, spans: readonly Interval[]) {
  const parts = spans.map((layers) => Decoder.initialize(engine, config, { dtype: "f32", seed: 1, layers }));
  try {
    const held: MicroForward[] = [];
    for (const part of parts) {
      const hidden = held.at(-1)?.hidden ?? undefined;
      held.push(microForward(part, options, { ...input(), ...(hidden === undefined ? {} : { hidden }) }));
    }
    // What another stage took may go, before the backward pass.
    for (const { hidden } of held) hidden?.dispose();
    let grad: Tensor | null = null;
    for (const forward of held.toReversed()) {
      using after = grad;
      grad = forward.backward(after);
    }
    expect(grad).toBeNull();
    const sums = new Map<string, Float32Array>();
    for (const [name, values] of parts.flatMap((part) => [...gradients(part)])) {
      const sum = sums.get(name);
      sums.set(name, sum === undefined ? values : sum.map((value, i) => value + (values[i] ?? 0)));
    }
    return { loss: held.at(-1)?.result.loss, routing: held.flatMap(({ result }) => result.routing), gradients: sums };
  } finally {
    for (const part of parts) part[Symbol.dispose]();
  }
}

test.each([
  [false, 0],
  [false, 2],
  [true, 0],
])(
  "stages give the loss, routing and gradients of the whole model, bit for bit (tied %s, %i layers recomputed)",
  (tied, recomputeLayers) => {
    const config = model(tied);
    const options = run({ recomputeLayers });
    using whole = Decoder.initialize(engine, config, { dtype: "f32", seed: 1 });
    const { loss, routing } = microStep(whole, options, input());
    const expected = gradients(whole);
    const spans = [
      { start: 0, end: 1 },
      { start: 1, end: 3 },
    ];
    const got = throughStages(config, options, spans);
    expect(got.loss).toBe(loss);
    expect(got.routing).toEqual(routing);
    expect([...got.gradients.keys()].toSorted()).toEqual([...expected.keys()].toSorted());
    for (const [name, values] of expected) {
      const stages = got.gradients.get(name) ?? new Float32Array();
      if (!(tied && name === "embedding.weight")) expect(stages, name).toEqual(values);
      // Lookups and products are added in another order.
      else for (const [i, value] of values.entries()) expect(Math.abs(value - (stages[i] ?? NaN))).toBeLessThan(1e-6);
    }
  },
);

test("the activations of a micro-batch are freed by its backward pass, or when it is given up", () => {
  using whole = Decoder.initialize(engine, model(false), { dtype: "f32", seed: 1 });
  // Gradients stay with their parameters, and the table of rotations with the model: made beforehand.
  microStep(whole, run(), input());
  const before = engine.backend.liveBytes;
  const [first, second] = [microForward(whole, run(), input()), microForward(whole, run(), input())];
  const held = engine.backend.liveBytes - before;
  first.backward(null);
  expect(engine.backend.liveBytes - before).toBe(held / 2);
  second[Symbol.dispose]();
  expect(engine.backend.liveBytes).toBe(before);
});

test("a gradient of hidden states that nobody gave, or none for those that somebody took, is an error", () => {
  using first = Decoder.initialize(engine, model(false), { dtype: "f32", seed: 1, layers: { start: 0, end: 2 } });
  using forward = microForward(first, run(), input());
  expect(() => forward.backward(null)).toThrow(/gave hidden states, and got no gradient/);
});

/**
 * A run over ranks is the run of one rank: twenty steps in f32 under many layouts, with capacity that drops, noise, adaptive coefficients and few
 * loss-bearing tokens. What is compared: losses, dropped assignments, coefficients, and all weights at the end.
 *
 * By default twelve layouts; with MOE_LONG=1 all of them, and docs/layouts.md is written anew.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadBackend } from "../../src/backend/load.ts";
import { fromHuggingFaceConfig } from "../../src/config/model-huggingface.ts";
import { numRanks } from "../../src/config/layout.ts";
import { layoutOf, parseRunConfig } from "../../src/config/run.ts";
import { Dataset } from "../../src/data/index.ts";
import { Decoder } from "../../src/model/index.ts";
import { startRanks } from "../../src/parallel/index.ts";
import { Engine } from "../../src/tensor/index.ts";
import { wholeTensors } from "../../src/train/parallel/parts.ts";
import { Trainer } from "../../src/train/trainer.ts";
import { unevenTokens } from "../train/harness.ts";
import { cases as allCases } from "./cases.ts";
import { models, runOf, type Choices, type EqualityJob, type Expected, type LayoutCase, type Outcome } from "./job.ts";
import { joined, noting, recordOf, wholeWeights } from "./run-case.ts";
import { compared, tableOf, type Comparison } from "./table.ts";

const long = process.env["MOE_LONG"] === "1";
const cases = long ? allCases : allCases.filter(({ quick }) => quick);
const numSteps = 20;
const folder = mkdtempSync(join(tmpdir(), "moe-layouts-"));
const document = new URL("../../docs/layouts.md", import.meta.url);

/** Outcome of each case on its ranks, and of its model on one. */
const outcomes = new Map<string, Outcome>();
const alone = new Map<string, Expected>();
const comparisons: Comparison[] = [];

beforeAll(async () => {
  unevenTokens(folder)[Symbol.dispose]();
  const backend = await loadBackend({ numThreads: 1 });
  const engine = new Engine(backend);
  for (const one of cases) if (!alone.has(keyOf(one))) alone.set(keyOf(one), oneRank(engine, one));
  expect(engine.backend.liveBytes).toBe(0);
  engine[Symbol.dispose]();
  const size = Math.max(...cases.map((one) => numRanks(layoutOf(parseRunConfig(runOf(one, numSteps))))));
  const job: EqualityJob = { cases, folder, numSteps };
  const entry = new URL("./rank.ts", import.meta.url);
  const results = (await startRanks({ size, entry, data: job, backend: { numThreads: 1 }, timeoutMs: 300_000 })
    .results) as (Outcome | null)[][];
  for (const [i, one] of cases.entries()) {
    const outcome = results[0]?.[i];
    if (outcome !== null && outcome !== undefined) outcomes.set(one.name, outcome);
  }
}, 900_000);
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

/** Cases of one model with one batch are one run on one rank. */
function keyOf({ model, run }: LayoutCase): string {
  return JSON.stringify([model, run]);
}
function oneRank(engine: Engine, one: LayoutCase): Expected {
  const config = parseRunConfig(runOf({ ...one, layout: {} }, numSteps));
  using file = unevenTokens(folder);
  const data = new Dataset(file, { sequenceLength: config.data.sequenceLength, seed: config.seed });
  using model = Decoder.initialize(engine, fromHuggingFaceConfig(models[one.model], one.model), {
    dtype: config.precision,
    seed: config.seed,
  });
  const choices: Choices = new Map();
  using trainer = new Trainer(config, model, data, { peakFlops: null, onRouting: noting(choices) });
  const steps = Array.from({ length: numSteps }, () => recordOf(trainer));
  return { ...joined(steps), choices, weights: wholeWeights(wholeTensors(trainer.parts())) };
}

describe.each(cases.map((one) => [one.name, one] as const))("%s", (name, one) => {
  test("equals one rank", () => {
    const expected = alone.get(keyOf(one));
    const got = outcomes.get(name);
    if (expected === undefined || got === undefined) throw new Error("the case did not run");
    const comparison = compared(one, expected, got);
    comparisons.push(comparison);
    expect(comparison.loss).toBeLessThan(1e-5);
    expect(comparison.weights.largest, comparison.weights.name).toBeLessThan(1e-4);
    expect(got.drops).toEqual(expected.drops);
    expect(comparison.coefficients).toBeLessThan(1e-5);
    // A token may change its expert where two are level; one that does so with a distance between them is an error.
    expect(comparison.flips.margin).toBeLessThan(1e-4);
    expect(comparison.tokens).toBe(one.model === "dense" ? 0 : expected.choices.size * 16);
    expect(got.stateError).toEqual(got.stateError.map(() => 0));
    expect(got.leaked).toEqual([0]);
  });
});

test("the runs that are compared drop, adapt and learn", () => {
  for (const [key, { losses, drops, coefficients }] of alone) {
    expect(losses.at(-1), key).toBeLessThan(losses[0] ?? 0);
    if (key.includes("dense")) continue;
    expect(
      drops.reduce((a, b) => a + b, 0),
      key,
    ).toBeGreaterThan(0);
    expect(new Set(coefficients.map(String)).size, key).toBeGreaterThan(10);
  }
});

test("docs/layouts.md lists these layouts", async () => {
  const rows = (text: string): string[] => [...text.matchAll(/^\| ([^|]+) \|/gm)].flatMap(([, name]) => (name === undefined ? [] : [name]));
  if (long) await tableOf(comparisons, document);
  const listed = rows(readFileSync(document, "utf8"));
  for (const { name } of allCases) expect(listed).toContain(name);
});

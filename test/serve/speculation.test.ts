/** Speculative decoding changes how many tokens a step gives, and nothing else. */
import fc from "fast-check";
import { afterAll, afterEach, describe, expect, test } from "vitest";
import { batchOfDocuments } from "../../src/model/index.ts";
import {
  JsonConstraints,
  ModelDrafter,
  NgramDrafter,
  ServingEngine,
  type Drafter,
  type GenerationRequest,
  type ServingOptions,
  type ServingStats,
} from "../../src/serve/index.ts";
import { Random } from "../../src/util/random.ts";
import { collect, drain, letters, openModel, vocabSize, type RequestResult } from "./fixtures.ts";

const { engine, model } = await openModel();
const { engine: draftEngine, model: draft } = await openModel({ numLayers: 1 });
for (const [on, one] of [
  [engine, model],
  [draftEngine, draft],
] as const)
  on.scope(() => {
    one.forwardHidden(batchOfDocuments(on, [promptOf(900, 1)], { vocabSize }));
  });
const liveBytes = [engine.backend.liveBytes, draftEngine.backend.liveBytes];
afterEach(() => {
  expect([engine.backend.liveBytes, draftEngine.backend.liveBytes]).toEqual(liveBytes);
});
afterAll(() => {
  model[Symbol.dispose]();
  draft[Symbol.dispose]();
  expect([engine.backend.liveBytes, draftEngine.backend.liveBytes]).toEqual([0, 0]);
  engine[Symbol.dispose]();
  draftEngine[Symbol.dispose]();
});

function promptOf(length: number, seed: number): number[] {
  const random = new Random(seed);
  return Array.from({ length }, () => 1 + random.integer(vocabSize - 1));
}
function run(
  requests: readonly GenerationRequest[],
  options: Partial<ServingOptions> = {},
): { results: RequestResult[]; stats: ServingStats } {
  using serving = new ServingEngine(model, letters, { cacheBytes: 2 ** 20, ...options });
  const results = requests.map((request) => collect(serving, request).result);
  drain(serving);
  const stats = serving.stats();
  expect(stats).toMatchObject({ running: 0, blocksUsed: 0 });
  return { results, stats };
}
function essences(results: readonly RequestResult[]): unknown {
  return results.map(({ choices, prompt }) => ({ choices, prompt }));
}
/** Guesses of any kind and number, most of them wrong. */
function wild(seed: number): Drafter {
  const random = new Random(seed);
  return {
    propose: (requests) => requests.map(() => Array.from({ length: random.integer(7) }, () => random.integer(vocabSize + 5))),
    release: () => undefined,
    [Symbol.dispose]: () => undefined,
  };
}
const constraints = new JsonConstraints(letters, vocabSize);
const anyRequest = fc
  .record({
    length: fc.integer({ min: 1, max: 150 }),
    seed: fc.integer({ min: 0, max: 5 }),
    maxTokens: fc.integer({ min: 1, max: 40 }),
    temperature: fc.constantFrom(0, 0, 0.8),
    penalty: fc.constantFrom(1, 1.3),
    n: fc.constantFrom(1, 2),
    logprobs: fc.constantFrom(undefined, 1),
    constrained: fc.constantFrom(false, false, true),
  })
  .map(({ length, seed, maxTokens, temperature, penalty, n, logprobs, constrained }): GenerationRequest => ({
    promptIds: promptOf(length, seed),
    maxTokens,
    seed,
    n,
    sampling: { temperature, repetitionPenalty: penalty },
    ...(logprobs === undefined ? {} : { logprobs }),
    ...(constrained ? { constraint: constraints.schema({ type: "array", items: { type: "integer" } }) } : {}),
  }));

describe("any guesses leave every request, bit for bit, what it was", () => {
  test.each([
    ["from the text itself", () => new NgramDrafter({ shortest: 1 })],
    ["of a smaller model", () => new ModelDrafter(draft, { cacheBytes: 2 ** 19 })],
    ["of a model without room for all", () => new ModelDrafter(draft, { cacheBytes: 4 * 6144 })],
    ["at random", () => wild(3)],
  ])("%s", { timeout: 120_000 }, (_, drafter) => {
    fc.assert(
      fc.property(
        fc.array(anyRequest, { minLength: 1, maxLength: 6 }),
        fc.integer({ min: 8, max: 100 }),
        fc.integer({ min: 1, max: 6 }),
        (requests, tokenBudget, maxDraftTokens) => {
          const plain = run(requests);
          const cacheBytes = 16 * 12_288;
          const guessed = run(requests, { drafter: drafter(), tokenBudget, maxDraftTokens, cacheBytes });
          expect(essences(guessed.results)).toEqual(essences(plain.results));
          expect(guessed.stats.generatedTokens).toBe(plain.stats.generatedTokens);
        },
      ),
      { numRuns: process.env["MOE_LONG"] === "1" ? 200 : 12, seed: 5 },
    );
  });
});

describe("right guesses save steps", () => {
  const request = { promptIds: promptOf(40, 2), maxTokens: 60, ignoreEnd: true };
  test("of the model itself are all taken: five tokens a step", () => {
    // The drafter's caches are on the model's own engine here.
    const { stats } = run([request], { drafter: new ModelDrafter(model, { cacheBytes: 2 ** 20 }), maxDraftTokens: 4 });
    expect(stats.acceptedTokens).toBe(stats.draftedTokens);
    expect(stats.steps).toBe(1 + Math.ceil(59 / 5));
  });
  test("of a text that repeats itself", () => {
    const repeating = { ...request, promptIds: [...promptOf(20, 4), ...promptOf(20, 4)], sampling: { logitBias: new Map([[65, 100]]) } };
    const { results, stats } = run([repeating], { drafter: new NgramDrafter() });
    expect(results[0]?.choices[0]?.text).toBe("A".repeat(60));
    expect(stats.steps).toBeLessThan(25);
    expect(stats.acceptedTokens).toBeGreaterThan(35);
    expect(run([{ ...repeating, speculate: false }], { drafter: new NgramDrafter() }).stats).toMatchObject({ steps: 60, draftedTokens: 0 });
  });
  test("are what followed the latest place where the text ended the same", () => {
    const drafter = new NgramDrafter({ longest: 2, shortest: 1 });
    const propose = (ids: number[], limit = 3): number[] | undefined => drafter.propose([{ key: {}, ids, limit }])[0];
    expect(propose([1, 2, 3, 9, 1, 2, 4, 9, 1, 2])).toEqual([4, 9, 1]);
    expect(propose([5, 7, 8, 6, 5])).toEqual([7, 8, 6]);
    expect(propose([5, 7, 8, 6, 5], 1)).toEqual([7]);
    expect(propose([1, 2, 3])).toEqual([]);
    expect(() => new NgramDrafter({ longest: 1, shortest: 2 })).toThrow(/shortest <= longest/);
  });
});

/** What `moe serve` can be told of caches and guesses: answers that stay what they are, memory that is what was planned. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { planServing } from "../../src/server/index.ts";
import { post, removeFolder, serveTiny, until, writeTinyModel, type TestServer } from "./harness.ts";

let folder = "";
let draft = "";
let otherVocabulary = "";
beforeAll(async () => {
  folder = await writeTinyModel();
  draft = await writeTinyModel({ numLayers: 1 });
  otherVocabulary = await writeTinyModel({ vocabSize: 1250 });
}, 60_000);
afterAll(() => {
  for (const one of [folder, draft, otherVocabulary]) removeFolder(one);
});

const story = "Once upon a time there was a ship that went out to sea, and nobody knew where it was bound for. ";
const requests = [
  { prompt: "Hello", max_tokens: 30, temperature: 0, ignore_eos: true, logprobs: 1 },
  { prompt: story.repeat(6), max_tokens: 25, temperature: 0, ignore_eos: true, logprobs: 1 },
  { prompt: `${story.repeat(6)}The ship`, max_tokens: 20, temperature: 0.9, seed: 3, ignore_eos: true, n: 2 },
];
async function choices(server: TestServer, request: unknown): Promise<unknown> {
  const { status, body } = await post(server, "/v1/completions", request);
  expect(status).toBe(200);
  return body["choices"];
}
async function together(server: TestServer): Promise<unknown[]> {
  return Promise.all(requests.map((request) => choices(server, request)));
}

test("keys and values in FP8 take a quarter of f32, and answers are the same alone, together and from kept beginnings", async () => {
  const server = await serveTiny(folder, {}, { cacheDtype: "fp8", cacheBytes: 1 << 20 });
  // 64 tokens in two layers: keys and values of 16 numbers of one byte.
  await choices(server, requests[0]);
  expect(server.engine.stats.blocksTotal).toBe(2 ** 20 / (64 * 2 * 2 * 16));
  const alone: unknown[] = [];
  for (const request of requests) alone.push(await choices(server, request));
  expect(await together(server)).toEqual(alone);
  expect(server.engine.stats.cachedPromptTokens).toBeGreaterThan(0);
  await server.close();
  const plain = await serveTiny(folder);
  // It is another cache: rounding shows somewhere in the log-probabilities.
  expect(await together(plain)).not.toEqual(alone);
  await plain.close();
}, 120_000);

test("guesses of a draft model, or of the text itself, change nothing but the steps", async () => {
  const plain = await serveTiny(folder);
  const expected = await together(plain);
  await plain.close();
  for (const options of [{ draftModel: draft }, { draftModel: folder }, { speculate: "ngram" as const }]) {
    const server = await serveTiny(folder, {}, options);
    expect(await together(server)).toEqual(expected);
    await until(() => server.engine.stats.draftedTokens > 0);
    // The model itself guesses what it says, but for answers that are drawn.
    if (options.draftModel === folder) await until(() => server.engine.stats.acceptedTokens > 40);
    await server.close();
  }
}, 120_000);

test("a draft model of another vocabulary is refused", async () => {
  await expect(serveTiny(folder, {}, { draftModel: otherVocabulary })).rejects.toThrow(
    /--draft-model .*: expected a model with the served one's vocabulary of 1200 tokens, got 1250/,
  );
}, 60_000);

test.each(["f32", "fp8"] as const)(
  "ranks hold the weights and the %s cache that was planned before anything was loaded",
  async (cacheDtype) => {
    const tp = { ranks: 3, weights: [2, 1, 1], memoryBytes: null };
    const settings = {
      modelPath: folder,
      dtype: null,
      cacheDtype,
      maxBatch: 16,
      maxContext: null,
      cacheBytes: 1 << 20,
      speculate: null,
      tp,
    };
    const { plan } = planServing(settings, tp);
    const server = await serveTiny(folder, {}, { cacheDtype, cacheBytes: 1 << 20, tp });
    expect(server.engine.info.ranks.map(({ heldBytes }) => heldBytes)).toEqual(plan.ranks.map(({ totalBytes }) => totalBytes));
    expect(server.engine.info.ranks.map(({ plannedBytes }) => plannedBytes)).toEqual(plan.ranks.map(({ totalBytes }) => totalBytes));
    await server.close();
    expect(() => planServing(settings, { ...tp, memoryBytes: [1e5, 1e5, 1e5] })).toThrow(/the model needs .* GB/);
  },
  120_000,
);

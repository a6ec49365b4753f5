/** The serving engine's promises: what a request becomes depends on nothing but the request; nothing is lost, and nothing stays. */
import fc from "fast-check";
import { afterAll, afterEach, describe, expect, test, vi } from "vitest";
import { generateIds, greedy } from "../../src/generate/index.ts";
import { batchOfDocuments, cacheDtypes, PagedCache, type CacheDType } from "../../src/model/index.ts";
import { JsonConstraints, ServingEngine, type GenerationRequest, type ServingOptions } from "../../src/serve/index.ts";
import { Random } from "../../src/util/random.ts";
import { collect, drain, letters, openModel, vocabSize, type RequestResult } from "./fixtures.ts";

const { engine, model } = await openModel();
// The model keeps a table of rotations that grows with the longest sequence.
engine.scope(() => {
  model.forwardHidden(batchOfDocuments(engine, [promptOf(1500, 1)], { vocabSize }));
});
const liveBytes = engine.backend.liveBytes;
afterEach(() => {
  expect(engine.backend.liveBytes).toBe(liveBytes);
});
afterAll(() => {
  model[Symbol.dispose]();
  expect(engine.backend.liveBytes).toBe(0);
  engine[Symbol.dispose]();
});

const mebibyte = 2 ** 20;
/** 64 tokens * 2 layers * 2 * 12 elements * 4 bytes. */
const blockBytes = 12_288;
function open(options: Partial<ServingOptions> = {}): ServingEngine {
  return new ServingEngine(model, letters, { cacheBytes: mebibyte, ...options });
}
function promptOf(length: number, seed: number): number[] {
  const random = new Random(seed);
  return Array.from({ length }, () => 1 + random.integer(vocabSize - 1));
}
/** What the request comes to with an engine of its own. */
function alone(request: GenerationRequest, options: Partial<ServingOptions> = {}): RequestResult {
  using serving = open(options);
  const { result } = collect(serving, request);
  drain(serving);
  return result;
}
/** What may not depend on company: everything but the times. */
function essence({ choices, prompt }: RequestResult): unknown {
  return { choices, prompt };
}

describe("a request", () => {
  test("that is greedy gets the tokens of plain generation", () => {
    const promptIds = promptOf(150, 2);
    const ids = [...generateIds(model, promptIds, { maxTokens: 20 })];
    expect(alone({ promptIds, maxTokens: 20, ignoreEnd: true }).choices[0]).toMatchObject({ ids, reason: "length" });
    expect(new Set(ids).size).toBeGreaterThan(1);
  });
  test("tells log-probabilities of the model, of new tokens and of the prompt's", () => {
    const promptIds = promptOf(70, 3);
    const result = alone({ promptIds, maxTokens: 3, ignoreEnd: true, logprobs: 2, promptLogprobs: 1 }, { tokenBudget: 32 });
    const ids = [...promptIds, ...(result.choices[0]?.ids ?? [])];
    const rows = engine.scope(() => {
      const { hidden_TH } = model.forwardHidden(batchOfDocuments(engine, [ids], { vocabSize }));
      return model.logits(hidden_TH).toFloat32Array();
    });
    const entries = [...result.prompt, ...(result.choices[0]?.logprobs ?? [])];
    expect(entries).toHaveLength(ids.length - 1);
    for (const [t, { id, logprob, top }] of entries.entries()) {
      const row = [...rows.subarray(t * vocabSize, (t + 1) * vocabSize)];
      const logSum = Math.log(row.reduce((sum, x) => sum + Math.exp(x), 0));
      expect(id).toBe(ids[t + 1]);
      expect(logprob).toBeCloseTo((row[id] ?? 0) - logSum, 5);
      const order = [...row.keys()].sort((a, b) => (row[b] ?? 0) - (row[a] ?? 0) || a - b);
      expect(top.map((one) => one.id)).toEqual(order.slice(0, t < promptIds.length - 1 ? 1 : 2));
      expect(top[0]?.logprob).toBeCloseTo(Math.max(...row) - logSum, 5);
    }
  });
  test("of no new tokens tells its prompt's log-probabilities and ends", () => {
    const result = alone({ promptIds: promptOf(10, 4), maxTokens: 0, promptLogprobs: 0, n: 2 });
    expect(result.prompt).toHaveLength(9);
    expect(result.choices.map(({ ids, reason }) => [ids.length, reason])).toEqual([
      [0, "length"],
      [0, "length"],
    ]);
  });
  test("ends at an end id, a stop id or a stop string, and says which", () => {
    const promptIds = promptOf(20, 5);
    const all = alone({ promptIds, maxTokens: 12, ignoreEnd: true }).choices[0]?.ids ?? [];
    const at = all.findIndex((id, i) => i >= 2 && all.indexOf(id) === i);
    const id = all[at] ?? -1;
    const byId = alone({ promptIds, maxTokens: 12, ignoreEnd: true, stopIds: [id] });
    expect(byId.choices[0]).toMatchObject({ ids: all.slice(0, at), reason: "stop" });
    expect(byId.events.find(({ type }) => type === "finish")).toMatchObject({ stoppedBy: id });
    const stop = String.fromCharCode(id);
    const byText = alone({ promptIds, maxTokens: 12, ignoreEnd: true, stop: [stop] });
    expect(byText.choices[0]).toMatchObject({ text: letters.decode(all.slice(0, at)), reason: "stop" });
    expect(byText.events.find(({ type }) => type === "finish")).toMatchObject({ stoppedBy: stop });
  });
  test("that cannot be served is refused by name", () => {
    using serving = open({ maxContext: 100 });
    const refuse =
      (request: Partial<GenerationRequest>): (() => void) =>
      () => {
        serving.submit({ promptIds: [1], maxTokens: 1, ...request }, () => undefined);
      };
    expect(refuse({ promptIds: [] })).toThrow(/expected a prompt of at least one token/);
    expect(refuse({ promptIds: [1, 500] })).toThrow(/prompt token 1 is 500, expected an id from 0 to 127/);
    expect(refuse({ promptIds: promptOf(100, 1) })).toThrow(/a prompt of 100 tokens leaves no room in a context of 100/);
    expect(refuse({ n: 0 })).toThrow(/n: expected a whole number of at least 1, got 0/);
    expect(refuse({ seed: -1 })).toThrow(/seed/);
    expect(refuse({ maxTokens: 1.5 })).toThrow(/maxTokens/);
    expect(refuse({ sampling: { topP: 2 } })).toThrow(/top-p/);
    expect(serving.hasWork).toBe(false);
    expect(() => open({ cacheBytes: 100 })).toThrow(/holds no block of 64 tokens \(12288 bytes\)/);
  });
});

test("every place and choice has random numbers of its own", () => {
  const { choices } = alone({ promptIds: [1], maxTokens: 60, n: 2, seed: 9, ignoreEnd: true, sampling: { temperature: 1e4 } });
  for (const { ids } of choices) expect(new Set(ids).size).toBeGreaterThan(30);
  expect(choices[0]?.ids).not.toEqual(choices[1]?.ids);
  const other = alone({ promptIds: [1], maxTokens: 60, seed: 10, ignoreEnd: true, sampling: { temperature: 1e4 } });
  expect(other.choices[0]?.ids).not.toEqual(choices[0]?.ids);
});

describe("a batch", () => {
  test("of requests goes through the model in one call, all tokens of a layer through one grouped product", () => {
    using serving = open();
    const results = [1, 2, 3, 4].map((seed) => collect(serving, { promptIds: promptOf(10, seed), maxTokens: 4, ignoreEnd: true }).result);
    const grouped = vi.spyOn(engine.backend.kernels, "groupedLinearForward");
    expect(drain(serving)).toBe(4);
    const calls = grouped.mock.calls.length;
    grouped.mockRestore();
    // 4 steps of 2 layers of gate, up and down projections: as many calls as one request alone would make.
    expect(calls).toBe(24);
    expect(results.every(({ ended }) => ended)).toBe(true);
    // 2 experts a token: 4 prompts of 10 and 3 more tokens each.
    for (const counts of serving.expertCounts().values()) expect(counts.reduce((a, b) => a + b, 0)).toBe(2 * 4 * 13);
    expect(serving.expertCounts().size).toBe(2);
  });

  const anyRequest = fc.record({
    length: fc.integer({ min: 1, max: 300 }),
    seed: fc.integer({ min: 0, max: 3 }),
    maxTokens: fc.integer({ min: 1, max: 24 }),
    temperature: fc.constantFrom(0, 0, 1.3),
    penalty: fc.boolean(),
    n: fc.constantFrom(1, 1, 3),
    logprobs: fc.constantFrom(undefined, 2),
    promptLogprobs: fc.constantFrom(undefined, undefined, 1),
    arrival: fc.integer({ min: 0, max: 12 }),
  });
  const anyEngine = fc.record({
    maxRunning: fc.integer({ min: 1, max: 6 }),
    tokenBudget: fc.integer({ min: 1, max: 200 }),
    numBlocks: fc.integer({ min: 6, max: 30 }),
    prefixCache: fc.boolean(),
    cacheDtype: fc.constantFrom(...cacheDtypes),
  });
  test(
    "gives each request, bit for bit, what it gets alone: chunked, preempted, from the prefix cache, among any others",
    { timeout: 300_000 },
    () => {
      const known = new Map<string, unknown>();
      let [preemptions, cached] = [0, 0];
      const check = (
        drawn: readonly (typeof anyRequest extends fc.Arbitrary<infer T> ? T : never)[],
        {
          numBlocks,
          ...options
        }: { numBlocks: number; maxRunning: number; tokenBudget: number; prefixCache: boolean; cacheDtype: CacheDType },
      ): void => {
        using serving = open({ ...options, cacheBytes: numBlocks * PagedCache.blockBytes(model.config, options.cacheDtype) });
        const pending = drawn.map(({ length, seed, maxTokens, temperature, penalty, n, logprobs, promptLogprobs, arrival }) => {
          const request: GenerationRequest = {
            // Prompts of a seed are beginnings of one another.
            promptIds: promptOf(length, seed),
            maxTokens,
            n,
            seed,
            sampling: { ...greedy, temperature, ...(penalty ? { repetitionPenalty: 1.2, presencePenalty: 0.3 } : {}) },
            ...(logprobs === undefined ? {} : { logprobs }),
            ...(promptLogprobs === undefined ? {} : { promptLogprobs }),
          };
          return { request, arrival };
        });
        const results: { request: GenerationRequest; result: RequestResult }[] = [];
        for (let step = 0; step <= 12 || serving.hasWork; step++) {
          for (const { request, arrival } of pending)
            if (arrival === step) results.push({ request, result: collect(serving, request).result });
          serving.step();
          if (step > 20_000) throw new Error("no progress");
        }
        for (const { request, result } of results) {
          const { cacheDtype } = options;
          const key = JSON.stringify([cacheDtype, request]);
          if (!known.has(key)) known.set(key, essence(alone(request, { cacheDtype })));
          expect(essence(result)).toEqual(known.get(key));
        }
        const stats = serving.stats();
        expect(stats).toMatchObject({ running: 0, waiting: 0, blocksUsed: 0 });
        preemptions += stats.preemptions;
        cached += stats.cachedPromptTokens;
      };
      fc.assert(fc.property(fc.array(anyRequest, { minLength: 1, maxLength: 10 }), anyEngine, check), {
        numRuns: process.env["MOE_LONG"] === "1" ? 400 : 25,
        seed: 7,
      });
      // The draws do reach what they are for.
      expect(preemptions).toBeGreaterThan(0);
      expect(cached).toBeGreaterThan(0);
    },
  );
  test("lets a short prompt behind a long one begin at once, and decoding go on beside it", () => {
    using serving = open({ tokenBudget: 64 });
    const decoding = collect(serving, { promptIds: promptOf(5, 1), maxTokens: 200, ignoreEnd: true });
    serving.step();
    collect(serving, { promptIds: promptOf(1200, 2), maxTokens: 2, ignoreEnd: true });
    const short = collect(serving, { promptIds: promptOf(20, 3), maxTokens: 2, ignoreEnd: true });
    const before = decoding.result.choices[0]?.ids.length ?? 0;
    for (let i = 0; i < 3; i++) serving.step();
    expect(short.result.ended).toBe(true);
    expect(decoding.result.choices[0]?.ids).toHaveLength(before + 3);
    serving.abort(decoding.id);
    drain(serving);
  });
});

describe("blocks", () => {
  test("of a common beginning are computed once, also for a conversation that goes on", () => {
    using serving = open();
    const promptIds = promptOf(200, 6);
    const first = collect(serving, { promptIds, maxTokens: 60, ignoreEnd: true }).result;
    drain(serving);
    const again = collect(serving, {
      promptIds: [...promptIds, ...(first.choices[0]?.ids ?? []), 5, 6, 7],
      maxTokens: 1,
      ignoreEnd: true,
    }).result;
    const computed = serving.stats().computedTokens;
    drain(serving);
    // 259 tokens were computed before: four whole blocks.
    expect(again.events.at(-1)).toMatchObject({ type: "end", usage: { promptTokens: 263, cachedTokens: 256, generatedTokens: 1 } });
    expect(serving.stats().computedTokens - computed).toBe(7);
    serving.clearPrefixCache();
    expect(serving.stats().blocksIdle).toBe(0);
  });
  test("never cover a whole prompt: its last token is computed, for the logits", () => {
    using serving = open();
    for (const cachedTokens of [0, 64]) {
      const { events } = collect(serving, { promptIds: promptOf(128, 11), maxTokens: 1, ignoreEnd: true }).result;
      drain(serving);
      expect(events.at(-1)).toMatchObject({ type: "end", usage: { cachedTokens } });
    }
  });
  test("of a prompt are shared by its choices, which write to copies of their own", () => {
    using serving = open({ cacheBytes: 8 * blockBytes });
    // Two blocks of prompt, the second half full, and one a choice: without sharing there would be 12.
    const { result } = collect(serving, {
      promptIds: promptOf(100, 7),
      maxTokens: 20,
      n: 6,
      sampling: { temperature: 1 },
      ignoreEnd: true,
    });
    drain(serving);
    expect(serving.stats()).toMatchObject({ preemptions: 0, computedTokens: 100 + 6 * 19, blocksUsed: 0 });
    expect(new Set(result.choices.map(({ text }) => text)).size).toBe(6);
  });
  test("of an aborted request are free at once, in every phase of it", () => {
    using serving = open({ maxRunning: 2, tokenBudget: 64 });
    const request = { promptIds: promptOf(100, 8), maxTokens: 50, n: 2, ignoreEnd: true };
    for (const steps of [0, 1, 2, 3]) {
      const { id, result } = collect(serving, request);
      const waiting = collect(serving, { ...request, promptIds: promptOf(90, 9) });
      for (let i = 0; i < steps; i++) serving.step();
      expect([serving.abort(id), serving.abort(waiting.id), serving.abort(id)]).toEqual([true, true, false]);
      expect(serving.stats()).toMatchObject({ running: 0, waiting: 0, blocksUsed: 0 });
      expect(result.choices.map(({ reason }) => reason)).toEqual(["aborted", "aborted"]);
      expect([result.ended, waiting.result.ended]).toEqual([true, true]);
    }
  });
});

describe("a constraint", () => {
  const constraints = new JsonConstraints(letters, vocabSize);
  const schema = {
    type: "object",
    properties: { name: { type: "string", maxLength: 8 }, size: { type: "integer", minimum: 0, maximum: 40 }, ok: { type: "boolean" } },
    required: ["name", "size", "ok"],
    additionalProperties: false,
  };
  test("holds for every choice, beside requests without one, and ends the text where nothing may follow", () => {
    using serving = open({ maxRunning: 3, tokenBudget: 40 });
    const request = { promptIds: promptOf(30, 12), maxTokens: 200, sampling: { temperature: 2 }, constraint: constraints.schema(schema) };
    const constrained = collect(serving, { ...request, n: 4 }).result;
    const free = { promptIds: promptOf(30, 13), maxTokens: 20, ignoreEnd: true };
    const other = collect(serving, free).result;
    drain(serving);
    for (const { text, reason } of constrained.choices) {
      expect(reason).toBe("stop");
      expect(JSON.parse(text)).toEqual({ name: expect.any(String), size: expect.any(Number), ok: expect.any(Boolean) });
      expect((JSON.parse(text) as { size: number }).size).toBeLessThanOrEqual(40);
    }
    expect(essence(other)).toEqual(essence(alone(free)));
    expect(essence(constrained)).toEqual(essence(alone({ ...request, n: 4 })));
    expect(alone({ ...request, sampling: {} }).choices[0]?.reason).toBe("stop");
  });
  test("that no token can meet ends its request with an error, and no other", () => {
    using serving = open();
    // The vocabulary has no bytes beyond ASCII.
    const stuck = collect(serving, { promptIds: [1], maxTokens: 20, constraint: constraints.schema({ const: "\u00e9" }) }).result;
    const other = collect(serving, { promptIds: [2], maxTokens: 5, ignoreEnd: true }).result;
    drain(serving);
    expect(stuck.choices[0]).toMatchObject({
      reason: "error",
      error: { message: "constraint: no token of the vocabulary can go on from here" },
    });
    expect(other.choices[0]?.ids).toHaveLength(5);
  });
});

describe("errors", () => {
  test("of a listener abort its request and come out of the step, the others go on", () => {
    using serving = open();
    const { result } = collect(serving, { promptIds: [1, 2, 3], maxTokens: 4, ignoreEnd: true });
    serving.submit({ promptIds: [4, 5], maxTokens: 4 }, () => {
      throw new Error("enough");
    });
    expect(() => serving.step()).toThrow("enough");
    drain(serving);
    expect(result.choices[0]?.ids).toHaveLength(4);
    expect(serving.stats()).toMatchObject({ running: 0, waiting: 0, blocksUsed: 0 });
  });
  test("of a whole pass end the requests in it, and what they left is not taken for computed", () => {
    using serving = open();
    const request = { promptIds: promptOf(130, 10), maxTokens: 3, ignoreEnd: true };
    const { result } = collect(serving, request);
    const forward = vi.spyOn(model, "forwardHidden").mockImplementation(() => {
      throw new Error("lost");
    });
    expect(() => serving.step()).toThrow("lost");
    forward.mockRestore();
    expect(result.choices[0]).toMatchObject({ reason: "error", error: { message: "lost" } });
    expect(serving.stats()).toMatchObject({ running: 0, waiting: 0, blocksUsed: 0, blocksIdle: 0 });
    const after = collect(serving, request).result;
    drain(serving);
    expect(essence(after)).toEqual(essence(alone(request)));
  });
  test("a listener may abort its own request and submit another from within an event", () => {
    using serving = open();
    const texts: string[] = [];
    const id = serving.submit({ promptIds: [1, 2, 3], maxTokens: 50, ignoreEnd: true }, (event) => {
      texts.push(event.type);
      if (event.type === "token" && texts.length === 2) {
        serving.abort(id);
        collect(serving, { promptIds: [7], maxTokens: 1, ignoreEnd: true });
      }
    });
    drain(serving);
    expect(texts).toEqual(["token", "token", "finish", "end"]);
  });
  test("disposal ends what is under way", () => {
    const serving = open();
    const { result } = collect(serving, { promptIds: [1, 2, 3], maxTokens: 50 });
    serving.step();
    serving[Symbol.dispose]();
    expect(result.choices[0]?.reason).toBe("aborted");
  });
});

test("an embedding is the mean of the final hidden states", () => {
  using serving = open();
  const ids = [5, 6, 7];
  const hidden = engine.scope(() => model.forwardHidden(batchOfDocuments(engine, [ids], { vocabSize })).hidden_TH.toFloat32Array());
  const mean = Array.from({ length: 24 }, (_, i) => ((hidden[i] ?? 0) + (hidden[24 + i] ?? 0) + (hidden[48 + i] ?? 0)) / 3);
  for (const [i, value] of serving.embed(ids).entries()) expect(value).toBeCloseTo(mean[i] ?? 0, 6);
});

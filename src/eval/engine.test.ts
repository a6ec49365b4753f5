/** Scores and completions of a tiny model: against plain forward passes, and the same bits however they are batched. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadBackend } from "../backend/load.ts";
import { loadTokenizer, writeTokenizerFiles } from "../checkpoint/tokenizer.ts";
import { modelPresets } from "../config/model-presets.ts";
import { generateText } from "../generate/generate.ts";
import { batchOfDocuments, Decoder } from "../model/index.ts";
import { Engine } from "../tensor/index.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { Random } from "../util/random.ts";
import { beforeStop, completePrompts } from "./complete.ts";
import { PairEncoder, rollingWindows, type EncodedPair } from "./prompt.ts";
import { scorePairs, type EngineOptions, type Score } from "./score.ts";

let engine: Engine;
let model: Decoder;
let tokenizer: Tokenizer;
beforeAll(async () => {
  engine = new Engine(await loadBackend());
  const size = { vocabSize: 1200, hiddenSize: 32, ffnSize: 48, numLayers: 2, numHeads: 2, numKvHeads: 1, headDim: 16, maxPositions: 64 };
  model = Decoder.initialize(engine, { ...modelPresets.quickstart, ...size, initStd: 0.3 }, { dtype: "f32", seed: 3 });
  const fixture = new URL("../../test/golden/tokenizer/hf-smollm.tokenizer.json", import.meta.url);
  const folder = mkdtempSync(join(tmpdir(), "moe-eval-engine-"));
  const tokenizerConfig = { bos_token: "<|im_start|>", eos_token: "<|im_end|>" };
  writeTokenizerFiles({ tokenizerJson: JSON.parse(readFileSync(fixture, "utf8")) as unknown, tokenizerConfig }, folder);
  tokenizer = await loadTokenizer(folder);
  rmSync(folder, { recursive: true });
});
afterAll(() => {
  model[Symbol.dispose]();
  engine[Symbol.dispose]();
});

const wide: EngineOptions = { batchTokens: 1024, cacheBytes: 2 ** 26, maxLength: 64 };
const narrow: EngineOptions = { batchTokens: 3, cacheBytes: 1, maxLength: 64 };

async function scores(pairs: readonly EncodedPair[], options: EngineOptions): Promise<readonly Score[]> {
  const out: Score[] = [];
  await scorePairs(model, pairs, options, (request, score) => (out[request] = score));
  return out;
}

/** Pairs with long and short common beginnings, some the same, continuations of one to four tokens. */
function pairs(): readonly EncodedPair[] {
  const random = Random.keyed(9);
  const ids = (n: number): number[] => Array.from({ length: n }, () => Math.floor(random.uniform() * 1200));
  const shared = ids(20);
  const contexts = [shared, shared, [...shared, ...ids(5)], [...shared, ...ids(9)], ids(3), [...shared.slice(0, 7), ...ids(2)], ids(60)];
  return contexts.flatMap((contextIds) => [1, 1, 2, 4].map((n) => ({ contextIds, continuationIds: ids(n) })));
}

describe("log-likelihoods", () => {
  test("are those of one plain forward pass over context and continuation", async () => {
    const all = pairs();
    const got = await scores(all, wide);
    for (const [i, { contextIds, continuationIds }] of all.entries()) {
      const whole = [...Array.from(contextIds), ...Array.from(continuationIds)];
      const expected = engine.scope(() => {
        const input = whole.slice(-65, -1);
        const logits = model.logits(model.forwardHidden(batchOfDocuments(engine, [input], { vocabSize: 1200 })).hidden_TH).toFloat32Array();
        let sum = 0;
        let greedy = true;
        for (let n = 0; n < continuationIds.length; n++) {
          const row = logits.subarray(
            (input.length - continuationIds.length + n) * 1200,
            (input.length - continuationIds.length + n + 1) * 1200,
          );
          const target = row[continuationIds[n] ?? 0] ?? NaN;
          const top = Math.max(...row);
          sum += target - top - Math.log(row.reduce((total, x) => total + Math.exp(x - top), 0));
          greedy &&= target === top;
        }
        return { sum, greedy };
      });
      expect(got[i]?.logLikelihood).toBeCloseTo(expected.sum, 4);
      expect(got[i]?.isGreedy).toBe(expected.greedy);
    }
  });
  test("are the same bits in any batch, order and company, with and without shared beginnings", async () => {
    const all = pairs();
    const whole = await scores(all, wide);
    expect(await scores(all, narrow)).toEqual(whole);
    expect(await scores(all, { ...wide, batchTokens: 17, cacheBytes: 200_000 })).toEqual(whole);
    expect((await scores(all.toReversed(), wide)).toReversed()).toEqual(whole);
    for (const [i, pair] of all.entries()) expect((await scores([pair], wide))[0]).toEqual(whole[i]);
  });
  test("a continuation is greedy where each token is the most probable", async () => {
    const { ids } = generateText(model, tokenizer, [5, 6, 7], { maxTokens: 3, endIds: new Set() });
    const [greedy, other] = await scores(
      [
        { contextIds: [5, 6, 7], continuationIds: ids },
        { contextIds: [5, 6, 7], continuationIds: [...ids.slice(0, 2), ((ids[2] ?? 0) + 1) % 1200] },
      ],
      wide,
    );
    expect([greedy?.isGreedy, other?.isGreedy]).toEqual([true, false]);
  });
  test("of nothing are nothing; a continuation longer than the model's length is refused", async () => {
    expect(await scores([], wide)).toEqual([]);
    await expect(scores([{ contextIds: [1], continuationIds: Array.from({ length: 65 }, () => 2) }], wide)).rejects.toThrow(
      "exceeds the 64",
    );
  });
  test("an interruption ends the work between passes, and keeps what was finished", async () => {
    const controller = new AbortController();
    let finished = 0;
    const work = scorePairs(model, pairs(), { ...narrow, signal: controller.signal }, () => {
      if (++finished === 2) controller.abort();
    });
    await expect(work).rejects.toThrow("--resume");
    expect(finished).toBeGreaterThanOrEqual(2);
    expect(finished).toBeLessThan(28);
  });
});

describe("completions", () => {
  const prompts = ["Once upon a time", "Once upon a", "The", "Once upon a time there", "A very different beginning", "The"];
  const request = (text: string, until: readonly string[], maxTokens: number) => ({ promptIds: tokenizer.encode(text), until, maxTokens });
  async function complete(options: EngineOptions, until: readonly string[] = [], maxTokens = 12): Promise<readonly string[]> {
    const out: string[] = [];
    const requests = prompts.map((prompt) => request(prompt, until, maxTokens));
    await completePrompts(model, tokenizer, requests, options, (i, text) => (out[i] = text));
    return out;
  }
  test("are those of generation one prompt at a time, in any batch", async () => {
    const expected = prompts.map((prompt) => generateText(model, tokenizer, prompt, { maxTokens: 12 }).text);
    expect(await complete(wide)).toEqual(expected);
    expect(await complete(narrow)).toEqual(expected);
    expect(await complete({ ...wide, cacheBytes: 40_000 })).toEqual(expected);
  });
  test("end before a stop string", async () => {
    const [first = ""] = await complete(wide);
    const stop = first.slice(3, 5);
    expect((await complete(wide, [stop]))[0]).toBe(first.slice(0, first.indexOf(stop)));
    expect(beforeStop("a b c b", ["c", "b"])).toBe("a ");
  });
  test("without room for a prompt are refused", async () => {
    await expect(complete(wide, [], 64)).rejects.toThrow("leave no room");
  });
});

describe("token ids", () => {
  test("white space at a context's end goes to the continuation, and the pair is encoded as one text", () => {
    const encoder = new PairEncoder(tokenizer);
    const { contextIds, continuationIds } = encoder.encode("The cat  ", "sat");
    expect(tokenizer.decode(contextIds)).toBe("The cat");
    expect(tokenizer.decode(continuationIds)).toBe("  sat");
    expect([...Array.from(contextIds), ...Array.from(continuationIds)]).toEqual([...tokenizer.encode("The cat  sat")]);
  });
  test("without a context a text begins behind the bos token", () => {
    const { contextIds, continuationIds } = new PairEncoder(tokenizer).encode("", " A");
    expect(contextIds).toEqual([tokenizer.bosId ?? tokenizer.eosId]);
    expect(tokenizer.decode(continuationIds)).toBe(" A");
  });
  test("rolling windows predict every token once, each behind as many as fit", () => {
    const ids = Int32Array.from({ length: 10 }, (_, i) => i + 1);
    const windows = rollingWindows(ids, 0, 4).map(({ contextIds, continuationIds }) => [
      Array.from(contextIds),
      Array.from(continuationIds),
    ]);
    // lm_eval.utils: make_disjoint_window of get_rolling_token_windows(range(1, 11), 0, 4, 1)
    expect(windows).toEqual([
      [[0], [1, 2, 3, 4]],
      [[4], [5, 6, 7, 8]],
      [
        [6, 7, 8],
        [9, 10],
      ],
    ]);
    expect(rollingWindows(new Int32Array(), 0, 4)).toEqual([]);
  });
});

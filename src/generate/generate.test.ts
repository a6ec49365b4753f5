import { afterAll, afterEach, describe, expect, test } from "vitest";
import { loadBackend } from "../backend/load.ts";
import { modelPresets } from "../config/model-presets.ts";
import { batchOfDocuments, Decoder } from "../model/index.ts";
import { Engine } from "../tensor/index.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { Random } from "../util/random.ts";
import { generateIds, generateText, type GenerateOptions, type Generation } from "./generate.ts";
import { argmax } from "./sampler.ts";

const engine = new Engine(await loadBackend({ numThreads: 1 }));
const vocabSize = 60;
const size = { hiddenSize: 24, ffnSize: 32, numLayers: 2, numHeads: 2, numKvHeads: 1, headDim: 12, maxPositions: 1400, initStd: 0.4 };
const model = Decoder.initialize(
  engine,
  { ...modelPresets.quickstart, ...size, vocabSize, bosTokenId: null, eosTokenIds: [], padTokenId: null },
  { dtype: "f32", seed: 5 },
);
// The model keeps a table of rotations that grows with the longest sequence.
logitsWithoutCache(promptOf(1100));
const liveBytes = engine.backend.liveBytes;
afterEach(() => {
  // Caches and activations are gone, also where generation ended early.
  expect(engine.backend.liveBytes).toBe(liveBytes);
});
afterAll(() => {
  model[Symbol.dispose]();
  expect(engine.backend.liveBytes).toBe(0);
  engine[Symbol.dispose]();
});

function promptOf(length: number): number[] {
  const random = new Random(11);
  return Array.from({ length }, () => random.integer(vocabSize));
}
function idsOf(prompt: readonly number[], options: GenerateOptions): number[] {
  return [...generateIds(model, prompt, options)];
}
/** Logits of the last of these tokens, by one forward pass without a cache. */
function logitsWithoutCache(ids: readonly number[]): Float32Array {
  return engine.scope(() => {
    const { hidden_TH } = model.forwardHidden(batchOfDocuments(engine, [ids], { vocabSize }));
    return model.logits(hidden_TH.rows(ids.length - 1, ids.length)).toFloat32Array();
  });
}
/** A tokenizer whose n-th new token is the n-th of these pieces: what the model says does not matter then. */
function scripted(pieces: readonly string[], rest = ""): Tokenizer {
  let n = 0;
  return {
    endIds: new Set<number>(),
    encode: () => Int32Array.of(1, 2, 3),
    createDecodeStream: () => ({ push: () => pieces[n++] ?? "", end: () => rest }),
  } as unknown as Tokenizer;
}
/** Generates these pieces, and keeps what was passed on as it came. */
function write(pieces: readonly string[], options: Partial<GenerateOptions> = {}, rest = ""): Generation & { sent: string[] } {
  const sent: string[] = [];
  const result = generateText(model, scripted(pieces, rest), "prompt", { maxTokens: pieces.length, ...options }, (text) => {
    sent.push(text);
  });
  return { ...result, sent };
}

describe("ids", () => {
  test("are those of forward passes without a cache, for a prompt longer than one chunk of prefill", () => {
    // 512 tokens a chunk: three chunks, the last of one token.
    const prompt = promptOf(1025);
    const seen = [...prompt];
    for (let n = 0; n < 6; n++) seen.push(argmax(logitsWithoutCache(seen)));
    const ids = idsOf(prompt, { maxTokens: 6 });
    expect(ids).toEqual(seen.slice(prompt.length));
    expect(new Set(ids).size).toBeGreaterThan(1);
  });
  test("are the same for the same seed, and others for another", () => {
    const options = { maxTokens: 20, temperature: 1.5, topP: 0.95 };
    const first = idsOf(promptOf(8), { ...options, seed: 3 });
    expect(idsOf(promptOf(8), { ...options, seed: 3 })).toEqual(first);
    expect(idsOf(promptOf(8), { ...options, seed: 4 })).not.toEqual(first);
  });
  test("avoid what was said under a repetition penalty", () => {
    // The largest penalty, beyond any ratio of these logits: no id twice while there are others with a positive logit.
    const ids = idsOf(promptOf(1), { maxTokens: 8, repetitionPenalty: 100 });
    expect(new Set(ids).size).toBe(8);
  });
  test("end with maxTokens, and the cache with the consumer's interest", () => {
    expect(idsOf(promptOf(3), { maxTokens: 1 })).toHaveLength(1);
    for (const id of generateIds(model, promptOf(3), { maxTokens: 100 })) {
      expect(id).toBeLessThan(vocabSize);
      break;
    }
  });
  test("need a prompt of ids that exist, and options that make sense", () => {
    expect(() => idsOf([], { maxTokens: 4 })).toThrow("expected a prompt of at least one token, got none");
    expect(() => idsOf([1, vocabSize], { maxTokens: 4 })).toThrow(/token 1 .* is 60, expected an id from 0 to 59/);
    expect(() => idsOf([1], { maxTokens: 4, topP: 0 })).toThrow(/top-p/);
  });
});

describe("text", () => {
  test("is passed on piece by piece and ends with its length", () => {
    const { sent, text, ids, finishReason, promptTokens } = write(["one", " two", " three"], {}, "!");
    expect(sent).toEqual(["one", " two", " three", "!"]);
    expect([text, ids.length, finishReason, promptTokens]).toEqual(["one two three!", 3, "length", 3]);
  });
  test("ends before a stop string, of which nothing was passed on", () => {
    const { sent, text, ids, finishReason } = write(["a E", "N", "D b", " c"], { stop: ["END"] });
    expect(sent.join("")).toBe("a ");
    expect([text, ids.length, finishReason]).toEqual(["a ", 3, "stop"]);
  });
  test("ends before the first of several stop strings in one piece", () => {
    expect(write(["say stop, then END", "x"], { stop: ["END", "stop"] }).text).toBe("say ");
  });
  test("is held back only where it may begin a stop string, and follows when it did not", () => {
    const { sent, text } = write(["abc", "x", "ab", "a", "bd"], { stop: ["abcd", "ababab"] });
    expect(sent).toEqual(["abcx", "ababd"]);
    expect(text).toBe("abcxababd");
    expect(write(["hello", "wor"], { stop: ["world"] }).sent).toEqual(["hello", "wor"]);
  });
  test("is not cut within a character by a stop string", () => {
    for (const stop of [["END"], ["x"], ["\u{1f600}!"]]) {
      const { sent } = write(["a\u{1f600}", "\u{1f601}b", "\u{1f600}"], { stop });
      expect(sent.join("")).toBe("a\u{1f600}\u{1f601}b\u{1f600}");
      for (const piece of sent) expect(piece.isWellFormed(), JSON.stringify(sent)).toBe(true);
    }
  });
  test("ends with an end id, which is not part of it", () => {
    const all = idsOf([1, 2, 3], { maxTokens: 12 });
    const end = all.find((id) => all.indexOf(id) >= 2) ?? -1;
    const { ids, finishReason, sent } = write(Array<string>(12).fill("."), { endIds: new Set([end]) });
    expect(ids).toEqual(all.slice(0, all.indexOf(end)));
    expect([finishReason, sent.length]).toEqual(["stop", ids.length]);
  });
  test("ends when the signal says so, with what there is", () => {
    const controller = new AbortController();
    const result = generateText(model, scripted(["a", "b", "c", "d"]), "prompt", { maxTokens: 4, signal: controller.signal }, (text) => {
      if (text === "b") controller.abort();
    });
    expect([result.text, result.finishReason]).toEqual(["ab", "aborted"]);
    expect(write(["a"], { signal: AbortSignal.abort() })).toMatchObject({ text: "", ids: [], finishReason: "aborted" });
  });
  test("an error of the consumer comes through", () => {
    expect(() =>
      generateText(model, scripted(["a", "b"]), "prompt", { maxTokens: 2 }, () => {
        throw new Error("enough");
      }),
    ).toThrow("enough");
  });
});

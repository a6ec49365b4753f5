/** Properties on arbitrary text, and hostile files: a mutated vocabulary either works or is refused with a MoeError. */

import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { MoeError } from "../util/errors.ts";
import { loadGgufTokenizer } from "./gguf.ts";
import { buildHuggingFaceTokenizer } from "./huggingface.ts";
import { nestsRepetition } from "./pattern.ts";
import { parseSentencePieceModel } from "./sentencepiece.ts";
import { buildSentencePieceTokenizer } from "./sentencepiece-pipeline.ts";
import type { Tokenizer } from "./tokenizer.ts";
import { trainByteBpe } from "./train.ts";

const numRuns = process.env["MOE_LONG"] === "1" ? 10_000 : 200;
const timeout = process.env["MOE_LONG"] === "1" ? 1_800_000 : 60_000;
const folder = new URL("../../test/golden/tokenizer/", import.meta.url);
const sample = "Hello  wörld 你好 😀\n\t<s> 12345 <|im_end|>";

/** Builds and uses a tokenizer; anything but success or a MoeError fails the test. */
function survives(build: () => Tokenizer): void {
  try {
    const tokenizer = build();
    const ids = tokenizer.encode(sample);
    tokenizer.decode(ids);
    const stream = tokenizer.createDecodeStream();
    for (const id of ids) stream.push(id);
    stream.end();
  } catch (error) {
    if (!(error instanceof MoeError)) throw error;
    expect(["file", "unsupported"]).toContain(error.kind);
  }
}

/** Replaces one value somewhere in a JSON tree by another kind of value. */
function mutateJson(value: unknown, path: readonly number[], replacement: unknown): unknown {
  const [step, ...rest] = path;
  if (step === undefined || typeof value !== "object" || value === null) return replacement;
  const keys = Object.keys(value);
  if (keys.length === 0) return replacement;
  const key = keys[step % keys.length] ?? "";
  const child = mutateJson((value as Record<string, unknown>)[key], rest, replacement);
  if (Array.isArray(value)) return value.with(Number(key), child);
  return { ...value, [key]: child };
}

const junk = fc.oneof(
  fc.constantFrom<unknown>(
    null,
    true,
    -1,
    0,
    1e300,
    2 ** 31,
    1.5,
    "",
    "a",
    "(",
    "(a+)*",
    "▁",
    [],
    [[]],
    {},
    ["a", "b"],
    { Regex: "[" },
    { type: "Sequence" },
  ),
  fc.string(),
  fc.integer(),
);
const path = fc.array(fc.nat(2000), { minLength: 1, maxLength: 6 });

describe("hostile tokenizer files", () => {
  it.each(["hf-gpt2", "hf-llama", "hf-unigram"])(
    "a mutated %s tokenizer.json is read or refused",
    (name) => {
      const original: unknown = JSON.parse(readFileSync(new URL(`${name}.tokenizer.json`, folder), "utf8"));
      fc.assert(
        fc.property(path, junk, (where, replacement) =>
          survives(() => buildHuggingFaceTokenizer({ tokenizerJson: mutateJson(original, where, replacement) })),
        ),
        { numRuns: numRuns },
      );
    },
    timeout,
  );

  it.each(["gguf-gpt2", "gguf-spm"])(
    "mutated %s metadata is read or refused",
    (name) => {
      const original: unknown = JSON.parse(readFileSync(new URL(`${name}.metadata.json`, folder), "utf8"));
      fc.assert(
        fc.property(path, junk, (where, replacement) =>
          survives(() => loadGgufTokenizer(mutateJson(original, where, replacement) as Record<string, unknown>)),
        ),
        { numRuns: numRuns },
      );
    },
    timeout,
  );

  it.each(["spm-bpe", "spm-unigram-bytes", "spm-unigram"])(
    "a mutated %s.model is read or refused",
    (name) => {
      const original = readFileSync(new URL(`${name}.model`, folder));
      const edits = fc.array(fc.tuple(fc.nat(original.length - 1), fc.nat(255)), { maxLength: 8 });
      fc.assert(
        fc.property(edits, fc.nat(original.length), fc.boolean(), (changes, cut, cuts) => {
          const bytes = Uint8Array.from(cuts ? original.subarray(0, cut) : original);
          for (const [at, byte] of changes) if (at < bytes.length) bytes[at] = byte;
          survives(() => buildSentencePieceTokenizer(parseSentencePieceModel(bytes, "mutated"), "mutated"));
        }),
        { numRuns: numRuns },
      );
    },
    timeout,
  );

  it("a pattern that repeats a repetition is recognised", () => {
    for (const bad of ["(a+)*", "(?:a*b?)+", "((x+))+", "(a{2,})*", "(a|b+)+"]) expect(nestsRepetition(bad), bad).toBe(true);
    for (const good of ["a+b*", "(a|b)+", "[a+]*", "(?:\\d{3})*", "\\(a+\\)*", "\\s+(?!\\S)|\\s+"])
      expect(nestsRepetition(good), good).toBe(false);
  });
});

describe("byte-level BPE", () => {
  const files = trainByteBpe(["the cat sat on the mat, 你好 你好 😀😀"], {
    vocabSize: 290,
    specialTokens: ["<|end|>"],
    eosToken: "<|end|>",
  });
  const tokenizer = buildHuggingFaceTokenizer(files);

  it("gives back every text, at once and streamed", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 200 }), (text) => {
        const ids = tokenizer.encode(text, { parseSpecial: false });
        const stream = tokenizer.createDecodeStream();
        expect(tokenizer.decode(ids)).toBe(text);
        expect([...ids].map((id) => stream.push(id)).join("") + stream.end()).toBe(text);
      }),
      { numRuns },
    );
  });

  it("never emits half a character", () => {
    const stream = tokenizer.createDecodeStream();
    const pieces = [...tokenizer.encode("𝕳é漢")].map((id) => stream.push(id));
    expect(pieces.join("")).toBe("𝕳é漢");
    expect(pieces.every((piece) => !piece.includes("\ufffd"))).toBe(true);
  });

  it("reads a lone surrogate as U+FFFD", () => {
    expect(tokenizer.decode(tokenizer.encode("a\ud800b"))).toBe("a\ufffdb");
  });

  it("encodes a word of 200,000 characters without a boundary in reasonable time", () => {
    const word = "catthe".repeat(33_334);
    const ids = tokenizer.encode(word);
    expect(tokenizer.decode(ids)).toBe(word);
  });

  it("merges a long word as it merges a short one", () => {
    // 32 symbols and fewer are scanned, longer words go through the heap; both must agree.
    const unit = "thecatsatonthemat";
    expect([...tokenizer.encode(` ${unit.repeat(4)}`)].length).toBeLessThan(unit.length * 4);
    expect(tokenizer.decode(tokenizer.encode(unit.repeat(4)))).toBe(unit.repeat(4));
  });

  it("refuses an id outside the vocabulary and a vocabulary without room for bytes", () => {
    expect(() => tokenizer.decode([tokenizer.vocabSize])).toThrow(/expected an id from 0/);
    expect(() => trainByteBpe(["a"], { vocabSize: 200, specialTokens: [] })).toThrow(/vocabSize/);
  });
});

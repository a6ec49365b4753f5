/** Equality with the original libraries on the fixtures of test/golden/tokenizer (made by make.py there). */

import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { toGgufMetadata } from "./export-gguf.ts";
import { loadGgufTokenizer } from "./gguf.ts";
import { buildHuggingFaceTokenizer } from "./huggingface.ts";
import { toHuggingFaceFiles } from "./save.ts";
import { parseSentencePieceModel } from "./sentencepiece.ts";
import { buildSentencePieceTokenizer } from "./sentencepiece-pipeline.ts";
import type { Tokenizer } from "./tokenizer.ts";
import { trainByteBpe } from "./train.ts";

type Json = Record<string, unknown>;

const folder = new URL("../../test/golden/tokenizer/", import.meta.url);
const text = (name: string): string => readFileSync(new URL(name, folder), "utf8");
const json = (name: string): Json => JSON.parse(text(name)) as Json;

const texts = JSON.parse(text("texts.json")) as string[];
const plain = { addSpecialTokens: false } as const;
const unparsed = { addSpecialTokens: false, parseSpecial: false } as const;

function streamed(tokenizer: Tokenizer, ids: readonly number[]): string {
  const stream = tokenizer.createDecodeStream();
  return ids.map((id) => stream.push(id)).join("") + stream.end();
}

const huggingFaceNames = ["hf-gpt2", "hf-llama3", "hf-qwen2", "hf-smollm", "hf-llama", "hf-metaspace", "hf-unigram"];

describe("tokenizer.json", () => {
  it.each(huggingFaceNames)("%s gives the ids and texts of Hugging Face tokenizers", (name) => {
    const tokenizer = buildHuggingFaceTokenizer({ tokenizerJson: json(`${name}.tokenizer.json`) });
    const expected = json(`${name}.expected.json`) as Record<string, number[][]> & { decoded: string[]; decodedAll: string[] };
    for (const [i, input] of texts.entries()) {
      const ids = expected["special"]?.[i] ?? [];
      expect([...tokenizer.encode(input, plain)], input).toEqual(expected["plain"]?.[i]);
      expect([...tokenizer.encode(input)], input).toEqual(ids);
      expect([...tokenizer.encode(input, unparsed)], input).toEqual(expected["unparsed"]?.[i]);
      expect(tokenizer.decode(ids), input).toBe(expected.decoded[i]);
      expect(tokenizer.decode(ids, { skipSpecialTokens: false }), input).toBe(expected.decodedAll[i]);
    }
  });

  it.each(["hf-gpt2", "hf-llama3", "hf-llama"])("%s streams the text that it decodes at once", (name) => {
    const tokenizer = buildHuggingFaceTokenizer({ tokenizerJson: json(`${name}.tokenizer.json`) });
    for (const input of texts) {
      const ids = [...tokenizer.encode(input, unparsed)];
      expect(streamed(tokenizer, ids)).toBe(tokenizer.decode(ids));
    }
  });
});

const sentencePieceNames = ["spm-bpe", "spm-unigram", "spm-unigram-bytes", "spm-bpe-nfkc"];
const sentencePiece = (name: string, addBos = true): Tokenizer =>
  buildSentencePieceTokenizer(parseSentencePieceModel(readFileSync(new URL(`${name}.model`, folder)), name, { addBos }), name);

describe("tokenizer.model", () => {
  it.each(sentencePieceNames)("%s gives the ids and texts of sentencepiece", (name) => {
    const tokenizer = sentencePiece(name);
    const expected = json(`${name}.expected.json`) as {
      ids: number[][];
      decoded: string[];
      samples: number[][];
      decodedSamples: string[];
    } & Record<string, number>;
    for (const [i, input] of texts.entries()) {
      expect([...tokenizer.encode(input, unparsed)], input).toEqual(expected.ids[i]);
      expect(tokenizer.decode(expected.ids[i] ?? []), input).toBe(expected.decoded[i]);
    }
    expected.samples.forEach((ids, i) => expect(tokenizer.decode(ids)).toBe(expected.decodedSamples[i]));
    expect([tokenizer.vocabSize, tokenizer.unkId, tokenizer.bosId, tokenizer.eosId, tokenizer.padId ?? -1]).toEqual(
      ["size", "unk", "bos", "eos", "pad"].map((key) => expected[key]),
    );
  });

  it("puts a bos before a text when asked, and reads control tokens only when asked", () => {
    const tokenizer = sentencePiece("spm-bpe");
    expect(tokenizer.encode("a")[0]).toBe(1);
    expect([...tokenizer.encode("</s>", plain)]).toEqual([2]);
    expect(tokenizer.encode("</s>", unparsed).length).toBeGreaterThan(1);
  });

  it("keeps its ids when converted to tokenizer.json", () => {
    const original = sentencePiece("spm-bpe");
    const converted = buildHuggingFaceTokenizer(toHuggingFaceFiles(original));
    // User-defined symbols restart the text in tokenizers (a prefix space again), so only texts without them compare.
    for (const input of texts.filter((candidate) => !/ {2}|<user>|<s>|▁▁/.test(candidate) && candidate !== "")) {
      expect([...converted.encode(input)], JSON.stringify(input)).toEqual([...original.encode(input)]);
    }
    expect([converted.bosId, converted.eosId, converted.unkId]).toEqual([1, 2, 0]);
  });
});

describe("GGUF metadata", () => {
  const expected = json("gguf-gpt2.expected.json") as Record<string, { plain: number[][]; special: number[][] }>;
  const known = Object.keys(expected);

  it.each(known)("byte-level BPE with pre-tokenizer %s gives llama.cpp's ids", (pre) => {
    const tokenizer = loadGgufTokenizer({ ...json("gguf-gpt2.metadata.json"), "tokenizer.ggml.pre": pre });
    for (const [i, input] of texts.entries()) {
      expect([...tokenizer.encode(input, unparsed)], input).toEqual(expected[pre]?.plain[i]);
      expect([...tokenizer.encode(input)], input).toEqual(expected[pre]?.special[i]);
    }
  });

  it.each(["default", "no-prefix"])("SentencePiece BPE (%s) gives llama.cpp's ids", (name) => {
    const wanted = (json("gguf-spm.expected.json") as Record<string, { extra: Json; plain: number[][]; special: number[][] }>)[name];
    const tokenizer = loadGgufTokenizer({ ...json("gguf-spm.metadata.json"), ...wanted?.extra });
    for (const [i, input] of texts.entries()) {
      expect([...tokenizer.encode(input, unparsed)], input).toEqual(wanted?.plain[i]);
      expect([...tokenizer.encode(input)], input).toEqual(wanted?.special[i]);
    }
  });

  it.each(["gpt-2", "smollm", "llama-bpe", "qwen2"])("goes to tokenizer.json and back to GGUF (%s) with the same ids", (pre) => {
    const original = loadGgufTokenizer({ ...json("gguf-gpt2.metadata.json"), "tokenizer.ggml.pre": pre });
    const saved = buildHuggingFaceTokenizer(toHuggingFaceFiles(original));
    const metadata = toGgufMetadata(saved);
    expect(metadata.get("tokenizer.ggml.pre")).toEqual({ type: "string", value: pre });
    const again = loadGgufTokenizer(metadata);
    for (const input of texts) {
      expect([...saved.encode(input)]).toEqual([...original.encode(input)]);
      expect([...again.encode(input)]).toEqual([...original.encode(input)]);
    }
  });

  it("writes a SentencePiece model's scores so that it reads back alike", () => {
    const original = loadGgufTokenizer(json("gguf-spm.metadata.json"));
    const again = loadGgufTokenizer(toGgufMetadata(original));
    for (const input of texts) expect([...again.encode(input)]).toEqual([...original.encode(input)]);
  });

  it("refuses a pre-tokenizer without a name", () => {
    const tokenizer = buildHuggingFaceTokenizer({
      tokenizerJson: { ...json("hf-gpt2.tokenizer.json"), pre_tokenizer: { type: "ByteLevel", add_prefix_space: true, use_regex: true } },
    });
    expect(() => toGgufMetadata(tokenizer)).toThrow(/no name/);
  });
});

describe("trainByteBpe", () => {
  it("learns the merges that Hugging Face's BpeTrainer learns", () => {
    const specialTokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    const files = trainByteBpe([text("train.txt")], { vocabSize: 1200, specialTokens });
    const model = files.tokenizerJson["model"] as Json;
    const wanted = json("hf-gpt2.tokenizer.json")["model"] as Json;
    expect(model["merges"]).toEqual(wanted["merges"]);
    expect(model["vocab"]).toEqual(wanted["vocab"]);
  });
});

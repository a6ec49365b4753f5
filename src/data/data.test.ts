import { mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Dataset } from "./dataset.ts";
import { readDocuments, type DocumentSource, type SourceDocument } from "./documents.ts";
import { TokenFile, TokenFileWriter } from "./token-file.ts";

let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-data-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

const write = (name: string, content: string | Uint8Array): string => {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
};
const documentsOf = async (source: DocumentSource): Promise<SourceDocument[]> => {
  const found: SourceDocument[] = [];
  for await (const document of readDocuments(source)) found.push(document);
  return found;
};
/** A token file of the given documents (ids below 100). */
const tokenFile = (documents: readonly (readonly number[])[], masks?: readonly (Uint8Array | null)[]): TokenFile => {
  const path = join(folder, "tokens");
  const writer = new TokenFileWriter(path, { vocabSize: 100 });
  for (const [i, document] of documents.entries()) writer.append(document, masks?.[i]);
  writer.finish("test");
  return new TokenFile(path);
};

describe("readDocuments", () => {
  test("reads a text file as one document, or splits it at a separator line", async () => {
    const path = write("a.txt", "one\ntwo\n---\nthree\n");
    expect(await documentsOf({ path })).toEqual([{ text: "one\ntwo\n---\nthree\n" }]);
    expect(await documentsOf({ path, separator: "---" })).toEqual([{ text: "one\ntwo" }, { text: "three" }]);
  });
  test("reads JSONL text and conversations", async () => {
    const path = write("a.jsonl", '{"text":"x"}\n\n{"messages":[{"role":"user","content":"hi"}]}\n');
    expect(await documentsOf({ path })).toEqual([{ text: "x" }, { messages: [{ role: "user", content: "hi" }] }]);
  });
  test.each([
    ["a missing file", () => join(folder, "nothing.txt"), /nothing\.txt: expected .* no such file/],
    ["an empty file", () => write("empty.txt", ""), /empty\.txt: expected some text, got an empty file/],
    ["bytes that are not UTF-8", () => write("bad.txt", Uint8Array.from([0x61, 0xff, 0xfe])), /bad\.txt: expected UTF-8 text/],
    ["a line that is not JSON", () => write("bad.jsonl", '{"text":"x"}\n{oops\n'), /bad\.jsonl:2: expected a JSON object/],
    ["a record without its field", () => write("key.jsonl", '{"body":"x"}\n'), /key\.jsonl:1: expected a string under "text", got keys body/],
    ["a corrupt Parquet file", () => write("bad.parquet", "PAR1 not really PAR1"), /bad\.parquet: expected a Parquet file/],
  ])("names the file and what was expected for %s", async (_, make, message) => {
    await expect(documentsOf({ path: make() })).rejects.toThrow(message);
  });
});

describe("token file", () => {
  test("gives back any documents and finds the document of any position", () => {
    fc.assert(
      fc.property(fc.array(fc.array(fc.integer({ min: 0, max: 99 }), { minLength: 1, maxLength: 9 }), { minLength: 1, maxLength: 9 }), (documents) => {
        using file = tokenFile(documents);
        const tokens = new Int32Array(file.header.numTokens);
        file.readTokens(0, tokens);
        expect([...tokens]).toEqual(documents.flat());
        const owners = documents.flatMap((document, i) => document.map(() => i));
        for (const [position, owner] of owners.entries()) expect(file.documentAt(position)).toBe(owner);
      }),
      { numRuns: 50 },
    );
  });
  test("leaves nothing behind when it is aborted", () => {
    const writer = new TokenFileWriter(join(folder, "tokens"), { vocabSize: 100 });
    writer.append([1, 2, 3]);
    writer[Symbol.dispose]();
    expect(readdirSync(folder)).toEqual([]);
  });
  test("refuses a truncated file and one that is something else, by name", () => {
    tokenFile([[1, 2, 3]])[Symbol.dispose]();
    const path = join(folder, "tokens");
    truncateSync(path, readFileSync(path).length - 3);
    expect(() => new TokenFile(path)).toThrow(/tokens: expected a token file of \d+ bytes/);
    expect(() => new TokenFile(write("other", "hello".repeat(2000)))).toThrow(/other: expected a token file/);
  });
});

describe("Dataset", () => {
  test("masks targets and attention at document borders", () => {
    using file = tokenFile([[1, 2, 3], [4, 5, 6, 7, 8]]);
    const { ids, targets, positions, keyBase, keyEnd, numTargets } = new Dataset(file, { sequenceLength: 3, seed: 1, shuffle: false }).batch(0, 2);
    expect([...ids]).toEqual([1, 2, 3, 4, 5, 6]);
    expect([...targets]).toEqual([2, 3, -1, 5, 6, 7]);
    expect([...positions]).toEqual([0, 1, 2, 0, 1, 2]);
    expect([...keyBase]).toEqual([0, 0, 0, 3, 3, 3]);
    expect([...keyEnd]).toEqual([1, 2, 3, 4, 5, 6]);
    expect(numTargets).toBe(5);
  });
  test("begins a new document inside a window", () => {
    using file = tokenFile([[1, 2], [3, 4, 5]]);
    const batch = new Dataset(file, { sequenceLength: 4, seed: 1, shuffle: false }).batch(0, 1);
    expect([...batch.targets]).toEqual([2, -1, 4, 5]);
    expect([...batch.positions]).toEqual([0, 1, 0, 1]);
    expect([...batch.keyBase]).toEqual([0, 0, 2, 2]);
  });
  test("gives no loss to masked targets", () => {
    using file = tokenFile([[1, 2, 3, 4]], [Uint8Array.from([0, 0, 1, 1])]);
    expect([...new Dataset(file, { sequenceLength: 3, seed: 1, shuffle: false }).batch(0, 1).targets]).toEqual([-1, 3, 4]);
  });
  test("visits every window once an epoch, in an order that depends on seed and epoch only", () => {
    using file = tokenFile([Array.from({ length: 61 }, (_, i) => i)]);
    const options = { sequenceLength: 3, seed: 5 };
    const dataset = new Dataset(file, options);
    const firsts = Array.from({ length: 40 }, (_, i) => dataset.batch(i, 1).ids[0]);
    expect(new Set(firsts.slice(0, 20)).size).toBe(20);
    expect(new Set(firsts.slice(20)).size).toBe(20);
    expect(firsts.slice(0, 20)).not.toEqual(firsts.slice(20));
    expect(new Dataset(file, options).batch(27, 1).ids[0]).toBe(firsts[27]);
    expect([...dataset.batch(3, 4).ids]).toEqual([3, 4, 5, 6].flatMap((i) => [...dataset.batch(i, 1).ids]));
  });
  test("refuses a text shorter than a sequence", () => {
    using file = tokenFile([[1, 2, 3]]);
    expect(() => new Dataset(file, { sequenceLength: 3, seed: 1 })).toThrow(/expected at least 4 tokens .* got 3/);
  });
});

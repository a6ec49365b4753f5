import { mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Dataset } from "./dataset.ts";
import { readDocuments, type DocumentSource, type SourceDocument } from "./documents.ts";
import { TokenFile, TokenFileWriter, type FileMapper } from "./token-file.ts";

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
    const blank = write("b.txt", "---\r\none\r\n\r\ntwo\r\n---\r\n---\r\n\r\n \r\n---");
    expect(await documentsOf({ path: blank, separator: "---" })).toEqual([{ text: "one\n\ntwo" }]);
    expect(await documentsOf({ path: blank, separator: "" })).toEqual([
      { text: "---\none" },
      { text: "two\n---\n---" },
      { text: " \n---" },
    ]);
  });
  test("never cuts a character between two reads of a file", async () => {
    const text = "x" + "漢😀".repeat(400_000);
    expect(await documentsOf({ path: write("long.txt", text) })).toEqual([{ text }]);
    expect(await documentsOf({ path: write("long.jsonl", `${JSON.stringify({ text })}\n${JSON.stringify({ text: "y" })}`) })).toEqual([
      { text },
      { text: "y" },
    ]);
  });
  test("reads JSONL text and conversations", async () => {
    const path = write("a.jsonl", '{"text":"x"}\n\n{"messages":[{"role":"user","content":"hi"}]}\n');
    expect(await documentsOf({ path })).toEqual([{ text: "x" }, { messages: [{ role: "user", content: "hi" }] }]);
  });
  test.each([
    ["a missing file", () => join(folder, "nothing.txt"), /nothing\.txt: expected .* no such file/],
    ["an empty file", () => write("empty.txt", ""), /empty\.txt: expected some text, got an empty file/],
    ["bytes that are not UTF-8", () => write("bad.txt", Uint8Array.from([0x61, 0xff, 0xfe])), /bad\.txt: expected UTF-8 text/],
    ["bytes of JSONL that are not UTF-8", () => write("bad8.jsonl", Uint8Array.from([0x7b, 0xff])), /bad8\.jsonl: expected UTF-8 text/],
    ["a conversation without messages", () => write("chat.jsonl", '{"messages":[]}\n'), /chat\.jsonl:1: expected a list "messages"/],
    [
      "a message without content",
      () => write("chat.jsonl", '{"messages":[{"role":"user"}]}\n'),
      /chat\.jsonl:1 message 0: expected "role" and "content"/,
    ],
    ["a folder", () => folder, /expected a file, got a directory/],
    ["a line that is not JSON", () => write("bad.jsonl", '{"text":"x"}\n{oops\n'), /bad\.jsonl:2: expected a JSON object/],
    [
      "a record without its field",
      () => write("key.jsonl", '{"body":"x"}\n'),
      /key\.jsonl:1: expected a string under "text", got keys body/,
    ],
    ["a corrupt Parquet file", () => write("bad.parquet", "PAR1 not really PAR1"), /bad\.parquet: expected a Parquet file/],
  ])("names the file and what was expected for %s", async (_, make, message) => {
    await expect(documentsOf({ path: make() })).rejects.toThrow(message);
  });
});

describe("a Parquet file written by pyarrow", () => {
  const fixture = (name: string): string => join(import.meta.dirname, "../../test/golden/data", name);
  test.each(["snappy", "zstd"])("gives its texts, in order, over row groups (%s)", async (codec) => {
    const expected = Array.from({ length: 40 }, (_, i) => ({ text: `Document ${i}: ${"naïve café 漢字 😀 line\n".repeat(i % 5)}` }));
    expect(await documentsOf({ path: fixture(`texts.${codec}.parquet`) })).toEqual(expected);
  });
  test("with a missing column, a null or a truncated end is an error that says so", async () => {
    await expect(documentsOf({ path: fixture("texts.zstd.parquet"), field: "body" })).rejects.toThrow(
      /column "body", got columns id, text, score/,
    );
    await expect(documentsOf({ path: fixture("texts.zstd.parquet"), field: "score" })).rejects.toThrow(
      /row 0: expected text in column "score", got number/,
    );
    await expect(documentsOf({ path: fixture("null.parquet") })).rejects.toThrow(
      /null\.parquet row 1: expected text in column "text", got null/,
    );
    const whole = readFileSync(fixture("texts.zstd.parquet"));
    await expect(documentsOf({ path: write("cut.parquet", whole.subarray(0, whole.length - 100)) })).rejects.toThrow(
      /cut\.parquet: expected a Parquet file/,
    );
    const damaged = Uint8Array.from(whole);
    damaged.fill(0xff, 20, 200);
    await expect(documentsOf({ path: write("damaged.parquet", damaged) })).rejects.toThrow(
      /damaged\.parquet: expected readable rows 0\.\.16, got corrupt data/,
    );
  });
});

describe("token file", () => {
  test("gives back any documents and finds the document of any position", () => {
    fc.assert(
      fc.property(
        fc.array(fc.array(fc.integer({ min: 0, max: 99 }), { minLength: 1, maxLength: 9 }), { minLength: 1, maxLength: 9 }),
        (documents) => {
          using file = tokenFile(documents);
          const tokens = new Int32Array(file.header.numTokens);
          file.readTokens(0, tokens);
          expect([...tokens]).toEqual(documents.flat());
          const owners = documents.flatMap((document, i) => document.map(() => i));
          for (const [position, owner] of owners.entries()) expect(file.documentAt(position)).toBe(owner);
        },
      ),
      { numRuns: 50 },
    );
  });
  test("reads the same from a mapping as by position, masks included", () => {
    const documents = [[1, 2, 3], [4], [5, 6, 7, 8, 9]];
    using file = tokenFile(documents, [null, null, Uint8Array.from([0, 1, 0, 1, 1])]);
    let closed = 0;
    const map: FileMapper = (path) => {
      // At an odd address, where the index is not aligned for a view.
      const bytes = new Uint8Array(readFileSync(path).length + 1).subarray(1);
      bytes.set(readFileSync(path));
      return { bytes, close: () => closed++ };
    };
    {
      using mapped = new TokenFile(file.path, { map });
      expect(mapped.documentOffsets).toEqual(file.documentOffsets);
      for (const source of [file, mapped]) {
        const [tokens, mask] = [new Int32Array(6), new Uint8Array(6)];
        source.readTokens(3, tokens);
        source.readMask(3, mask);
        expect([...tokens]).toEqual([4, 5, 6, 7, 8, 9]);
        expect([...mask]).toEqual([1, 0, 1, 0, 1, 1]);
      }
    }
    expect(closed).toBe(1);
  });
  test("keeps ids beyond 16 bits", () => {
    const path = join(folder, "wide");
    const writer = new TokenFileWriter(path, { vocabSize: 100_000 });
    const ids = Int32Array.from({ length: 300_000 }, (_, i) => (i * 7919) % 100_000);
    writer.append(ids);
    writer.append(ids);
    writer.finish("test");
    using file = new TokenFile(path);
    const tokens = new Int32Array(600_000);
    file.readTokens(0, tokens);
    expect(tokens.subarray(0, 300_000)).toEqual(ids);
    expect(tokens.subarray(300_000)).toEqual(ids);
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
    using file = tokenFile([
      [1, 2, 3],
      [4, 5, 6, 7, 8],
    ]);
    const { ids, targets, positions, keyBase, keyEnd, numTargets } = new Dataset(file, {
      sequenceLength: 3,
      seed: 1,
      shuffle: false,
    }).batch(0, 2);
    expect([...ids]).toEqual([1, 2, 3, 4, 5, 6]);
    expect([...targets]).toEqual([2, 3, -1, 5, 6, 7]);
    expect([...positions]).toEqual([0, 1, 2, 0, 1, 2]);
    expect([...keyBase]).toEqual([0, 0, 0, 3, 3, 3]);
    expect([...keyEnd]).toEqual([1, 2, 3, 4, 5, 6]);
    expect(numTargets).toBe(5);
  });
  test("begins a new document inside a window", () => {
    using file = tokenFile([
      [1, 2],
      [3, 4, 5],
    ]);
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

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import { readRows } from "./rows.ts";

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-rows-"));
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});
function file(name: string, content: string | Uint8Array): string {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
}

test("CSV cells may be quoted, hold commas, quotes and line ends; broken rows are named by their line", async () => {
  const path = file("a.csv", ',a,b\n0,1,"x,""y""\nz"\n\n1,2\n2,3,"k"j\n3,4,"open\n4,5,6');
  expect(await readRows(path)).toEqual([
    { where: `${path}:2`, row: { "Unnamed: 0": 0, a: "1", b: 'x,"y"\nz' } },
    { where: `${path}:5`, problem: "3 cells (, a, b), got 2" },
    { where: `${path}:6`, problem: "3 cells (, a, b), got 4" },
    { where: `${path}:7`, problem: "a closing quote, got the end of the file" },
  ]);
});

test("CSV without a header line takes the given names", async () => {
  const path = file("b.csv", 'q1,x,A\r\n"q2",,B');
  const rows = await readRows(path, ["question", "A", "answer"]);
  expect(rows.map((item) => "row" in item && item.row)).toEqual([
    { question: "q1", A: "x", answer: "A" },
    { question: "q2", A: "", answer: "B" },
  ]);
});

test("any cells come back from CSV", async () => {
  let n = 0;
  const cell = fc.string({ unit: fc.constantFrom("a", ",", '"', "\n", " ", "é", "\r\n") });
  const table = fc.array(fc.tuple(cell, cell), { minLength: 1, maxLength: 5 });
  await fc.assert(
    fc.asyncProperty(table, async (rows) => {
      const line = (cells: readonly string[]): string => cells.map((text) => `"${text.replaceAll('"', '""')}"`).join(",");
      const path = file(`p${n++}.csv`, ["x,y", ...rows.map(line)].join("\n"));
      expect((await readRows(path)).map((item) => ("row" in item ? [item.row["x"], item.row["y"]] : item.problem))).toEqual(rows);
    }),
    { numRuns: 100 },
  );
});

test("JSON lines, gzipped too: what is not an object is a problem of its line", async () => {
  const path = file("c.jsonl.gz", gzipSync('{"a":1}\n\n[1]\n{"a":\n'));
  expect(await readRows(path)).toEqual([
    { where: `${path}:1`, row: { a: 1 } },
    { where: `${path}:3`, problem: "a JSON object, got another value" },
    { where: `${path}:4`, problem: "a JSON object a line, got text that is not JSON" },
  ]);
});

test("a file of another ending is one row with its text", async () => {
  const path = file("g.txt", "Line one\n\nline three\n");
  expect(await readRows(path)).toEqual([{ where: path, row: { text: "Line one\n\nline three\n" } }]);
});

// Written by pyarrow (make-data.py), 12 rows in groups of 5: text, a list of texts, a 64-bit integer.
const astronomy = join(import.meta.dirname, "../../test/golden/eval/data/mmlu-astronomy-test");

test.each(["none", "snappy", "gzip", "zstd"])("Parquet with compression %s gives the rows that JSON lines give", async (compression) => {
  const rows = async (path: string): Promise<unknown[]> => (await readRows(path)).map((item) => "row" in item && item.row);
  const expected = await rows(`${astronomy}.jsonl`);
  expect(expected).toHaveLength(12);
  expect(await rows(`${astronomy}-${compression}.parquet`)).toEqual(expected);
});

test("a damaged Parquet file gives rows or a clear error, never anything else", async () => {
  const whole = readFileSync(`${astronomy}-snappy.parquet`);
  let n = 0;
  const damage = fc.array(fc.tuple(fc.nat(whole.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 });
  await fc.assert(
    fc.asyncProperty(damage, fc.nat(whole.length), async (changes, cut) => {
      const bytes = Uint8Array.from(whole);
      for (const [at, value] of changes) bytes[at] = value;
      const path = file(`damaged${n++ % 4}.parquet`, n % 2 === 0 ? bytes : bytes.subarray(0, cut));
      const outcome = await readRows(path).catch((error: unknown) => error);
      if (Array.isArray(outcome)) expect(outcome.length).toBeLessThan(1000);
      else expect(outcome).toMatchObject({ name: "MoeError", kind: "file" });
    }),
    { numRuns: 300 },
  );
});

test("an open quote before megabytes is a broken row, not the end of the program", async () => {
  const [first, second] = await readRows(file("open.csv", `a,b\n1,2\n3,"${"x\n".repeat(8 << 20)}`));
  expect(first).toMatchObject({ row: { a: "1", b: "2" } });
  expect(second).toMatchObject({ problem: expect.stringContaining("a closing quote") as string });
});

test("a gzip bomb is refused before it fills the memory", async () => {
  const zeros = gzipSync(Buffer.alloc(1 << 24));
  const bomb = file("bomb.jsonl.gz", Buffer.concat(Array.from({ length: 40 }, () => zeros)));
  await expect(readRows(bomb)).rejects.toThrow(/bomb\.jsonl\.gz: expected gzipped UTF-8 text of at most \d+ bytes/);
});

test("files that cannot be read at all are errors that name them", async () => {
  await expect(readRows(join(folder, "none.jsonl"))).rejects.toThrow("none.jsonl");
  await expect(readRows(file("d.jsonl", Uint8Array.of(0xff, 0xfe)))).rejects.toThrow("d.jsonl: expected UTF-8 text");
  await expect(readRows(file("e.jsonl.gz", "no gzip"))).rejects.toThrow("gzipped");
  await expect(readRows(file("f.parquet", "no parquet"))).rejects.toThrow("f.parquet: expected a Parquet file");
});

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
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

test("files that cannot be read at all are errors that name them", async () => {
  await expect(readRows(join(folder, "none.jsonl"))).rejects.toThrow("none.jsonl");
  await expect(readRows(file("d.jsonl", Uint8Array.of(0xff, 0xfe)))).rejects.toThrow("d.jsonl: expected UTF-8 text");
  await expect(readRows(file("e.jsonl.gz", "no gzip"))).rejects.toThrow("gzipped");
  await expect(readRows(file("f.parquet", "no parquet"))).rejects.toThrow("f.parquet: expected a Parquet file");
});

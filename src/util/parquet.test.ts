import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { openParquet } from "./parquet.ts";

const whole = join(import.meta.dirname, "../../test/golden/eval/data/mmlu-astronomy-test-snappy.parquet");
const folder = mkdtempSync(join(tmpdir(), "parquet-"));
afterAll(() => rmSync(folder, { recursive: true }));

test("a column of a row group that the schema does not name is an error before anything is read", async () => {
  const { metadata } = await openParquet(whole);
  const columns = metadata.row_groups[0]?.columns.map((column) => column.meta_data?.path_in_schema);
  expect(columns).toEqual([["question"], ["subject"], ["choices", "list", "element"], ["answer"]]);
  const bytes = readFileSync(whole);
  bytes.write("x", bytes.lastIndexOf("list"));
  const path = join(folder, "renamed.parquet");
  writeFileSync(path, bytes);
  await expect(openParquet(path)).rejects.toThrow(/row group \d has columns .*"xist"/);
});

test("a place outside the file is a rejection, never thrown at once, and one that nobody waits for ends nothing", async () => {
  const { file } = await openParquet(whole);
  void file.slice(-1, 5);
  await expect(file.slice(Number.NaN, 5)).rejects.toThrow("start");
});

import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { queryRuns } from "./query.ts";

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-query-"));
  const write = (name: string, losses: readonly number[], extra = ""): void => {
    mkdirSync(join(folder, name), { recursive: true });
    const lines = losses.map((loss, i) =>
      JSON.stringify({
        type: "step",
        step: i + 1,
        loss,
        traffic: { tp: { bytes: 10 * (i + 1) } },
        layers: [{ layer: 2, dropRate: 0.1 * i, load: [0.25, 0.75] }],
      }),
    );
    const evaluation = JSON.stringify({ type: "evaluation", step: losses.length, name: "held", loss: 2, standardError: 0.5 });
    const similarity = JSON.stringify({
      type: "similarity",
      step: 0,
      layers: [{ layer: 2, weights: { mean: 0.5 }, outputs: { mean: 0.25 } }],
    });
    writeFileSync(join(folder, name, "metrics.jsonl"), `${[similarity, ...lines, evaluation].join("\n")}\n${extra}`);
    writeFileSync(join(folder, name, "config.json"), JSON.stringify({ numSteps: 9, seed: losses.length }));
  };
  write("a", [5, 4, 3]);
  write("b", [6, 2], "{torn");
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});
const rows = (sql: string): readonly (readonly unknown[])[] => queryRuns([folder], sql).rows;

describe("a query over runs", () => {
  test("finds what was recorded in every table, runs side by side", () => {
    expect(rows("SELECT run, min(loss), count(*) FROM steps GROUP BY run ORDER BY run")).toEqual([
      ["a", 3, 3],
      ["b", 2, 2],
    ]);
    expect(rows("SELECT run, layer, max(dropRate) FROM layers GROUP BY run, layer")).toEqual([
      ["a", 2, 0.2],
      ["b", 2, 0.1],
    ]);
    expect(rows("SELECT expert, avg(load) FROM loads GROUP BY expert")).toEqual([
      [0, 0.25],
      [1, 0.75],
    ]);
    expect(rows("SELECT run, name, loss, standardError FROM evaluations ORDER BY run")).toEqual([
      ["a", "held", 2, 0.5],
      ["b", "held", 2, 0.5],
    ]);
    expect(rows("SELECT DISTINCT layer, weights, outputs FROM similarity")).toEqual([[2, 0.5, 0.25]]);
    expect(rows("SELECT run, state, steps, last_step, config ->> '$.seed' FROM runs ORDER BY run")).toEqual([
      ["a", "stopped", 3, 3, 3],
      ["b", "stopped", 2, 2, 2],
    ]);
    expect(rows('SELECT sum("traffic.tp.bytes") FROM steps')).toEqual([[90]]);
  });
  test("names columns and says how many lines were no records", () => {
    const { columns, badLines } = queryRuns([folder], "SELECT run AS r, step FROM steps LIMIT 0");
    // The torn line of b has no end: it is one that is being written.
    expect([columns, badLines]).toEqual([["r", "step"], 0]);
    writeFileSync(join(folder, "b", "metrics.jsonl"), "no record\n", { flag: "a" });
    expect(queryRuns([folder], "SELECT 1").badLines).toBe(1);
  });
  test.each([
    "DELETE FROM steps",
    "INSERT INTO runs (run) VALUES (1)",
    "DROP TABLE steps",
    "CREATE TABLE x (a)",
    "ATTACH '/tmp/moe-query-attached.db' AS other",
    "VACUUM INTO '/tmp/moe-query-attached.db'",
    "PRAGMA writable_schema = 1",
    "SELECT load_extension('x')",
  ])("reads only: %s is refused", (sql) => {
    expect(() => rows(sql)).toThrow(/only reading is allowed|not authorized|denied/);
    expect(existsSync("/tmp/moe-query-attached.db")).toBe(false);
  });
  test("that is no SQL is a usage error that names the tables; a folder that is none is named", () => {
    expect(() => rows("SELECT * FRM steps")).toThrow(/--sql: .*; the tables are runs, steps, layers/);
    expect(() => rows("SELECT nix FROM steps")).toThrow(/no such column: nix/);
    expect(() => queryRuns([join(folder, "c")], "SELECT 1")).toThrow(/c: expected the folder of a run/);
  });
  test("tells runs of several folders apart", () => {
    const two = queryRuns([join(folder, "a"), join(folder, "b")], "SELECT DISTINCT run FROM steps ORDER BY run").rows;
    expect(two).toEqual([[join(folder, "a")], [join(folder, "b")]]);
  });
});

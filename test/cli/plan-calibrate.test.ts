/** `moe plan calibrate`: a cluster file out of measured rows, and what it says of bad ones. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync, existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { runCommand } from "../../src/cli/program.ts";
import { findClusterPreset, parseClusterConfig } from "../../src/config/cluster.ts";
import { predictRows, prepareRow } from "../../src/plan/calibrate.ts";
import { parseMeasurements } from "../../src/plan/measurements.ts";
import { softwarePresets } from "../../src/plan/software.ts";

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-calibrate-"));
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

async function calibrate(...args: string[]): Promise<{ status: number; out: string; err: string }> {
  const out = vi.spyOn(process.stdout, "write").mockReturnValue(true);
  const err = vi.spyOn(process.stderr, "write").mockReturnValue(true);
  try {
    const status = await runCommand(["plan", "calibrate", ...args]);
    const text = (spy: typeof out): string => spy.mock.calls.map(([part]) => String(part)).join("");
    return { status, out: text(out), err: text(err) };
  } finally {
    out.mockRestore();
    err.mockRestore();
  }
}

const header =
  "# GPUs,global batch,micro batch,hidden size,attention heads,# layers,sequence length,tensor parallelism,data parallelism,pipeline parallelism,iteration time (ms)";

/** Rows whose times our own model makes on a cluster that reaches 60% where the preset says 80%. */
function madeRows(): string {
  const cluster = findClusterPreset("a100-80");
  const shapes = [1, 4].flatMap((micro) => [1024, 2048, 3072, 4096, 8192].map((hidden) => `8,64,${micro},${hidden},16,4,1024,2,2,2`));
  const rows = parseMeasurements([header, ...shapes.map((shape) => `${shape},1`)].join("\n"), "made").map((row) =>
    prepareRow(row, softwarePresets.megatron, "none"),
  );
  const seconds = predictRows(rows, { ...cluster, efficiency: { ...cluster.efficiency, gemm: 0.6 } });
  return [header, ...shapes.map((shape, i) => `${shape},${1000 * (seconds[i] ?? 0)}`)].join("\n");
}

describe("moe plan calibrate", () => {
  test("writes a cluster file that predicts the rows, and says how far off before, after and on rows held out", async () => {
    const [csv, out] = [join(folder, "rows.csv"), join(folder, "cluster.json")];
    writeFileSync(csv, madeRows());
    const { status, out: printed } = await calibrate(csv, "--cluster", "a100-80", "--out", out, "--json");
    expect(status).toBe(0);
    const report = JSON.parse(printed) as {
      meanErrorBefore: number;
      meanError: number;
      heldOutError: number;
      fitted: string[];
      numRows: number;
    };
    expect(report.numRows).toBe(10);
    expect(report.fitted).toEqual(["gemm", "memory", "kernelSeconds", "hostSeconds", "intraStepSeconds"]);
    expect(report.meanErrorBefore).toBeGreaterThan(0.1);
    expect(report.meanError).toBeLessThan(0.02);
    expect(report.heldOutError).toBeLessThan(0.06);
    const written = parseClusterConfig(JSON.parse(readFileSync(out, "utf8")), out);
    expect(written.efficiency.gemm).toBeCloseTo(0.6, 1);
    expect(written.nodes).toEqual(findClusterPreset("a100-80").nodes);
    // The file is a cluster like any other.
    writeFileSync(csv, madeRows().split("\n").slice(0, 4).join("\n"));
    const text = await calibrate(csv, "--cluster", out, "--out", join(folder, "again.json"));
    expect(text.out).toMatch(/^3 rows: \d\.\d% off before, \d\.\d% after, too few rows to hold some out/);
    expect(text.out).toMatch(/worst rows\nline \d+ /);
  });

  test.each([
    [
      "a broken row",
      `${header}\n8,64,1,1024,16,8,2048,2,2,2,fast`,
      [],
      /bad.csv, line 2: iteration time \(ms\): expected a positive number/,
    ],
    ["an unknown column", `${header},batch\n`, [], /bad.csv, line 1: unknown column "batch"/],
    [
      "a cluster that nobody knows",
      `${header}\n8,64,1,1024,16,8,2048,2,2,2,100`,
      ["--cluster", "a100"],
      /unknown cluster "a100".*did you mean/,
    ],
  ])("refuses %s in one line and writes nothing", async (_, text, args, message) => {
    const [csv, out] = [join(folder, "bad.csv"), join(folder, "never.json")];
    writeFileSync(csv, text);
    const { status, err } = await calibrate(csv, ...(args.length > 0 ? args : ["--cluster", "a100-80"]), "--out", out);
    expect(status).toBe(1);
    expect(err).toMatch(message);
    expect(err.trim().split("\n")).toHaveLength(1);
    expect(existsSync(out)).toBe(false);
  });

  test("says what is missing: the file, the cluster, the place for the result", async () => {
    expect(await calibrate(join(folder, "none.csv"), "--cluster", "a800", "--out", "x")).toMatchObject({ status: 1 });
    expect(await calibrate("rows.csv", "--cluster", "a800")).toMatchObject({ status: 2 });
    expect(await calibrate("rows.csv", "--out", "x")).toMatchObject({ status: 2 });
  });
});

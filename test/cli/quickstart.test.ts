/** The main job, small, as a user runs it: the command's one JSON object, and artifacts that other commands open. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, test } from "vitest";
import type { QuickstartSummary } from "../../src/quickstart/index.ts";

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const folder = mkdtempSync(join(tmpdir(), "moe-quickstart-"));
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
}, 60_000);

function moe(args: readonly string[], engine: string): string {
  const env = { ...process.env, ...(engine === "" ? {} : { MOE_ENGINE: engine }) };
  return execFileSync(process.execPath, [join(root, "src", "cli", "main.ts"), ...args], {
    encoding: "utf8",
    env,
    stdio: ["ignore", "pipe", "pipe"],
  });
}

describe.each([
  ["the best engine here", ""],
  ["WebAssembly", "wasm"],
])("moe quickstart on %s", (_, engine) => {
  const out = join(folder, engine === "" ? "best" : engine);

  test("prints one object with what it measured, and the MoE equals the dense model at step 0", { timeout: 240_000 }, () => {
    const summary = JSON.parse(moe(["quickstart", "--size", "smoke", "--json", "--out", out], engine)) as QuickstartSummary;
    for (const key of ["denseValLoss", "denseLongerValLoss", "denseEqualFlopsValLoss", "moeValLoss"] as const) {
      // ln(2048) = 7.62 is the loss of knowing nothing; six small steps bring it below, none brings it to 2.
      expect(summary[key], key).toBeGreaterThan(2);
      expect(summary[key], key).toBeLessThan(7.62);
    }
    expect(summary.upcycleMaxGap).toBeLessThan(1e-5);
    expect(summary.numParams).toBeGreaterThan(summary.numActiveParams);
    expect(summary.numActiveParams).toBeGreaterThan(summary.denseNumParams);
    for (const { load } of summary.expertLoad) expect(load.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 6);
    expect(summary.runDir).toBe(out);
    if (engine !== "") expect(summary.engine).toBe(engine);
  });

  test("leaves models that inspect and generate open, and metrics of every step", { timeout: 120_000 }, () => {
    const upcycled = join(out, "upcycled");
    const report = JSON.parse(moe(["inspect", upcycled, "--json"], engine)) as { architecture: string; numParams: number };
    expect(report.architecture).toBe("skywork_moe");
    const text = JSON.parse(moe(["generate", upcycled, "--prompt", "The people", "--max-tokens", "4", "--json"], engine)) as {
      ids: number[];
    };
    expect(text.ids).toHaveLength(4);
    const lines = readFileSync(join(out, "moe", "metrics.jsonl"), "utf8")
      .trim()
      .split("\n");
    expect(lines.filter((line) => line.includes('"type":"step"'))).toHaveLength(4);
    expect(existsSync(join(upcycled, "upcycling.json"))).toBe(true);
  });
});

/**
 * The build scripts: what they rebuild, what they refuse, and that an installation never fails for want of a compiler.
 */
import { spawnSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, test } from "vitest";

const root = fileURLToPath(new URL("../..", import.meta.url));
const scratch = mkdtempSync(join(tmpdir(), "moe-build-"));
afterAll(() => rmSync(scratch, { recursive: true }));

function node(args: string[], cwd = root, env: Record<string, string> = {}): { status: number | null; output: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd, encoding: "utf8", env: { ...process.env, ...env } });
  return { status, output: stdout + stderr };
}

function runs(tool: string): boolean {
  return spawnSync(tool, ["--version"]).status === 0;
}

/** A copy of what a published package holds of the native engine, without anything built. */
function copyOfSources(name: string): string {
  const target = join(scratch, name);
  mkdirSync(target);
  for (const part of ["native", "scripts", "package.json"]) cpSync(join(root, part), join(target, part), { recursive: true });
  return target;
}

describe("the native build", () => {
  test.runIf(runs("cc"))("compiles nothing when nothing changed", () => {
    node(["native/build.mjs", "--quiet"]);
    const again = node(["native/build.mjs"]);
    expect(again.status).toBe(0);
    expect(again.output).toMatch(/\(0 of \d+ compiled/);
  });
  test.each(["native/build.mjs", "native/build-wasm.mjs"])("%s refuses an argument it does not know with exit code 2", (script) => {
    const { status, output } = node([script, "--sanitise"]);
    expect(status).toBe(2);
    expect(output).toContain("unknown argument --sanitise; known are --");
  });
  test("says what it needs where no compiler is found", () => {
    const { status, output } = node(["native/build.mjs"], copyOfSources("no-compiler"), { PATH: scratch, CC: "" });
    expect(status).toBe(1);
    expect(output).toContain("no C compiler found");
  });
});

describe("preparing an installation", () => {
  test("succeeds without compiler and without development dependencies, with a line for each", () => {
    const copy = copyOfSources("bare");
    const { status, output } = node(["scripts/prepare.mjs"], copy, { PATH: scratch, CC: "" });
    expect(status).toBe(0);
    expect(output.trim().split("\n")).toEqual([
      expect.stringContaining("native engine not built"),
      expect.stringContaining("dist/ not built"),
    ]);
    expect(readFileSync(join(copy, "build/native/failed.txt"), "utf8")).toContain("no C compiler found");
  });
});

describe("the WebAssembly artifact", () => {
  const directory = join(root, "native/prebuilt");
  test("is what its manifest says", async () => {
    const { createHash } = await import("node:crypto");
    const manifest = JSON.parse(readFileSync(join(directory, "MANIFEST.json"), "utf8")) as {
      sha256: string;
      sources: Record<string, string>;
      leftOut?: string[];
    };
    const hash = (path: string): string => createHash("sha256").update(readFileSync(path)).digest("hex");
    expect(hash(join(directory, "moe.wasm"))).toBe(manifest.sha256);
    expect(manifest.leftOut).toBeUndefined();
    for (const [name, expected] of Object.entries(manifest.sources))
      expect([name, existsSync(join(root, "native", name)) && hash(join(root, "native", name))]).toEqual([name, expected]);
  });
  const hasClang = runs("clang-19") && runs("wasm-ld-19");
  test.runIf(hasClang)("comes out byte for byte from the sources, in another directory too", () => {
    const { status, output } = node(["native/build-wasm.mjs", "--check"], copyOfSources("wasm"));
    expect(output).toContain("the sources give these bytes");
    expect(status).toBe(0);
  });
});

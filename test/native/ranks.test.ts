/**
 * Communicators between threads under sanitizers: no data races, no access outside of operands, nothing leaked (`native/test/ranks.c`). What they
 * compute: `test/parallel/conformance.test.ts`.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { afterAll, describe, expect, test } from "vitest";

const root = resolve(import.meta.dirname, "../..");
const sources = ["native/test/ranks.c", "native/ranks/shared.c", "native/ranks/shared_world.c"].map((name) => join(root, name));
const folder = mkdtempSync(join(tmpdir(), "moe-ranks-"));
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

/** The program, or why there is none. */
function build(sanitizers: string): { program: string } | { reason: string } {
  const program = join(folder, sanitizers.replaceAll(",", "-"));
  const flags = ["-std=gnu11", "-g", "-O1", "-pthread", `-fsanitize=${sanitizers}`, "-fno-sanitize-recover=all", "-Wno-tsan"];
  const { status, stderr, error } = spawnSync(process.env["CC"] || "cc", [...flags, "-o", program, ...sources], { encoding: "utf8" });
  if (status !== 0) return { reason: (stderr || String(error)).split("\n")[0] ?? "it does not compile" };
  // Some kernels place memory where a sanitizer does not expect it.
  const tried = spawnSync(program, ["1", "1", "1"], { encoding: "utf8" });
  return tried.stdout.startsWith("ok") ? { program } : { reason: tried.stderr.split("\n")[0] ?? "it does not start" };
}

describe.each(["thread", "address,undefined"])("ranks that are threads under -fsanitize=%s", (sanitizers) => {
  const built = build(sanitizers);
  const reason = "reason" in built ? built.reason : null;
  test.skipIf(reason !== null).each([2, 3, 7, 12])(
    `%i ranks, random operations under way at once${reason === null ? "" : ` (skipped: ${reason})`}`,
    (size) => {
      if (!("program" in built)) return;
      const rounds = process.env["MOE_LONG"] === "1" ? 5000 : 100;
      const { status, stdout, stderr } = spawnSync(built.program, [String(size), String(rounds), String(size)], { encoding: "utf8" });
      expect(stderr).toBe("");
      expect(stdout).toBe("ok\n");
      expect(status).toBe(0);
    },
    120_000,
  );
});

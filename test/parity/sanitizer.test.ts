/**
 * All cases under AddressSanitizer and UndefinedBehaviorSanitizer, in a process of its own: operands end where their allocation ends, so a
 * read of one element too many is found too, which guard zones cannot see. Minutes long, so only with MOE_LONG=1.
 */
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const root = fileURLToPath(new URL("../../", import.meta.url));

/** Path of a runtime library of the C compiler, or null. */
function runtime(name: string): string | null {
  const { status, stdout } = spawnSync(process.env["CC"] ?? "cc", [`-print-file-name=${name}`], { encoding: "utf8" });
  const path = status === 0 ? stdout.trim() : "";
  return existsSync(path) ? path : null;
}

const runtimes = process.platform === "linux" ? ["libasan.so", "libubsan.so"].map(runtime) : [];
const reason = process.env["MOE_LONG"] !== "1" ? "takes minutes; set MOE_LONG=1" : runtimes.length === 0 || runtimes.includes(null) ? "the C compiler has no libasan.so and libubsan.so" : null;
const title = "no kernel reads or writes outside its operands, or does what C leaves undefined";

if (reason === null) {
  test(title, { timeout: 1_800_000 }, () => {
    const build = spawnSync(process.execPath, ["native/build.mjs", "--sanitize", "--quiet"], { cwd: root, encoding: "utf8" });
    expect(build.status, build.stderr).toBe(0);
    const env = {
      ...process.env,
      LD_PRELOAD: runtimes.join(" "),
      // V8 does not free everything at exit. Its own signal handler and stack switching stay.
      ASAN_OPTIONS: "detect_leaks=0:allocator_may_return_null=1",
      UBSAN_OPTIONS: "print_stacktrace=1",
      MOE_ENGINE: "native",
      MOE_PARITY_GUARDS: "none",
      MOE_NATIVE_LIBRARY: `${root}build/native/${process.platform}-${process.arch}-sanitize/libmoe.so`,
      NODE_OPTIONS: "",
    };
    const run = spawnSync(process.execPath, ["test/parity/sanitized.ts"], { cwd: root, env, encoding: "utf8", maxBuffer: 1 << 26 });
    expect(run.stderr.slice(0, 4000)).not.toMatch(/Sanitizer|runtime error/);
    expect(run.status, run.stderr.slice(0, 4000)).toBe(0);
  });
} else {
  test.skip(`${title} (skipped: ${reason})`, () => {});
}

/**
 * All cases under AddressSanitizer and UndefinedBehaviorSanitizer, in a process of its own: operands end where their allocation ends, so a
 * read of one element too many is found too, which guard zones cannot see where it does not reach a result. (gcc does not instrument
 * masked loads, so the tails of AVX-512 kernels are judged by guard zones alone; those of AVX2 are scalar and seen.) Minutes long, so only in CI and with MOE_LONG=1.
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
const reason =
  process.env["MOE_LONG"] !== "1" && process.env["CI"] !== "true"
    ? "takes minutes; set MOE_LONG=1 or CI=true"
    : runtimes.length === 0 || runtimes.includes(null)
      ? "the C compiler has no libasan.so and libubsan.so"
      : null;
const title = "no kernel reads or writes outside its operands, or does what C leaves undefined";

const library = `${root}build/native/${process.platform}-${process.arch}-sanitize/libmoe.so`;
const environment = {
  ...process.env,
  LD_PRELOAD: runtimes.join(" "),
  // V8 does not give everything back at exit.
  ASAN_OPTIONS: "detect_leaks=0:allocator_may_return_null=1",
  UBSAN_OPTIONS: "print_stacktrace=1",
  MOE_ENGINE: "native",
  MOE_PARITY_GUARDS: "none",
  MOE_NATIVE_LIBRARY: library,
  NODE_OPTIONS: "",
};

/** Reads one element behind an operand. */
const mistake = `
  import { loadBackend } from "./src/backend/load.ts";
  const backend = await loadBackend({ numThreads: 1 });
  const [out, x] = [backend.alloc(256), backend.alloc(63 * 4)];
  backend.kernels.scale(out, x, 64, 2, 0);
`;

function run(args: readonly string[]): { status: number | null; stderr: string } {
  const { status, stderr } = spawnSync(process.execPath, args, { cwd: root, env: environment, encoding: "utf8", maxBuffer: 1 << 26 });
  return { status, stderr: stderr.slice(0, 4000) };
}

if (reason === null) {
  test(title, { timeout: 1_800_000 }, () => {
    const build = spawnSync(process.execPath, ["native/build.mjs", "--sanitize", "--quiet"], { cwd: root, encoding: "utf8" });
    expect(build.status, build.stderr).toBe(0);
    const planted = run(["--input-type=module", "--eval", mistake]);
    expect(planted.stderr, "a planted mistake").toMatch(/AddressSanitizer/);
    const { status, stderr } = run(["test/parity/sanitized.ts"]);
    expect(stderr).not.toMatch(/Sanitizer|runtime error/);
    expect(status, stderr).toBe(0);
  });
} else {
  test.skip(`${title} (skipped: ${reason})`, () => {});
}

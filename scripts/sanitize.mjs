/**
 * Runs tests on a native library built with AddressSanitizer and UndefinedBehaviorSanitizer:
 *
 *   node scripts/sanitize.mjs [vitest arguments]     default: the tests of memory and threads, src/backend
 *
 * (All cases of the kernel suite run so in test/parity/sanitizer.test.ts, without a test runner around them.) Every allocation
 * then ends exactly where it was asked to end, and an access outside ends the run with a report. Leaks are not looked for: the
 * host process never returns all its memory (live bytes are asserted by the tests themselves).
 */
import { spawnSync } from "node:child_process";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const rootDir = dirname(dirname(fileURLToPath(import.meta.url)));
const compiler = process.env.CC || "cc";

function runtimeLibrary(name) {
  const result = spawnSync(compiler, [`-print-file-name=${name}`], { encoding: "utf8" });
  const path = result.stdout?.trim();
  return path && path !== name ? path : null;
}

const build = spawnSync(process.execPath, [join(rootDir, "native", "build.mjs"), "--sanitize"], { stdio: "inherit" });
if (build.status !== 0) process.exit(build.status ?? 1);
const runtimes = ["libasan.so", "libubsan.so"].map(runtimeLibrary).filter((path) => path !== null);
if (process.platform !== "linux" || runtimes.length < 2) {
  console.error(
    `scripts/sanitize.mjs: expected Linux and the sanitizer runtimes of gcc, got ${process.platform} and ${compiler} with ${runtimes.length} of 2`,
  );
  process.exit(1);
}
const tests = process.argv.length > 2 ? process.argv.slice(2) : ["src/backend"];
const result = spawnSync(process.execPath, [join(rootDir, "node_modules", "vitest", "vitest.mjs"), "run", ...tests], {
  cwd: rootDir,
  stdio: "inherit",
  env: {
    ...process.env,
    LD_PRELOAD: runtimes.join(":"),
    ASAN_OPTIONS: "detect_leaks=0:handle_segv=0:abort_on_error=0",
    UBSAN_OPTIONS: "print_stacktrace=1",
    MOE_NATIVE_LIBRARY: join(rootDir, "build", "native", `${process.platform}-${process.arch}-sanitize`, "libmoe.so"),
    MOE_PARITY_GUARDS: "none",
  },
});
process.exit(result.status ?? 1);

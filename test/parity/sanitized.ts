/**
 * Runs every parity case once on the native engine of the environment and prints the differences: what `sanitizer.test.ts` starts with
 * a sanitizer's runtime preloaded, and what can be started by hand:
 *
 *   node native/build.mjs --sanitize
 *   LD_PRELOAD="$(cc -print-file-name=libasan.so) $(cc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 MOE_PARITY_GUARDS=none \
 *     MOE_ENGINE=native MOE_NATIVE_LIBRARY=build/native/linux-x64-sanitize/libmoe.so node test/parity/sanitized.ts
 *
 * No test runner: its own threads and forks would all be instrumented too. Ends with exit code 1 on a difference; the sanitizer ends it with its own.
 */
import { createReferenceBackend } from "../../src/backend/reference/index.ts";
import { allCases } from "./cases/index.ts";
import { largeCases } from "./cases/large.ts";
import { difference, expectation } from "./harness/compare.ts";
import { listEngines } from "./harness/engines.ts";
import { runCase } from "./harness/run.ts";

const reference = createReferenceBackend();
const cases = [...allCases().values()].flat();
const large = largeCases();
let failures = 0;
let engines = 0;
for (const engine of await listEngines()) {
  if (engine.skip !== null || engine.name === "reference") continue;
  const backend = await engine.open(2);
  for (const one of cases) {
    const found = difference(one, runCase(backend, one), expectation(reference, one));
    if (found === null) continue;
    failures++;
    console.error(`${engine.title}: ${found}`);
  }
  for (const one of large) runCase(backend, one);
  if (backend.liveBytes !== 0) {
    failures++;
    console.error(`${engine.title}: ${backend.liveBytes} bytes are live at the end`);
  }
  backend.dispose();
  engines++;
  console.log(`${engine.title}: ${cases.length + large.length} cases`);
}
if (engines === 0) console.error("no native engine runs here");
process.exitCode = failures === 0 && engines > 0 ? 0 : 1;

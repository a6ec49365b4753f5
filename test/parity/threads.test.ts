/**
 * The same bits for one, two and three threads: work is cut by shape, and reductions have a fixed order. Cases large enough to be really cut, run
 * twice with three threads (which thread gets which piece varies from run to run), and every fifth of the sweep's; all of them with MOE_LONG=1.
 */
import { describe, expect, test } from "vitest";
import type { Backend } from "../../src/backend/backend.ts";
import { allCases, kernelNames } from "./cases/index.ts";
import { largeCases } from "./cases/large.ts";
import type { Case } from "./harness/operands.ts";
import { runCase } from "./harness/run.ts";
import { onEveryEngine } from "./harness/suite.ts";

const stride = process.env["MOE_LONG"] === "1" ? 1 : 5;
const large = largeCases();
const cases = new Map(
  [...allCases()].map(([kernel, all]) => [
    kernel,
    [...all.filter((_, i) => i % stride === 0), ...large.filter((one) => one.kernel === kernel)],
  ]),
);

/** The outputs of a case, as bytes. */
function bits(backend: Backend, one: Case): Buffer {
  return Buffer.concat(
    [...runCase(backend, one).entries()].map(([{ check }, { bytes }]) =>
      check?.kind === "exact" && check.count !== undefined ? bytes.subarray(0, check.count * 4) : bytes,
    ),
  );
}

await onEveryEngine(
  (engine, open) => {
    if (!engine.threaded) return;
    describe("with 1, 2 and 3 threads", () => {
      test("runs on as many threads as asked for", () => {
        for (const count of [1, 2, 3]) expect(open(count).numThreads).toBe(count);
      });
      for (const kernel of kernelNames) {
        test(`${kernel} gives the same bits`, () => {
          const different = (cases.get(kernel) ?? []).filter((one) => {
            const alone = bits(open(1), one);
            return ![open(2), open(3), open(3)].every((backend) => alone.equals(bits(backend, one)));
          });
          expect(different.map(({ title }) => title)).toEqual([]);
        });
      }
    });
  },
  [1, 2, 3],
);

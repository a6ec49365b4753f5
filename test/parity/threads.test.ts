/**
 * The same bits for one, two and three threads: work is cut by shape, and reductions have a fixed order. All cases of the sweep and larger ones
 * that are really cut. Each is run twice with three threads, since which thread gets which piece varies from run to run.
 */
import { describe, expect, test } from "vitest";
import type { Backend } from "../../src/backend/backend.ts";
import { allCases, kernelNames } from "./cases/index.ts";
import { largeCases } from "./cases/large.ts";
import type { Case } from "./harness/operands.ts";
import { runCase } from "./harness/run.ts";
import { onEveryEngine } from "./harness/suite.ts";

const cases = allCases();
for (const one of largeCases()) cases.set(one.kernel, [...(cases.get(one.kernel) ?? []), one]);

/** The outputs of a case, as bytes. */
function bits(backend: Backend, one: Case): Buffer {
  return Buffer.concat([...runCase(backend, one).entries()].map(([{ check }, { bytes }]) => (check?.kind === "exact" && check.count !== undefined ? bytes.subarray(0, check.count * 4) : bytes)));
}

await onEveryEngine(
  (engine, open) => {
    if (!engine.threaded) return;
    describe("with 1, 2 and 3 threads", () => {
      for (const kernel of kernelNames) {
        test(`${kernel} gives the same bits`, () => {
          expect(open(3).numThreads).toBe(3);
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

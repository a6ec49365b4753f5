/**
 * Every kernel, over its cases, on every engine, against the reference. The cases are in `cases/`, the judgement in `harness/compare.ts`.
 */
import { expect, test } from "vitest";
import { createReferenceBackend } from "../../src/backend/reference/index.ts";
import { allCases } from "./cases/index.ts";
import type { Expectation } from "./harness/compare.ts";
import { difference, expectation } from "./harness/compare.ts";
import type { Case } from "./harness/operands.ts";
import { runCase } from "./harness/run.ts";
import { onEveryEngine } from "./harness/suite.ts";

const reference = createReferenceBackend();
const known = new Map<Case, Expectation>();

function expected(test: Case): Expectation {
  const found = known.get(test) ?? expectation(reference, test);
  known.set(test, found);
  return found;
}

const cases = allCases();

await onEveryEngine((_, open) => {
  for (const [kernel, ofKernel] of cases) {
    test(`${kernel} agrees with the reference in ${ofKernel.length} cases`, () => {
      const differences: string[] = [];
      for (const one of ofKernel) {
        const found = difference(one, runCase(open(2), one), expected(one));
        if (found !== null) differences.push(found);
      }
      expect(differences.slice(0, 8)).toEqual([]);
    });
  }
});

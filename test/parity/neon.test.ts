/**
 * The kernel suite on the NEON kernels, under qemu-aarch64 where the machine is not an ARM one: every case against the reference, and
 * the same bits for one and three threads.
 */
import { expect, test } from "vitest";
import { createReferenceBackend } from "../../src/backend/reference/index.ts";
import { allCases } from "./cases/index.ts";
import { difference, expectation } from "./harness/compare.ts";
import { openNeon, prepareNeon } from "./harness/neon.ts";
import { runCase } from "./harness/run.ts";

const missing = prepareNeon();

if (missing !== null) {
  test.skip(`native neon: skipped: ${missing}`, () => {});
} else {
  const reference = createReferenceBackend();
  const one = openNeon(1);
  const three = openNeon(3);
  for (const [kernel, cases] of allCases()) {
    test(`NEON ${kernel} agrees with the reference in ${cases.length} cases and with itself on three threads`, () => {
      const differences: string[] = [];
      for (const each of cases) {
        const result = runCase(one, each);
        const found = difference(each, result, expectation(reference, each));
        if (found !== null) differences.push(found);
        expect(runCase(three, each)).toEqual(result);
      }
      expect(differences.slice(0, 8)).toEqual([]);
    });
  }
  test("NEON leaves no live bytes", () => {
    expect([one.liveBytes, three.liveBytes]).toEqual([0, 0]);
    one.dispose();
    three.dispose();
  });
}

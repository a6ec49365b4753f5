/** Ranks as processes over MPI: the conformance suite of communicators, and how a job ends when something is wrong. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { deserialize, serialize } from "node:v8";
import { describe, expect, test } from "vitest";
import { chosenPrograms, randomPrograms } from "./arbitrary-programs.ts";
import { mpirun, noMpi, ourLines } from "./mpirun.ts";
import { firstDifference, type Program } from "./programs.ts";

const entry = new URL("./programs-mpi.ts", import.meta.url);
const patience = 300_000;
const isLong = process.env["MOE_LONG"] === "1";
const seed = 20261127;
const skipped = noMpi === null ? "" : ` (skipped: ${noMpi})`;

async function check(size: number, programs: readonly Program[]): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "moe-mpi-"));
  try {
    writeFileSync(join(folder, "programs"), serialize(programs));
    const { code, stderr } = await mpirun(size, entry, [folder]);
    expect(code, stderr).toBe(0);
    const byRank = Array.from({ length: size }, (_, rank) => deserialize(readFileSync(join(folder, String(rank)))) as Uint8Array[][]);
    for (const [index, program] of programs.entries()) {
      const found = firstDifference(
        program,
        size,
        byRank.map((results) => results[index] ?? []),
      );
      expect(found, `program ${index}: ${JSON.stringify(program)}`).toBeNull();
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

describe.skipIf(noMpi !== null)(`ranks that are processes under mpirun${skipped}`, () => {
  test.each([1, 2, 3, 12])(
    "%i ranks: every collective of any size, blocking, overlapped and in parts of the group, is the reference's",
    async (size) => {
      const count = (isLong ? 1000 : 40) / (size > 6 ? 4 : 1);
      await check(size, [...randomPrograms(size, count, seed + size), ...chosenPrograms(size)]);
    },
    isLong ? 10 * patience : patience,
  );

  test.each([
    ["throws", /^moe: rank 1: this rank gives up$/],
    ["all throw", /^moe: the same everywhere$/],
    ["sleeps", /^moe: rank \d waited 1.5 s in barrier for rank \d/],
    ["is elsewhere", /^moe: ranks are at different places: rank \d in barrier of 0, rank 1, which sent more$/],
    ["stops", /^moe: rank 1 is lost: rank 0 on .* has heard nothing from it for 5 s/],
  ] as const)(
    "a job of which a rank %s ends as a whole, and one rank says why in one line",
    async (failure, line) => {
      const { code, stderr, seconds } = await mpirun(3, entry, ["", failure], { timeoutMs: 60_000 });
      expect(ourLines(stderr), stderr).toHaveLength(1);
      expect(ourLines(stderr)[0]).toMatch(line);
      expect(code).not.toBe(0);
      // Killed by the test, it would have no code at all.
      expect(code).not.toBeNull();
      expect(seconds).toBeLessThan(50);
    },
    patience,
  );

  test(
    "a rank that is killed ends the job within 30 s, and mpirun names it",
    async () => {
      const { code, stderr, seconds } = await mpirun(3, entry, ["", "kills itself"], { timeoutMs: 60_000 });
      expect(stderr).toMatch(/process rank 1 .*exited on signal 9/);
      expect(code).not.toBe(0);
      expect(code).not.toBeNull();
      expect(seconds).toBeLessThan(30);
    },
    patience,
  );
});

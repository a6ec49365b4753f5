/**
 * One suite over every implementation of a communicator: random and chosen programs, whose results must be those of a plain reference, bit
 * by bit. Over MPI: `mpi.test.ts`.
 */
import { describe, expect, test } from "vitest";
import type { BackendName } from "../../src/backend/backend.ts";
import { loadBackend } from "../../src/backend/load.ts";
import { startRanks } from "../../src/parallel/index.ts";
import { chosenPrograms, randomPrograms } from "./arbitrary-programs.ts";
import { firstDifference, type Program } from "./programs.ts";

const entry = new URL("./programs-rank.ts", import.meta.url);
/** Threads start slowly on a machine that others use. */
const patience = 300_000;
const isLong = process.env["MOE_LONG"] === "1";

/** Where this is another number, other programs run. */
const seed = 20261126;

async function check(size: number, engine: BackendName, programs: readonly Program[]): Promise<void> {
  const { results } = startRanks({ size, entry, data: programs, backend: { engine, numThreads: 1 }, timeoutMs: 120_000 });
  const byRank = (await results) as Uint8Array[][][];
  for (const [index, program] of programs.entries()) {
    const found = firstDifference(
      program,
      size,
      byRank.map((results) => results[index] ?? []),
    );
    expect(found, `program ${index}: ${JSON.stringify(program)}`).toBeNull();
  }
}

/** Why the native engine does not run here; null where it does. */
const noNative = await loadBackend({ engine: "native", numThreads: 1 }).then(
  (backend) => {
    backend.dispose();
    return null;
  },
  (error: unknown) => String(error),
);

const engines = ["native", "reference", "wasm"] as const satisfies readonly BackendName[];

describe.each(engines)("ranks that are threads and compute with %s", (engine) => {
  const reason = engine === "native" ? noNative : null;
  const sizes = engine === "native" ? [1, 2, 3, 5, 12] : engine === "reference" ? [2, 3, 12] : [2];
  test.skipIf(reason !== null).each(sizes)(
    `%i ranks: every collective of any size, blocking, overlapped and in parts of the group, is the reference's${reason === null ? "" : ` (skipped: ${reason})`}`,
    async (size) => {
      const count = (isLong ? 2000 : engine === "native" ? 40 : 16) / (size > 6 ? 4 : 1);
      await check(size, engine, [...randomPrograms(size, count, seed + size), ...chosenPrograms(size)]);
    },
    isLong ? 10 * patience : patience,
  );
});

/** Ranks as worker threads: what happens when one is lost, late or somewhere else. What collectives give: `conformance.test.ts`. */
import { describe, expect, test } from "vitest";
import { loadBackend } from "../../src/backend/load.ts";
import { createReferenceBackend } from "../../src/backend/reference/index.ts";
import { createLocalGroup, openLocalWorld, startRanks } from "../../src/parallel/index.ts";
import type { Absence } from "./absent-rank.ts";

const entry = new URL("./absent-rank.ts", import.meta.url);

async function run(size: number, absence: Absence, timeoutMs: number): Promise<unknown[]> {
  return startRanks({ size, entry, data: absence, backend: { engine: absence.engine, numThreads: 1 }, timeoutMs }).results;
}

const engines = await loadBackend({ numThreads: 1 }).then((backend) => {
  const { name } = backend;
  backend.dispose();
  return name === "native" ? (["native", "reference"] as const) : (["reference"] as const);
});

/** Threads start slowly on a machine that others use. */
const patience = 300_000;

describe.each(engines)("ranks that compute with %s", (engine) => {
  test.each([
    ["throws", /this rank gives up/],
    ["exits", /rank 1 ended without a result \(exit code 3\)/],
    ["throws while its memory is being read", /this rank gives up/],
  ] as const)(
    "a rank that %s ends the others at once, and the cause comes out",
    async (how, message) => {
      // Far longer than the test may take: nobody waits for it.
      await expect(run(4, { engine, rank: 1, how }, 10 * patience)).rejects.toThrow(message);
    },
    patience,
  );

  test(
    "nobody waits for a rank that has ended, and its last messages are not lost",
    async () => {
      await expect(run(3, { engine, rank: 1, how: "returns" }, 10 * patience)).rejects.toThrow(
        /rank \d waited in barrier for rank 1, which has ended/,
      );
    },
    patience,
  );

  test(
    "who waits too long says for whom",
    async () => {
      await expect(run(3, { engine, rank: 2, how: "sleeps" }, 1500)).rejects.toThrow(/rank \d waited 1.5 s in barrier for rank 2/);
    },
    patience,
  );

  test(
    "ranks that are at different places do not take each other's bytes",
    async () => {
      const lost = run(3, { engine, rank: 1, how: "elsewhere" }, patience);
      await expect(lost).rejects.toThrow(/ranks are at different places: .*rank 1 in broadcast of 8/);
    },
    patience,
  );

  test(
    "ranks that disagree on a length do not take each other's bytes",
    async () => {
      await expect(run(2, { engine, rank: 1, how: "another length" }, patience)).rejects.toThrow(/ranks are at different places/);
    },
    patience,
  );
});

test("a group that was ended lets nobody wait", () => {
  const reference = createReferenceBackend();
  const [memory] = createLocalGroup(2);
  if (memory === undefined) throw new Error("a group of two has a first rank");
  const { communicator } = openLocalWorld(reference, memory, { spins: 0, timeoutMs: 60_000 });
  communicator.abort("no more");
  communicator.abort("a second reason");
  expect(() => communicator.barrier()).toThrow("no more");
  reference.dispose();
});

test("a size that is no count is refused", () => {
  expect(() => startRanks({ size: 0, entry, data: null })).toThrow(/at least 1, got 0/);
});

/**
 * Registers tests on every engine, and skipped ones, with the reason in their title, on those that this machine lacks.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Backend } from "../../../src/backend/backend.ts";
import type { Engine } from "./engines.ts";
import { listEngines } from "./engines.ts";

/** Calls `register` once an engine; `open` gives the engine's backend of so many threads, opened once and left without live bytes. */
export async function onEveryEngine(
  register: (engine: Engine, open: (numThreads: number) => Backend) => void,
  threadCounts: readonly number[] = [2],
): Promise<void> {
  for (const engine of await listEngines()) {
    if (engine.skip !== null) {
      test.skip(`${engine.title}: skipped: ${engine.skip}`, () => {});
      continue;
    }
    describe(engine.title, () => {
      const backends = new Map<number, Backend>();
      beforeAll(async () => {
        for (const count of threadCounts) backends.set(count, await engine.open(count));
      });
      register(engine, (numThreads) => {
        const backend = backends.get(numThreads);
        if (backend === undefined) throw new Error(`${engine.title} was not opened with ${numThreads} threads`);
        return backend;
      });
      test("leaves no live bytes", () => {
        for (const backend of backends.values()) expect(backend.liveBytes).toBe(0);
      });
      afterAll(() => {
        for (const backend of backends.values()) backend.dispose();
      });
    });
  }
}

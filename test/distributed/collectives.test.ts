/** Every differentiable collective has the gradients of finite differences over all ranks. */
import { expect, test } from "vitest";
import { startRanks } from "../../src/parallel/index.ts";
import { collectives } from "./collectives.ts";

test.each([1, 2, 3, 5])(
  "gradients of collectives over %d ranks are those of finite differences, and nothing stays alive",
  async (size) => {
    const entry = new URL("./collectives-rank.ts", import.meta.url);
    const ranks = await startRanks({ size, entry, data: null, backend: { engine: "reference", numThreads: 1 }, timeoutMs: 120_000 })
      .results;
    for (const result of ranks) {
      const { worst, leaked } = result as { worst: Record<string, number>; leaked: number };
      expect(Object.keys(worst)).toHaveLength(Object.keys(collectives).length + 1);
      for (const [name, distance] of Object.entries(worst)) expect(distance, name).toBeLessThan(2e-5);
      expect(leaked).toBe(0);
    }
  },
  120_000,
);

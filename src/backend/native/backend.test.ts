import { availableParallelism } from "node:os";
import { afterAll, describe, expect, test } from "vitest";
import { chooseEngine } from "../load.ts";
import { WasmBackend } from "../wasm/backend.ts";
import { NativeBackend } from "./backend.ts";

const isSanitized = process.env["MOE_NATIVE_LIBRARY"] !== undefined;

for (const engine of ["native", "wasm"] as const) {
  const { backend } = await chooseEngine({ engine: engine, numThreads: 2 }).catch((error: Error) => ({ backend: error.message }));
  if (!(backend instanceof NativeBackend || backend instanceof WasmBackend)) {
    test.skip(`${engine}: skipped: ${typeof backend === "string" ? backend : backend.name}`, () => {});
    continue;
  }
  describe.skipIf(isSanitized && engine === "native")(`the heap of the ${engine} backend`, () => {
    afterAll(() => backend.dispose());

    test("takes nothing more from the system when a step repeats", () => {
      const step = (): void => {
        const blocks = [3_000_000, 100, 70_000_000, 9_999, 3_000_000, 1].map((byteLength) => backend.alloc(byteLength));
        for (const ptr of [...blocks.slice(3), ...blocks.slice(0, 3)]) backend.free(ptr);
      };
      step();
      const held = backend.mappedBytes;
      for (let i = 0; i < 50; i++) step();
      expect(backend.mappedBytes).toBe(held);
    });

    test("merges freed neighbours, so that small blocks make room for a large one", () => {
      const blocks = Array.from({ length: 1000 }, () => backend.alloc(50_000));
      const held = backend.mappedBytes;
      for (const ptr of [...blocks.filter((_, i) => i % 2 === 0), ...blocks.filter((_, i) => i % 2 === 1)]) backend.free(ptr);
      backend.free(backend.alloc(49_000_000));
      expect(backend.mappedBytes).toBe(held);
    });

    test("gives memory back with trim where it can, and works on afterwards", () => {
      const keep = backend.alloc(1000);
      backend.write(keep, new Uint8Array(1000).fill(7));
      backend.free(backend.alloc(300_000_000));
      const held = backend.mappedBytes;
      backend.trim();
      if (engine === "native") expect(backend.mappedBytes).toBeLessThanOrEqual(held - 300_000_000);
      else expect(backend.mappedBytes).toBe(held);
      const bytes = new Uint8Array(1000);
      backend.read(bytes, keep);
      expect(bytes.every((byte) => byte === 7)).toBe(true);
      backend.free(keep);
      expect(backend.liveBytes).toBe(0);
    });

    test("keeps views right while the memory grows", () => {
      const first = backend.alloc(64);
      const view = backend.view(first, 64);
      const large = backend.alloc(400_000_000);
      backend.write(first, new Uint8Array(64).fill(3));
      expect(view[63]).toBe(3);
      backend.write(large + 399_999_999, Uint8Array.of(9));
      expect(backend.view(large + 399_999_999, 1)[0]).toBe(9);
      backend.free(large);
      backend.free(first);
    });

    test("runs a parallel_for of nothing without a system call while its threads are awake", () => {
      backend.emptyParallelFor(16, 1000);
      const start = performance.now();
      backend.emptyParallelFor(16, 20_000);
      // 1 us on a quiet machine; waking a thread each time would be 60 us. With one processor there is nothing to measure.
      if (availableParallelism() > 1) expect(((performance.now() - start) * 1000) / 20_000).toBeLessThan(40);
    });
  });
}

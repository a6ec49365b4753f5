/**
 * What every backend promises of its memory (`backend.ts`), on each engine that starts here; an engine that does not is skipped visibly.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, test } from "vitest";
import { MoeError } from "../util/errors.ts";
import type { Backend } from "./backend.ts";
import { chooseEngine } from "./load.ts";

const library = process.env["MOE_NATIVE_LIBRARY"];
const env = library === undefined ? {} : { MOE_NATIVE_LIBRARY: library };
/** A sanitizer ends the process where freed memory is looked at. */
const isSanitized = library !== undefined;

async function start(engine: Backend["name"], numThreads: number): Promise<Backend | string> {
  try {
    return (await chooseEngine({ engine, numThreads }, env)).backend;
  } catch (error) {
    if (error instanceof MoeError && error.kind === "resource") return error.message;
    throw error;
  }
}

/** Bytes that only block `seed` holds. */
function pattern(seed: number, byteLength: number): Uint8Array {
  return Uint8Array.from({ length: byteLength }, (_, i) => (seed * 31 + i * 7) & 255);
}

for (const engine of ["native", "wasm", "reference"] as const) {
  const backend = await start(engine, 2);
  if (typeof backend === "string") {
    test.skip(`${engine}: skipped: ${backend}`, () => {});
    continue;
  }
  describe(`the memory of the ${engine} backend`, () => {
    afterAll(() => backend.dispose());

    test("counts the bytes asked for, to the byte, and returns to zero", () => {
      backend.resetPeak();
      const [a, b, empty] = [backend.alloc(1), backend.alloc(1001), backend.alloc(0)];
      expect([backend.liveBytes, backend.peakBytes]).toEqual([1002, 1002]);
      backend.free(b);
      expect([backend.liveBytes, backend.peakBytes]).toEqual([1, 1002]);
      backend.resetPeak();
      expect(backend.peakBytes).toBe(1);
      backend.free(a);
      backend.free(empty);
      expect(backend.liveBytes).toBe(0);
    });

    test("aligns every block to 64 bytes and never gives 0", () => {
      const blocks = [0, 1, 63, 64, 65, 4096, 3_000_001].map((byteLength) => backend.alloc(byteLength));
      for (const ptr of blocks) expect([ptr > 0, ptr % 64]).toEqual([true, 0]);
      expect(new Set(blocks).size).toBe(blocks.length);
      for (const ptr of blocks) backend.free(ptr);
    });

    test("keeps what is written, whatever is allocated and freed in between", () => {
      const sizes = fc.array(fc.record({ free: fc.nat(3), byteLength: fc.oneof(fc.nat(300), fc.nat(70_000)) }), { maxLength: 60 });
      fc.assert(
        fc.property(sizes, (steps) => {
          const live = new Map<number, { ptr: number; byteLength: number }>();
          let asked = 0;
          steps.forEach(({ free, byteLength }, seed) => {
            const oldest = live.entries().next().value;
            if (free === 0 && oldest !== undefined) {
              const [oldSeed, block] = oldest;
              const bytes = new Uint8Array(block.byteLength);
              backend.read(bytes, block.ptr);
              expect(Buffer.compare(bytes, pattern(oldSeed, block.byteLength))).toBe(0);
              backend.free(block.ptr);
              live.delete(oldSeed);
              asked -= block.byteLength;
            }
            const ptr = backend.alloc(byteLength);
            backend.write(ptr, pattern(seed, byteLength));
            live.set(seed, { ptr, byteLength });
            asked += byteLength;
            expect(backend.liveBytes).toBe(asked);
          });
          for (const [seed, { ptr, byteLength }] of live) {
            expect(Buffer.compare(backend.view(ptr, byteLength), pattern(seed, byteLength))).toBe(0);
            backend.free(ptr);
          }
          expect(backend.liveBytes).toBe(0);
        }),
        { numRuns: 40 },
      );
    });

    test("reads into and writes from any view, at its offset", () => {
      const ptr = backend.alloc(16);
      backend.write(ptr, new Float32Array([9, 1, 2, 3, 4, 9]).subarray(1, 5));
      const target = new Float32Array(6);
      backend.read(target.subarray(1, 5), ptr);
      expect([...target]).toEqual([0, 1, 2, 3, 4, 0]);
      const half = new DataView(new ArrayBuffer(12), 4, 4);
      backend.read(half, ptr + 8);
      expect(half.getFloat32(0, true)).toBe(3);
      backend.free(ptr);
    });

    test.skipIf(isSanitized)("refuses to free twice, and to free what it never gave", () => {
      const ptr = backend.alloc(10);
      backend.free(ptr);
      for (const wrong of [ptr, 0]) expect(() => backend.free(wrong)).toThrow(expect.objectContaining({ kind: "internal" }));
      expect(backend.liveBytes).toBe(0);
    });

    test("names the bytes asked for and the bytes live when memory runs out", () => {
      const ptr = backend.alloc(100);
      expect(() => backend.alloc(2 ** 47)).toThrow(
        expect.objectContaining({ kind: "resource", message: expect.stringContaining(`${2 ** 47}`) as string }),
      );
      expect(backend.liveBytes).toBe(100);
      backend.free(ptr);
    });

    test("maps a file, or says that it cannot", () => {
      const directory = mkdtempSync(join(tmpdir(), "moe-map-"));
      try {
        const path = join(directory, "weights");
        writeFileSync(path, pattern(5, 10_001));
        const mapped = backend.mapFile(path);
        if (engine !== "native") return expect(mapped).toBeNull();
        expect(mapped?.byteLength).toBe(10_001);
        expect(Buffer.compare(backend.view(mapped?.ptr ?? 0, 10_001), pattern(5, 10_001))).toBe(0);
        expect(backend.liveBytes).toBe(0);
        mapped?.close();
        mapped?.close();
        writeFileSync(path, "");
        const empty = backend.mapFile(path);
        expect(empty?.byteLength).toBe(0);
        empty?.close();
        for (const wrong of [join(directory, "absent"), directory]) {
          expect(() => backend.mapFile(wrong)).toThrow(
            expect.objectContaining({ kind: "file", message: expect.stringContaining(wrong) as string }),
          );
        }
      } finally {
        rmSync(directory, { recursive: true });
      }
    });

    test("throws from a kernel after dispose instead of touching freed memory", async () => {
      const other = await start(engine, 2);
      if (typeof other === "string") throw new Error(other);
      other.dispose();
      other.dispose();
      expect(() => other.kernels.fillF32(64, 1, 0)).toThrow(MoeError);
      if (engine !== "reference") expect(() => other.alloc(1)).toThrow("after dispose()");
    });
  });
}

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { findClusterPreset } from "../config/cluster.ts";
import { bytesOfType, memorySeconds, peakFlops, productSeconds } from "./device-time.ts";

const { nodes, efficiency } = findClusterPreset("a100-80");
const device =
  nodes[0]?.device ??
  ((): never => {
    throw new Error("no device");
  })();
const timing = { device, efficiency };

describe("seconds of one operation", () => {
  test("an endless product runs at its fraction of the peak, and none faster", () => {
    const shape = { rows: 108 * 256, columns: 128 * 64, depth: 8192 };
    const flops = 2 * shape.rows * shape.columns * shape.depth;
    expect(flops / productSeconds(timing, shape, "f16") / (312e12 * efficiency.gemm)).toBeCloseTo(1, 2);
    const size = fc.integer({ min: 1, max: 20_000 });
    fc.assert(
      fc.property(size, size, size, fc.integer({ min: 1, max: 64 }), (rows, columns, depth, batch) => {
        const seconds = productSeconds(timing, { rows, columns, depth, batch }, "f16");
        expect((2 * rows * columns * depth * batch) / seconds).toBeLessThanOrEqual(312e12 * efficiency.gemm * (1 + 1e-9));
        // Nor less than what it reads and writes.
        const bytes = 2 * batch * (rows * depth + depth * columns + rows * columns);
        expect(seconds).toBeGreaterThanOrEqual(bytes / (device.memoryBandwidth * efficiency.memory));
      }),
    );
  });

  test("a larger product never takes less time", () => {
    const size = fc.integer({ min: 1, max: 8192 });
    fc.assert(
      fc.property(
        size,
        size,
        size,
        fc.integer({ min: 0, max: 500 }),
        fc.constantFrom("rows", "columns"),
        (rows, columns, depth, more, key) => {
          const shape = { rows, columns, depth };
          const grown = { ...shape, [key]: shape[key] + more };
          expect(productSeconds(timing, grown, "f16")).toBeGreaterThanOrEqual(productSeconds(timing, shape, "f16"));
        },
      ),
    );
  });

  test("a wave of tiles that is not full costs as much as a full one", () => {
    // 27 tiles of 128 columns: 1024 rows are 108 tiles of 256 x 128, one for each unit.
    const at = (rows: number): number => productSeconds(timing, { rows, columns: 27 * 128, depth: 16_384 }, "f16");
    expect(at(1024)).toBeCloseTo(at(900), 12);
    expect(at(1025)).toBeGreaterThan(1.15 * at(1024));
  });

  test("few tiles with much depth are cut along the depth", () => {
    const shape = { rows: 256, columns: 256, depth: 65_536 };
    const oneUnitEach = (shape.depth * 2 * 64 * 64) / ((312e12 / 108) * efficiency.gemm * 0.6);
    expect(productSeconds(timing, shape, "f16")).toBeLessThan(oneUnitEach);
  });

  test("a core packs and multiplies in turn, in small tiles", () => {
    const core = { ...device, numUnits: 1, peakFlops: { f32: 1e11 }, memoryBandwidth: 1e10 };
    const shape = { rows: 160, columns: 120, depth: 256 };
    const [flops, bytes] = [2 * 160 * 120 * 256, 4 * (160 * 256 + 256 * 120 + 2 * 160 * 120)];
    const own = { ...core, productTile: { rows: 16, columns: 12 }, isHost: true };
    const { gemm, memory, kernelSeconds } = efficiency;
    const added = kernelSeconds + flops / (1e11 * gemm) + bytes / (1e10 * memory);
    expect(productSeconds({ device: own, efficiency }, shape, "f32")).toBeCloseTo(added, 12);
    // Cards' tiles are larger than that, and the larger of the two decides.
    expect(productSeconds({ device: { ...core }, efficiency }, { ...shape, rows: 161 }, "f32")).toBeLessThan(1.5 * added);
    const more = productSeconds({ device: own, efficiency }, { ...shape, rows: 161 }, "f32");
    expect(more / added).toBeGreaterThan(1.02);
    expect(more / added).toBeLessThan(1.15);
  });

  test("what only moves bytes takes its share of the bandwidth and a launch; nothing takes nothing", () => {
    expect(memorySeconds(timing, 1e9)).toBeCloseTo(efficiency.kernelSeconds + 1e9 / (2.039e12 * efficiency.memory), 12);
    expect(memorySeconds(timing, 0)).toBe(0);
    expect(productSeconds(timing, { rows: 0, columns: 5, depth: 5 }, "f16")).toBe(0);
  });

  test("types have their bytes and peaks; a type that the device does not compute in is refused", () => {
    expect(["f32", "bf16", "f16", "fp8"].map((type) => bytesOfType(type as "f32"))).toEqual([4, 2, 2, 1]);
    expect(peakFlops(device, "bf16")).toBe(312e12);
    expect(() => peakFlops(device, "fp8")).toThrow("device A100-80 does not compute in fp8; it has f32, bf16, f16");
  });
});

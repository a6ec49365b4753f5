/**
 * Seconds of one operation on one device: matrix products and what memory bounds.
 *
 * A product is cut into tiles of the output; each of the device's units (streaming multiprocessors) computes one tile at a time, so
 * that time goes in waves of `numUnits` tiles, and a last wave that is not full costs as much as a full one. Small tiles read more per
 * multiplication and reach less of the peak. Where there are few tiles and much depth, libraries cut the depth too (split-K)
 * and add up partial results in memory. The library is taken to choose the fastest of these. A product that reads and writes more
 * than it computes is bound by memory.
 *
 * A core of a processor (`isHost`) is one unit with small tiles of its own, and packs its operands itself: bytes add to multiplications. What it
 * writes counts twice, because a line of its cache is read before it is changed.
 *
 * Not here: the host, which may launch operations more slowly than the device runs them (`pass.ts`).
 */
import type { ComputeType, DeviceConfig, EfficiencyConfig } from "../config/cluster.ts";
import { MoeError } from "../util/errors.ts";

/** What decides an operation's time. */
export interface DeviceTiming {
  readonly device: DeviceConfig;
  readonly efficiency: EfficiencyConfig;
}

/** Rows, columns and the fraction of the large tile's speed: what the tile's reads from the cache leave. Of cards. */
const cardTiles = [
  [256, 128, 1],
  [128, 256, 1],
  [128, 128, 0.92],
  [128, 64, 0.75],
  [64, 128, 0.75],
  [64, 64, 0.6],
] as const;
type Tile = readonly [rows: number, columns: number, speed: number];
/** Parts into which the depth is cut, and the least depth of a part. */
const depthCuts = [1, 2, 4, 8] as const;
const leastDepth = 512;

export interface ProductShape {
  readonly rows: number;
  readonly columns: number;
  readonly depth: number;
  /** Independent products of this shape in one call. Default 1. */
  readonly batch?: number;
}

/** Bytes of an element of that type. */
export function bytesOfType(type: ComputeType): 1 | 2 | 4 {
  if (type === "f32") return 4;
  return type === "fp8" ? 1 : 2;
}

/** Dense peak of the device in FLOP/s. Throws `configuration` where the device does not compute in that type. */
export function peakFlops(device: DeviceConfig, type: ComputeType): number {
  const peak = device.peakFlops[type];
  if (peak !== undefined) return peak;
  throw new MoeError(
    "configuration",
    `device ${device.name} does not compute in ${type}; it has ${Object.keys(device.peakFlops).join(", ")}`,
  );
}

/** Bytes of a device that a plan may use: `reserve` of them, a share, is left free. Throws `configuration` for a share that leaves none. */
export function usableBytes(device: DeviceConfig, reserve: number): number {
  if (!(reserve >= 0 && reserve < 1))
    throw new MoeError("configuration", `memory reserve: expected a share of at least 0 and below 1, got ${reserve}`);
  return device.memoryBytes * (1 - reserve);
}

/** Seconds of [batch] x [rows, depth] * [depth, columns]. An empty product takes none. */
export function productSeconds(
  { device, efficiency }: DeviceTiming,
  { rows, columns, depth, batch = 1 }: ProductShape,
  type: ComputeType,
): number {
  if (rows * columns * depth * batch === 0) return 0;
  const perUnit = (peakFlops(device, type) * efficiency.gemm) / device.numUnits;
  const bandwidth = device.memoryBandwidth * efficiency.memory;
  const { productTile: own } = device;
  const tiles: readonly Tile[] = own === undefined ? cardTiles : [[own.rows, own.columns, 1]];
  let best = Infinity;
  for (const [tileRows, tileColumns, speed] of tiles) {
    const numTiles = Math.ceil(rows / tileRows) * Math.ceil(columns / tileColumns) * batch;
    for (const cuts of depthCuts) {
      if (cuts > 1 && (depth / cuts < leastDepth || numTiles >= device.numUnits)) break;
      const waves = Math.ceil((numTiles * cuts) / device.numUnits);
      const multiply = (waves * 2 * tileRows * tileColumns * (depth / cuts)) / (perUnit * speed);
      // Partial results in f32: each written once and read once.
      const partial = cuts === 1 ? 0 : (8 * rows * columns * batch * cuts) / bandwidth;
      best = Math.min(best, multiply + partial);
    }
  }
  const isHost = device.isHost === true;
  const bytes = bytesOfType(type) * batch * (rows * depth + depth * columns + (isHost ? 2 : 1) * rows * columns);
  const moving = bytes / bandwidth;
  return efficiency.kernelSeconds + (isHost ? best + moving : Math.max(best, moving));
}

/** Seconds of an operation that only moves `bytes` (reads and writes together). */
export function memorySeconds({ device, efficiency }: DeviceTiming, bytes: number): number {
  return bytes === 0 ? 0 : efficiency.kernelSeconds + bytes / (device.memoryBandwidth * efficiency.memory);
}

/**
 * The interval partitioner: how `total` things that lie in a row (heads, columns, experts, rows of the vocabulary) are cut over
 * ranks. Every rank gets an interval, possibly empty; intervals are in rank order and cover everything. No size ever has to divide.
 *
 * The cut minimizes the time of the slowest rank, max over r of share[r] / speed[r], exactly: units are given one by one to
 * the rank that would finish its next one first (ties: the lower rank). For equal speeds that is `divmod`: the first
 * total % ranks ranks get one more. Shares by largest remainder, the other usual rule, are as fair but can make the slowest rank slower.
 *
 * Not here: what a unit costs and what fits into memory (`src/config/tensor-parallel.ts`).
 */
import { MoeError } from "./errors.ts";

/** Elements start..end-1. */
export interface Interval {
  readonly start: number;
  readonly end: number;
}

export interface PartitionOptions {
  /** Cuts lie at multiples of this. The last unit is shorter where `total` is no multiple. Default 1. */
  readonly unit?: number;
  /** Elements that each rank can take at most (rounded down to units). Default: all. */
  readonly limits?: readonly number[];
}

export function intervalLength({ start, end }: Interval): number {
  return end - start;
}

/**
 * Cuts `total` elements over ranks of these speeds (any unit; a speed of 0 gets nothing). Throws `configuration` for sizes that
 * are no counts, speeds that are negative or all 0, and limits that leave some elements without a rank.
 *
 * ```ts
 * partition(36, equalSpeeds(8)).map(intervalLength); // [5, 5, 5, 5, 4, 4, 4, 4]
 * partition(9, [2, 1]).map(intervalLength); // [6, 3]
 * ```
 */
export function partition(total: number, speeds: readonly number[], { unit = 1, limits }: PartitionOptions = {}): Interval[] {
  checkArguments(total, speeds, unit);
  const numUnits = Math.ceil(total / unit);
  const most = speeds.map((speed, r) => (speed === 0 ? 0 : Math.min(numUnits, Math.floor((limits?.[r] ?? Infinity) / unit))));
  if (most.reduce((a, b) => a + b, 0) < numUnits) {
    throw new MoeError(
      "configuration",
      `partition: ${total} elements in units of ${unit} over ${speeds.length} ranks, of which these can take [${most.map((n) => n * unit).join(", ")}]`,
    );
  }
  let at = 0;
  return shareUnits(numUnits, speeds, most).map((share) => {
    const start = Math.min(total, at * unit);
    at += share;
    return { start, end: Math.min(total, at * unit) };
  });
}

/** Speeds of `ranks` equal ranks. */
export function equalSpeeds(ranks: number): number[] {
  return Array.from({ length: ranks }, () => 1);
}

/** How many of `total` each of `ranks` equal ranks gets: as equal numbers as can be, the first ones one more. */
export function equalCounts(total: number, ranks: number): number[] {
  return partition(total, equalSpeeds(ranks)).map(intervalLength);
}

function shareUnits(numUnits: number, speeds: readonly number[], most: readonly number[]): number[] {
  const sum = speeds.reduce((a, b) => a + b, 0);
  // Nobody gets less than the whole part of its fair share in the optimum, unless a limit says so.
  const shares = speeds.map((speed, r) => Math.min(most[r] ?? 0, Math.floor((numUnits * speed) / sum)));
  let left = numUnits - shares.reduce((a, b) => a + b, 0);
  // Rounding of the fair share can give one unit too many: it goes back from whoever is last.
  for (let r = shares.length - 1; left < 0; r--) {
    const back = Math.min(-left, shares[r] ?? 0);
    shares[r] = (shares[r] ?? 0) - back;
    left += back;
  }
  for (; left > 0; left--) {
    let best = -1;
    let bestTime = Infinity;
    for (const [r, share] of shares.entries()) {
      const time = (share + 1) / (speeds[r] ?? 0);
      if (share < (most[r] ?? 0) && time < bestTime) [best, bestTime] = [r, time];
    }
    shares[best] = (shares[best] ?? 0) + 1;
  }
  return shares;
}

function checkArguments(total: number, speeds: readonly number[], unit: number): void {
  if (!Number.isSafeInteger(total) || total < 0)
    throw new MoeError("configuration", `partition: expected a count of elements, got ${total}`);
  if (!Number.isSafeInteger(unit) || unit < 1) throw new MoeError("configuration", `partition: expected a unit of at least 1, got ${unit}`);
  if (speeds.length > 0 && speeds.every((speed) => Number.isFinite(speed) && speed >= 0) && speeds.some((speed) => speed > 0)) return;
  throw new MoeError(
    "configuration",
    `partition: expected the speed of each rank, finite, not negative and not all 0, got [${speeds.join(", ")}]`,
  );
}

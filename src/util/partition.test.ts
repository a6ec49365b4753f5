import fc from "fast-check";
import { expect, test } from "vitest";
import { equalSpeeds, intervalLength, partition } from "./partition.ts";

const speeds = fc.array(fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 9 })), { minLength: 1, maxLength: 12 });
const someSpeeds = speeds.filter((list) => list.some((speed) => speed > 0));

test("intervals cover everything, in rank order, without a gap or an overlap, and cuts lie at units", () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 500 }), someSpeeds, fc.integer({ min: 1, max: 40 }), (total, list, unit) => {
      const intervals = partition(total, list, { unit });
      expect(intervals.length).toBe(list.length);
      let at = 0;
      for (const { start, end } of intervals) {
        expect(start).toBe(at);
        expect(end).toBeGreaterThanOrEqual(start);
        expect(end % unit === 0 || end === total).toBe(true);
        at = end;
      }
      expect(at).toBe(total);
    }),
  );
});

test("equal ranks get divmod shares: the first total % ranks get one more", () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 70_000 }), fc.integer({ min: 1, max: 12 }), (total, ranks) => {
      const [quotient, remainder] = [Math.floor(total / ranks), total % ranks];
      const expected = Array.from({ length: ranks }, (_, r) => quotient + (r < remainder ? 1 : 0));
      expect(partition(total, equalSpeeds(ranks)).map(intervalLength)).toEqual(expected);
    }),
  );
  expect(partition(36, equalSpeeds(8)).map(intervalLength)).toEqual([5, 5, 5, 5, 4, 4, 4, 4]);
});

/** The smallest time of the slowest rank, by trying all shares. */
function bestTime(total: number, list: readonly number[], limits: readonly number[]): number {
  const [speed = 0, ...rest] = list;
  const [limit = 0, ...restLimits] = limits;
  const most = Math.min(total, limit, speed === 0 ? 0 : total);
  if (rest.length === 0) return most < total ? Infinity : total === 0 ? 0 : total / speed;
  let best = Infinity;
  for (let n = 0; n <= most; n++) best = Math.min(best, Math.max(n === 0 ? 0 : n / speed, bestTime(total - n, rest, restLimits)));
  return best;
}
test("no other shares make the slowest rank faster, under limits too", () => {
  const cases = fc.record({
    total: fc.integer({ min: 0, max: 14 }),
    list: fc.array(fc.integer({ min: 0, max: 5 }), { minLength: 1, maxLength: 4 }).filter((l) => l.some((s) => s > 0)),
    limits: fc.array(fc.integer({ min: 0, max: 14 }), { minLength: 4, maxLength: 4 }),
  });
  fc.assert(
    fc.property(cases, ({ total, list, limits }) => {
      const best = bestTime(total, list, limits);
      if (best === Infinity) {
        expect(() => partition(total, list, { limits })).toThrow(/can take/);
        return;
      }
      const shares = partition(total, list, { limits }).map(intervalLength);
      expect(Math.max(...shares.map((n, r) => (n === 0 ? 0 : n / (list[r] ?? 0))))).toBe(best);
      for (const [r, n] of shares.entries()) expect(n).toBeLessThanOrEqual(limits[r] ?? 0);
    }),
    { numRuns: 400 },
  );
});

test("arguments that make no sense are refused with their values", () => {
  expect(() => partition(-1, [1])).toThrow(/got -1/);
  expect(() => partition(3, [0, 0])).toThrow(/\[0, 0\]/);
  expect(() => partition(3, [])).toThrow(/speed of each rank/);
  expect(() => partition(3, [1, Number.NaN])).toThrow(/NaN/);
  expect(() => partition(3, [1], { unit: 0 })).toThrow(/got 0/);
});

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { bucketBounds, bucketSeries, Column, LoadTable, rounded } from "./columns.ts";

describe("a column", () => {
  test("summarizes any span as a plain loop over its numbers does, what is missing left out", () => {
    const value = fc.oneof(fc.double({ noNaN: true, min: -1e6, max: 1e6 }), fc.constant(Number.NaN));
    fc.assert(
      fc.property(
        fc.array(value, { minLength: 1, maxLength: 250 }),
        fc.nat(9000),
        fc.nat(60),
        fc.nat(300),
        (values, before, from, size) => {
          const column = new Column("f64");
          for (const [i, x] of values.entries()) column.set(before + i, x);
          const start = Math.max(0, before + from - 10);
          const numbers = values.filter((x, i) => !Number.isNaN(x) && before + i >= start && before + i < start + size);
          const { mean, min, max, count } = column.summary(start, start + size);
          expect(count).toBe(numbers.length);
          if (numbers.length === 0) {
            expect(mean).toBeNaN();
            return;
          }
          expect(mean).toBeCloseTo(numbers.reduce((a, b) => a + b, 0) / numbers.length, 6);
          expect([min, max]).toEqual([Math.min(...numbers), Math.max(...numbers)]);
        },
      ),
    );
  });
  test("takes what its type cannot hold for missing", () => {
    const column = new Column("f32");
    for (const [i, value] of [1e300, -1e300, Infinity, Number.NaN, 2].entries()) column.set(i, value);
    expect([0, 1, 2, 3, 4].map((row) => column.get(row))).toEqual([NaN, NaN, NaN, NaN, 2]);
    expect(column.get(1e6)).toBeNaN();
  });
});

test("buckets cover every row once, in order, and differ by one row at most", () => {
  fc.assert(
    fc.property(fc.nat(1000), fc.nat(5000), fc.integer({ min: 1, max: 700 }), (from, count, points) => {
      const bounds = bucketBounds(from, from + count, points);
      expect([bounds[0], bounds.at(-1)]).toEqual([from, from + count]);
      const sizes = bounds.slice(1).map((end, i) => end - (bounds[i] ?? 0));
      expect(sizes.length).toBe(Math.min(points, count));
      if (sizes.length > 0) expect(Math.max(...sizes) - Math.min(...sizes)).toBeLessThanOrEqual(1);
    }),
  );
});
test("a series has least and greatest only where buckets hold more than one row", () => {
  const column = new Column("f64");
  for (const [i, value] of [1, 5, Number.NaN, 3].entries()) column.set(i, value);
  expect(bucketSeries(column, [0, 1, 2, 3, 4])).toEqual({ mean: [1, 5, null, 3] });
  expect(bucketSeries(column, [0, 2, 4])).toEqual({ mean: [3, 3], min: [1, 3], max: [5, 3] });
});
test("numbers are sent with five digits, whole ones as they are", () => {
  expect([1 / 3, 123_456_789, Infinity, Number.NaN, 1e-9 / 3, -1e300].map(rounded)).toEqual([
    0.33333,
    123_456_789,
    null,
    null,
    3.3333e-10,
    null,
  ]);
});

describe("the table of loads", () => {
  test("means over any span of rows are those of a plain loop, of all columns and of some", () => {
    const table = new LoadTable(6);
    const at = (row: number, column: number): number => ((row * 31 + column * 17) % 97) / 97;
    for (let row = 0; row < 1300; row++)
      table.push((into) => {
        for (let column = 0; column < 6; column++) into[column] = at(row, column);
      });
    for (const [from, to] of [
      [0, 1],
      [5, 1299],
      [0, 1300],
      [255, 257],
      [256, 512],
      [700, 700],
    ] as const) {
      const expected = Array.from({ length: 6 }, (_, column) => {
        let sum = 0;
        for (let row = from; row < to; row++) sum += Math.fround(at(row, column));
        return sum / Math.max(1, to - from);
      });
      for (const [column, mean] of table.means(from, to).entries()) expect(mean).toBeCloseTo(expected[column] ?? -1, 9);
      for (const [i, mean] of table.meansOf(2, 3, from, to).entries()) expect(mean).toBeCloseTo(expected[2 + i] ?? -1, 9);
    }
    expect(table.get(1299, 5)).toBe(Math.fround(at(1299, 5)));
  });
});

test("rounding by arithmetic gives what rounding by text gives, but for the last digit of a tie", () => {
  fc.assert(
    fc.property(fc.double({ noNaN: true, min: -1e9, max: 1e9 }), (value) => {
      const [given, text] = [rounded(value) ?? Number.NaN, Number(value.toPrecision(5))];
      if (Number.isInteger(value)) expect(given).toBe(value);
      else expect(Math.abs(given - text)).toBeLessThanOrEqual(1.0001e-4 * Math.abs(value));
      expect(
        String(Math.abs(given))
          .replace(/e.*|\./g, "")
          .replace(/^0+/, "").length,
      ).toBeLessThanOrEqual(Number.isInteger(given) ? 17 : 5);
    }),
  );
});

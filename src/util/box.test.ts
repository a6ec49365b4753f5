import fc from "fast-check";
import { expect, test } from "vitest";
import { boxRuns, boxSize, coverAll, wholeBox, type Box } from "./box.ts";
import { equalSpeeds, partition, type Interval } from "./partition.ts";

const arrays = fc
  .array(fc.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 4 })
  .chain((shape) =>
    fc.tuple(
      fc.constant(shape),
      fc.tuple(...shape.map((size) => fc.tuple(fc.integer({ min: 0, max: size }), fc.integer({ min: 0, max: size })))),
    ),
  )
  .map(([shape, ends]) => ({ shape, box: ends.map(([a, b]) => ({ start: Math.min(a, b), end: Math.max(a, b) })) }));

/** Places of a box's elements in the whole, one by one. */
function places(shape: readonly number[], box: Box): number[] {
  let list = [0];
  for (const [dim, { start, end }] of box.entries()) {
    const size = shape[dim] ?? 1;
    list = list.flatMap((at) => Array.from({ length: end - start }, (_, i) => at * size + start + i));
  }
  return list;
}

test("runs give every element of a box once, in its order, also of any interval of them", () => {
  fc.assert(
    fc.property(arrays, fc.nat(), fc.nat(), ({ shape, box }, a, b) => {
      const expected = places(shape, box);
      const size = boxSize(box);
      expect(size).toBe(expected.length);
      const [start, end] = [a % (size + 1), b % (size + 1)].toSorted((x, y) => x - y);
      const elements: Interval = { start: start ?? 0, end: end ?? 0 };
      const got: number[] = [];
      for (const { whole, part, length } of boxRuns(shape, box, elements)) {
        expect(part).toBe(got.length);
        expect(length).toBeGreaterThan(0);
        for (let i = 0; i < length; i++) got.push(whole + i);
      }
      expect(got).toEqual(expected.slice(elements.start, elements.end));
    }),
    { numRuns: 500 },
  );
});

test("rows that are whole are one run", () => {
  expect([...boxRuns([4, 3, 2], wholeBox([4, 3, 2]))]).toEqual([{ whole: 0, part: 0, length: 24 }]);
  expect([...boxRuns([4, 3, 2], [{ start: 1, end: 3 }, ...wholeBox([3, 2])])]).toEqual([{ whole: 6, part: 0, length: 12 }]);
  expect([...boxRuns([], [])]).toEqual([{ whole: 0, part: 0, length: 1 }]);
});

test("boxes of a partition of every dimension cover an array, and no longer when one is missing", () => {
  fc.assert(
    fc.property(arrays, fc.integer({ min: 1, max: 3 }), fc.nat(), ({ shape }, ranks, without) => {
      let boxes: Box[] = [[]];
      for (const size of shape)
        boxes = boxes.flatMap((box) => partition(size, equalSpeeds(Math.min(ranks, size))).map((interval) => [...box, interval]));
      expect(coverAll(shape, boxes)).toBe(true);
      expect(coverAll(shape, boxes.toSpliced(without % boxes.length, 1))).toBe(false);
      // A box of everything makes up for it, and overlaps do no harm.
      expect(coverAll(shape, [...boxes.slice(1), wholeBox(shape)])).toBe(true);
    }),
  );
});

/**
 * Boxes: a part of a row-major array that has an interval of each dimension, as a rank has of a parameter. A box is an array of its own, with the
 * elements of the whole in their order; these are the runs in which the two lie alike.
 */
import { intervalLength, type Interval } from "./partition.ts";

/** An interval of each dimension. */
export type Box = readonly Interval[];

/** `length` consecutive elements: from `whole` on in the whole array, from `part` on in the part. */
export interface BoxRun {
  readonly whole: number;
  readonly part: number;
  readonly length: number;
}

/** The box of all elements. */
export function wholeBox(shape: readonly number[]): Box {
  return shape.map((size) => ({ start: 0, end: size }));
}
export function boxSize(box: Box): number {
  return box.reduce((size, interval) => size * intervalLength(interval), 1);
}

/**
 * The runs of elements start..end-1 of a box (in its own order; default: all), ascending; `part` counts from `start`. As long as they can
 * be: rows that are whole join.
 */
export function* boxRuns(shape: readonly number[], box: Box, elements: Interval = { start: 0, end: boxSize(box) }): Generator<BoxRun> {
  // The last dimension that is cut: what lies within it, and below, is one run.
  const cut = box.findLastIndex(({ start, end }, dim) => start !== 0 || end !== shape[dim]);
  const inner = shape.slice(cut + 1).reduce((a, b) => a * b, 1);
  const cutInterval = box[cut] ?? { start: 0, end: 1 };
  const runLength = intervalLength(cutInterval) * inner;
  if (runLength === 0) return;
  for (let at = elements.start; at < elements.end;) {
    const within = at % runLength;
    let rest = Math.floor(at / runLength);
    let [whole, stride] = [cutInterval.start * inner, (shape[cut] ?? 1) * inner];
    for (let dim = cut - 1; dim >= 0; dim--) {
      const { start, end } = box[dim] ?? { start: 0, end: 1 };
      whole += (start + (rest % (end - start))) * stride;
      rest = Math.floor(rest / (end - start));
      stride *= shape[dim] ?? 1;
    }
    const length = Math.min(runLength - within, elements.end - at);
    yield { whole: whole + within, part: at - elements.start, length };
    at += length;
  }
}

/** Whether boxes, together, have every element of an array of this shape. */
export function coverAll(shape: readonly number[], boxes: readonly Box[]): boolean {
  // Between two neighbouring cuts of a dimension, all is alike: one element of each cell says enough.
  const corners = shape.map((size, dim) => {
    const starts = boxes.flatMap((box) => [box[dim]?.start ?? 0, box[dim]?.end ?? 0]);
    return [...new Set([0, ...starts])].filter((at) => at < size).toSorted((a, b) => a - b);
  });
  let cells: number[][] = [[]];
  for (const starts of corners) cells = cells.flatMap((cell) => starts.map((at) => [...cell, at]));
  return cells.every((cell) => boxes.some((box) => cell.every((at, dim) => at >= (box[dim]?.start ?? 0) && at < (box[dim]?.end ?? 0))));
}

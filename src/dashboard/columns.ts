/**
 * Numbers by the million, in columns that grow: one a metric, in pieces of a fixed size so that growing copies nothing. A missing number is
 * NaN, and a piece without any number takes no memory. What a page asks for is a few hundred buckets of consecutive rows, each with mean,
 * least and greatest; of every 64 rows these are kept beside the numbers, so that a bucket reads a few of them and its two ends.
 */
import type { MaybeNumber, Series } from "./api.ts";

const pieceBits = 12;
const pieceRows = 1 << pieceBits;
const pieceMask = pieceRows - 1;
const blockBits = 6;
const blockRows = 1 << blockBits;
const blocksOfPiece = pieceRows / blockRows;

/** 4096 rows, and of each 64 of them the sum, the least, the greatest and the number. */
class Piece {
  readonly values: Float32Array | Float64Array;
  readonly sums = new Float64Array(blocksOfPiece);
  readonly mins = new Float64Array(blocksOfPiece).fill(Infinity);
  readonly maxs = new Float64Array(blocksOfPiece).fill(-Infinity);
  readonly counts = new Uint8Array(blocksOfPiece);

  constructor(kind: "f32" | "f64") {
    this.values = (kind === "f32" ? new Float32Array(pieceRows) : new Float64Array(pieceRows)).fill(Number.NaN);
  }
}

/** A column of f32 or f64. Rows are added at the end by index, each once; what is left out is NaN. */
export class Column {
  readonly #kind: "f32" | "f64";
  readonly #pieces: (Piece | undefined)[] = [];

  constructor(kind: "f32" | "f64") {
    this.#kind = kind;
  }
  /** The first value of a row stays. */
  set(row: number, value: number): void {
    // Values beyond the type's range would read as Infinity, which JSON does not have.
    const stored = this.#kind === "f32" ? Math.fround(value) : value;
    if (!Number.isFinite(stored)) return;
    const piece = (this.#pieces[row >> pieceBits] ??= new Piece(this.#kind));
    const at = row & pieceMask;
    if (!Number.isNaN(piece.values[at])) return;
    piece.values[at] = stored;
    const block = at >> blockBits;
    piece.sums[block] = (piece.sums[block] ?? 0) + stored;
    piece.mins[block] = Math.min(piece.mins[block] ?? Infinity, stored);
    piece.maxs[block] = Math.max(piece.maxs[block] ?? -Infinity, stored);
    piece.counts[block] = (piece.counts[block] ?? 0) + 1;
  }
  get(row: number): number {
    return this.#pieces[row >> pieceBits]?.values[row & pieceMask] ?? Number.NaN;
  }
  /** Mean, least, greatest and number of the numbers in rows `from` to `to` (excluded). */
  summary(from: number, to: number): { mean: number; min: number; max: number; count: number } {
    let [sum, min, max, count] = [0, Infinity, -Infinity, 0];
    for (let row = from; row < to;) {
      const piece = this.#pieces[row >> pieceBits];
      const at = row & pieceMask;
      if (piece === undefined) row = Math.min(to, row - at + pieceRows);
      else if ((at & (blockRows - 1)) === 0 && row + blockRows <= to) {
        const block = at >> blockBits;
        sum += piece.sums[block] ?? 0;
        min = Math.min(min, piece.mins[block] ?? Infinity);
        max = Math.max(max, piece.maxs[block] ?? -Infinity);
        count += piece.counts[block] ?? 0;
        row += blockRows;
      } else {
        const value = piece.values[at] ?? Number.NaN;
        if (!Number.isNaN(value)) {
          sum += value;
          min = Math.min(min, value);
          max = Math.max(max, value);
          count++;
        }
        row++;
      }
    }
    return { mean: sum / count, min, max, count };
  }
}

/** Bounds of at most `points` buckets of nearly equal numbers of rows in `from` to `to` (excluded): `points + 1` rows, ascending. */
export function bucketBounds(from: number, to: number, points: number): number[] {
  const count = Math.max(0, Math.min(points, to - from));
  return Array.from({ length: count + 1 }, (_, i) => from + Math.round((i * (to - from)) / Math.max(1, count)));
}

/**
 * Five significant digits: more than a pixel tells, and half the bytes. Null for NaN, infinities, and numbers so large that they are no
 * measurement and a chart's arithmetic would overflow.
 */
export function rounded(value: number): MaybeNumber {
  const size = Math.abs(value);
  if (!(size < 1e100)) return null;
  if (Number.isInteger(value)) return value;
  const exponent = Math.floor(Math.log10(size));
  // Powers of ten up to 10^22 are exact, so the quotient is the number nearest to the decimal: it prints with five digits. Texts
  // (toPrecision) would take most of the time of an answer.
  const scale = powers[4 - exponent];
  return scale === undefined ? Number(value.toPrecision(5)) : Math.round(value * scale) / scale;
}
const powers = Array.from({ length: 23 }, (_, exponent) => Number(`1e${exponent}`));

/** Buckets of a column. */
export function bucketSeries(column: Column, bounds: readonly number[]): Series {
  const single = (bounds.at(-1) ?? 0) - (bounds[0] ?? 0) === bounds.length - 1;
  const mean: MaybeNumber[] = [];
  const min: MaybeNumber[] = [];
  const max: MaybeNumber[] = [];
  for (let i = 0; i + 1 < bounds.length; i++) {
    const summary = column.summary(bounds[i] ?? 0, bounds[i + 1] ?? 0);
    mean.push(rounded(summary.mean));
    if (single) continue;
    min.push(rounded(summary.min));
    max.push(rounded(summary.max));
  }
  return single ? { mean } : { mean, min, max };
}

/**
 * Loads of all experts of all layers, a row a step record: rows in pieces, and the sum of each full piece, so that a mean over any span of
 * steps reads at most two pieces and the sums between.
 */
export class LoadTable {
  /** Experts of all layers, one behind the other. */
  readonly width: number;
  readonly #pieces: Float32Array[] = [];
  readonly #sums: Float64Array[] = [];
  #numRows = 0;
  static readonly #rows = 256;

  constructor(width: number) {
    this.width = width;
  }
  get numRows(): number {
    return this.#numRows;
  }
  /** Adds a row: `fill` writes `width` finite numbers. */
  push(fill: (into: Float32Array) => void): void {
    const at = this.#numRows % LoadTable.#rows;
    if (at === 0) {
      this.#pieces.push(new Float32Array(LoadTable.#rows * this.width));
      this.#sums.push(new Float64Array(this.width));
    }
    const values = (this.#pieces.at(-1) ?? new Float32Array(0)).subarray(at * this.width, (at + 1) * this.width);
    fill(values);
    const sums = this.#sums.at(-1) ?? new Float64Array(0);
    for (let i = 0; i < this.width; i++) sums[i] = (sums[i] ?? 0) + (values[i] ?? 0);
    this.#numRows++;
  }
  get(row: number, column: number): number {
    return this.#pieces[Math.floor(row / LoadTable.#rows)]?.[(row % LoadTable.#rows) * this.width + column] ?? Number.NaN;
  }
  /** Mean of every column over rows `from` to `to` (excluded). */
  means(from: number, to: number): Float64Array {
    const sums = new Float64Array(this.width);
    const size = LoadTable.#rows;
    for (let row = from; row < to;) {
      const index = Math.floor(row / size);
      const whole = row % size === 0 && row + size <= to;
      const source = whole
        ? this.#sums[index]
        : this.#pieces[index]?.subarray((row % size) * this.width, (row % size) * this.width + this.width);
      if (source !== undefined) for (let i = 0; i < this.width; i++) sums[i] = (sums[i] ?? 0) + (source[i] ?? 0);
      row += whole ? size : 1;
    }
    return sums.map((sum) => sum / Math.max(1, to - from));
  }
  /** Mean of `count` columns from `column` on, over rows `from` to `to` (excluded). */
  meansOf(column: number, count: number, from: number, to: number): Float64Array {
    const sums = new Float64Array(count);
    for (let row = from; row < to; row++) {
      const piece = this.#pieces[Math.floor(row / LoadTable.#rows)];
      if (piece === undefined) continue;
      const at = (row % LoadTable.#rows) * this.width + column;
      for (let i = 0; i < count; i++) sums[i] = (sums[i] ?? 0) + (piece[at + i] ?? Number.NaN);
    }
    return sums.map((sum) => sum / Math.max(1, to - from));
  }
}

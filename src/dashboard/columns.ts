/**
 * Numbers by the million, in columns that grow: one a metric, in pieces of a fixed size so that growing copies nothing. A missing number is
 * NaN, and a piece without any number takes no memory. What a page asks for is a few hundred buckets of consecutive rows, each with mean,
 * least and greatest; a scan of 100,000 rows takes a fraction of a millisecond, so nothing is kept beside the numbers.
 */
import type { MaybeNumber, Series } from "./api.ts";

const pieceBits = 12;
const pieceRows = 1 << pieceBits;
const pieceMask = pieceRows - 1;

type Piece = Float32Array | Float64Array;

/** A column of f32 or f64. Rows are added at the end by index; what is left out is NaN. */
export class Column {
  readonly #pieces: (Piece | undefined)[] = [];
  readonly #make: (length: number) => Piece;

  constructor(kind: "f32" | "f64") {
    this.#make =
      kind === "f32" ? (length) => new Float32Array(length).fill(Number.NaN) : (length) => new Float64Array(length).fill(Number.NaN);
  }
  set(row: number, value: number): void {
    const index = row >> pieceBits;
    const piece = (this.#pieces[index] ??= this.#make(pieceRows));
    // Values beyond the type's range would read as Infinity, which JSON does not have.
    const stored = piece instanceof Float32Array ? Math.fround(value) : value;
    piece[row & pieceMask] = Number.isFinite(stored) ? stored : Number.NaN;
  }
  get(row: number): number {
    return this.#pieces[row >> pieceBits]?.[row & pieceMask] ?? Number.NaN;
  }
  /** Mean, least, greatest and number of the numbers in rows `from` to `to` (excluded). */
  summary(from: number, to: number): { mean: number; min: number; max: number; count: number } {
    let [sum, min, max, count] = [0, Infinity, -Infinity, 0];
    for (let row = from; row < to;) {
      const piece = this.#pieces[row >> pieceBits];
      const end = Math.min(to, ((row >> pieceBits) + 1) << pieceBits);
      if (piece !== undefined)
        for (let i = row & pieceMask; i < (row & pieceMask) + end - row; i++) {
          const value = piece[i] ?? Number.NaN;
          // NaN is the only value that differs from itself; the comparison is several times faster than Number.isNaN here.
          if (!Number.isNaN(value)) {
            sum += value;
            count++;
            if (value < min) min = value;
            if (value > max) max = value;
          }
        }
      row = end;
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
  if (!(Math.abs(value) < 1e100)) return null;
  return Number.isInteger(value) ? value : Number(value.toPrecision(5));
}

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

/**
 * Rows of keys and values into the buffers of a cache and, where these are FP8, out again.
 *
 * An FP8 cache holds E4M3 codes without scales: what a row held of them is independent of every other row, so nothing depends on how a
 * sequence was cut into calls; keys and values are of the order of 1 and E4M3 covers 2^-9 to 448 (beyond, it saturates). Attention reads f32
 * or bf16, so the rows that a batch sees are widened, exactly, for one layer at a time.
 */
import { dtypeBytes, dtypeCodes, fp8Formats } from "../backend/kernels.ts";
import type { Engine, Tensor } from "../tensor/index.ts";

/** Rows `fromRow`.. of one tensor that go to rows `toRow`.. of another. */
export interface RowRun {
  readonly fromRow: number;
  readonly toRow: number;
  readonly numRows: number;
}

/** Copies runs of rows of `rows` [T, C] into `buffer` [S, C], converted to its type. */
export function storeRows(buffer: Tensor, rows: Tensor, runs: readonly RowRun[]): void {
  const { kernels } = buffer.engine.backend;
  const width = buffer.dim(1);
  const [toBytes, fromBytes] = [width * dtypeBytes[buffer.dtype], width * dtypeBytes[rows.dtype]];
  for (const { fromRow, toRow, numRows } of runs) {
    const out = buffer.ptr + toRow * toBytes;
    const from = rows.ptr + fromRow * fromBytes;
    if (buffer.dtype === rows.dtype) kernels.copyRows(out, from, numRows, toBytes, toBytes, fromBytes);
    else if (buffer.dtype === "fp8") kernels.castToFp8(out, from, numRows * width, 1, dtypeCodes[rows.dtype], fp8Formats.e4m3);
    else kernels.cast(out, from, numRows * width, dtypeCodes[buffer.dtype], dtypeCodes[rows.dtype]);
  }
}

/** [numRows, C] in `dtype`: runs of rows of an FP8 buffer, widened; other rows are undefined. Belongs to the current scope. */
export function widenRows(engine: Engine, buffer: Tensor, numRows: number, runs: readonly RowRun[], dtype: Tensor["dtype"]): Tensor {
  const width = buffer.dim(1);
  const wide = engine.empty([numRows, width], dtype);
  const { kernels } = engine.backend;
  for (const { fromRow, toRow, numRows: count } of runs) {
    const out = wide.ptr + toRow * width * dtypeBytes[dtype];
    kernels.castFromFp8(out, buffer.ptr + fromRow * width, count * width, 1, dtypeCodes[dtype], fp8Formats.e4m3);
  }
  return wide;
}

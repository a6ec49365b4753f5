/**
 * What the ops check of their operands, and how they say it: the operation, the operand, what was expected, what was got.
 */
import { dtypeCodes, type DType, type DTypeCode } from "../../backend/kernels.ts";
import { MoeError } from "../../util/errors.ts";
import type { Tensor } from "../tensor.ts";

/** Says "operation: operand must be expected, got [2, 3] bf16". */
export function shapeError(operation: string, operand: string, expected: string, got: Tensor | string): MoeError {
  return new MoeError("shape", `${operation}: ${operand} must be ${expected}, got ${typeof got === "string" ? got : describe(got)}`);
}

export function describe(x: Tensor): string {
  return `[${x.shape.join(", ")}] ${x.dtype}`;
}

/** `x` must have this shape (null: any size in that place) and one of these dtypes. */
export function expectTensor(
  operation: string,
  operand: string,
  x: Tensor,
  shape: readonly (number | null)[],
  dtypes: readonly DType[],
): void {
  const fits = x.shape.length === shape.length && shape.every((size, i) => size === null || size === x.shape[i]);
  if (fits && dtypes.includes(x.dtype)) return;
  throw shapeError(operation, operand, `[${shape.map((size) => size ?? "*").join(", ")}] ${dtypes.join(" or ")}`, x);
}

/** What activations and matrices may be. */
export const computeDtypes = ["f32", "bf16"] as const satisfies readonly DType[];

/** What the weights of linear layers may be. */
export const weightDtypes = ["f32", "bf16", "fp8"] as const satisfies readonly DType[];

/** The element type of an operand that takes part in arithmetic. */
export function computeCode(operation: string, operand: string, x: Tensor): DTypeCode {
  if (x.dtype !== "f32" && x.dtype !== "bf16") throw shapeError(operation, operand, "f32 or bf16", x);
  return dtypeCodes[x.dtype];
}

/** `b` must have the shape and dtype of `a`. */
export function expectLike(operation: string, operand: string, b: Tensor, a: Tensor): void {
  expectTensor(operation, operand, b, a.shape, [a.dtype]);
}

/** Balance groups: ascending row numbers from 0 to `numRows`. */
export function expectGroupOffsets(operation: string, groupOffsets: readonly number[], numRows: number): void {
  const ascending = groupOffsets.every((start, g) => Number.isSafeInteger(start) && start <= (groupOffsets[g + 1] ?? numRows));
  if (ascending && groupOffsets.length > 1 && groupOffsets[0] === 0 && groupOffsets.at(-1) === numRows) return;
  throw shapeError(operation, "groupOffsets", `ascending from 0 to ${numRows}`, `[${groupOffsets.join(", ")}]`);
}

/**
 * A parity case: one call of one kernel as data, so that it can be run on any backend, with bf16 widened to f32, or with
 * every value made positive, without being written again.
 */
import type { KernelName } from "../../../src/backend/kernels.ts";

export type ElementType = "f32" | "bf16" | "f16" | "fp8" | "i32" | "f64" | "bytes";

/**
 * How near an output must be to the reference's.
 * - `exact`: the same values (NaN equals NaN); only the first `count` elements where the contract leaves the rest open
 * - `sum`: a sum of `terms` products of inputs in f32: |error| <= (terms + 4) u * (the same kernel on absolute values), u = 2^-24
 * - `within`: |error| <= relative |expected| + absolute (one number, or one an element)
 * For the last two, half a unit in the last place of the output's own type is added.
 */
export type Check =
  | { readonly kind: "exact"; readonly count?: number }
  | { readonly kind: "sum"; readonly terms: number }
  | { readonly kind: "within"; readonly relative: number; readonly absolute: number | Float64Array };

export interface Operand {
  readonly type: ElementType;
  readonly count: number;
  /** Initial values; null for an output, whose memory starts as NaN. */
  readonly values: Float64Array | null;
  /** Null for an input, which must come back unchanged. */
  readonly check: Check | null;
  /** Elements by which the operand starts past a 64-byte boundary. */
  readonly shift: number;
}

/** A pointer, a size or flag, or the dtype code of an operand (follows the operand when bf16 is widened). */
export type Argument = number | Operand | { readonly dtypeOf: Operand };

export interface Case {
  readonly kernel: KernelName;
  readonly title: string;
  readonly args: readonly Argument[];
}

export const elementWidth: Readonly<Record<ElementType, number>> = { f32: 4, bf16: 2, f16: 2, fp8: 1, i32: 4, f64: 8, bytes: 1 };

/** Unit roundoff of f32. */
export const u = 2 ** -24;

/** Where operands start: natural alignment only, so the shifts run through a vector. A function of the count alone keeps cases reproducible. */
function shiftOf(count: number): number {
  return (count * 7 + 3) % 17;
}

export function input(type: ElementType, values: ArrayLike<number>): Operand {
  return { type, count: values.length, values: Float64Array.from(values), check: null, shift: shiftOf(values.length) };
}

export function output(type: ElementType, count: number, check: Check): Operand {
  return { type, count, values: null, check, shift: shiftOf(count + 1) };
}

/** An operand read and written: accumulated into, or transformed in place. */
export function inOut(type: ElementType, values: ArrayLike<number>, check: Check): Operand {
  return { type, count: values.length, values: Float64Array.from(values), check, shift: shiftOf(values.length + 2) };
}

/** The output of a kernel with an `accumulate` flag: fresh when 0, holding `before` when 1. */
export function accumulated(type: ElementType, before: Float64Array, check: Check, accumulate: number): Operand {
  return accumulate === 0 ? output(type, before.length, check) : inOut(type, before, check);
}

export function isOperand(argument: Argument): argument is Operand {
  return typeof argument === "object" && "type" in argument;
}

/** The operands of a case, each once. */
export function operandsOf({ args }: Case): Operand[] {
  return [...new Set(args.filter(isOperand))];
}

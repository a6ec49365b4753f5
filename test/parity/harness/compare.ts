/**
 * Judges a backend's result of a case against the reference's, by the tolerances that the case names.
 *
 * What is rounded to bf16 is compared with the value before rounding (the reference run with bf16 widened to f32), within half a bf16 unit
 * in the last place: a kernel that truncates, or rounds twice, fails, although it is never a whole unit off.
 */
import type { Backend } from "../../../src/backend/backend.ts";
import type { Case, Check, ElementType, Operand } from "./operands.ts";
import { operandsOf, u } from "./operands.ts";
import type { Result } from "./run.ts";
import { runCase } from "./run.ts";

/** What the reference says of a case. Computed once, compared with every engine. */
export interface Expectation {
  readonly plain: Map<Operand, Result>;
  readonly wide: Map<Operand, Result>;
  readonly magnitude: Map<Operand, Result> | null;
}

export function expectation(reference: Backend, test: Case): Expectation {
  const operands = operandsOf(test);
  const plain = runCase(reference, test);
  const wide = operands.some(({ type }) => type === "bf16") ? runCase(reference, test, { wide: true }) : plain;
  const summed = operands.some(({ check }) => check?.kind === "sum");
  return { plain, wide, magnitude: summed ? runCase(reference, test, { wide: true, magnitude: true }) : null };
}

/** Half the distance between neighbours of `type` at `value`. */
export function halfUlp(type: ElementType, value: number): number {
  const fraction = { f32: 23, bf16: 7, f16: 10, fp8: 3, f64: 52, i32: 0, bytes: 0 }[type];
  const exponent = value === 0 ? -126 : Math.max(-126, Math.floor(Math.log2(value)));
  return 2 ** (exponent - fraction - 1);
}

function allowedError(check: Exclude<Check, { kind: "exact" }>, expected: number, magnitude: number, i: number): number {
  if (check.kind === "sum") return (check.terms + 4) * u * magnitude;
  const absolute = typeof check.absolute === "number" ? check.absolute : (check.absolute[i] ?? 0);
  return check.relative * Math.abs(expected) + absolute;
}

/** A sentence on the first difference that is not allowed, or null. */
export function difference(test: Case, got: Map<Operand, Result>, expected: Expectation): string | null {
  for (const [index, operand] of test.args.entries()) {
    if (typeof operand === "number" || !("type" in operand) || operand.check === null) continue;
    const values = got.get(operand)?.values ?? new Float64Array();
    const problem = differenceOfOperand(operand, operand.check, values, expected);
    if (problem !== null) return `${test.kernel} ${test.title}: argument ${index} (${operand.type}), ${problem}`;
  }
  return null;
}

function differenceOfOperand(operand: Operand, check: Check, values: Float64Array, { plain, wide, magnitude }: Expectation): string | null {
  const expected = (check.kind === "exact" ? plain : wide).get(operand)?.values ?? new Float64Array();
  const magnitudes = magnitude?.get(operand)?.values;
  const count = check.kind === "exact" ? (check.count ?? operand.count) : operand.count;
  for (let i = 0; i < count; i++) {
    const want = expected[i] ?? Number.NaN;
    const have = values[i] ?? Number.NaN;
    if (Object.is(want, have)) continue;
    if (check.kind === "exact") return `element ${i} of ${operand.count}: expected exactly ${want}, got ${have}`;
    const error = allowedError(check, want, Math.abs(magnitudes?.[i] ?? 0), i);
    const allowed = error + halfUlp(operand.type, Math.abs(want) + error) + u * Math.abs(want);
    if (!(Math.abs(have - want) <= allowed) || !Number.isFinite(want)) {
      return `element ${i} of ${operand.count}: expected ${want} within ${allowed}, got ${have} (${Math.abs(have - want)} off)`;
    }
  }
  return null;
}

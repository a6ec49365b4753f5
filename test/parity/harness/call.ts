/** One kernel call of a test that compares results with each other, not with the reference. */
import type { Backend } from "../../../src/backend/backend.ts";
import type { KernelName } from "../../../src/backend/kernels.ts";
import { output, type Argument, type Operand } from "./operands.ts";
import { runCase } from "./run.ts";

/** An output of `count` elements. */
export const fresh = (type: Operand["type"], count: number): Operand => output(type, count, { kind: "exact" });

/** Runs a kernel; its outputs as bytes, in argument order. */
export function call(backend: Backend, kernel: KernelName, args: readonly Argument[]): Uint8Array[] {
  return [...runCase(backend, { kernel, title: "row", args }).values()].map(({ bytes }) => bytes);
}

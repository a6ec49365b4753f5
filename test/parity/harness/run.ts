/**
 * Runs a parity case on a backend and reads its outputs back, with guard zones around every operand.
 *
 * Guards are 0xff, which is NaN in every float type: a write into them is found by looking, and a value read from them spoils
 * a result. Inputs must come back as they went in. On the reference backend, and under a sanitizer (MOE_PARITY_GUARDS=none), allocations end
 * exactly with the operand instead, so that an access behind it is caught at the access.
 */
import type { Backend } from "../../../src/backend/backend.ts";
import type { DTypeCode } from "../../../src/backend/kernels.ts";
import { dtypeCodes, kernelSignatures } from "../../../src/backend/kernels.ts";
import { createReferenceBackend } from "../../../src/backend/reference/index.ts";
import { decodeBf16, encodeBf16 } from "../../../src/backend/reference/convert.ts";
import { decodeFp8, encodeFp8 } from "../../../src/util/fp8.ts";
import type { Argument, Case, ElementType, Operand } from "./operands.ts";
import { elementWidth, isOperand, operandsOf } from "./operands.ts";

export interface RunOptions {
  /** bf16 operands become f32 holding the same values: shows an output before it is rounded to bf16. */
  readonly wide?: boolean;
  /** All values and scalars become positive: gives the sum of |a||b| behind a sum of a b. */
  readonly magnitude?: boolean;
}

export interface Result {
  readonly bytes: Uint8Array;
  /** Decoded at each access. */
  readonly values: Float64Array;
}

interface Block {
  readonly base: number;
  readonly start: number;
  readonly type: ElementType;
  readonly image: Uint8Array<ArrayBuffer>;
}

const guardBytes = 192;

function encode(values: Float64Array, type: ElementType): Uint8Array<ArrayBuffer> {
  const typed = {
    f32: () => new Float32Array(values),
    bf16: () => encodeBf16(values),
    f16: () => new Float16Array(values),
    fp8: () => Uint8Array.from(values, (value) => encodeFp8("e4m3", value)),
    i32: () => new Int32Array(values),
    f64: () => values.slice(),
    bytes: () => new Uint8Array(values),
  }[type]();
  return new Uint8Array(typed.buffer as ArrayBuffer);
}

function decode(bytes: Uint8Array, type: ElementType): Float64Array {
  const { buffer } = bytes.slice();
  return {
    f32: () => new Float64Array(new Float32Array(buffer)),
    bf16: () => decodeBf16(new Uint16Array(buffer)),
    f16: () => new Float64Array(new Float16Array(buffer)),
    fp8: () => Float64Array.from(new Uint8Array(buffer), (code) => decodeFp8("e4m3", code)),
    i32: () => new Float64Array(new Int32Array(buffer)),
    f64: () => new Float64Array(buffer),
    bytes: () => new Float64Array(new Uint8Array(buffer)),
  }[type]();
}

function place(backend: Backend, operand: Operand, { wide = false, magnitude = false }: RunOptions): Block {
  const type = wide && operand.type === "bf16" ? "f32" : operand.type;
  const width = elementWidth[type];
  const guard = backend.name === "reference" || process.env["MOE_PARITY_GUARDS"] === "none" ? 0 : guardBytes;
  const start = guard + operand.shift * width;
  const image = new Uint8Array(start + operand.count * width + guard).fill(0xff);
  if (operand.values !== null) {
    const positive = magnitude && type !== "i32" && type !== "bytes";
    image.set(encode(positive ? operand.values.map(Math.abs) : operand.values, type), start);
  }
  const base = backend.alloc(image.length);
  backend.write(base, image);
  return { base, start, type, image };
}

/** Reads a block back; throws where its guards (or, of an input, anything) changed. */
function collect(backend: Backend, operand: Operand, { base, start, type, image }: Block, title: string): Result {
  const after = new Uint8Array(image.length);
  backend.read(after, base);
  const end = start + operand.count * elementWidth[type];
  const keep = (from: number, to: number, where: string): void => {
    if (Buffer.compare(after.subarray(from, to), image.subarray(from, to)) === 0) return;
    const at = after.findIndex((byte, i) => i >= from && byte !== image[i]);
    throw new Error(`${title}: wrote ${where}, at byte ${at - start} of ${end - start} (${operand.count} x ${type})`);
  };
  keep(0, start, "outside its operands");
  keep(end, image.length, "outside its operands");
  if (operand.check === null) keep(start, end, "into an input");
  const bytes = after.subarray(start, end);
  return {
    bytes,
    get values() {
      return decode(bytes, type);
    },
  };
}

/** Runs `test` on `backend`; the results of its outputs, by operand. */
export function runCase(backend: Backend, test: Case, options: RunOptions = {}): Map<Operand, Result> {
  const blocks = new Map(operandsOf(test).map((operand) => [operand, place(backend, operand, options)]));
  const block = (operand: Operand): Block => {
    const found = blocks.get(operand);
    if (found === undefined) throw new Error(`${test.title}: a dtype is taken from an operand that is not an argument`);
    return found;
  };
  const signature = kernelSignatures[test.kernel];
  const argument = (value: Argument, i: number): number => {
    if (typeof value === "number") return options.magnitude === true && signature.charAt(i) === "f" ? Math.abs(value) : value;
    if (isOperand(value)) return block(value).base + block(value).start;
    return dtypeCode(block(value.dtypeOf).type);
  };
  try {
    const kernel = backend.kernels[test.kernel] as (...args: number[]) => void;
    kernel(...test.args.map(argument));
    const results = new Map<Operand, Result>();
    for (const [operand, placed] of blocks) {
      const result = collect(backend, operand, placed, `${backend.name} ${backend.isa}, ${test.kernel} ${test.title}`);
      if (operand.check !== null) results.set(operand, result);
    }
    return results;
  } finally {
    for (const { base } of blocks.values()) backend.free(base);
  }
}

function dtypeCode(type: ElementType): DTypeCode {
  if (type === "f64" || type === "bytes") throw new Error(`${type} has no dtype code`);
  return dtypeCodes[type];
}

/** Runs the reference to have consistent outputs of a forward as inputs of a backward. */
export function outputsOf(test: Case): Float64Array[] {
  const backend = createReferenceBackend();
  const results = runCase(backend, test);
  backend.dispose();
  return [...results.values()].map(({ values }) => values);
}

/** The largest magnitude; 0 of nothing. */
export function largest(values: Float64Array): number {
  return values.reduce((max, value) => Math.max(max, Math.abs(value)), 0);
}

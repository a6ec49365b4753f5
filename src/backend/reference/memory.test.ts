import { describe, expect, test } from "vitest";
import { MoeError } from "../../util/errors.ts";
import type { Backend } from "../backend.ts";
import { createReferenceBackend } from "./index.ts";

const f32 = 0;
const bf16 = 1;

/** Runs `action`; the error it throws must be an internal MoeError that matches. */
function expectInternal(action: () => void, message: RegExp): void {
  expect(action).toThrow(message);
  try {
    action();
  } catch (error) {
    expect(error).toBeInstanceOf(MoeError);
    expect((error as MoeError).kind).toBe("internal");
  }
}

function floats(backend: Backend, ...values: number[]): number {
  const ptr = backend.alloc(values.length * 4);
  backend.write(ptr, Float32Array.from(values));
  return ptr;
}

describe("the reference memory", () => {
  test("gives 64-byte aligned pointers, counts bytes and remembers the peak until told otherwise", () => {
    const backend = createReferenceBackend();
    const [a, b] = [backend.alloc(100), backend.alloc(0)];
    expect([a % 64, b % 64, a === b]).toEqual([0, 0, false]);
    expect([backend.liveBytes, backend.peakBytes]).toEqual([100, 100]);
    backend.free(a);
    backend.free(b);
    expect([backend.liveBytes, backend.peakBytes]).toEqual([0, 100]);
    backend.resetPeak();
    expect(backend.peakBytes).toBe(0);
  });

  test("resolves interior pointers, in kernels and in copies", () => {
    const backend = createReferenceBackend();
    const x = floats(backend, 1, 2, 3, 4);
    backend.kernels.scale(x + 4, x + 8, 2, 10, f32);
    const out = new Float32Array(3);
    backend.read(out, x + 4);
    expect([...out]).toEqual([30, 40, 4]);
  });

  test("starts as NaN, so that what was never written shows", () => {
    const backend = createReferenceBackend();
    const x = backend.alloc(8);
    backend.kernels.scale(x, x, 2, 1, f32);
    const out = new Float32Array(2);
    backend.read(out, x);
    expect([...out]).toEqual([Number.NaN, Number.NaN]);
  });

  test("refuses to read or write behind an allocation, by one element or by far", () => {
    const backend = createReferenceBackend();
    const [x, longer] = [floats(backend, 1, 2), floats(backend, 1, 2, 3)];
    expectInternal(() => backend.kernels.scale(longer, x, 3, 1, f32), /within the 8 bytes/);
    expectInternal(() => backend.kernels.scale(x, longer, 3, 1, f32), /within the 8 bytes/);
    expectInternal(() => backend.read(new Uint8Array(1), x + 8), /within the 8 bytes/);
    expectInternal(() => backend.write(x - 1, new Uint8Array(1)), /live pointer/);
    expectInternal(() => backend.view(x, 9), /within the 8 bytes/);
  });

  test("refuses memory that was freed, and empties views of it", () => {
    const backend = createReferenceBackend();
    const x = floats(backend, 1, 2);
    const view = backend.view(x, 8);
    backend.free(x);
    expect(view).toHaveLength(0);
    const y = floats(backend, 3, 4);
    expect(y).not.toBe(x);
    expectInternal(() => backend.kernels.scale(x, y, 2, 1, f32), /freed/);
    expectInternal(() => backend.free(x), /start of a live allocation/);
    expectInternal(() => backend.free(y + 4), /start of a live allocation/);
    expectInternal(() => backend.kernels.scale(0, y, 2, 1, f32), /live pointer/);
  });

  test("refuses pointers that are not aligned to their element", () => {
    const backend = createReferenceBackend();
    const x = backend.alloc(16);
    expectInternal(() => backend.kernels.scale(x + 2, x + 2, 1, 1, f32), /aligned to 4/);
    expectInternal(() => backend.kernels.scale(x + 1, x + 1, 1, 1, bf16), /aligned to 2/);
    backend.kernels.scale(x + 2, x + 2, 1, 1, bf16);
  });

  test("refuses arguments that C would misread", () => {
    const backend = createReferenceBackend();
    const x = floats(backend, 1);
    expectInternal(() => backend.kernels.fillF32(x, 0.5, 1), /fillF32: expected argument 1 of code "n"/);
    expectInternal(() => backend.kernels.fillF32(x, -1, 1), /code "n"/);
    expectInternal(() => backend.kernels.add(x, x, x, 1, (2 ** 31) as 0), /code "i"/);
    const fewer = [x, 1] as unknown as [number, number, number];
    expectInternal(() => backend.kernels.fillF32(...fewer), /expected 3 arguments, got 2/);
  });

  test("refuses indices that point outside their operand", () => {
    const backend = createReferenceBackend();
    const [out, logits, targets] = [backend.alloc(4), floats(backend, 1, 2), backend.alloc(4)];
    backend.write(targets, Int32Array.of(2));
    expectInternal(() => backend.kernels.crossEntropy(out, 0, logits, targets, 1, 2, 1), /target below 2/);
    expectInternal(() => backend.kernels.gatherRows(out, logits, targets, 1, 4), /within the 8 bytes/);
  });

  test("uses ids again after a million allocations, and works on", () => {
    const backend = createReferenceBackend();
    const kept = floats(backend, 7);
    for (let i = 0; i < 2 ** 20 + 10; i++) backend.free(backend.alloc(0));
    const again = floats(backend, 8);
    const out = new Float32Array(1);
    backend.read(out, kept);
    expect(out[0]).toBe(7);
    expect(Number.isSafeInteger(again)).toBe(true);
    expect(backend.liveBytes).toBe(8);
    backend.dispose();
    expect(backend.liveBytes).toBe(0);
  });
});

/**
 * Forward kernels of the reference on examples small enough to be worked out by hand, and the rounding of storage types.
 */
import { describe, expect, test } from "vitest";
import { encodeBf16 } from "./convert.ts";
import { createReferenceBackend } from "./index.ts";

const [f32, bf16, f16] = [0, 1, 3] as const;

function setup() {
  const backend = createReferenceBackend();
  const put = (source: ArrayBufferView): number => {
    const ptr = backend.alloc(source.byteLength);
    backend.write(ptr, source);
    return ptr;
  };
  const floats = (...values: number[]): number => put(Float32Array.from(values));
  const ints = (...values: number[]): number => put(Int32Array.from(values));
  const getF32 = (ptr: number, count: number): number[] => {
    const out = new Float32Array(count);
    backend.read(out, ptr);
    return [...out];
  };
  const getI32 = (ptr: number, count: number): number[] => {
    const out = new Int32Array(count);
    backend.read(out, ptr);
    return [...out];
  };
  return {
    backend,
    kernels: backend.kernels,
    put,
    floats,
    ints,
    getF32,
    getI32,
    room: (count: number): number => backend.alloc(count * 4),
  };
}

function expectClose(found: readonly number[], expected: readonly number[]): void {
  expect(found).toHaveLength(expected.length);
  for (const [i, value] of expected.entries()) expect(found[i]).toBeCloseTo(value, 6);
}

describe("rounding to storage types", () => {
  test("bf16 goes to the nearest, ties to even, with NaN kept and overflow infinite", () => {
    // 1 is 0x3f80 and the next bf16 is 1 + 2^-7, so 1 + 2^-8 is a tie (to even, down) and 1 + 3 * 2^-8 one that goes up.
    const values = [1, 1 + 2 ** -8, 1 + 2 ** -8 + 2 ** -20, 1 + 3 * 2 ** -8, -0, Infinity, 3.4e38, Number.NaN, 2 ** -133];
    const words = [...encodeBf16(Float64Array.from(values))];
    expect(words).toEqual([0x3f80, 0x3f80, 0x3f81, 0x3f82, 0x8000, 0x7f80, 0x7f80, 0x7fc0, 0x0001]);
  });

  test("bf16 is rounded from f64 at once, not by way of f32", () => {
    // In f32 both round to the tie 1 + 2^-8.
    expect([...encodeBf16(Float64Array.of(1 + 2 ** -8 + 2 ** -40, 1 + 3 * 2 ** -8 - 2 ** -40))]).toEqual([0x3f81, 0x3f81]);
  });

  test("cast converts between all float types, and copies the payload of a NaN between equal ones", () => {
    const { backend, kernels, put, floats, room } = setup();
    const out = room(2);
    const words = new Uint16Array(4);
    // f16: 65520 is the tie above the largest (65504) and overflows; 2^-25 is the tie below the smallest subnormal, to even: 0.
    kernels.cast(out, floats(1, 65_519, 65_520, 2 ** -25), 4, f16, f32);
    backend.read(words, out);
    expect([...words]).toEqual([0x3c00, 0x7bff, 0x7c00, 0]);
    kernels.cast(out, put(Uint16Array.of(0x7f81, 0x3f80)), 2, bf16, bf16);
    backend.read(words, out);
    expect([...words.subarray(0, 2)]).toEqual([0x7f81, 0x3f80]);
    kernels.cast(out, put(Uint16Array.of(0x3c00, 0xfc00)), 2, bf16, f16);
    backend.read(words, out);
    expect([...words.subarray(0, 2)]).toEqual([0x3f80, 0xff80]);
  });
});

describe("forward kernels", () => {
  test("linearForward multiplies by the transposed weight and adds the bias", () => {
    const { kernels, floats, getF32, room } = setup();
    const out = room(4);
    kernels.linearForward(out, floats(1, 2, 3, 4), floats(1, 0, 10, 1), floats(100, 200), 2, 2, 2, f32, f32, f32);
    expect(getF32(out, 4)).toEqual([101, 212, 103, 234]);
  });

  test("accumulate adds to what is there, and without it nothing of that remains", () => {
    const { kernels, floats, getF32 } = setup();
    const db = floats(10, 20);
    kernels.linearBackwardBias(db, floats(1, 2, 3, 4), 2, 2, f32, 1);
    expect(getF32(db, 2)).toEqual([14, 26]);
    kernels.linearBackwardBias(db, floats(1, 2, 3, 4), 2, 2, f32, 0);
    expect(getF32(db, 2)).toEqual([4, 6]);
  });

  test("rmsNormForward divides by the root of the mean square", () => {
    const { kernels, floats, getF32, room } = setup();
    const [out, rstd] = [room(2), room(1)];
    kernels.rmsNormForward(out, rstd, floats(3, 4), floats(1, 2), 1, 2, 0, f32);
    const root = Math.sqrt(12.5);
    expectClose(getF32(out, 2), [3 / root, 8 / root]);
    expectClose(getF32(rstd, 1), [1 / root]);
  });

  test("ropeApply turns the pair (j, j + half) by the angle of its position and leaves the rest of the head", () => {
    const { kernels, floats, ints, getF32, room } = setup();
    const table = room(4);
    kernels.ropeTable(table, floats(Math.PI / 2), 2, 1, 1);
    const x = floats(1, 2, 5);
    kernels.ropeApply(x, table, ints(1), 1, 1, 3, 3, 1, 0, f32);
    expectClose(getF32(x, 3), [-2, 1, 5]);
  });

  test("attentionForward is a mean weighted by the softmax of the scores, and zero where no key is seen", () => {
    const { kernels, floats, ints, getF32, room } = setup();
    const [out, lse] = [room(2), room(2)];
    // Scores of the second query: log 1 and log 3.
    kernels.attentionForward(
      out,
      lse,
      floats(1, 1),
      floats(0, Math.log(3)),
      floats(8, 4),
      ints(0, 0),
      ints(0, 2),
      2,
      2,
      1,
      1,
      1,
      1,
      1,
      1,
      0,
      1,
      f32,
    );
    expectClose(getF32(out, 2), [0, 8 / 4 + (4 * 3) / 4]);
    expect(getF32(lse, 2)[0]).toBe(-Infinity);
    expect(getF32(lse, 2)[1]).toBeCloseTo(Math.log(4), 6);
  });

  test("crossEntropy of equal logits is the logarithm of their number", () => {
    const { kernels, floats, ints, getF32, room } = setup();
    const [loss, gradient] = [room(2), room(8)];
    kernels.crossEntropy(loss, gradient, floats(5, 5, 5, 5, 1, 2, 3, 4), ints(2, -1), 2, 4, 2);
    expectClose(getF32(loss, 2), [Math.log(4), 0]);
    expectClose(getF32(gradient, 8), [0.5, 0.5, -1.5, 0.5, 0, 0, 0, 0]);
  });

  test("routerForward takes the largest probabilities, ties to the lower expert, and makes them sum to 1", () => {
    const { kernels, floats, getF32, getI32, room } = setup();
    const [probs, weights, indices] = [room(4), room(2), room(2)];
    kernels.routerForward(probs, weights, indices, floats(0, Math.log(2), 0, Math.log(4)), 0, 0, 1, 4, 2, 1, 1, 0, 0, 0, 1, 0, 1, 0, 1);
    expectClose(getF32(probs, 4), [1 / 8, 2 / 8, 1 / 8, 4 / 8]);
    expect(getI32(indices, 2)).toEqual([3, 1]);
    expectClose(getF32(weights, 2), [4 / 6, 2 / 6]);
    kernels.routerForward(probs, weights, indices, floats(1, 1, 1, 1), 0, 0, 1, 4, 2, 1, 1, 0, 0, 0, 1, 0, 1, 0, 1);
    expect(getI32(indices, 2)).toEqual([0, 1]);
  });

  test("routerForward with normalization does not see the scale and offset of logits", () => {
    const { kernels, floats, getF32, room } = setup();
    const run = (...logits: number[]): number[] => {
      const probs = room(3);
      kernels.routerForward(probs, room(1), room(1), floats(...logits), 0, 0, 1, 3, 1, 1, 1, 0, 1, 0, 1, 0, 2, 0, 1);
      return getF32(probs, 3);
    };
    // (1, 2, 3) has mean 2 and variance 2/3.
    const exponentials = [-1, 0, 1].map((centred) => Math.exp((2 * centred) / Math.sqrt(2 / 3)));
    const sum = exponentials.reduce((a, b) => a + b, 0);
    expectClose(
      run(1, 2, 3),
      exponentials.map((e) => e / sum),
    );
    expectClose(run(110, 120, 130), run(1, 2, 3));
  });

  test("dispatchPlan sorts by expert and drops beyond the capacity by position or by probability", () => {
    const { kernels, floats, ints, getI32, room } = setup();
    const [offsets, rowToken, slotRow, counts] = [room(4), room(6), room(6), room(3)];
    // Token 0: experts 2, 0; token 1: 0, 2; token 2: 0, 2. Expert 1 gets nothing.
    const indices = ints(2, 0, 0, 2, 0, 2);
    const weights = floats(0.5, 0.5, 0.9, 0.1, 0.9, 0.7);
    kernels.dispatchPlan(offsets, rowToken, slotRow, counts, indices, 0, ints(0, 3), 0, 3, 2, 3, 1, 0, 0);
    expect(getI32(offsets, 4)).toEqual([0, 3, 3, 6]);
    expect(getI32(rowToken, 6)).toEqual([0, 1, 2, 0, 1, 2]);
    expect(getI32(slotRow, 6)).toEqual([3, 0, 1, 4, 2, 5]);
    kernels.dispatchPlan(offsets, rowToken, slotRow, counts, indices, 0, ints(0, 3), ints(1), 3, 2, 3, 1, 0, 0);
    expect(getI32(slotRow, 6)).toEqual([1, 0, -1, -1, -1, -1]);
    kernels.dispatchPlan(offsets, rowToken, slotRow, counts, indices, weights, ints(0, 3), ints(1), 3, 2, 3, 1, 1, 0);
    expect(getI32(slotRow, 6)).toEqual([-1, -1, 0, -1, -1, 1]);
    expect(getI32(offsets, 4)).toEqual([0, 1, 1, 2]);
    expect(getI32(counts, 3)).toEqual([3, 0, 3]);
  });

  test("adamwStep moves by the learning rate in the first step, after decay, whatever the gradient's size", () => {
    const { kernels, floats, getF32, room } = setup();
    const [master, m, v, weight] = [floats(2, 2), floats(0, 0), floats(0, 0), room(2)];
    kernels.adamwStep(weight, master, m, v, floats(1e-3, -50), 2, 0.1, 0.9, 0.99, 0, 0.5, 1 - 0.9, 1 - 0.99, 1, f32);
    // 2 - 0.1 (0.5 * 2 + sign)
    expect(getF32(master, 2)[0]).toBeCloseTo(1.8, 5);
    expect(getF32(master, 2)[1]).toBeCloseTo(2, 5);
    expect(getF32(weight, 2)).toEqual(getF32(master, 2));
  });

  test("sumSquares and allFinite reduce a whole vector", () => {
    const { backend, kernels, floats, getI32, room } = setup();
    const total = room(2);
    kernels.sumSquares(total, floats(3, 4, 12), 3);
    const sum = new Float64Array(1);
    backend.read(sum, total);
    expect(sum[0]).toBe(169);
    const finite = room(1);
    for (const [value, expected] of [
      [1, 1],
      [Infinity, 0],
      [-Infinity, 0],
      [Number.NaN, 0],
    ] as const) {
      kernels.allFinite(finite, floats(0, value, 0), 3);
      expect(getI32(finite, 1)).toEqual([expected]);
    }
  });
});

/** Sums in rank order: the order shows in the bits, and bf16 is rounded once. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { orderedSum } from "./ordered-sum.ts";

/** The upper half of f32. */
function bf16(...values: number[]): Uint16Array<ArrayBuffer> {
  return Uint16Array.from(new Uint32Array(Float32Array.from(values).buffer), (bits) => bits >>> 16);
}

test("ranks are added in their order, each step rounded to f32", () => {
  // 2^24 + 1 is not an f32: whoever comes first decides.
  expect(orderedSum([Float32Array.of(2 ** 24), Float32Array.of(1), Float32Array.of(1)])[0]).toBe(2 ** 24);
  expect(orderedSum([Float32Array.of(1), Float32Array.of(1), Float32Array.of(2 ** 24)])[0]).toBe(2 ** 24 + 2);
});

test("bf16 is summed in f32 and rounded once, to nearest, ties to even", () => {
  // 256 + 1 + 1 + 1 + 1: rounded after every step it would stay at 256.
  expect(orderedSum([bf16(256), bf16(1), bf16(1), bf16(1), bf16(1)])).toEqual(bf16(260));
  expect(orderedSum([bf16(256), bf16(1)])).toEqual(bf16(256));
  expect(orderedSum([bf16(258), bf16(1)])).toEqual(bf16(260));
  const [nan = 0] = orderedSum([bf16(Infinity), bf16(-Infinity)]);
  expect((nan & 0x7f80) === 0x7f80 && (nan & 0x7f) !== 0).toBe(true);
  expect(orderedSum([bf16(3e38), bf16(3e38)])).toEqual(bf16(Infinity));
});

test("one part keeps its bits, no parts are nothing, and parts are not changed", () => {
  const odd = Uint16Array.of(0x7f81, 0xff80, 0x8000);
  expect(orderedSum([odd])).toEqual(odd);
  expect(orderedSum([odd])).not.toBe(odd);
  expect(orderedSum([])).toEqual(new Float32Array(0));
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.float({ noNaN: true }), fc.float({ noNaN: true }))), (pairs) => {
      const [a, b] = [Float32Array.from(pairs, ([x]) => x), Float32Array.from(pairs, ([, y]) => y)];
      const before = a.slice();
      const sum = orderedSum([a, b]);
      expect(a).toEqual(before);
      for (const [i, [x, y]] of pairs.entries()) expect(sum[i]).toBe(Math.fround(x + y));
    }),
  );
});

import { createHash } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { fp8Golden, millionValues } from "../../test/golden/fp8/values.ts";
import { decodeFp8, encodeFp8, fp8Largest, fp8Values } from "./fp8.ts";

describe.each(["e4m3", "e5m2"] as const)("%s", (format) => {
  test("gives PyTorch's value for each of the 256 codes", () => {
    const values = Array.from(fp8Values(format), (value) => (Number.isFinite(value) ? value : null));
    expect(values).toEqual(fp8Golden[format].values);
  });

  test("encodes a million random values in range as PyTorch does", () => {
    const values = millionValues(format);
    expect(values.length).toBe(fp8Golden[format].count);
    const codes = Uint8Array.from(values, (value) => encodeFp8(format, value));
    expect(createHash("sha256").update(codes).digest("hex")).toBe(fp8Golden[format].codesSha256);
  });

  test("encodes every value, every middle between neighbours and the floats beside them as PyTorch does", () => {
    const { boundaryBits, boundaryCodes } = fp8Golden[format];
    const values = new Float32Array(Uint32Array.from(boundaryBits).buffer);
    expect(Array.from(values, (value) => encodeFp8(format, value))).toEqual(boundaryCodes);
  });

  test("gives every finite code back", () => {
    for (let code = 0; code < 256; code++) {
      const value = decodeFp8(format, code);
      if (Number.isFinite(value)) expect(encodeFp8(format, value)).toBe(code);
    }
  });

  test("saturates beyond the largest value and keeps NaN", () => {
    for (const value of [fp8Largest[format] * 1.01, 1e30, Number.POSITIVE_INFINITY]) {
      expect(decodeFp8(format, encodeFp8(format, value))).toBe(fp8Largest[format]);
      expect(decodeFp8(format, encodeFp8(format, -value))).toBe(-fp8Largest[format]);
    }
    expect(decodeFp8(format, encodeFp8(format, Number.NaN))).toBeNaN();
  });

  test("is the nearest value, whatever f64 is encoded", () => {
    const finite = Array.from(fp8Values(format)).filter(Number.isFinite);
    const largest = fp8Largest[format];
    fc.assert(
      fc.property(fc.double({ min: -largest, max: largest, noNaN: true }), (value) => {
        const error = Math.abs(decodeFp8(format, encodeFp8(format, value)) - value);
        expect(finite.every((other) => Math.abs(other - value) >= error)).toBe(true);
      }),
    );
  });
});

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { decodeFp8, encodeFp8, fp8Largest, fp8Values, type Fp8Format } from "./fp8.ts";

/** PyTorch 2.15's codes: test/golden/fp8/make.py. */
interface Golden {
  readonly values: readonly (number | null)[];
  readonly count: number;
  readonly codesSha256: string;
  readonly boundaryBits: readonly number[];
  readonly boundaryCodes: readonly number[];
}
const golden = JSON.parse(readFileSync(new URL("../../test/golden/fp8/fp8.json", import.meta.url), "utf8")) as Record<Fp8Format, Golden>;

/** The values of make.py: a million xorshift words, the exponent moved into a range, those in PyTorch's finite range kept. */
function millionValues(format: Fp8Format): Float32Array {
  const [limit, low, span] = format === "e4m3" ? [464, 112, 25] : [61440, 105, 40];
  const words = new Uint32Array(1_000_000);
  let x = 2463534242;
  for (let i = 0; i < words.length; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    words[i] = (x & 0x807fffff) | (((((x >>> 23) & 255) % span) + low) << 23);
  }
  return new Float32Array(words.buffer).filter((value) => Math.abs(value) < limit);
}

describe.each(["e4m3", "e5m2"] as const)("%s", (format) => {
  test("gives PyTorch's value for each of the 256 codes", () => {
    const values = Array.from(fp8Values(format), (value) => (Number.isFinite(value) ? value : null));
    expect(values).toEqual(golden[format].values);
  });

  test("encodes a million random values in range as PyTorch does", () => {
    const values = millionValues(format);
    expect(values.length).toBe(golden[format].count);
    const codes = Uint8Array.from(values, (value) => encodeFp8(format, value));
    expect(createHash("sha256").update(codes).digest("hex")).toBe(golden[format].codesSha256);
  });

  test("encodes every value, every middle between neighbours and the floats beside them as PyTorch does", () => {
    const { boundaryBits, boundaryCodes } = golden[format];
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

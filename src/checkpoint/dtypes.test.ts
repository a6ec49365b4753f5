import * as path from "node:path";
import { describe, expect, it } from "vitest";
import { countElements, dtypeBytes, FILE_DTYPES, fromFloat32, toFloat32 } from "./dtypes.ts";
import { openSafetensors } from "./safetensors.ts";

// Written by the format's own Python library, conversions by PyTorch (test/golden/safetensors/make.py).
const GOLDEN = path.join(import.meta.dirname, "../../test/golden/safetensors/dtypes.safetensors");

function bytesOf(name: string): Uint8Array {
  using file = openSafetensors(GOLDEN);
  const bytes = new Uint8Array(file.entry(name).byteLength);
  file.read(name, bytes);
  return bytes;
}

function floatsOf(name: string): Float32Array {
  using file = openSafetensors(GOLDEN);
  const floats = new Float32Array(file.entry(name).shape.reduce((a, b) => a * b, 1));
  file.readFloat32(name, floats);
  return floats;
}

describe("conversion to f32", () => {
  it.each(["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "scalar", "empty"])(
    "of %s gives PyTorch's values",
    (name) => {
      expect(floatsOf(name)).toEqual(floatsOf(`${name}.f32`));
    },
  );

  it.each(["U16", "U32", "U64"] as const)("of %s counts from zero up", (dtype) => {
    const bytes = new Uint8Array(2 * dtypeBytes(dtype));
    bytes[1] = 1;
    bytes[dtypeBytes(dtype)] = 255;
    const out = new Float32Array(2);
    toFloat32(dtype, bytes, out);
    expect([...out]).toEqual([256, 255]);
  });

  it("works at any address and does not touch the source", () => {
    const bytes = new Uint8Array([9, 0, 0, 0x80, 0x3f, 9]);
    const out = new Float32Array(1);
    toFloat32("F32", bytes.subarray(1, 5), out);
    expect(out[0]).toBe(1);
    expect([...bytes]).toEqual([9, 0, 0, 0x80, 0x3f, 9]);
  });

  it("refuses a length that does not fit", () => {
    expect(() => toFloat32("BF16", new Uint8Array(5), new Float32Array(2))).toThrow("expected 4 bytes for 2 elements of BF16, got 5");
  });
});

describe("conversion from f32", () => {
  it.each(["F16", "BF16"] as const)("to %s rounds to nearest even, as PyTorch does", (dtype) => {
    const source = floatsOf("round.f32");
    const out = new Uint8Array(source.length * 2);
    fromFloat32(dtype, source, out);
    expect(new Uint16Array(out.buffer)).toEqual(new Uint16Array(bytesOf(`round.${dtype}`).buffer));
  });

  it("keeps NaN a NaN even where rounding would carry it to infinity", () => {
    const source = new Float32Array(new Uint32Array([0x7f800001, 0xffffffff]).buffer);
    for (const dtype of ["F16", "BF16"] as const) {
      const out = new Uint8Array(4);
      fromFloat32(dtype, source, out);
      const back = new Float32Array(2);
      toFloat32(dtype, out, back);
      expect([...back]).toEqual([Number.NaN, Number.NaN]);
    }
  });

  it("refuses an output of the wrong length", () => {
    expect(() => fromFloat32("F16", new Float32Array(2), new Uint8Array(3))).toThrow("expected 4 aligned bytes");
  });
});

describe("sizes", () => {
  it("are known for every dtype", () => {
    expect(FILE_DTYPES.map((d) => `${d} ${dtypeBytes(d)}`).join(", ")).toBe(
      "F64 8, F32 4, F16 2, BF16 2, I64 8, I32 4, I16 2, I8 1, U64 8, U32 4, U16 2, U8 1, BOOL 1, F8_E4M3 1, F8_E5M2 1",
    );
  });

  it("count elements up to the safe integers and no further", () => {
    expect(countElements([])).toBe(1);
    expect(countElements([3, 0, 5])).toBe(0);
    expect(countElements([2 ** 26, 2 ** 26])).toBe(2 ** 52);
    expect(countElements([2 ** 27, 2 ** 27])).toBeUndefined();
    expect(countElements([2 ** 40, 2 ** 40, 0])).toBeUndefined();
    expect(countElements([-1])).toBeUndefined();
    expect(countElements([1.5])).toBeUndefined();
  });
});

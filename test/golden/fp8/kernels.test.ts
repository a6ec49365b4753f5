/** The conversion kernels of every engine give PyTorch's codes for a million values, and at every boundary. */
import { createHash } from "node:crypto";
import { afterAll, describe, expect, test } from "vitest";
import { dtypeCodes, fp8Formats } from "../../../src/backend/kernels.ts";
import type { Engine } from "../../../src/tensor/index.ts";
import { startEngines } from "../models/engines.ts";
import { fp8Golden, millionValues } from "./values.ts";

const { engines } = await startEngines();
afterAll(() => {
  for (const engine of engines.values()) engine[Symbol.dispose]();
});

function encode(engine: Engine, values: Float32Array, format: "e4m3" | "e5m2"): Uint8Array {
  const { backend } = engine;
  const [from, to] = [backend.alloc(4 * values.length), backend.alloc(values.length)];
  const codes = new Uint8Array(values.length);
  backend.write(from, values);
  backend.kernels.castToFp8(to, from, values.length, 1, dtypeCodes.f32, fp8Formats[format]);
  backend.read(codes, to);
  backend.free(from);
  backend.free(to);
  return codes;
}

describe.each([...engines])("%s", (_, engine) => {
  test.each(["e4m3", "e5m2"] as const)("%s", { timeout: 60_000 }, (format) => {
    const { codesSha256, count, boundaryBits, boundaryCodes } = fp8Golden[format];
    const values = millionValues(format);
    expect(values.length).toBe(count);
    expect(createHash("sha256").update(encode(engine, values, format)).digest("hex")).toBe(codesSha256);
    const boundaries = new Float32Array(Uint32Array.from(boundaryBits).buffer);
    expect([...encode(engine, boundaries, format)]).toEqual(boundaryCodes);
  });
});

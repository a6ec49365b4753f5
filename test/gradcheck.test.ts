import { describe, expect, it } from "vitest";
import { add, scale } from "../src/tensor/ops/elementwise.ts";
import type { Tensor } from "../src/tensor/tensor.ts";
import { checkGradients } from "./gradcheck.ts";

/** The square of x with a backward of the caller's choice. */
function square(x: Tensor, backwardFactor: number, { overwrite = false, leak = false } = {}): Tensor {
  const { engine } = x;
  const { tape } = engine;
  const values = x.toFloat32Array();
  const out = engine.from(
    values.map((value) => value * value),
    x.shape,
    x.dtype,
  );
  tape?.record([x], out, [], (dOut) => {
    const upstream = dOut.toFloat32Array();
    const dx = engine.from(
      values.map((value, i) => backwardFactor * value * (upstream[i] ?? 0)),
      x.shape,
      x.dtype,
    );
    if (leak) engine.detached([1], "f32");
    if (overwrite) tape.takeGrad(x)?.dispose();
    tape.addGrad(x, dx);
  });
  return out;
}

describe("checkGradients", () => {
  const inputs = { x: { shape: [3, 2] } };
  it("accepts a right backward", () => {
    expect(Object.keys(checkGradients({ inputs, run: ({ x }) => (x ? [square(x, 2)] : []) }))).toEqual(["x"]);
  });
  it("rejects a backward that is one percent off", () => {
    expect(() => checkGradients({ inputs, run: ({ x }) => (x ? [square(x, 2.02)] : []) })).toThrow("finite differences");
  });
  it("rejects a backward that overwrites instead of adding", () => {
    expect(() => checkGradients({ inputs, run: ({ x }) => (x ? [square(x, 2, { overwrite: true })] : []) })).toThrow("run twice");
  });
  it("rejects a backward that leaves memory behind", () => {
    expect(() => checkGradients({ inputs, run: ({ x }) => (x ? [square(x, 2, { leak: true })] : []) })).toThrow("bytes are still alive");
  });
  it("rejects a missing gradient", () => {
    expect(() => checkGradients({ inputs, run: ({ x }, engine) => (x ? [engine.withTape(null, () => add(x, scale(x, 2)))] : []) })).toThrow(
      "finite differences",
    );
  });
});

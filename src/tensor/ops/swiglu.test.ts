import { describe, expect, it } from "vitest";
import { checkGradients, withEngine } from "../../../test/gradcheck.ts";
import { linear } from "./linear.ts";
import { swiglu } from "./swiglu.ts";

describe("swiglu", () => {
  it("has the gradients of finite differences", () => {
    checkGradients({
      inputs: { gate: { shape: [3, 5] }, up: { shape: [3, 5] } },
      run: ({ gate, up }) => (gate && up ? [swiglu(gate, up)] : []),
    });
  });
  it("has the gradients of finite differences where gradients take the place of the saved operands", () => {
    checkGradients({
      inputs: { x: { shape: [3, 4] }, w1: { shape: [5, 4] }, w3: { shape: [5, 4] } },
      run: ({ x, w1, w3 }) => (x && w1 && w3 ? [swiglu(linear(x, w1), linear(x, w3))] : []),
    });
  });
  it("has the gradients of finite differences where both operands are the same value", () => {
    checkGradients({
      inputs: { x: { shape: [3, 3] }, w: { shape: [2, 3] } },
      run: ({ x, w }) => {
        if (!x || !w) return [];
        const y = linear(x, w);
        return [swiglu(y, y)];
      },
    });
  });
  it("multiplies up by silu of gate", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const y = swiglu(engine.from([0, 1, -2], [3], "f32"), engine.from([5, 2, 3], [3], "f32"));
        const expected = [0, 2 / (1 + Math.exp(-1)), -6 / (1 + Math.exp(2))];
        y.toFloat32Array().forEach((value, i) => expect(value).toBeCloseTo(expected[i] ?? NaN, 6));
      }),
    );
  });
  it("refuses operands of different shapes or dtypes", () => {
    withEngine((engine) =>
      engine.scope(() => {
        expect(() => swiglu(engine.zeros([2, 3], "f32"), engine.zeros([3, 2], "f32"))).toThrow(
          "swiglu: up must be [2, 3] f32, got [3, 2] f32",
        );
        expect(() => swiglu(engine.zeros([2], "f32"), engine.zeros([2], "bf16"))).toThrow("swiglu: up must be [2] f32, got [2] bf16");
      }),
    );
  });
});

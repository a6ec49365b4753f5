import { describe, expect, it } from "vitest";
import { checkGradients, withEngine } from "../../../test/gradcheck.ts";
import { add, castTo, scale } from "./elementwise.ts";
import { linear } from "./linear.ts";

describe("add, scale, castTo", () => {
  it("have the gradients of finite differences", () => {
    checkGradients({
      inputs: { a: { shape: [3, 5] }, b: { shape: [3, 5] } },
      run: ({ a, b }) => (a && b ? [add(scale(a, -1.5), b), add(a, a)] : []),
    });
  });
  it("do not mix up gradients that share memory: a residual sum whose operands get more gradient afterwards", () => {
    checkGradients({
      inputs: { a: { shape: [2, 3] }, b: { shape: [2, 3] }, w: { shape: [3, 3] } },
      run: ({ a, b, w }) => {
        if (!a || !b || !w) return [];
        const left = linear(a, w);
        const right = linear(b, w);
        // The sum is recorded last, so its backward runs first and gives both operands the same buffer.
        const used = [scale(left, 3), scale(right, -2)];
        return [...used, add(left, right)];
      },
    });
  });
  it("castTo gives gradients back in the dtype of its operand", () => {
    checkGradients({
      inputs: { x: { shape: [2, 3] } },
      tolerance: 0.02,
      run: ({ x }) => (x ? [castTo(scale(castTo(x, "f32"), 0.5), x.dtype)] : []),
    });
    withEngine((engine) =>
      engine.scope(() => {
        const x = engine.from([1.00390625, -3], [2], "f32");
        expect([...castTo(x, "bf16").toFloat32Array()]).toEqual([1, -3]);
        expect(castTo(x, "f32").valueId).toBe(x.valueId);
        expect(() => castTo(x, "i32")).toThrow("castTo: dtype must be f32 or bf16, got i32");
      }),
    );
  });
  it("refuse operands of different shapes", () => {
    withEngine((engine) =>
      engine.scope(() => {
        expect(() => add(engine.zeros([2], "f32"), engine.zeros([1, 2], "f32"))).toThrow("add: b must be [2] f32, got [1, 2] f32");
        expect(() => scale(engine.zeros([2], "i32"), 2)).toThrow("scale: x must be f32 or bf16, got [2] i32");
      }),
    );
  });
});

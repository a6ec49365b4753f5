import { describe, expect, it } from "vitest";
import { checkGradients, withEngine } from "../../../test/gradcheck.ts";
import type { Engine } from "../engine.ts";
import type { Tensor } from "../tensor.ts";
import { groupedLinear, linear, linearMany } from "./linear.ts";

describe("linear", () => {
  it.each([
    [0, 3, 2],
    [1, 1, 1],
    [3, 5, 7],
    [4, 2, 9],
  ])("has the gradients of finite differences for M %d, N %d, K %d with bias", (M, N, K) => {
    checkGradients({
      inputs: { x: { shape: [M, K] }, w: { shape: [N, K] }, bias: { shape: [N], bf16: false } },
      run: ({ x, w, bias }) => (x && w && bias ? [linear(x, w, bias)] : []),
    });
  });
  it("has the gradients of finite differences without bias, with leading dimensions and an f32 output of bf16 operands", () => {
    checkGradients({
      inputs: { x: { shape: [2, 3, 5] }, w: { shape: [4, 5] } },
      run: ({ x, w }) => (x && w ? [linear(x, w, null, { outDtype: "f32" })] : []),
    });
  });
  it("leaves a frozen weight alone and still passes the gradient on", () => {
    checkGradients({
      inputs: { x: { shape: [2, 3] } },
      run: ({ x }, engine) => (x ? [linear(x, engine.from([1, 2, 3, -4, 5, 6], [2, 3], x.dtype))] : []),
    });
  });
  it("multiplies by the transposed weight and adds the bias", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const x = engine.from([1, 2, 3, 4], [2, 2], "f32");
        const w = engine.from([1, 0, 0, 1, 1, 1], [3, 2], "f32");
        const y = linear(x, w, engine.from([10, 20, 30], [3], "f32"));
        expect(y.shape).toEqual([2, 3]);
        expect([...y.toFloat32Array()]).toEqual([11, 22, 33, 13, 24, 37]);
      }),
    );
  });
  it("names operation, operand, expected and got where shapes do not fit", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const x = engine.zeros([2, 3], "f32");
        expect(() => linear(x, engine.zeros([4, 5], "bf16"))).toThrow("linear: x must be [.., 5] for w [4, 5], got [2, 3] f32");
        expect(() => linear(x, engine.zeros([4, 3], "f32"), engine.zeros([3], "f32"))).toThrow("linear: bias must be [4] f32, got [3] f32");
      }),
    );
  });
});

describe("groupedLinear", () => {
  it("has the gradients of finite differences, with empty groups at both ends and in the middle", () => {
    checkGradients({
      inputs: { x: { shape: [6, 3] }, w: { shape: [5, 4, 3] } },
      run: ({ x, w }, engine) => (x && w ? [groupedLinear(x, w, engine.from([0, 0, 4, 4, 6, 6], [6], "i32"))] : []),
    });
  });
  it("gives weights a gradient of zeros when no expert has rows", () => {
    checkGradients({
      inputs: { x: { shape: [0, 3] }, w: { shape: [2, 4, 3] } },
      run: ({ x, w }, engine) => (x && w ? [groupedLinear(x, w, engine.zeros([3], "i32"))] : []),
    });
  });
  it("equals linear on each group's rows", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const x = engine.from([1, 2, 3, 4, 5, 6], [3, 2], "f32");
        const w = engine.from([1, 1, 2, -1], [2, 1, 2], "f32");
        const y = groupedLinear(x, w, engine.from([0, 2, 3], [3], "i32"));
        expect([...y.toFloat32Array()]).toEqual([3, 7, 4]);
      }),
    );
  });
  it("refuses offsets that are not one more than the experts", () => {
    withEngine((engine) =>
      engine.scope(() => {
        expect(() => groupedLinear(engine.zeros([3, 2], "f32"), engine.zeros([2, 1, 2], "f32"), engine.zeros([2], "i32"))).toThrow(
          "groupedLinear: offsets must be [3] i32",
        );
      }),
    );
  });
});

describe("linearMany", () => {
  const operands = (engine: Engine): { x: Tensor; layers: { weight_NK: Tensor; bias_N: Tensor | null }[] } => ({
    x: engine.from([1, -2, 3, 0.5, 4, -1], [2, 3], "f32"),
    layers: [
      { weight_NK: engine.from([1, 2, 3, -1, 0, 1], [2, 3], "f32"), bias_N: engine.from([10, 20], [2], "f32") },
      { weight_NK: engine.from([0.5, 0.25, -1], [1, 3], "f32"), bias_N: null },
    ],
  });
  it("gives what linear gives of each weight", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const { x, layers } = operands(engine);
        const expected = layers.map(({ weight_NK, bias_N }) => linear(x, weight_NK, bias_N).toFloat32Array());
        expect(linearMany(x, layers).map((y) => y.toFloat32Array())).toEqual(expected);
      }),
    );
  });
  it("has the gradients of finite differences", () => {
    checkGradients({
      inputs: { x: { shape: [3, 5] }, a: { shape: [2, 5] }, b: { shape: [4, 5] } },
      run: ({ x, a, b }) => {
        if (!x || !a || !b) return [];
        return linearMany(x, [
          { weight_NK: a, bias_N: null },
          { weight_NK: b, bias_N: null },
        ]);
      },
    });
  });
  it("refuses weights of another width, and more than three", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const { x, layers } = operands(engine);
        const narrow = { weight_NK: engine.zeros([4, 2], "f32"), bias_N: null };
        expect(() => linearMany(x, [...layers, narrow])).toThrow("linearMany: w must be [*, 3] f32, got [4, 2] f32");
        expect(() => linearMany(x, [...layers, ...layers])).toThrow("linearMany: layers must be 1 to 3, got 4");
      }),
    );
  });
});

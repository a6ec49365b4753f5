import { describe, expect, it } from "vitest";
import { checkGradients, withEngine } from "../../../test/gradcheck.ts";
import { rmsNorm } from "./norm.ts";

describe("rmsNorm", () => {
  it.each([
    [1, 1],
    [3, 7],
    [2, 16],
  ])("has the gradients of finite differences for M %d, H %d", (M, H) => {
    // H = 1 without eps has gradient 0 everywhere; a large eps makes it bite.
    checkGradients({
      inputs: { x: { shape: [M, H] }, w: { shape: [H], bf16: false } },
      run: ({ x, w }) => (x && w ? [rmsNorm(x, w, 0.5)] : []),
    });
  });
  it("has the gradients of finite differences per head", () => {
    checkGradients({
      inputs: { x: { shape: [2, 3 * 5] }, w: { shape: [5], bf16: false } },
      run: ({ x, w }) => (x && w ? [rmsNorm(x, w, 1e-2)] : []),
    });
  });
  it("has the gradients of finite differences with a frozen weight, and with only the weight trained", () => {
    checkGradients({
      inputs: { x: { shape: [2, 4] } },
      run: ({ x }, engine) => (x ? [rmsNorm(x, engine.from([1, 2, -1, 0.5], [4], "f32"), 1e-2)] : []),
    });
    checkGradients({
      inputs: { w: { shape: [4], bf16: false } },
      run: ({ w }, engine) => (w ? [rmsNorm(engine.from([1, 2, -1, 0.5, 3, 3, 3, 1], [2, 4], "f32"), w, 1e-2)] : []),
    });
  });
  it("divides by the root mean square and multiplies by the weight", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const y = rmsNorm(engine.from([3, 4, 0, 0], [1, 4], "f32"), engine.from([1, 2, 3, 4], [4], "f32"), 0);
        // sqrt((9 + 16) / 4) = 2.5
        y.toFloat32Array().forEach((value, i) => expect(value).toBeCloseTo([1.2, 3.2, 0, 0][i] ?? NaN, 6));
      }),
    );
  });
  it("refuses rows that are not made of whole groups", () => {
    withEngine((engine) =>
      engine.scope(() => {
        expect(() => rmsNorm(engine.zeros([2, 5], "f32"), engine.zeros([3], "f32"), 1e-6)).toThrow(
          "rmsNorm: x must be [.., a multiple of 3] for w [3], got [2, 5] f32",
        );
      }),
    );
  });
});

import { describe, expect, it } from "vitest";
import { checkGradients, withEngine } from "../../../test/gradcheck.ts";
import { attention } from "./attention.ts";
import { linear } from "./linear.ts";

const causal = (T: number): number[] => Array.from({ length: T }, (_, t) => t + 1);

describe("attention", () => {
  it.each([
    ["causal", 4, 2, 2, 3, causal(4), [0, 0, 0, 0], 0],
    ["grouped query heads", 3, 6, 2, 2, causal(3), [0, 0, 0], 0],
    ["packed documents", 5, 2, 1, 3, causal(5), [0, 0, 2, 2, 2], 0],
    ["a sliding window", 6, 2, 1, 4, causal(6), [0, 0, 0, 0, 0, 0], 2],
    ["a query that sees nothing", 3, 1, 1, 2, [0, 2, 3], [0, 0, 0], 0],
  ])("has the gradients of finite differences: %s", (_, T, numHeads, numKvHeads, headDim, keyEnd, keyBase, window) => {
    checkGradients({
      inputs: { q: { shape: [T, numHeads * headDim] }, k: { shape: [T, numKvHeads * headDim] }, v: { shape: [T, numKvHeads * headDim] } },
      run: ({ q, k, v }, engine) => {
        if (!q || !k || !v) return [];
        const bounds = { keyBase: engine.from(keyBase, [T], "i32"), keyEnd: engine.from(keyEnd, [T], "i32") };
        return [attention(q, k, v, { numHeads, numKvHeads, headDim, ...bounds, window, scale: 0.7 })];
      },
    });
  });
  it("adds up where q, k and v come from the same input", () => {
    checkGradients({
      inputs: { x: { shape: [3, 4] }, w: { shape: [4, 4] } },
      run: ({ x, w }, engine) => {
        if (!x || !w) return [];
        const q = linear(x, w);
        const bounds = { keyBase: engine.zeros([3], "i32"), keyEnd: engine.from(causal(3), [3], "i32") };
        return [attention(q, q, x, { numHeads: 2, numKvHeads: 2, headDim: 2, ...bounds, window: 0, scale: 0.5 })];
      },
    });
  });
  it("reads a cache buffer only as far as keyEnd", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const q = engine.from([1, 0], [1, 2], "f32");
        const options = {
          numHeads: 1,
          numKvHeads: 1,
          headDim: 2,
          keyBase: engine.zeros([1], "i32"),
          keyEnd: engine.from([2], [1], "i32"),
          window: 0,
          scale: 1,
        };
        const exact = attention(q, engine.from([1, 2, 3, 4], [2, 2], "f32"), engine.from([5, 6, 7, 8], [2, 2], "f32"), options);
        const longer = attention(
          q,
          engine.from([1, 2, 3, 4, NaN, NaN], [3, 2], "f32"),
          engine.from([5, 6, 7, 8, NaN, NaN], [3, 2], "f32"),
          options,
        );
        expect([...longer.toFloat32Array()]).toEqual([...exact.toFloat32Array()]);
        // softmax(1, 3) = (0.1192, 0.8808)
        expect(exact.toFloat32Array()[0]).toBeCloseTo(5 + 2 / (1 + Math.exp(-2)), 5);
      }),
    );
  });
  it("refuses head counts that do not divide and keys of another width", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const bounds = { keyBase: engine.zeros([2], "i32"), keyEnd: engine.zeros([2], "i32") };
        const q = engine.zeros([2, 6], "f32");
        expect(() => attention(q, q, q, { numHeads: 3, numKvHeads: 2, headDim: 2, ...bounds, window: 0, scale: 1 })).toThrow(
          "attention: numHeads must be a multiple of numKvHeads 2, got 3",
        );
        expect(() => attention(q, q, q, { numHeads: 3, numKvHeads: 1, headDim: 2, ...bounds, window: 0, scale: 1 })).toThrow(
          "attention: k must be [*, 2] f32, got [2, 6] f32",
        );
      }),
    );
  });
});

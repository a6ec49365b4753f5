import { describe, expect, it } from "vitest";
import { checkGradients, withEngine } from "../../../test/gradcheck.ts";
import { jitter, sigmoidGate, tanh } from "./gate.ts";

describe("tanh", () => {
  it("has the gradients of finite differences, and the values of Math.tanh", () => {
    checkGradients({
      inputs: { x: { shape: [3, 4], bf16: false } },
      bf16Tolerance: null,
      run: ({ x }) => (x ? [tanh(x)] : []),
    });
    withEngine((engine) =>
      engine.scope(() => {
        const values = [-30, -1.5, -0.6, -1e-3, 0, 0.2, 0.7, 9];
        const out = tanh(engine.from(values, [8], "f32")).toFloat32Array();
        values.forEach((value, i) => expect(out[i]).toBeCloseTo(Math.tanh(value), 7));
        expect(() => tanh(engine.zeros([2], "bf16"))).toThrow("tanh: x must be f32, got [2] bf16");
      }),
    );
  });
});

describe("sigmoidGate", () => {
  it("has the gradients of finite differences", () => {
    checkGradients({
      inputs: { x: { shape: [4, 5] }, gate: { shape: [4, 1], bf16: false } },
      run: ({ x, gate }) => (x && gate ? [sigmoidGate(x, gate, 1.5)] : []),
    });
  });
  it("multiplies a token by factor times the sigmoid of its logit", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const out = sigmoidGate(engine.from([1, 2, 3, 4], [2, 2], "f32"), engine.from([0, Math.log(3)], [2, 1], "f32"), 2);
        [1, 2, 4.5, 6].forEach((value, i) => expect(out.toFloat32Array()[i]).toBeCloseTo(value, 6));
        expect(() => sigmoidGate(engine.zeros([2, 2], "f32"), engine.zeros([3, 1], "f32"))).toThrow("sigmoidGate: gate must be [2, 1] f32");
      }),
    );
  });
});

describe("jitter", () => {
  const options = { epsilon: 0.1, key: [4_000_000_000, 7], groupOffsets: [0, 4], rowOffsets: [100] } as const;
  it("has the gradient of a fixed factor", () => {
    checkGradients({
      inputs: { x: { shape: [4, 3], bf16: false } },
      bf16Tolerance: null,
      run: ({ x }) => (x ? [jitter(x, options)] : []),
    });
  });
  it("is uniform within 1 - epsilon and 1 + epsilon", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const ones = engine.from(new Float32Array(20_000).fill(1), [200, 100], "f32");
        const u = jitter(ones, { ...options, groupOffsets: [0, 200] }).toFloat32Array();
        const mean = u.reduce((sum, value) => sum + value, 0) / u.length;
        const variance = u.reduce((sum, value) => sum + (value - mean) ** 2, 0) / u.length;
        expect(u.every((value) => value >= 0.9 && value <= 1.1)).toBe(true);
        // A uniform variable's deviation is its width over sqrt(12); five standard errors of the mean of 20,000.
        expect(Math.abs(mean - 1)).toBeLessThan((5 * 0.2) / Math.sqrt(12 * 20_000));
        expect(Math.sqrt(variance)).toBeCloseTo(0.2 / Math.sqrt(12), 3);
        expect(new Set(u).size).toBeGreaterThan(19_000);
      }),
    );
  });
  it("depends on a row's number and the key, not on where the row stands", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const ones = (rows: number) => engine.from(new Float32Array(rows * 3).fill(1), [rows, 3], "f32");
        const whole = jitter(ones(6), { ...options, groupOffsets: [0, 6], rowOffsets: [50] }).toFloat32Array();
        const parts = jitter(ones(4), { ...options, groupOffsets: [0, 2, 4], rowOffsets: [54, 51] }).toFloat32Array();
        expect([...parts]).toEqual([...whole.subarray(12, 18), ...whole.subarray(3, 9)]);
        const otherKey = jitter(ones(6), { ...options, key: [4_000_000_000, 8], groupOffsets: [0, 6], rowOffsets: [50] });
        expect(otherKey.toFloat32Array().some((value, i) => value === whole[i])).toBe(false);
        expect(() => jitter(ones(4), { ...options, rowOffsets: [1, 2] })).toThrow("jitter: rowOffsets must be one for each of 1 groups");
      }),
    );
  });
});

import { describe, expect, it } from "vitest";
import { checkGradients, withEngine } from "../../../test/gradcheck.ts";
import type { Engine } from "../engine.ts";
import { Tape } from "../tape.ts";
import type { Tensor } from "../tensor.ts";
import { add, scale } from "./elementwise.ts";
import { linear } from "./linear.ts";
import { rmsNorm } from "./norm.ts";
import { makeRopeTable, ropeInPlace } from "./rope.ts";

function rotated(x: Tensor, engine: Engine, headDim: number, half: number, attentionScale: number): Tensor {
  const y = scale(x, 1);
  const table = makeRopeTable(
    engine,
    Float32Array.from({ length: half }, (_, j) => 10 ** -j),
    8,
    attentionScale,
  );
  ropeInPlace(y, table, engine.from([0, 3, 7], [3], "i32"), headDim);
  return y;
}

describe("ropeInPlace", () => {
  it.each([
    ["whole heads", 6, 3, 1],
    ["part of a head", 6, 2, 1],
    ["an attention scale", 4, 2, 1.25],
  ])("has the gradients of finite differences: %s", (_, headDim, half, attentionScale) => {
    checkGradients({
      inputs: { x: { shape: [3, 2 * headDim] } },
      run: ({ x }, engine) => (x ? [rotated(x, engine, headDim, half, attentionScale)] : []),
    });
  });
  it("has the gradients of finite differences after a per-head norm", () => {
    checkGradients({
      inputs: { x: { shape: [3, 8] }, w: { shape: [4], bf16: false } },
      run: ({ x, w }, engine) => {
        if (!x || !w) return [];
        const y = rmsNorm(x, w, 1e-2);
        ropeInPlace(y, makeRopeTable(engine, Float32Array.of(1, 0.3), 8, 1), engine.from([5, 0, 2], [3], "i32"), 4);
        return [y];
      },
    });
  });
  it("has the gradients of finite differences where the value is also used before it is rotated", () => {
    checkGradients({
      inputs: { x: { shape: [3, 4] } },
      run: ({ x }, engine) => {
        if (!x) return [];
        const y = scale(x, 1);
        const before = scale(y, 2);
        ropeInPlace(y, makeRopeTable(engine, Float32Array.of(1, 0.3), 8, 1), engine.from([5, 0, 2], [3], "i32"), 4);
        return [y, before];
      },
    });
  });
  it("has the gradients of finite differences where a residual sum shares the gradient that is rotated back in place", () => {
    checkGradients({
      inputs: { x: { shape: [3, 8] }, other: { shape: [3, 8] } },
      run: ({ x, other }, engine) => {
        if (!x || !other) return [];
        const kept = scale(other, 0.5);
        return [add(rotated(x, engine, 4, 2, 1), kept)];
      },
    });
  });
  it("rotates the pair (j, j + half) by position times frequency", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const x = engine.from([1, 0, 0, 0, 0, 1, 0, 0], [2, 4], "f32");
        ropeInPlace(x, makeRopeTable(engine, Float32Array.of(1, 0.5), 4, 1), engine.from([2, 3], [2], "i32"), 4);
        const expected = [Math.cos(2), 0, Math.sin(2), 0, 0, Math.cos(1.5), 0, Math.sin(1.5)];
        x.toFloat32Array().forEach((value, i) => expect(value).toBeCloseTo(expected[i] ?? NaN, 6));
      }),
    );
  });
  it("is noticed by the tape when an earlier op saved the value for its own backward", () => {
    withEngine((engine) =>
      engine.scope(() => {
        using tape = new Tape(engine);
        const x = engine.zeros([1, 2], "f32");
        x.requiresGrad = true;
        const w = engine.zeros([2, 2], "f32");
        w.requiresGrad = true;
        const y = engine.withTape(tape, () => {
          const out = linear(x, w);
          ropeInPlace(x, makeRopeTable(engine, Float32Array.of(1), 4, 1), engine.from([1], [1], "i32"), 2);
          return out;
        });
        expect(() => tape.backward([{ value: y, grad: 1 }])).toThrow("changed in place");
      }),
    );
  });
  it("refuses a table for larger heads and positions of another length", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const table = makeRopeTable(engine, Float32Array.of(1, 1, 1), 4, 1);
        const positions = engine.zeros([2], "i32");
        expect(() => ropeInPlace(engine.zeros([2, 4], "f32"), table, positions, 4)).toThrow("ropeInPlace: table");
        expect(() => ropeInPlace(engine.zeros([3, 6], "f32"), table, positions, 6)).toThrow(
          "ropeInPlace: positions must be [3] i32, got [2] i32",
        );
      }),
    );
  });
});

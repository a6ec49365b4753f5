import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { checkGradients, withEngine } from "../../../test/gradcheck.ts";
import { Random } from "../../util/random.ts";
import { combine, dispatch, type DispatchOptions } from "./dispatch.ts";
import { groupedLinear } from "./linear.ts";

const indices = [2, 0, 0, 3, 2, 3, 0, 2];
const weights = [0.6, 0.4, 0.7, 0.3, 0.9, 0.1, 0.55, 0.45];

describe("dispatch and combine", () => {
  it.each([
    ["dropless", { numExperts: 4, capacities: null, dropBy: "position" }],
    ["capacity 2 by position", { numExperts: 4, capacities: [2], dropBy: "position" }],
    ["capacity 1 by probability", { numExperts: 5, capacities: [1], dropBy: "probability" }],
  ] satisfies [string, DispatchOptions][])("have the gradients of finite differences: %s", (_, options) => {
    checkGradients({
      inputs: { x: { shape: [4, 3] }, g: { shape: [4, 2], data: weights, bf16: false }, w: { shape: [options.numExperts, 2, 3] } },
      run: ({ x, g, w }, engine) => {
        if (!x || !g || !w) return [];
        // Fixed weights decide who is dropped, so that the choice does not move with the finite differences.
        const { rows, offsets, slotRow } = dispatch(x, engine.from(indices, [4, 2], "i32"), engine.from(weights, [4, 2], "f32"), options);
        return [combine(groupedLinear(rows, w, offsets), slotRow, g), rows];
      },
    });
  });
  it("sort assignments by expert, then token", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const x = engine.from([10, 20, 30, 40], [4, 1], "f32");
        const result = dispatch(x, engine.from(indices, [4, 2], "i32"), engine.from(weights, [4, 2], "f32"), {
          numExperts: 4,
          capacities: null,
          dropBy: "position",
        });
        expect([...result.offsets.toInt32Array()]).toEqual([0, 3, 3, 6, 8]);
        expect([...result.rowToken.toInt32Array()]).toEqual([0, 1, 3, 0, 2, 3, 1, 2]);
        expect([...result.rows.toFloat32Array()]).toEqual([10, 20, 40, 10, 30, 40, 20, 30]);
        expect([...result.slotRow.toInt32Array()]).toEqual([3, 0, 1, 6, 4, 7, 2, 5]);
        expect([...result.counts.toInt32Array()]).toEqual([3, 0, 3, 2]);
        expect(result.numRows).toBe(8);
      }),
    );
  });
  it("keep the largest weights, or the first tokens, under a capacity", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const x = engine.from([10, 20, 30, 40], [4, 1], "f32");
        const run = (dropBy: DispatchOptions["dropBy"]) =>
          dispatch(x, engine.from(indices, [4, 2], "i32"), engine.from(weights, [4, 2], "f32"), { numExperts: 4, capacities: [2], dropBy });
        // Expert 0 has tokens 0, 1, 3 with 0.4, 0.7, 0.55; expert 2 has 0, 2, 3 with 0.6, 0.9, 0.45.
        expect([...run("probability").rowToken.toInt32Array()]).toEqual([1, 3, 0, 2, 1, 2]);
        expect([...run("position").rowToken.toInt32Array()]).toEqual([0, 1, 0, 2, 1, 2]);
        expect([...run("position").counts.toInt32Array()]).toEqual([3, 0, 3, 2]);
      }),
    );
  });
  it("combine undoes dispatch: weights that sum to 1 give every token back", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 9 }), fc.integer({ min: 1, max: 5 }), fc.nat(), (T, E, seed) => {
        withEngine((engine) =>
          engine.scope(() => {
            const random = Random.keyed(seed);
            const k = Math.min(E, 2);
            const chosen = Array.from({ length: T }, () => random.shuffle(Array.from({ length: E }, (_, e) => e)).slice(0, k)).flat();
            const x = engine.from(random.fillNormal(new Float32Array(T * 3), 1), [T, 3], "f32");
            const half = engine.from(new Float32Array(T * k).fill(1 / k), [T, k], "f32");
            const { rows, slotRow, numRows } = dispatch(x, engine.from(chosen, [T, k], "i32"), half, {
              numExperts: E,
              capacities: null,
              dropBy: "position",
            });
            expect(numRows).toBe(T * k);
            expect([...combine(rows, slotRow, half).toFloat32Array()]).toEqual([...x.toFloat32Array()]);
          }),
        );
      }),
    );
  });
  it("refuse indices and weights of different shapes", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const x = engine.zeros([2, 3], "f32");
        const options = { numExperts: 2, capacities: null, dropBy: "position" } as const;
        expect(() => dispatch(x, engine.zeros([3, 2], "i32"), engine.zeros([3, 2], "f32"), options)).toThrow(
          "dispatch: indices must be [2, *] i32, got [3, 2] i32",
        );
        expect(() => dispatch(x, engine.zeros([2, 2], "i32"), engine.zeros([2, 1], "f32"), options)).toThrow(
          "dispatch: weights must be [2, 2] f32, got [2, 1] f32",
        );
        expect(() => combine(x, engine.zeros([2, 2], "i32"), engine.zeros([2, 1], "f32"))).toThrow(
          "combine: weights must be [2, 2] f32, got [2, 1] f32",
        );
      }),
    );
  });
});

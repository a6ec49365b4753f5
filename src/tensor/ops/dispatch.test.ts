import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { checkGradients, withEngine } from "../../../test/gradcheck.ts";
import { Random } from "../../util/random.ts";
import type { Engine } from "../engine.ts";
import { combine, dispatch, type DispatchOptions } from "./dispatch.ts";
import { groupedLinear } from "./linear.ts";

const indices = [2, 0, 0, 3, 2, 3, 0, 2];
const weights = [0.6, 0.4, 0.7, 0.3, 0.9, 0.1, 0.55, 0.45];

describe("dispatch and combine", () => {
  it.each([
    ["dropless", { numExperts: 4, capacities: null, dropBy: "position" }],
    ["capacity 2 by position", { numExperts: 4, capacities: [2], dropBy: "position" }],
    ["two groups, padded", { numExperts: 4, groupOffsets: [0, 1, 4], capacities: [1, 2], dropBy: "probability", pad: true }],
    ["capacity 1 by probability", { numExperts: 5, capacities: [1], dropBy: "probability" }],
  ] satisfies [string, DispatchOptions][])("have the gradients of finite differences: %s", (_, options) => {
    checkGradients({
      inputs: { x: { shape: [4, 3] }, g: { shape: [4, 2], data: weights, bf16: false }, w: { shape: [options.numExperts, 2, 3] } },
      run: ({ x, g, w }, engine) => {
        if (!x || !g || !w) return [];
        // Fixed weights decide who is dropped, so that the choice does not move with the finite differences.
        const chosen = engine.from(indices, [4, 2], "i32");
        const { rows, offsets, slotRow, padded } = dispatch(x, chosen, engine.from(weights, [4, 2], "f32"), options);
        return [combine(groupedLinear(rows, w, offsets), slotRow, g, { padded }), rows];
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

  interface Plan {
    readonly T: number;
    readonly E: number;
    readonly k: number;
    readonly chosen: readonly number[];
    readonly weights: Float32Array;
    readonly groupOffsets: readonly number[];
    readonly capacities: readonly number[];
    readonly dropBy: "probability" | "position";
  }
  /** Any number of tokens, groups and experts; some tokens take no part; weights with ties. */
  const plans = fc
    .record({
      sizes: fc.array(fc.integer({ min: 0, max: 12 }), { minLength: 1, maxLength: 4 }),
      E: fc.integer({ min: 1, max: 6 }),
      topK: fc.integer({ min: 1, max: 3 }),
      seed: fc.nat(),
      limit: fc.integer({ min: 0, max: 5 }),
      dropBy: fc.constantFrom("probability" as const, "position" as const),
    })
    .map(({ sizes, E, topK, seed, limit, dropBy }): Plan => {
      const random = Random.keyed(seed);
      const k = Math.min(topK, E);
      const T = sizes.reduce((sum, size) => sum + size, 0);
      const chosen = Array.from({ length: T }, () => {
        const experts = random.shuffle(Array.from({ length: E }, (_, e) => e)).slice(0, k);
        return random.uniform() < 0.2 ? experts.map(() => -1) : experts;
      }).flat();
      const groupOffsets = sizes.reduce<number[]>((starts, size) => [...starts, (starts.at(-1) ?? 0) + size], [0]);
      const weightsOf = Float32Array.from({ length: T * k }, () => (1 + random.integer(4)) / 8);
      return { T, E, k, chosen, weights: weightsOf, groupOffsets, capacities: sizes.map((_, g) => limit + g), dropBy };
    });
  const runPlan = (engine: Engine, plan: Plan, pad: boolean) => {
    const { T, E, k, chosen, groupOffsets, capacities, dropBy } = plan;
    const x = engine.from(
      Float32Array.from({ length: T }, (_, t) => t + 1),
      [T, 1],
      "f32",
    );
    const options = { numExperts: E, groupOffsets, capacities, dropBy, pad };
    return dispatch(x, engine.from(chosen, [T, k], "i32"), engine.from(plan.weights, [T, k], "f32"), options);
  };
  const onEngine = (check: (engine: Engine) => void): void => withEngine((engine) => engine.scope(() => check(engine)));

  it("count no token twice, drop exactly what exceeds each group's capacity, and keep what the rule says", () => {
    fc.assert(
      fc.property(plans, fc.boolean(), (plan, pad) => {
        onEngine((engine) => {
          const { T, E, k, chosen, groupOffsets, capacities, dropBy } = plan;
          const { rows, rowToken, slotRow, counts, offsets, numRows } = runPlan(engine, plan, pad);
          const [slots, tokens, starts] = [slotRow.toInt32Array(), rowToken.toInt32Array(), offsets.toInt32Array()];
          const used = [...slots].filter((row) => row >= 0);
          expect(new Set(used).size).toBe(used.length);
          expect(tokens.filter((token) => token >= 0).length).toBe(used.length);
          expect(pad ? numRows : used.length).toBe(starts[E]);
          expect([...rows.toFloat32Array()]).toEqual([...tokens].map((token) => token + 1));
          for (const [slot, row] of slots.entries()) {
            if (row < 0) continue;
            expect(tokens[row]).toBe(Math.floor(slot / k));
            const e = chosen[slot] ?? -1;
            expect(row >= (starts[e] ?? NaN) && row < (starts[e + 1] ?? NaN)).toBe(true);
          }
          const before = (a: number, b: number): number =>
            (dropBy === "probability" ? (plan.weights[b] ?? 0) - (plan.weights[a] ?? 0) : 0) || a - b;
          for (const [g, capacity] of capacities.entries()) {
            const inGroup = Array.from({ length: T * k }, (_, slot) => slot).filter(
              (slot) => slot >= (groupOffsets[g] ?? 0) * k && slot < (groupOffsets[g + 1] ?? 0) * k,
            );
            for (let e = 0; e < E; e++) {
              const wanting = inGroup.filter((slot) => chosen[slot] === e);
              expect(counts.toInt32Array()[g * E + e]).toBe(wanting.length);
              const kept = wanting.filter((slot) => (slots[slot] ?? -1) >= 0);
              expect(kept).toEqual(
                wanting
                  .toSorted(before)
                  .slice(0, capacity)
                  .sort((a, b) => a - b),
              );
            }
          }
        });
      }),
    );
  });
  it("treat every group as if it were alone", () => {
    fc.assert(
      fc.property(plans, (plan) => {
        onEngine((engine) => {
          const { k, E } = plan;
          const whole = runPlan(engine, plan, false);
          const kept = [...whole.slotRow.toInt32Array()].map((row) => row >= 0);
          for (const [g, capacity] of plan.capacities.entries()) {
            const [start = 0, end = 0] = plan.groupOffsets.slice(g, g + 2);
            const slice = { chosen: plan.chosen.slice(start * k, end * k), weights: plan.weights.slice(start * k, end * k) };
            const alone = runPlan(
              engine,
              { ...plan, ...slice, T: end - start, groupOffsets: [0, end - start], capacities: [capacity] },
              false,
            );
            expect([...alone.slotRow.toInt32Array()].map((row) => row >= 0)).toEqual(kept.slice(start * k, end * k));
            expect([...alone.counts.toInt32Array()]).toEqual([...whole.counts.toInt32Array().subarray(g * E, (g + 1) * E)]);
          }
        });
      }),
    );
  });
  it("padding changes no kept row, and adds rows of zeros", () => {
    fc.assert(
      fc.property(plans, (plan) => {
        onEngine((engine) => {
          const [bare, padded] = [runPlan(engine, plan, false), runPlan(engine, plan, true)];
          const tokens = padded.rowToken.toInt32Array();
          expect([...tokens].filter((token) => token >= 0)).toEqual([...bare.rowToken.toInt32Array()]);
          const perExpert = plan.capacities.reduce((sum, capacity) => sum + capacity, 0);
          expect([...padded.offsets.toInt32Array()]).toEqual(Array.from({ length: plan.E + 1 }, (_, e) => e * perExpert));
        });
      }),
    );
  });
  it("refuse capacities that do not fit the groups, and padding without them", () => {
    onEngine((engine) => {
      const [x, chosen, w] = [engine.zeros([2, 3], "f32"), engine.zeros([2, 1], "i32"), engine.zeros([2, 1], "f32")];
      const run = (options: Partial<DispatchOptions>) => () =>
        dispatch(x, chosen, w, { numExperts: 2, capacities: [1], dropBy: "position", ...options });
      expect(run({ groupOffsets: [0, 1, 2] })).toThrow(
        "dispatch: capacities must be an integer of at least 0 for each of 2 groups, got [1]",
      );
      expect(run({ groupOffsets: [0, 1] })).toThrow("dispatch: groupOffsets must be ascending from 0 to 2, got [0, 1]");
      expect(run({ capacities: null, pad: true })).toThrow("dispatch: pad must be false without capacities, got true");
    });
  });
});

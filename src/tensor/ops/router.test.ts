import { describe, expect, it } from "vitest";
import { checkGradients, withEngine } from "../../../test/gradcheck.ts";
import { router, type RouterOptions } from "./router.ts";

// Far enough apart that a finite difference does not change the choice.
const logits = [0.3, -0.8, 1.4, 0.9, -1.6, 2.1, 0.2, -0.4, 1.2, 3.1, -2.2, 0.7, -0.1, 1.7, 2.5];
const inputs = { logits: { shape: [3, 5], data: logits, bf16: false } };

describe("router", () => {
  it.each([
    ["softmax, top 1", 1, null],
    ["softmax, top 2", 2, null],
    ["softmax, all experts", 5, null],
    ["normalized logits", 2, { lambda: 1, epsilon: 1e-5, unbiased: true }],
    ["normalized logits, lambda 2, biased", 3, { lambda: 2, epsilon: 0.1, unbiased: false }],
  ])("has the gradients of finite differences from weights and probs: %s", (_, topK, normalization) => {
    const route = { topK, normalization };
    const check = { inputs, bf16Tolerance: null };
    checkGradients({ ...check, run: ({ logits: z }) => (z ? [router(z, route).weights] : []) });
    checkGradients({ ...check, run: ({ logits: z }) => (z ? [router(z, route).probs] : []) });
    checkGradients({
      ...check,
      run: ({ logits: z }) => {
        if (!z) return [];
        const { weights, probs } = router(z, route);
        return [weights, probs];
      },
    });
  });
  const modes = (["softmax", "softmaxOfTopK", "sigmoid"] as const).flatMap((scoring) =>
    [null, { lambda: 1.5, epsilon: 1e-3, unbiased: false }].flatMap((normalization) =>
      [true, false].map((renormalize) => ({ scoring, normalization, renormalize })),
    ),
  );
  it.each(modes)("has the gradients of finite differences in every mode: %j", (mode) => {
    checkGradients({
      inputs: { logits: { shape: [3, 6], data: [...logits, 0.6, -0.5, 1.9], bf16: false } },
      bf16Tolerance: null,
      run: ({ logits: z }, engine) => {
        if (!z) return [];
        // Decides by itself, whatever the unit of the scores is: a finite difference must not change the choice.
        const bias = engine.from([0, 5, 0, 0, 0, 5], [6], "f32");
        const valid = engine.from([1, 0, 1], [3], "i32");
        const { weights, probs } = router(z, { topK: 2, ...mode, scale: 2.5, groups: { numGroups: 3, topGroups: 2 }, bias, valid });
        return [weights, probs];
      },
    });
  });
  it("chooses the largest probabilities and divides them by their sum", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const { probs, weights, indices } = router(engine.from(logits, [3, 5], "f32"), { topK: 2, normalization: null });
        expect([...indices.toInt32Array()]).toEqual([2, 3, 4, 0, 4, 3]);
        const row = logits.slice(0, 5).map(Math.exp);
        expect(probs.toFloat32Array()[2]).toBeCloseTo((row[2] ?? NaN) / row.reduce((sum, value) => sum + value, 0), 6);
        expect(weights.toFloat32Array()[0]).toBeCloseTo(1 / (1 + Math.exp(0.9 - 1.4)), 6);
      }),
    );
  });
  it("standardizes logits before the softmax (arXiv 2406.06563, section 4.1)", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const { probs } = router(engine.from([1, 2, 3, 6], [1, 4], "f32"), {
          topK: 1,
          normalization: { lambda: 2, epsilon: 0, unbiased: true },
        });
        // Mean 3, unbiased variance (4 + 1 + 0 + 9) / 3.
        const z = [-2, -1, 0, 3].map((value) => Math.exp((2 * value) / Math.sqrt(14 / 3)));
        const total = z.reduce((sum, value) => sum + value, 0);
        probs.toFloat32Array().forEach((value, j) => expect(value).toBeCloseTo((z[j] ?? NaN) / total, 6));
      }),
    );
  });
  it("refuses logits in bf16 and more choices than experts", () => {
    withEngine((engine) =>
      engine.scope(() => {
        expect(() => router(engine.zeros([2, 4], "bf16"), { topK: 1, normalization: null })).toThrow(
          "router: logits must be [*, *] f32, got [2, 4] bf16",
        );
        expect(() => router(engine.zeros([2, 4], "f32"), { topK: 5, normalization: null })).toThrow(
          "router: topK must be 1 to 4 for 4 experts, got 5",
        );
      }),
    );
  });

  const route = (values: readonly number[], E: number, options: Partial<RouterOptions>) =>
    withEngine((engine) =>
      engine.scope(() => {
        const bias = options.bias === undefined ? null : engine.from(selectionBias, [E], "f32");
        const valid = options.valid === undefined ? null : engine.from([1, 0, 1], [3], "i32");
        const T = values.length / E;
        const output = router(engine.from(values, [T, E], "f32"), { topK: 2, normalization: null, ...options, bias, valid });
        return {
          indices: [...output.indices.toInt32Array()],
          weights: [...output.weights.toFloat32Array()],
          probs: [...output.probs.toFloat32Array()],
        };
      }),
    );
  const selectionBias = [0, 0, 0, 1];
  const sigmoid = (z: number): number => 1 / (1 + Math.exp(-z));
  const expectNear = (got: readonly number[], expected: readonly number[]): void => {
    expect(got.length).toBe(expected.length);
    expected.forEach((value, i) => expect(got[i]).toBeCloseTo(value, 6));
  };

  it("scores by sigmoids, of which the losses see the shares", () => {
    const z = [2, -1, 0.5, -3];
    const s = z.map(sigmoid);
    const [chosen, all] = [(s[0] ?? 0) + (s[2] ?? 0), s.reduce((sum, value) => sum + value, 0)];
    const { indices, weights, probs } = route(z, 4, { scoring: "sigmoid", scale: 2 });
    expect(indices).toEqual([0, 2]);
    expectNear(weights, [(2 * (s[0] ?? 0)) / chosen, (2 * (s[2] ?? 0)) / chosen]);
    expectNear(
      probs,
      s.map((value) => value / all),
    );
    expectNear(route(z, 4, { scoring: "sigmoid", renormalize: false }).weights, [s[0] ?? 0, s[2] ?? 0]);
  });
  it("softmax of the top k and the renormalized softmax have the same weights and other probabilities", () => {
    const [all, chosen] = [route(logits, 5, {}), route(logits, 5, { scoring: "softmaxOfTopK" })];
    expect(chosen.indices).toEqual(all.indices);
    expectNear(chosen.weights, all.weights);
    const row = chosen.probs.slice(0, 5);
    expect(row.filter((p) => p !== 0)).toEqual([chosen.weights[0], chosen.weights[1]]);
  });
  it("lets a bias choose but not weigh", () => {
    const { indices, weights } = route([1, 0.5, 0, 0], 4, { scoring: "sigmoid", renormalize: false, bias: null });
    expect(indices).toEqual([3, 0]);
    expectNear(weights, [sigmoid(0), sigmoid(1)]);
  });
  it("chooses among the experts of the best groups, by the sum of a group's two best", () => {
    // Groups {0,1}, {2,3}, {4,5}: sums 5, 6, 5.5; the largest score is in the group that is left out.
    const z = [5, 0, 3.1, 2.9, 3, 2.5].map((value) => value / 10);
    expect(route(z, 6, { scoring: "softmaxOfTopK", groups: { numGroups: 3, topGroups: 2 } }).indices).toEqual([2, 4]);
    expect(route(z, 6, { scoring: "softmaxOfTopK", groups: { numGroups: 6, topGroups: 3 } }).indices).toEqual([0, 2]);
    expect(route([0, 0, 0, 0, 0, 0], 6, { groups: { numGroups: 3, topGroups: 1 } }).indices).toEqual([0, 1]);
    expect(() => route(z, 6, { groups: { numGroups: 4, topGroups: 1 } })).toThrow("router: groups must be numGroups dividing 6 experts");
    expect(() => route(z, 6, { topK: 3, groups: { numGroups: 3, topGroups: 1 } })).toThrow("at least 3 experts");
  });
  it("gives tokens that take no part nothing", () => {
    const { indices, weights, probs } = route(logits.slice(0, 12), 4, { valid: null });
    expect(indices.slice(2, 4)).toEqual([-1, -1]);
    expect([...weights.slice(2, 4), ...probs.slice(4, 8)]).toEqual([0, 0, 0, 0, 0, 0]);
    expect(indices[4]).toBeGreaterThanOrEqual(0);
  });
  it("forces a balance: experts in turn, with their own scores", () => {
    const { indices, weights } = route(logits, 5, { forced: true });
    expect(indices).toEqual([0, 1, 2, 3, 4, 0]);
    const [a = 0, b = 0] = logits.map(Math.exp);
    expect(weights[0]).toBeCloseTo(a / (a + b), 6);
  });
  it.each(["softmax", "softmaxOfTopK", "sigmoid"] as const)("breaks ties to the lower index, and puts NaN last: %s", (scoring) => {
    expect(route([1, 2, 2, 1, 2], 5, { scoring, topK: 4 }).indices).toEqual([1, 2, 4, 0]);
    const withNaN = route([NaN, 1, NaN, 2, 0], 5, { scoring, topK: 4 }).indices;
    // One NaN makes the whole softmax NaN; elsewhere numbers come first.
    expect(withNaN).toEqual(scoring === "softmax" ? [0, 1, 2, 3] : [3, 1, 4, 0]);
    expect(route([NaN, NaN, NaN], 3, { scoring, groups: { numGroups: 3, topGroups: 2 } }).indices).toEqual([0, 1]);
  });
  it("takes equal logits, normalized without an epsilon, as undecided rather than as NaN", () => {
    const { probs, weights } = route([3, 3, 3, 3], 4, { normalization: { lambda: 1, epsilon: 0, unbiased: true } });
    expect(probs).toEqual([0.25, 0.25, 0.25, 0.25]);
    expect(weights).toEqual([0.5, 0.5]);
  });
});

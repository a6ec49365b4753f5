import { describe, expect, it } from "vitest";
import { checkGradients, withEngine } from "../../../test/gradcheck.ts";
import { balanceLoss, routerStatistics, sequenceLoss, switchLoss, zLoss } from "./balance.ts";
import { router } from "./router.ts";

const probs = [0.5, 0.2, 0.3, 0.1, 0.6, 0.3, 0.7, 0.2, 0.1, 0.25, 0.25, 0.5];
const inputs = { probs: { shape: [4, 3], data: probs, bf16: false } };

describe("balanceLoss", () => {
  it("has the gradients of finite differences, in one group and in several", () => {
    checkGradients({ inputs, bf16Tolerance: null, run: ({ probs: g }) => (g ? [balanceLoss(g)] : []) });
    checkGradients({ inputs, bf16Tolerance: null, run: ({ probs: g }) => (g ? [balanceLoss(g, { groupOffsets: [0, 1, 1, 4] })] : []) });
  });
  it("passes its gradient through the router", () => {
    checkGradients({
      inputs: { logits: { shape: [3, 4], bf16: false } },
      bf16Tolerance: null,
      run: ({ logits }) =>
        logits ? [balanceLoss(router(logits, { topK: 1, normalization: { lambda: 1, epsilon: 1e-3, unbiased: true } }).probs)] : [],
    });
  });
  it("is the sum of squared differences of the mean probabilities from 1/E (arXiv 2406.06563, equation 4)", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const means = [1.55 / 4, 1.25 / 4, 1.2 / 4];
        const expected = means.reduce((sum, mean) => sum + (1 / 3 - mean) ** 2, 0);
        expect(balanceLoss(engine.from(probs, [4, 3], "f32")).item()).toBeCloseTo(expected, 7);
      }),
    );
  });
  it("of groups is the sum of the losses of each group alone", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const all = engine.from(probs, [4, 3], "f32");
        const parts = balanceLoss(all.rows(0, 1)).item() + balanceLoss(all.rows(1, 4)).item();
        expect(balanceLoss(all, { groupOffsets: [0, 1, 4] }).item()).toBeCloseTo(parts, 6);
        expect(() => balanceLoss(all, { groupOffsets: [0, 3] })).toThrow(
          "balanceLoss: groupOffsets must be ascending from 0 to 4, got [0, 3]",
        );
      }),
    );
  });
});

describe("switchLoss", () => {
  it("has the gradients of finite differences, in one group and in several", () => {
    checkGradients({
      inputs,
      bf16Tolerance: null,
      run: ({ probs: g }, engine) => (g ? [switchLoss(g, engine.from([5, 1, 2], [3], "i32"))] : []),
    });
    checkGradients({
      inputs,
      bf16Tolerance: null,
      run: ({ probs: g }, engine) =>
        g ? [switchLoss(g, engine.from([2, 0, 0, 3, 1, 2], [2, 3], "i32"), { groupOffsets: [0, 1, 4] })] : [],
    });
  });
  it("is E times the dot product of assignment fractions and mean probabilities, and 1 in perfect balance", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const g = engine.from(probs, [4, 3], "f32");
        const expected = 3 * ((5 / 8) * (1.55 / 4) + (1 / 8) * (1.25 / 4) + (2 / 8) * (1.2 / 4));
        expect(switchLoss(g, engine.from([5, 1, 2], [3], "i32")).item()).toBeCloseTo(expected, 6);
        const uniform = engine.from(new Float32Array(8).fill(0.25), [2, 4], "f32");
        expect(switchLoss(uniform, engine.from([1, 1, 1, 1], [4], "i32")).item()).toBeCloseTo(1, 6);
        expect(() => switchLoss(g, engine.zeros([2], "i32"))).toThrow("switchLoss: counts must be [1, 3] i32, got [2] i32");
      }),
    );
  });
});

describe("tokens that take no part", () => {
  it("count in no mean: the loss is that of the others alone", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const g = engine.from([...probs.slice(0, 3), 0, 0, 0, ...probs.slice(6, 12)], [4, 3], "f32");
        const others = engine.from([...probs.slice(0, 3), ...probs.slice(6, 12)], [3, 3], "f32");
        const valid = engine.from([1, 0, 1, 1], [4], "i32");
        const counts = engine.from([3, 1, 2], [3], "i32");
        expect(balanceLoss(g, { valid }).item()).toBe(balanceLoss(others).item());
        expect(switchLoss(g, counts, { valid }).item()).toBe(switchLoss(others, counts).item());
        expect(balanceLoss(g, { valid: engine.zeros([4], "i32") }).item()).toBe(0);
      }),
    );
  });
});

describe("sequenceLoss", () => {
  const indices = [0, 2, 1, 2, 0, 1, 2, 0];
  it("has the gradients of finite differences", () => {
    checkGradients({
      inputs,
      bf16Tolerance: null,
      run: ({ probs: g }, engine) => (g ? [sequenceLoss(g, engine.from(indices, [4, 2], "i32"), { groupOffsets: [0, 2, 4] })] : []),
    });
  });
  it("is the sum of the Switch losses of the sequences", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const g = engine.from(probs, [4, 3], "f32");
        const chosen = engine.from(indices, [4, 2], "i32");
        const counts = engine.from([1, 1, 2, 2, 1, 1], [2, 3], "i32");
        const groupOffsets = [0, 2, 4];
        expect(sequenceLoss(g, chosen, { groupOffsets }).item()).toBe(switchLoss(g, counts, { groupOffsets }).item());
      }),
    );
  });
});

describe("zLoss", () => {
  const logits = { logits: { shape: [4, 3], bf16: false } };
  it("has the gradients of finite differences, with and without tokens that take no part", () => {
    checkGradients({ inputs: logits, bf16Tolerance: null, run: ({ logits: z }) => (z ? [zLoss(z, { scale: 0.5 })] : []) });
    checkGradients({
      inputs: logits,
      bf16Tolerance: null,
      run: ({ logits: z }, engine) => (z ? [zLoss(z, { valid: engine.from([1, 0, 1, 0], [4], "i32") })] : []),
    });
  });
  it("is the sum of squared logsumexps (arXiv 2202.08906, equation 5)", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const z = engine.from([0, 0, Math.log(2), 5], [2, 2], "f32");
        expect(zLoss(z, { scale: 3 }).item()).toBeCloseTo(3 * (Math.log(2) ** 2 + Math.log(2 + Math.exp(5)) ** 2), 4);
      }),
    );
  });
});

describe("routerStatistics", () => {
  it("sums ratios of the largest probabilities and the entropy over the tokens", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const g = engine.from([0.5, 0.2, 0.3, 0, 0, 0, 0.25, 0.25, 0.5], [3, 3], "f32");
        const { max1OverMax2, max2OverMax3, gateEntropy } = routerStatistics(g);
        expect(max1OverMax2).toBeCloseTo(5 / 3 + 2, 6);
        expect(max2OverMax3).toBeCloseTo(1.5 + 1, 6);
        const entropy = (p: number[]): number => p.reduce((sum, value) => sum - value * Math.log(value), 0);
        expect(gateEntropy).toBeCloseTo(entropy([0.5, 0.2, 0.3]) + entropy([0.25, 0.25, 0.5]), 6);
        // One expert has no second: the denominator is 1e-20.
        expect(routerStatistics(engine.from([1], [1, 1], "f32")).max1OverMax2).toBeCloseTo(1e20, -15);
      }),
    );
  });
});

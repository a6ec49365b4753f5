import { describe, expect, it } from "vitest";
import { checkGradients, withEngine } from "../../../test/gradcheck.ts";
import { balanceLoss, switchLoss } from "./balance.ts";
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

import { describe, expect, it } from "vitest";
import { checkGradients, withEngine } from "../../../test/gradcheck.ts";
import { router } from "./router.ts";

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
});

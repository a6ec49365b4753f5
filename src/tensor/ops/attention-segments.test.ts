import { expect, test } from "vitest";
import { checkGradients, withEngine } from "../../../test/gradcheck.ts";
import { Tape } from "../tape.ts";
import { attentionSegments } from "./attention-segments.ts";

const D = 4;
/** 1 query head on the first key head, 4 on the next two, 1 on the last. */
const segments = [
  { numHeads: 1, numKvHeads: 1 },
  { numHeads: 4, numKvHeads: 2 },
  { numHeads: 1, numKvHeads: 1 },
];

test("query heads that are spread unevenly over their key heads have the gradients of finite differences", () => {
  checkGradients({
    inputs: { q: { shape: [3, 6 * D] }, k: { shape: [3, 4 * D] }, v: { shape: [3, 4 * D] } },
    run: ({ q, k, v }, engine) => {
      if (!q || !k || !v) return [];
      const [keyBase, keyEnd] = [engine.from([0, 0, 0], [3], "i32"), engine.from([1, 2, 3], [3], "i32")];
      return [attentionSegments(q, k, v, segments, { headDim: D, window: 0, keyBase, keyEnd, scale: 0.5 })];
    },
  });
});
test("without a tape the bits are the same", () => {
  withEngine((engine) =>
    engine.scope(() => {
      const values = (size: number): number[] => Array.from({ length: size }, (_, i) => Math.sin(i * 1.3));
      const [q, k, v] = [6, 4, 4].map((heads) => engine.from(values(3 * heads * D), [3, heads * D], "f32"));
      if (!q || !k || !v) return;
      const [keyBase, keyEnd] = [engine.from([0, 0, 0], [3], "i32"), engine.from([1, 2, 3], [3], "i32")];
      const options = { headDim: D, window: 0, keyBase, keyEnd, scale: 0.5 };
      const plain = attentionSegments(q, k, v, segments, options).toFloat32Array();
      q.requiresGrad = true;
      using tape = new Tape(engine);
      const recorded = engine.withTape(tape, () => attentionSegments(q, k, v, segments, options));
      expect(recorded.toFloat32Array()).toEqual(plain);
    }),
  );
});

import fc from "fast-check";
import { expect, test } from "vitest";
import { createReferenceBackend } from "../../backend/reference/index.ts";
import { Engine, type Tensor } from "../../tensor/index.ts";
import { Random } from "../../util/random.ts";
import { FeedForward } from "../feed-forward.ts";
import { Linear } from "../linear.ts";
import { MoeBlock } from "./block.ts";
import { droppedAssignments, expertCapacity } from "./context.ts";
import { Experts } from "./experts.ts";
import { Router, type RouterSettings } from "./router.ts";

const [H, F, E] = [6, 5, 4];

function normal(engine: Engine, random: Random, ...shape: number[]): Tensor {
  const size = shape.reduce((n, s) => n * s, 1);
  return engine.from(random.fillNormal(new Float32Array(size), 0.6), shape, "f32");
}
function randomBlock(engine: Engine, seed: number, settings: Partial<RouterSettings> = {}, inputScale = 1): MoeBlock {
  const random = new Random(seed);
  const router = new Router(
    { gate: new Linear(normal(engine, random, E, H)), hidden: null, selectionBias: null },
    {
      topK: 2,
      normalization: { lambda: 1, eps: 0, unbiased: true },
      scoring: "softmax",
      renormalize: true,
      routedScale: 1,
      groups: null,
      ...settings,
    },
  );
  return new MoeBlock(
    router,
    new Experts(normal(engine, random, E, F, H), normal(engine, random, E, F, H), normal(engine, random, E, H, F)),
    { inputScale },
  );
}
function onEngine(fn: (engine: Engine) => void): void {
  using engine = new Engine(createReferenceBackend());
  engine.scope(() => {
    fn(engine);
  });
  expect(engine.backend.liveBytes).toBe(0);
}
function largestGap(a: Float32Array, b: Float32Array): number {
  return a.reduce((gap, value, i) => Math.max(gap, Math.abs(value - (b[i] ?? Number.NaN))), 0);
}

test("a layer of equal experts is the dense network, whatever the router says", () => {
  onEngine((engine) => {
    const random = new Random(5);
    const [gate, up, down] = [normal(engine, random, F, H), normal(engine, random, F, H), normal(engine, random, H, F)];
    const dense = new FeedForward(new Linear(gate), new Linear(up), new Linear(down));
    const copies = (w: Tensor): Tensor =>
      engine.from(Array.from({ length: E }, () => [...w.toFloat32Array()]).flat(), [E, ...w.shape], "f32");
    const { router } = randomBlock(engine, 6);
    const block = new MoeBlock(router, new Experts(copies(gate), copies(up), copies(down)));
    const x_TH = normal(engine, random, 9, H);
    const expected = dense.forward(x_TH).toFloat32Array();
    expect(largestGap(block.forward(x_TH).y_TH.toFloat32Array(), expected)).toBeLessThan(1e-6);
  });
});

test("each token is the weighted sum of its experts, one by one", () => {
  onEngine((engine) => {
    const block = randomBlock(engine, 1);
    const x_TH = normal(engine, new Random(2), 7, H);
    const { y_TH, routing } = block.forward(x_TH);
    const [y, indices, weights] = [y_TH.toFloat32Array(), routing.indices_TK.toInt32Array(), routing.weights_TK.toFloat32Array()];
    const { gate_EFH, up_EFH, down_EHF } = block.experts;
    for (let t = 0; t < 7; t++) {
      const sum = new Float64Array(H);
      for (let j = 0; j < 2; j++) {
        const e = indices[2 * t + j] ?? -1;
        const one = (w: Tensor): Linear => new Linear(w.rows(e, e + 1).view(w.dim(1), w.dim(2)));
        const expert = new FeedForward(one(gate_EFH), one(up_EFH), one(down_EHF));
        const out = expert.forward(x_TH.rows(t, t + 1)).toFloat32Array();
        for (let h = 0; h < H; h++) sum[h] = (sum[h] ?? 0) + (weights[2 * t + j] ?? 0) * (out[h] ?? 0);
      }
      expect(largestGap(y.subarray(t * H, (t + 1) * H), Float32Array.from(sum))).toBeLessThan(1e-6);
    }
  });
});

test("normalized logits have the standard deviation lambda", () => {
  onEngine((engine) => {
    for (const [lambda, unbiased] of [
      [1, true],
      [2, true],
      [0.5, false],
    ] as const) {
      const block = randomBlock(engine, 3, { normalization: { lambda, eps: 0, unbiased } });
      const probs = block.forward(normal(engine, new Random(4), 5, H)).routing.probs_TE.toFloat32Array();
      for (let t = 0; t < 5; t++) {
        // The softmax keeps differences of logits: log p is the normalized logit up to a constant.
        const logs = Array.from(probs.subarray(t * E, (t + 1) * E), Math.log);
        const mean = logs.reduce((sum, value) => sum + value, 0) / E;
        const squares = logs.reduce((sum, value) => sum + (value - mean) ** 2, 0);
        expect(Math.sqrt(squares / (unbiased ? E - 1 : E))).toBeCloseTo(lambda, 4);
      }
    }
  });
});

test("a capacity drops what exceeds it and counts stay those before dropping", () => {
  onEngine((engine) => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 20 }),
        fc.double({ min: 0.1, max: 2, noNaN: true }),
        fc.constantFrom("probability", "position"),
        (T, factor, dropBy) => {
          engine.scope(() => {
            const block = randomBlock(engine, T);
            const x_TH = normal(engine, new Random(T + 100), T, H);
            const whole = block.forward(x_TH);
            const limited = block.forward(x_TH, { capacity: { factor, dropBy, pad: T % 2 === 0 } });
            expect(limited.routing.counts_GE.toInt32Array()).toEqual(whole.routing.counts_GE.toInt32Array());
            const dropped = droppedAssignments(whole.routing.counts_GE.toInt32Array(), Math.max(1, expertCapacity(factor, 2, T, E)));
            const gap = largestGap(limited.y_TH.toFloat32Array(), whole.y_TH.toFloat32Array());
            expect(gap === 0).toBe(dropped === 0);
          });
        },
      ),
      { numRuns: 60 },
    );
  });
});

test("counts sum to the assignments and an input scale reaches the experts but not the router", () => {
  onEngine((engine) => {
    const x_TH = normal(engine, new Random(8), 11, H);
    const [plain, scaled] = [randomBlock(engine, 9).forward(x_TH), randomBlock(engine, 9, {}, 2).forward(x_TH)];
    expect(plain.routing.counts_GE.toInt32Array().reduce((sum, count) => sum + count, 0)).toBe(22);
    expect(scaled.routing.probs_TE.toFloat32Array()).toEqual(plain.routing.probs_TE.toFloat32Array());
    expect(largestGap(scaled.y_TH.toFloat32Array(), plain.y_TH.toFloat32Array())).toBeGreaterThan(0.01);
  });
});

test("capacity is the fair share times the factor, rounded up", () => {
  expect(expertCapacity(1, 2, 8, 4)).toBe(4);
  expect(expertCapacity(1.25, 2, 7, 4)).toBe(5);
  expect(droppedAssignments([5, 0, 3], 2)).toBe(4);
});

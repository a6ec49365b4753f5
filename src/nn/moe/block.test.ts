import fc from "fast-check";
import { expect, test } from "vitest";
import { createReferenceBackend } from "../../backend/reference/index.ts";
import { Engine, type Tensor } from "../../tensor/index.ts";
import { Random } from "../../util/random.ts";
import { FeedForward } from "../feed-forward.ts";
import { Linear } from "../linear.ts";
import { MoeBlock, type Routing } from "./block.ts";
import { droppedAssignments, droppedPerGroup, expertCapacity } from "./context.ts";
import { Experts } from "./experts.ts";
import { Router, type RouterSettings } from "./router.ts";
import { SharedExpert } from "./shared.ts";

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

/** Sum over each token's choices (t, j) that are `kept` of weight times expert, one expert at a time: [T, H]. */
function oneByOne({ experts }: MoeBlock, x_TH: Tensor, { indices_TK, weights_TK }: Routing, kept: (slot: number) => boolean): Float32Array {
  const [indices, weights] = [indices_TK.toInt32Array(), weights_TK.toFloat32Array()];
  const [T, K] = [indices_TK.dim(0), indices_TK.dim(1)];
  const sum = new Float64Array(T * H);
  for (const [slot, e] of indices.entries()) {
    if (!kept(slot)) continue;
    const t = Math.floor(slot / K);
    const one = (w: Tensor): Linear => new Linear(w.rows(e, e + 1).view(w.dim(1), w.dim(2)));
    const expert = new FeedForward(one(experts.gate_EFH), one(experts.up_EFH), one(experts.down_EHF));
    const out = expert.forward(x_TH.rows(t, t + 1)).toFloat32Array();
    for (let h = 0; h < H; h++) sum[t * H + h] = (sum[t * H + h] ?? 0) + (weights[slot] ?? 0) * (out[h] ?? 0);
  }
  return Float32Array.from(sum);
}

test("each token is the weighted sum of its experts, one by one", () => {
  onEngine((engine) => {
    const block = randomBlock(engine, 1);
    const x_TH = normal(engine, new Random(2), 7, H);
    const { y_TH, routing } = block.forward(x_TH);
    expect(
      largestGap(
        y_TH.toFloat32Array(),
        oneByOne(block, x_TH, routing, () => true),
      ),
    ).toBeLessThan(1e-6);
  });
});

test.each(["probability", "position"] as const)(
  "what is kept of a token keeps its weight: it was divided before dropping (%s)",
  (dropBy) => {
    onEngine((engine) => {
      const block = randomBlock(engine, 3);
      const x_TH = normal(engine, new Random(4), 12, H);
      const { y_TH, routing } = block.forward(x_TH, { capacity: { factor: 0.5, dropBy, pad: false } });
      const [indices, weights] = [routing.indices_TK.toInt32Array(), routing.weights_TK.toFloat32Array()];
      for (let t = 0; t < 12; t++) expect((weights[2 * t] ?? 0) + (weights[2 * t + 1] ?? 0)).toBeCloseTo(1, 6);
      // Capacity 0.5 * 2 * 12 / 4 = 3.
      const kept = new Set<number>();
      for (let e = 0; e < E; e++) {
        const wanting = [...indices.keys()].filter((slot) => indices[slot] === e);
        if (dropBy === "probability") wanting.sort((a, b) => (weights[b] ?? 0) - (weights[a] ?? 0) || a - b);
        for (const slot of wanting.slice(0, 3)) kept.add(slot);
      }
      const halfDropped = Array.from({ length: 12 }, (_, t) => Number(kept.has(2 * t)) + Number(kept.has(2 * t + 1)));
      expect(halfDropped).toContain(1);
      expect(
        largestGap(
          y_TH.toFloat32Array(),
          oneByOne(block, x_TH, routing, (slot) => kept.has(slot)),
        ),
      ).toBeLessThan(1e-6);
    });
  },
);

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

test("capacity is the fair share times the factor, rounded up, from one token to all", () => {
  expect(expertCapacity(1, 2, 8, 4)).toBe(4);
  expect(expertCapacity(1.25, 2, 7, 4)).toBe(5);
  expect([5e-324, 0.1, 1e18, 1e308].map((factor) => expertCapacity(factor, 2, 8, 4))).toEqual([1, 1, 8, 8]);
  expect(expertCapacity(1, 2, 0, 4)).toBe(0);
  expect(droppedAssignments([5, 0, 3], 2)).toBe(4);
});

/** A block with everything: two-layer gate, bias, groups, shared expert. */
function fullBlock(engine: Engine, seed: number, settings: Partial<RouterSettings> = {}): MoeBlock {
  const random = new Random(seed);
  const hidden = new Linear(normal(engine, random, 8 * E, H));
  const selectionBias = engine.from([0.1, 0, -0.1, 0], [E], "f32");
  const plain = randomBlock(engine, seed, settings);
  const router = new Router({ gate: new Linear(normal(engine, random, E, 8 * E)), hidden, selectionBias }, plain.router.settings);
  const network = new FeedForward(
    new Linear(normal(engine, random, F, H)),
    new Linear(normal(engine, random, F, H)),
    new Linear(normal(engine, random, H, F)),
  );
  return new MoeBlock(router, plain.experts, { sharedExpert: new SharedExpert(network, new Linear(normal(engine, random, 1, H)), 0.5) });
}
const everyScoring: readonly Partial<RouterSettings>[] = [
  {},
  { scoring: "softmaxOfTopK", normalization: null },
  { scoring: "sigmoid", groups: { numGroups: 2, topGroups: 1 }, routedScale: 2.5 },
];
const dropBys = ["probability", "position"] as const;

test("the shared expert is added: constant times sigmoid of its logit times its network", () => {
  onEngine((engine) => {
    const block = fullBlock(engine, 3);
    const x_TH = normal(engine, new Random(4), 5, H);
    const routed = new MoeBlock(block.router, block.experts).forward(x_TH).y_TH.toFloat32Array();
    const shared = block.sharedExpert;
    if (shared?.gate == null) throw new Error("no shared expert");
    const network = shared.network.forward(x_TH).toFloat32Array();
    const logits = shared.gate.forward(x_TH).toFloat32Array();
    const expected = routed.map((value, i) => value + (0.5 * (network[i] ?? NaN)) / (1 + Math.exp(-(logits[Math.floor(i / H)] ?? NaN))));
    expect(largestGap(block.forward(x_TH).y_TH.toFloat32Array(), expected)).toBeLessThan(1e-6);
  });
});

test("what padding tokens hold changes no bit of the others, under any capacity", () => {
  onEngine((engine) => {
    fc.assert(
      fc.property(
        fc.constantFrom(...everyScoring),
        fc.array(fc.boolean(), { minLength: 1, maxLength: 14 }),
        fc.constantFrom(null, 0.5, 1.25),
        fc.constantFrom(...dropBys),
        fc.boolean(),
        (settings, takesPart, factor, dropBy, pad) => {
          engine.scope(() => {
            const T = takesPart.length;
            const block = fullBlock(engine, 5, settings);
            const valid = engine.from(takesPart.map(Number), [T], "i32");
            const x = normal(engine, new Random(6), T, H).toFloat32Array();
            const run = (filler: number): { y: Float32Array; counts: Int32Array; indices: Int32Array } => {
              const filled = x.map((value, i) => ((takesPart[Math.floor(i / H)] ?? false) ? value : filler * value));
              const context = { valid, capacity: factor === null ? null : { factor, dropBy, pad } };
              const { y_TH, routing } = block.forward(engine.from(filled, [T, H], "f32"), context);
              const y = y_TH.toFloat32Array().filter((_, i) => takesPart[Math.floor(i / H)] ?? false);
              return { y, counts: routing.counts_GE.toInt32Array(), indices: routing.indices_TK.toInt32Array() };
            };
            const [one, other] = [run(1), run(-7)];
            expect(other).toEqual(one);
            const numValid = takesPart.filter(Boolean).length;
            expect(one.counts.reduce((sum, count) => sum + count, 0)).toBe(2 * numValid);
            expect(one.indices.filter((e) => e < 0).length).toBe(2 * (T - numValid));
          });
        },
      ),
      { numRuns: 60 },
    );
  });
});

test("balance groups run in separate calls give the same bits, counts and drops as in one", () => {
  onEngine((engine) => {
    fc.assert(
      fc.property(
        fc.constantFrom(...everyScoring),
        fc.array(fc.integer({ min: 1, max: 6 }), { minLength: 1, maxLength: 4 }),
        fc.constantFrom(...dropBys),
        fc.boolean(),
        (settings, sizes, dropBy, pad) => {
          engine.scope(() => {
            const groupOffsets = sizes.reduce<number[]>((starts, size) => [...starts, (starts.at(-1) ?? 0) + size], [0]);
            const T = groupOffsets.at(-1) ?? 0;
            const block = fullBlock(engine, 7, settings);
            const x_TH = normal(engine, new Random(8), T, H);
            const context = { capacity: { factor: 0.75, dropBy, pad }, jitter: { epsilon: 0.1, seed: 1, step: 2 } };
            const rowOffsets = groupOffsets.slice(0, -1);
            const whole = block.forward(x_TH, { ...context, groupOffsets, jitter: { ...context.jitter, rowOffsets } }, 3);
            const parts = rowOffsets.map((start, g) =>
              block.forward(
                x_TH.rows(start, groupOffsets[g + 1] ?? T),
                { ...context, jitter: { ...context.jitter, rowOffsets: [start] } },
                3,
              ),
            );
            expect(parts.flatMap(({ y_TH }) => [...y_TH.toFloat32Array()])).toEqual([...whole.y_TH.toFloat32Array()]);
            const counts = parts.flatMap(({ routing }) => [...routing.counts_GE.toInt32Array()]);
            expect(counts).toEqual([...whole.routing.counts_GE.toInt32Array()]);
            const drops = droppedPerGroup(whole.routing.counts_GE.toInt32Array(), sizes, { factor: 0.75, topK: 2, numExperts: E });
            const alone = sizes.map((size, g) => droppedAssignments(counts.slice(g * E, (g + 1) * E), Math.ceil((0.75 * 2 * size) / E)));
            expect(drops).toEqual(alone);
          });
        },
      ),
      { numRuns: 60 },
    );
  });
});

test("padding to capacity changes no bit of the output", () => {
  onEngine((engine) => {
    for (const dropBy of dropBys) {
      const block = fullBlock(engine, 9);
      const x_TH = normal(engine, new Random(10), 13, H);
      const run = (pad: boolean): Float32Array =>
        block.forward(x_TH, { groupOffsets: [0, 5, 13], capacity: { factor: 1.1, dropBy, pad } }).y_TH.toFloat32Array();
      expect(run(true)).toEqual(run(false));
    }
  });
});

test("all tokens to one expert: it computes them all, or its capacity", () => {
  onEngine((engine) => {
    const { experts } = randomBlock(engine, 11);
    // Logits 1, 0, 0, 0 times a positive feature: expert 0 always first.
    const gate = engine.from(
      Array.from({ length: E * H }, (_, i) => Number(i === 0)),
      [E, H],
      "f32",
    );
    const settings = { topK: 1, normalization: null, scoring: "softmax", renormalize: true, routedScale: 1, groups: null } as const;
    const block = new MoeBlock(new Router({ gate: new Linear(gate), hidden: null, selectionBias: null }, settings), experts);
    const x_TH = engine.from(new Float32Array(8 * H).fill(1), [8, H], "f32");
    const { routing, y_TH } = block.forward(x_TH);
    expect([...routing.counts_GE.toInt32Array()]).toEqual([8, 0, 0, 0]);
    const rows = (y: Float32Array): boolean[] => Array.from({ length: 8 }, (_, t) => y.subarray(t * H, (t + 1) * H).some((v) => v !== 0));
    expect(rows(y_TH.toFloat32Array())).toEqual(new Array(8).fill(true));
    const limited = block.forward(x_TH, { capacity: { factor: 1, dropBy: "probability", pad: false } });
    expect([...limited.routing.counts_GE.toInt32Array()]).toEqual([8, 0, 0, 0]);
    expect(rows(limited.y_TH.toFloat32Array())).toEqual([true, true, false, false, false, false, false, false]);
  });
});

test("a router of NaN still sends every token to defined experts", () => {
  onEngine((engine) => {
    for (const settings of everyScoring) {
      const block = fullBlock(engine, 12, settings);
      const x_TH = engine.from(new Float32Array(6 * H).fill(NaN), [6, H], "f32");
      const { routing } = block.forward(x_TH, { capacity: { factor: 1, dropBy: "probability", pad: true } });
      expect([...routing.indices_TK.toInt32Array()]).toEqual(Array.from({ length: 12 }, (_, slot) => slot % 2));
    }
  });
});

test("forced balance loads every expert alike, whatever the tokens are", () => {
  onEngine((engine) => {
    const block = fullBlock(engine, 13);
    const { routing } = block.forward(normal(engine, new Random(14), 10, H), { forcedBalance: true });
    expect([...routing.counts_GE.toInt32Array()]).toEqual([5, 5, 5, 5]);
  });
});

test("noise moves the router's input and nothing else", () => {
  onEngine((engine) => {
    const block = fullBlock(engine, 15);
    const x_TH = normal(engine, new Random(16), 6, H);
    const noise = (epsilon: number, step: number, layer: number): Float32Array =>
      block.forward(x_TH, { jitter: { epsilon, seed: 1, step, rowOffsets: [0] } }, layer).routing.logits_TE.toFloat32Array();
    const still = block.forward(x_TH).routing.logits_TE.toFloat32Array();
    expect(noise(0, 1, 0)).toEqual(still);
    expect(noise(0.1, 1, 0)).not.toEqual(still);
    expect(noise(0.1, 1, 0)).toEqual(noise(0.1, 1, 0));
    expect(noise(0.1, 2, 0)).not.toEqual(noise(0.1, 1, 0));
    expect(noise(0.1, 1, 1)).not.toEqual(noise(0.1, 1, 0));
    expect(largestGap(noise(1e-3, 1, 0), still)).toBeLessThan(0.05);
  });
});

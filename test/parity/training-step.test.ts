/**
 * Whole training steps of a small mixture of experts, written with the ops alone, on every engine: losses, gradients and
 * weights against the reference, the same bits for any number of threads and with recomputation, and no memory that grows.
 *
 * Legend: T tokens, H hidden, V vocabulary, E experts, F hidden size of an expert.
 */
import { describe, expect, test } from "vitest";
import type { Backend } from "../../src/backend/backend.ts";
import { createReferenceBackend } from "../../src/backend/reference/index.ts";
import { AdamW } from "../../src/optim/index.ts";
import {
  add,
  attention,
  balanceLoss,
  castTo,
  combine,
  dispatch,
  embedding,
  Engine,
  groupedLinear,
  linear,
  linearCrossEntropy,
  makeRopeTable,
  recomputeMany,
  rmsNorm,
  ropeInPlace,
  router,
  swiglu,
  Tape,
  type Tensor,
} from "../../src/tensor/index.ts";
import { Random } from "../../src/util/random.ts";
import { onEveryEngine } from "./harness/suite.ts";

const [T, H, V, E, F, headDim, numHeads, numKvHeads] = [19, 24, 37, 4, 20, 8, 3, 1];
const numSteps = 6;
const balanceCoefficient = 0.05;

interface Options {
  readonly dtype: "f32" | "bf16";
  readonly recomputed?: boolean;
  readonly capacity?: number;
}
interface Run {
  readonly losses: number[];
  /** Gradients of the first step and weights after the last, by name. */
  readonly gradients: Map<string, Float32Array>;
  readonly weights: Map<string, Float32Array>;
  /** Bytes alive after each step. */
  readonly liveBytes: number[];
}
type Weights = Readonly<Record<keyof typeof shapes, Tensor>>;

const shapes = {
  embedding: [V, H],
  norm1: [H],
  q: [numHeads * headDim, H],
  k: [numKvHeads * headDim, H],
  v: [numKvHeads * headDim, H],
  qNorm: [headDim],
  bias: [numKvHeads * headDim],
  o: [H, numHeads * headDim],
  norm2: [H],
  gate: [E, H],
  w1: [E, F, H],
  w3: [E, F, H],
  w2: [E, H, F],
  norm3: [H],
} as const satisfies Record<string, readonly number[]>;
/** What kernels take in f32 whatever the model's type. */
const alwaysF32 = new Set(["norm1", "norm2", "norm3", "qNorm", "bias", "gate"]);

function makeWeights(engine: Engine, dtype: Options["dtype"]): Weights {
  const entries = Object.entries(shapes).map(([name, shape], i) => {
    const size = shape.reduce((n: number, dim) => n * dim, 1);
    const isNorm = name.toLowerCase().includes("norm");
    const data = Random.keyed(11, i).fillNormal(new Float32Array(size), isNorm ? 0.2 : 0.3);
    const tensor = engine.from(isNorm ? data.map((value) => 1 + value) : data, shape, alwaysF32.has(name) ? "f32" : dtype);
    tensor.requiresGrad = true;
    tensor.parameter = { name, grad: null, gradIsSet: false };
    return [name, tensor] as const;
  });
  return Object.fromEntries(entries) as Weights;
}

/** One pre-norm layer: [T, H] and the balance loss. Two packed documents of 11 and 8 tokens, a window of 5. */
function layer(engine: Engine, w: Weights, x: Tensor, capacity: number): [Tensor, Tensor] {
  const i32 = (value: (t: number) => number): Tensor =>
    engine.from(
      Array.from({ length: T }, (_, t) => value(t)),
      [T],
      "i32",
    );
  const positions = i32((t) => (t < 11 ? t : t - 11));
  const table = makeRopeTable(engine, Float32Array.of(1, 0.3, 0.1, 0.03), 11, 1);
  const normed = rmsNorm(x, w.norm1, 1e-5);
  const q = rmsNorm(linear(normed, w.q), w.qNorm, 1e-5);
  const k = linear(normed, w.k, w.bias);
  ropeInPlace(q, table, positions, headDim);
  ropeInPlace(k, table, positions, headDim);
  const bounds = { keyBase: i32((t) => (t < 11 ? 0 : 11)), keyEnd: i32((t) => t + 1) };
  const seen = attention(q, k, linear(normed, w.v), { numHeads, numKvHeads, headDim, ...bounds, window: 5, scale: headDim ** -0.5 });
  const attended = add(x, linear(seen, w.o));
  const normed2 = rmsNorm(attended, w.norm2, 1e-5);
  const { probs, weights, indices } = router(linear(castTo(normed2, "f32"), w.gate), {
    topK: 2,
    normalization: { lambda: 1, epsilon: 1e-6, unbiased: true },
  });
  const { rows, offsets, slotRow } = dispatch(normed2, indices, weights, {
    numExperts: E,
    capacities: capacity === 0 ? null : [capacity],
    dropBy: "probability",
  });
  const expert = groupedLinear(swiglu(groupedLinear(rows, w.w1, offsets), groupedLinear(rows, w.w3, offsets)), w.w2, offsets);
  return [add(attended, combine(expert, slotRow, weights)), balanceLoss(probs)];
}

function forward(
  engine: Engine,
  w: Weights,
  ids: Tensor,
  targets: Tensor,
  { recomputed = false, capacity = 0 }: Options,
): { loss: Tensor; balance: Tensor } {
  const x = embedding(w.embedding, ids);
  const run = ([h]: readonly Tensor[]): readonly Tensor[] => (h === undefined ? [] : layer(engine, w, h, capacity));
  const [y, balance] = recomputed ? recomputeMany(engine, [x], run) : run([x]);
  if (y === undefined || balance === undefined) throw new Error("the layer returned nothing");
  const { loss } = linearCrossEntropy(rmsNorm(y, w.norm3, 1e-5), w.embedding, targets, { scale: 1 / (T - 2), chunkRows: 7 });
  return { loss, balance };
}

/** Six steps on the same tokens, each of two micro-batches. */
function train(backend: Backend, options: Options): Run {
  const engine = new Engine(backend);
  return engine.scope(() => {
    const w = makeWeights(engine, options.dtype);
    using optimizer = new AdamW(engine, Object.values(w), { beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.1 });
    const run: Run = { losses: [], gradients: new Map(), weights: new Map(), liveBytes: [] };
    const random = Random.keyed(12);
    const batches = [0, 1].map(() => Array.from({ length: T + 1 }, () => random.integer(V)));
    for (let step = 0; step < numSteps; step++) {
      let total = 0;
      for (const tokens of batches) {
        engine.scope(() => {
          using tape = new Tape(engine);
          const ids = engine.from(tokens.slice(0, T), [T], "i32");
          const targets = engine.from(
            tokens.slice(1).map((id, t) => (t === 3 || t === 10 ? -1 : id)),
            [T],
            "i32",
          );
          const { loss, balance } = engine.withTape(tape, () => forward(engine, w, ids, targets, options));
          total += loss.item() + balanceCoefficient * balance.item();
          tape.backward([
            { value: loss, grad: 1 },
            { value: balance, grad: balanceCoefficient },
          ]);
        });
      }
      run.losses.push(total);
      if (step === 0)
        for (const [name, tensor] of Object.entries(w))
          run.gradients.set(name, tensor.parameter?.grad?.toFloat32Array() ?? new Float32Array());
      optimizer.step({ learningRate: 0.01, maxGradNorm: 1 });
      optimizer.zeroGrad();
      run.liveBytes.push(backend.liveBytes);
    }
    for (const [name, tensor] of Object.entries(w)) {
      run.weights.set(name, tensor.toFloat32Array());
      tensor.parameter?.grad?.dispose();
    }
    return run;
  });
}

function relativeDistance(got: Float32Array, expected: Float32Array): number {
  let [difference, norm] = [0, 0];
  for (const [i, value] of expected.entries()) {
    difference += ((got[i] ?? NaN) - value) ** 2;
    norm += value ** 2;
  }
  return Math.sqrt(difference / norm);
}

const cases: readonly (readonly [string, Options, number])[] = [
  // Tolerances of gradients in norm: f32 sums in another order; bf16 roundings that fall the other way.
  ["f32", { dtype: "f32" }, 2e-5],
  ["f32 with a capacity", { dtype: "f32", capacity: 7 }, 2e-5],
  ["bf16", { dtype: "bf16" }, 0.03],
];
const expected = new Map(cases.map(([title, options]) => [title, train(createReferenceBackend(), options)]));

await onEveryEngine(
  ({ threaded }, open) => {
    describe.each(cases)("training a mixture of experts in %s", (title, options, tolerance) => {
      test("has the reference's losses and gradients", () => {
        const reference = expected.get(title);
        const run = train(open(1), options);
        for (const [name, gradient] of reference?.gradients ?? []) {
          expect(
            gradient.some((value) => value !== 0),
            name,
          ).toBe(true);
          expect(relativeDistance(run.gradients.get(name) ?? new Float32Array(), gradient), name).toBeLessThan(tolerance);
        }
        for (const [step, loss] of (reference?.losses ?? []).entries())
          expect(Math.abs((run.losses[step] ?? NaN) - loss), `loss of step ${step}`).toBeLessThan(tolerance);
      });
      test("lowers the loss, and every step leaves the same bytes alive", () => {
        const { losses, liveBytes } = train(open(1), options);
        expect(losses.at(-1)).toBeLessThan(0.9 * (losses[0] ?? NaN));
        expect(new Set(liveBytes).size).toBe(1);
      });
      test("gives the same bits when the layer is recomputed", () => {
        expect(train(open(1), { ...options, recomputed: true })).toEqual(train(open(1), options));
      });
      if (threaded) {
        test("gives the same bits with two threads", () => {
          expect(train(open(2), options)).toEqual(train(open(1), options));
        });
      }
    });
  },
  [1, 2],
);

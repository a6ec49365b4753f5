import { describe, expect, it } from "vitest";
import { checkGradients, withEngine } from "../../../test/gradcheck.ts";
import { Random } from "../../util/random.ts";
import { Tape } from "../tape.ts";
import type { Engine } from "../engine.ts";
import { defaultChunkRows, linearCrossEntropy } from "./cross-entropy.ts";
import { embedding } from "./embedding.ts";

const targets = [3, -1, 0, 6, 6];

function operands(engine: Engine) {
  const random = Random.keyed(5);
  const x = engine.from(random.fillNormal(new Float32Array(5 * 4), 1), [5, 4], "f32");
  const w = engine.from(random.fillNormal(new Float32Array(7 * 4), 1), [7, 4], "f32");
  w.parameter = { name: "head", grad: null, gradIsSet: false };
  w.requiresGrad = true;
  x.requiresGrad = true;
  return { x, w, ids: engine.from(targets, [5], "i32") };
}

/** The gradient of a parameter whose buffer held fives before. */
function headGradient(engine: Engine, chunkRows: number, isSet: boolean): Float32Array {
  const { x, w, ids } = operands(engine);
  const grad = engine.from(new Float32Array(28).fill(5), [7, 4], "f32");
  w.parameter = { name: "head", grad, gradIsSet: isSet };
  using tape = new Tape(engine);
  const { loss } = engine.withTape(tape, () => linearCrossEntropy(x, w, ids, { scale: 0.5, chunkRows }));
  tape.backward([{ value: loss, grad: 1 }]);
  return grad.toFloat32Array();
}

describe("linearCrossEntropy", () => {
  it.each([1, 2, 3, 5, 64])("has the gradients of finite differences in chunks of %d rows, for any upstream gradient", (chunkRows) => {
    checkGradients({
      inputs: { x: { shape: [5, 4] }, w: { shape: [7, 4] } },
      asParameters: false,
      run: ({ x, w }, engine) =>
        x && w ? [linearCrossEntropy(x, w, engine.from(targets, [5], "i32"), { scale: 0.3, chunkRows }).loss] : [],
    });
  });
  it("sums minus log softmax over the targets that count", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const { x, w, ids } = operands(engine);
        const { loss, perToken } = linearCrossEntropy(x, w, ids, { scale: 0.25, chunkRows: 2 });
        const [xs, ws] = [x.toFloat32Array(), w.toFloat32Array()];
        const expected = targets.map((target, t) => {
          const logits = Array.from({ length: 7 }, (_, v) =>
            [0, 1, 2, 3].reduce((sum, h) => sum + (xs[4 * t + h] ?? NaN) * (ws[4 * v + h] ?? NaN), 0),
          );
          return target < 0 ? 0 : Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0)) - (logits[target] ?? NaN);
        });
        perToken.toFloat32Array().forEach((value, t) => expect(value).toBeCloseTo(expected[t] ?? NaN, 5));
        expect(loss.item()).toBeCloseTo(0.25 * expected.reduce((sum, value) => sum + value, 0), 5);
        expect(perToken.requiresGrad).toBe(false);
      }),
    );
  });
  it("adds a parameter's gradient up over passes, into what an embedding tied to it gave", () => {
    checkGradients({
      inputs: { w: { shape: [7, 4] } },
      asParameters: false,
      run: ({ w }, engine) => {
        if (!w) return [];
        const ids = engine.from(targets, [5], "i32");
        return [linearCrossEntropy(embedding(w, engine.from([1, 2, 3, 4, 5], [5], "i32")), w, ids, { scale: 1 }).loss];
      },
    });
    withEngine((engine) =>
      engine.scope(() => {
        const { x, w, ids } = operands(engine);
        const gradAfterPass = (): Float32Array => {
          using tape = new Tape(engine);
          const { loss } = engine.withTape(tape, () => linearCrossEntropy(x, w, ids, { scale: 1 }));
          tape.backward([{ value: loss, grad: 1 }]);
          return w.parameter?.grad?.toFloat32Array() ?? new Float32Array();
        };
        const first = gradAfterPass();
        expect(first.some((value) => Math.abs(value) > 0.01)).toBe(true);
        gradAfterPass().forEach((value, i) => expect(value).toBeCloseTo(2 * (first[i] ?? NaN), 5));
        w.parameter?.grad?.dispose();
      }),
    );
  });
  it.each([true, false])("gives a parameter (gradient set before: %s) the same in one chunk and in several", (isSet) => {
    withEngine((engine) =>
      engine.scope(() => {
        const whole = headGradient(engine, 5, isSet);
        for (const chunkRows of [1, 2])
          headGradient(engine, chunkRows, isSet).forEach((value, i) => expect(value).toBeCloseTo(whole[i] ?? NaN, 5));
      }),
    );
  });
  it("refuses another upstream gradient than 1 when the weight is a parameter", () => {
    withEngine((engine) =>
      engine.scope(() => {
        using tape = new Tape(engine);
        const { x, w, ids } = operands(engine);
        const { loss } = engine.withTape(tape, () => linearCrossEntropy(x, w, ids, { scale: 1 }));
        expect(() => tape.backward([{ value: loss, grad: 2 }])).toThrow("give the factor as `scale`");
        w.parameter?.grad?.dispose();
      }),
    );
  });
  it("gives a fresh parameter a gradient of zeros when there are no tokens", () => {
    withEngine((engine) =>
      engine.scope(() => {
        using tape = new Tape(engine);
        const { w } = operands(engine);
        const { loss } = engine.withTape(tape, () =>
          linearCrossEntropy(engine.zeros([0, 4], "f32"), w, engine.zeros([0], "i32"), { scale: 1 }),
        );
        expect(loss.item()).toBe(0);
        expect(w.parameter?.grad?.toFloat32Array().every((value) => value === 0)).toBe(true);
        w.parameter?.grad?.dispose();
      }),
    );
  });
  it("holds logits of one chunk at a time", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const [T, V] = [64, 1000];
        const x = engine.zeros([T, 2], "f32");
        const w = engine.zeros([V, 2], "f32");
        const ids = engine.zeros([T], "i32");
        engine.backend.resetPeak();
        const before = engine.backend.liveBytes;
        linearCrossEntropy(x, w, ids, { scale: 1, chunkRows: 4 });
        expect(engine.backend.peakBytes - before).toBeLessThan(4 * V * 4 + 4 * T + 256);
      }),
    );
    expect(defaultChunkRows(65536)).toBe(128);
    expect(defaultChunkRows(100)).toBe(1024);
  });
});

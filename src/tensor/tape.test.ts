import { describe, expect, it } from "vitest";
import { checkGradients, withEngine } from "../../test/gradcheck.ts";
import type { Engine } from "./engine.ts";
import { balanceLoss } from "./ops/balance.ts";
import { add, castTo, scale } from "./ops/elementwise.ts";
import { linear } from "./ops/linear.ts";
import { router } from "./ops/router.ts";
import { swiglu } from "./ops/swiglu.ts";
import { recompute, recomputeMany, Tape } from "./tape.ts";
import type { Tensor } from "./tensor.ts";

function leaf(engine: Engine, data: readonly number[]): Tensor {
  const x = engine.from(data, [data.length], "f32");
  x.requiresGrad = true;
  return x;
}

function gradOf(tape: Tape, x: Tensor): number[] | null {
  using grad = tape.takeGrad(x);
  return grad === null ? null : [...grad.toFloat32Array()];
}

function layer(x: Tensor, w: Tensor): Tensor {
  return swiglu(linear(x, w), castTo(linear(x, w), x.dtype));
}

describe("Tape", () => {
  it("does what the example in its header says", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const x = engine.from([1, -2, 0.5, 3], [2, 2], "f32");
        const gate = engine.from([1, 0, 0, 1, 0.5, -1], [3, 2], "f32");
        gate.requiresGrad = true;
        gate.parameter = { name: "gate", grad: null, gradIsSet: false };
        const gradient = (coefficient: number): Float32Array => {
          using tape = new Tape(engine);
          const loss = engine.withTape(tape, () => balanceLoss(router(linear(x, gate), { topK: 2, normalization: null }).probs));
          tape.backward([{ value: loss, grad: coefficient }]);
          return gate.parameter?.grad?.toFloat32Array() ?? new Float32Array();
        };
        const plain = gradient(1);
        if (gate.parameter !== null) gate.parameter.gradIsSet = false;
        expect(plain.some((value) => Math.abs(value) > 0.01)).toBe(true);
        gradient(0.01).forEach((value, i) => expect(value).toBeCloseTo(0.01 * (plain[i] ?? NaN), 7));
        gate.parameter?.grad?.dispose();
      }),
    );
  });
  it("does not let an input's later gradient reach another input that shares the first one's memory", () => {
    withEngine((engine) =>
      engine.scope(() => {
        using tape = new Tape(engine);
        const [a, b] = [leaf(engine, [1, 2]), leaf(engine, [3, 4])];
        const seed = engine.from([1, 10], [2], "f32");
        const roots = engine.withTape(tape, () => {
          const extra = scale(a, 5);
          const total = add(a, b);
          return [
            { value: total, grad: seed },
            { value: extra, grad: 1 },
          ];
        });
        tape.backward(roots);
        expect(gradOf(tape, a)).toEqual([6, 15]);
        expect(gradOf(tape, b)).toEqual([1, 10]);
        expect([...seed.toFloat32Array()]).toEqual([1, 10]);
      }),
    );
  });
  it("adds gradients of both operands when they are one value", () => {
    withEngine((engine) =>
      engine.scope(() => {
        using tape = new Tape(engine);
        const a = leaf(engine, [1, 2]);
        const y = engine.withTape(tape, () => add(a, a));
        tape.backward([{ value: y, grad: 3 }]);
        expect(gradOf(tape, a)).toEqual([6, 6]);
      }),
    );
  });
  it("frees what a node saved as soon as it has run, and everything when it is disposed", () => {
    withEngine((engine) => {
      const live = (): number => engine.backend.liveBytes;
      const x = leaf(
        engine,
        Array.from({ length: 64 }, (_, i) => i / 64),
      );
      const before = live();
      using tape = new Tape(engine);
      const y = engine.withTape(tape, () =>
        engine.scope(() => {
          let h = x;
          for (let i = 0; i < 4; i++) h = swiglu(h, scale(h, 0.5));
          return h;
        }),
      );
      // h of layers 0 to 3 (x is not ours), and the scaled h of each layer; y itself.
      expect(live() - before).toBe((3 + 4 + 1) * 256);
      tape.backward([{ value: y, grad: 1 }]);
      y.dispose();
      expect(live() - before).toBe(256);
      tape.takeGrad(x)?.dispose();
      expect(live()).toBe(before);
      const z = engine.withTape(tape, () => engine.scope(() => swiglu(x, x)));
      z.dispose();
      tape[Symbol.dispose]();
      expect(live()).toBe(before);
      x.dispose();
    });
  });
  it("records nothing for operands without gradient", () => {
    withEngine((engine) =>
      engine.scope(() => {
        using tape = new Tape(engine);
        const y = engine.withTape(tape, () => swiglu(engine.zeros([2], "f32"), engine.zeros([2], "f32")));
        expect(y.requiresGrad).toBe(false);
        expect(tape.length).toBe(0);
      }),
    );
  });
  it("skips the nodes that no root depends on", () => {
    withEngine((engine) =>
      engine.scope(() => {
        using tape = new Tape(engine);
        const a = leaf(engine, [1]);
        const [used] = engine.withTape(tape, () => [scale(a, 2), scale(a, 100)] as const);
        tape.backward([{ value: used, grad: 1 }]);
        expect(gradOf(tape, a)).toEqual([2]);
        expect(tape.length).toBe(0);
      }),
    );
  });
  it("shares one gradient between a value and its views", () => {
    withEngine((engine) =>
      engine.scope(() => {
        using tape = new Tape(engine);
        const a = leaf(engine, [1, 2]);
        const roots = engine.withTape(tape, () => [scale(a, 2), scale(a.view(2, 1), 3)].map((value) => ({ value, grad: 1 })));
        tape.backward(roots);
        expect(gradOf(tape, a)).toEqual([5, 5]);
      }),
    );
  });
  it("overwrites a parameter's gradient when the optimizer marked it as unset", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const w = leaf(engine, [1, 2]);
        w.parameter = { name: "w", grad: null, gradIsSet: false };
        const pass = (factor: number): number[] => {
          using tape = new Tape(engine);
          const y = engine.withTape(tape, () => scale(w, factor));
          tape.backward([{ value: y, grad: 1 }]);
          return [...(w.parameter?.grad?.toFloat32Array() ?? [])];
        };
        expect(pass(2)).toEqual([2, 2]);
        expect(pass(3)).toEqual([5, 5]);
        w.parameter.gradIsSet = false;
        expect(pass(7)).toEqual([7, 7]);
        w.parameter.grad?.dispose();
      }),
    );
  });
  it("leaves no bytes behind when a backward throws", () => {
    withEngine((engine) =>
      engine.scope(() => {
        using tape = new Tape(engine);
        const a = leaf(engine, [1]);
        const y = engine.withTape(tape, () => {
          const out = scale(a, 2);
          const top = engine.zeros([1], "f32");
          tape.record([out], top, [out], () => {
            throw new Error("broken");
          });
          return top;
        });
        expect(() => tape.backward([{ value: y, grad: 1 }])).toThrow("broken");
      }),
    );
  });
});

describe("recompute", () => {
  const inputs = { x: { shape: [2, 3] }, w: { shape: [3, 3] } };

  it("has the gradients of finite differences inside recompute, twice around, and between plain layers", () => {
    checkGradients({
      inputs,
      run: ({ x, w }, engine) => {
        if (!x || !w) return [];
        const inner = (h: Tensor, v: Tensor): Tensor => recompute(engine, [h, v], ([g, u]) => (g && u ? layer(g, u) : h));
        const outer = recompute(engine, [layer(x, w), w], ([h, v]) => (h && v ? add(inner(h, v), inner(layer(h, v), v)) : x));
        return [add(layer(outer, w), outer)];
      },
    });
  });
  it("gives several outputs, of which some may get no gradient", () => {
    for (const used of [[0, 2], [0], [2]]) {
      checkGradients({
        inputs: { x: { shape: [3, 4], bf16: false } },
        bf16Tolerance: null,
        run: ({ x }, engine) => {
          if (!x) return [];
          const outputs = recomputeMany(engine, [x], ([h]) => {
            if (!h) return [];
            const { weights, probs, indices } = router(scale(h, 1.5), { topK: 2, normalization: null });
            return [weights, indices, balanceLoss(probs)];
          });
          return used.flatMap((i) => outputs[i] ?? []);
        },
      });
    }
  });
  it("keeps only inputs and outputs until the backward pass", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const x = leaf(
          engine,
          Array.from({ length: 64 }, () => 1),
        );
        using tape = new Tape(engine);
        const before = engine.backend.liveBytes;
        const y = engine.withTape(tape, () => recompute(engine, [x], ([h]) => (h ? swiglu(scale(h, 2), scale(h, 3)) : x)));
        expect(engine.backend.liveBytes - before).toBe(256);
        tape.backward([{ value: y, grad: 1 }]);
        expect(engine.backend.liveBytes - before).toBe(512);
      }),
    );
  });
  it("adds parameter gradients once per pass", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const w = leaf(engine, [1, 2]);
        w.parameter = { name: "w", grad: null, gradIsSet: false };
        using tape = new Tape(engine);
        const y = engine.withTape(tape, () => recompute(engine, [w], ([v]) => (v ? scale(v, 4) : w)));
        tape.backward([{ value: y, grad: 1 }]);
        expect([...(w.parameter.grad?.toFloat32Array() ?? [])]).toEqual([4, 4]);
        w.parameter.grad?.dispose();
      }),
    );
  });
  it("refuses to lose the gradient of a tensor that the span uses without naming it", () => {
    withEngine((engine) =>
      engine.scope(() => {
        using tape = new Tape(engine);
        const [x, hidden] = [leaf(engine, [1]), leaf(engine, [2])];
        const y = engine.withTape(tape, () => recompute(engine, [x], ([h]) => (h ? add(h, hidden) : x)));
        expect(() => tape.backward([{ value: y, grad: 1 }])).toThrow(
          "the span uses 1 differentiable tensors that are neither inputs nor parameters",
        );
      }),
    );
  });
  it("refuses a span that returns its input, also as a view", () => {
    withEngine((engine) =>
      engine.scope(() => {
        using tape = new Tape(engine);
        const x = leaf(engine, [1]);
        expect(() => engine.withTape(tape, () => recompute(engine, [x], () => x.view(1, 1)))).toThrow(
          "recompute: the span returned one of its inputs",
        );
      }),
    );
  });
});

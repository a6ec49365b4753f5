import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { withEngine } from "../../test/gradcheck.ts";
import type { DType } from "../backend/kernels.ts";
import type { Engine } from "../tensor/engine.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { AdamW, clipFactor, type AdamWOptions, type StepResult } from "./adamw.ts";

interface Golden {
  readonly shapes: Readonly<Record<string, number[]>>;
  readonly steps: readonly {
    readonly gradNorm: number;
    readonly after: Readonly<Record<string, Readonly<Record<"weight" | "exp_avg" | "exp_avg_sq", number[]>>>>;
  }[];
}
// Written by test/golden/optim/make.py with torch.optim.AdamW and torch.nn.utils.clip_grad_norm_.
const golden: Golden = JSON.parse(readFileSync(new URL("../../test/golden/optim/adamw.json", import.meta.url), "utf8"));
const options: AdamWOptions = { beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.1 };

/** The numbers of `values` in make.py. */
function sines(step: number, salt: number, size: number, factor: number): Float32Array {
  return Float32Array.from({ length: size }, (_, i) => factor * Math.sin(1.7 * i + 0.9 * step + salt));
}

function makeParameters(engine: Engine, dtype: DType): Tensor[] {
  return Object.entries(golden.shapes).map(([name, shape], salt) => {
    const size = shape.reduce((n, dim) => n * dim, 1);
    const parameter = engine.from(sines(0, salt + 10, size, 1), shape, dtype);
    parameter.requiresGrad = true;
    parameter.parameter = { name, grad: engine.zeros(shape, "f32"), gradIsSet: false };
    return parameter;
  });
}

function setGradients(engine: Engine, parameters: readonly Tensor[], step: number, factor = 1): void {
  for (const [salt, { parameter, size }] of parameters.entries()) {
    if (parameter === null || parameter.grad === null) continue;
    engine.backend.write(parameter.grad.ptr, sines(step, salt, size, factor * (step % 4 === 3 ? 0.05 : 0.4 * (1 + (step % 4)))));
    parameter.gradIsSet = true;
  }
}

function update(engine: Engine, optimizer: AdamW, parameters: readonly Tensor[], step: number): StepResult {
  setGradients(engine, parameters, step);
  const result = optimizer.step({ learningRate: 0.01 * (1 + (step % 3)), maxGradNorm: 1 });
  optimizer.zeroGrad();
  return result;
}

function expectClose(got: Float32Array | undefined, expected: readonly number[] | undefined, tolerance: number): void {
  expect(got?.length).toBe(expected?.length);
  expected?.forEach((value, i) =>
    expect(Math.abs((got?.[i] ?? NaN) - value)).toBeLessThanOrEqual(tolerance * Math.max(1, Math.abs(value))),
  );
}

/** One update of fresh parameters from the gradients of step 1 times `factor`. */
function oneUpdate(
  engine: Engine,
  factor: number,
  step: { gradScale?: number; gradNorm?: number },
): { result: StepResult; weights: Float32Array[] } {
  const parameters = makeParameters(engine, "f32");
  using optimizer = new AdamW(engine, parameters, { ...options, eps: 0.1 });
  setGradients(engine, parameters, 1, factor);
  const result = optimizer.step({ learningRate: 0.1, maxGradNorm: 1, ...step });
  return { result, weights: parameters.map((parameter) => parameter.toFloat32Array()) };
}

/** Which parameters an update with gradients of zero changes. */
function changedByDecay(engine: Engine, decays?: AdamWOptions["decays"]): boolean[] {
  const parameters = makeParameters(engine, "f32");
  using optimizer = new AdamW(engine, parameters, decays === undefined ? options : { ...options, decays });
  setGradients(engine, parameters, 0, 0);
  const before = parameters.map((parameter) => parameter.toFloat32Array());
  optimizer.step({ learningRate: 0.1, maxGradNorm: null });
  return parameters.map((parameter, i) => parameter.toFloat32Array().some((value, j) => value !== before[i]?.[j]));
}

describe("AdamW", () => {
  it("follows torch.optim.AdamW with clipping over 20 updates", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const parameters = makeParameters(engine, "f32");
        using optimizer = new AdamW(engine, parameters, options);
        let compared = 0;
        for (const [step, expected] of golden.steps.entries()) {
          const { gradNorm } = update(engine, optimizer, parameters, step);
          expect(Math.abs(gradNorm / expected.gradNorm - 1)).toBeLessThan(1e-6);
          const { tensors } = optimizer.state();
          for (const [i, name] of Object.keys(golden.shapes).entries()) {
            const after = expected.after[name];
            if (after === undefined) continue;
            compared++;
            expectClose(parameters[i]?.toFloat32Array(), after.weight, 2e-6);
            expectClose(tensors.get(`${name}.exp_avg`)?.toFloat32Array(), after.exp_avg, 1e-6);
            expectClose(tensors.get(`${name}.exp_avg_sq`)?.toFloat32Array(), after.exp_avg_sq, 1e-6);
          }
        }
        expect(compared).toBe(9);
        expect(optimizer.numSteps).toBe(20);
      }),
    );
  });
  it("trains bf16 weights through f32 masters: the masters move as f32 weights do, the weights are their roundings", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const half = makeParameters(engine, "bf16");
        const full = makeParameters(engine, "f32");
        full.forEach((parameter, i) => engine.backend.write(parameter.ptr, half[i]?.toFloat32Array() ?? new Float32Array()));
        using a = new AdamW(engine, half, options);
        using b = new AdamW(engine, full, options);
        for (let step = 0; step < 5; step++) {
          update(engine, a, half, step);
          update(engine, b, full, step);
        }
        for (const [i, parameter] of half.entries()) {
          const master = a.state().tensors.get(`${parameter.parameter?.name}.master`)?.toFloat32Array() ?? [];
          expect(master).toEqual(full[i]?.toFloat32Array());
          expect(parameter.toFloat32Array()).toEqual(engine.from(master, parameter.shape, "bf16").toFloat32Array());
        }
        expect(b.state().tensors.has("matrix.master")).toBe(false);
      }),
    );
  });
  it.each(["f32", "bf16"] as const)("goes on bit for bit from its state: %s", (dtype) => {
    withEngine((engine) =>
      engine.scope(() => {
        const parameters = makeParameters(engine, dtype);
        using optimizer = new AdamW(engine, parameters, options);
        for (let step = 0; step < 3; step++) update(engine, optimizer, parameters, step);
        const resumed = makeParameters(engine, dtype);
        if (dtype === "f32")
          resumed.forEach((parameter, i) => engine.backend.write(parameter.ptr, parameters[i]?.toFloat32Array() ?? new Float32Array()));
        using other = new AdamW(engine, resumed, options);
        other.loadState(optimizer.state());
        expect(other.numSteps).toBe(3);
        // In bf16 the weights come with the masters.
        expect(resumed.map((parameter) => parameter.toFloat32Array())).toEqual(parameters.map((parameter) => parameter.toFloat32Array()));
        for (let step = 3; step < 6; step++) {
          update(engine, optimizer, parameters, step);
          update(engine, other, resumed, step);
        }
        expect(resumed.map((parameter) => parameter.toFloat32Array())).toEqual(parameters.map((parameter) => parameter.toFloat32Array()));
      }),
    );
  });
  it("changes nothing and returns the norm when a gradient is not finite, and names the parameter", () => {
    withEngine((engine) =>
      engine.scope(() => {
        for (const bad of [NaN, Infinity, -Infinity]) {
          const parameters = makeParameters(engine, "f32");
          using optimizer = new AdamW(engine, parameters, options);
          setGradients(engine, parameters, 0);
          expect(optimizer.firstNonFinite()).toBe(null);
          const [matrix, vector] = parameters;
          if (!matrix || !vector?.parameter?.grad) throw new Error("no parameters");
          engine.backend.write(vector.parameter.grad.ptr + 8, Float32Array.of(bad));
          const before = matrix.toFloat32Array();
          const { gradNorm, applied } = optimizer.step({ learningRate: 0.1, maxGradNorm: 1 });
          expect([Number.isFinite(gradNorm), applied, optimizer.numSteps]).toEqual([false, false, 0]);
          expect(matrix.toFloat32Array()).toEqual(before);
          expect(optimizer.firstNonFinite()).toBe("vector");
        }
      }),
    );
  });
  it("scales gradients before taking the norm, and takes a norm over more ranks from the caller", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const plain = oneUpdate(engine, 1, {});
        const scaled = oneUpdate(engine, 4, { gradScale: 0.25 });
        expect(scaled.result.gradNorm).toBeCloseTo(plain.result.gradNorm, 5);
        expect(scaled.weights).toEqual(plain.weights);
        const larger = oneUpdate(engine, 1, { gradNorm: 100 });
        expect(larger.result.gradNorm).toBe(100);
        expect(larger.weights).not.toEqual(plain.weights);
      }),
    );
  });
  it("leaves frozen parameters and parameters without gradient alone", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const parameters = makeParameters(engine, "f32");
        const [matrix, vector, experts] = parameters;
        if (!matrix || !vector?.parameter || !experts) throw new Error("no parameters");
        matrix.requiresGrad = false;
        using optimizer = new AdamW(engine, parameters, { ...options, decays: () => true });
        setGradients(engine, parameters, 0);
        vector.parameter.gradIsSet = false;
        const before = parameters.map((parameter) => parameter.toFloat32Array());
        optimizer.step({ learningRate: 0.1, maxGradNorm: null });
        expect(matrix.toFloat32Array()).toEqual(before[0]);
        expect(vector.toFloat32Array()).toEqual(before[1]);
        expect(experts.toFloat32Array()).not.toEqual(before[2]);
        expect([...optimizer.state().tensors.keys()]).toEqual([
          "vector.exp_avg",
          "vector.exp_avg_sq",
          "experts.exp_avg",
          "experts.exp_avg_sq",
        ]);
      }),
    );
  });
  it("decays matrices and not vectors, unless told otherwise", () => {
    withEngine((engine) =>
      engine.scope(() => {
        expect(changedByDecay(engine)).toEqual([true, false, true]);
        expect(changedByDecay(engine, (name) => name === "vector")).toEqual([false, true, false]);
      }),
    );
  });
  it("refuses a state that is not its own, before it changes anything", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const parameters = makeParameters(engine, "f32");
        using optimizer = new AdamW(engine, parameters, options);
        const { tensors } = optimizer.state();
        const without = new Map(tensors);
        without.delete("vector.exp_avg");
        expect(() => optimizer.loadState({ step: 1, tensors: without })).toThrow(
          "optimizer state: vector.exp_avg must be [9] f32, got nothing",
        );
        const extra = new Map([...tensors, ["vector.exp_avgs", engine.zeros([9], "f32")] as const]);
        expect(() => optimizer.loadState({ step: 1, tensors: extra })).toThrow(
          'unexpected tensor vector.exp_avgs (did you mean "vector.exp_avg"?)',
        );
        const misshapen = new Map(tensors).set("vector.exp_avg", engine.zeros([3, 3], "f32"));
        expect(() => optimizer.loadState({ step: 1, tensors: misshapen })).toThrow("vector.exp_avg must be [9] f32, got [3, 3] f32");
        expect(() => optimizer.loadState({ step: 0.5, tensors })).toThrow("expected a step count, got 0.5");
        expect(optimizer.numSteps).toBe(0);
      }),
    );
  });
  it("refuses options out of range, tensors that are no parameters, and names used twice", () => {
    withEngine((engine) =>
      engine.scope(() => {
        expect(() => new AdamW(engine, [], { ...options, beta2: 1 })).toThrow("AdamW: beta2 must be in [0, 1), got 1");
        expect(() => new AdamW(engine, [], { ...options, eps: NaN })).toThrow("AdamW: eps must be above 0, got NaN");
        expect(() => new AdamW(engine, [], { ...options, weightDecay: -1 })).toThrow("AdamW: weightDecay must be 0 or more, got -1");
        const [matrix] = makeParameters(engine, "f32");
        if (!matrix) throw new Error("no parameters");
        const plain = engine.zeros([2], "f32");
        plain.requiresGrad = true;
        expect(() => new AdamW(engine, [plain], options)).toThrow("a tensor of shape [2] is not a parameter");
        expect(() => new AdamW(engine, [matrix, matrix], options)).toThrow("two parameters are named matrix");
      }),
    );
  });
});

describe("clipFactor", () => {
  it("is 1 up to the limit, and brings larger norms down to it", () => {
    expect(clipFactor(0.5, 1)).toBe(1);
    expect(clipFactor(4, 1) * 4).toBeCloseTo(1, 6);
    expect(clipFactor(1e9, null)).toBe(1);
    expect(clipFactor(0, 1)).toBe(1);
  });
});

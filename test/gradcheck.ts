/**
 * Checks the hand-written backward of an op, in the reference backend, in every way in which one goes wrong:
 *
 * - against finite differences of a random projection of its outputs (five-point stencil, so that a step large enough for
 *   f32 storage still has a truncation error of the fourth order);
 * - accumulation: the op run twice on the same inputs gives the sum of the two gradients;
 * - parameters: gradients are f32, in the parameter, and add up over backward passes;
 * - recomputation gives the same bits as the plain run;
 * - bf16 storage gives nearly the gradients of f32;
 * - no bytes are left alive.
 */
import { createReferenceBackend } from "../src/backend/reference/index.ts";
import type { DType } from "../src/backend/kernels.ts";
import { Engine } from "../src/tensor/engine.ts";
import { recomputeMany, Tape } from "../src/tensor/tape.ts";
import type { Tensor } from "../src/tensor/tensor.ts";
import { Random } from "../src/util/random.ts";

export interface CheckedInput {
  readonly shape: readonly number[];
  /** Values; default: standard normal. */
  readonly data?: ArrayLike<number>;
  /** Takes part in the bf16 check (default). False for what an op wants in f32, like norm weights. */
  readonly bf16?: boolean;
}

export interface GradientCheck {
  readonly inputs: Readonly<Record<string, CheckedInput>>;
  /** The op, from its differentiable inputs to its differentiable outputs. Changes no input in place. */
  readonly run: (inputs: Readonly<Record<string, Tensor>>, engine: Engine) => readonly Tensor[];
  /** Largest deviation from finite differences, relative to the largest component (at least 1). Default 5e-4. */
  readonly tolerance?: number;
  /** Ops that demand an upstream gradient of 1 for parameters turn this off. Default true. */
  readonly asParameters?: boolean;
  /** Largest relative deviation (norm) of bf16 gradients; null: not checked. Default 0.03. */
  readonly bf16Tolerance?: number | null;
}

type Gradients = Readonly<Record<string, Float32Array>>;
type Values = Readonly<Record<string, Float32Array>>;

/** Throws an error that says what differs, or returns the gradients (for tests that look at them). */
export function checkGradients(check: GradientCheck): Gradients {
  const values = inputValues(check.inputs);
  const plain = analytic(check, values, {});
  const numeric = finiteDifferences(check, values);
  const tolerance = check.tolerance ?? 5e-4;
  for (const [name, expected] of Object.entries(numeric)) {
    const got = part(plain, name);
    const bound = tolerance * expected.reduce((most, value) => Math.max(most, Math.abs(value)), 1);
    expected.forEach((value, i) => {
      if (!(Math.abs(value - (got[i] ?? NaN)) <= bound)) {
        throw new Error(`gradient of ${name}[${i}]: finite differences give ${value}, backward gives ${got[i]} (bound ${bound})`);
      }
    });
  }
  const once = analytic(check, values, { projection: 1 });
  const both = analytic(check, values, { twice: true });
  compare("run twice", both, sum(plain, once), 1e-5);
  compare("recomputed", analytic(check, values, { recomputed: true }), plain, 0);
  if (check.asParameters !== false) {
    compare("as parameters", analytic(check, values, { parameters: true, passes: 1 }), plain, 1e-6);
    compare("as parameters, two passes", analytic(check, values, { parameters: true, passes: 2 }), sum(plain, plain), 1e-6);
  }
  const bf16Tolerance = check.bf16Tolerance === undefined ? 0.03 : check.bf16Tolerance;
  if (bf16Tolerance !== null) {
    const rounded = Object.fromEntries(
      Object.entries(values).map(([name, data]) => [name, check.inputs[name]?.bf16 === false ? data : roundedToBf16(data)]),
    );
    compare("bf16", analytic(check, rounded, { bf16: true }), analytic(check, rounded, {}), bf16Tolerance);
    if (check.asParameters !== false)
      compare(
        "bf16 parameters",
        analytic(check, rounded, { bf16: true, parameters: true, passes: 1 }),
        analytic(check, rounded, {}),
        bf16Tolerance,
      );
  }
  return plain;
}

interface Variant {
  readonly projection?: number;
  readonly twice?: boolean;
  readonly recomputed?: boolean;
  readonly parameters?: boolean;
  readonly passes?: number;
  readonly bf16?: boolean;
}

/** The gradients that the tape gives, in one variant of the run. Asserts that all memory is freed. */
function analytic(check: GradientCheck, values: Values, variant: Variant): Gradients {
  return withEngine((engine) => {
    const inputs = makeInputs(engine, check, values, variant);
    const result: Record<string, Float32Array> = {};
    for (let pass = 0; pass < (variant.passes ?? 1); pass++) {
      using tape = new Tape(engine);
      engine.scope(() => {
        const run = (): readonly Tensor[] =>
          variant.recomputed === true
            ? recomputeMany(engine, Object.values(inputs), (again) => check.run(named(inputs, again), engine))
            : check.run(inputs, engine);
        const seeded = (outputs: readonly Tensor[], salt: number) =>
          outputs.map((value, i) => ({ value, grad: engine.from(projection(value.size, i, salt), value.shape, value.dtype) }));
        const roots = engine.withTape(tape, () => {
          const first = seeded(run(), variant.projection ?? 0);
          return variant.twice === true ? [...first, ...seeded(run(), 1)] : first;
        });
        tape.backward(roots);
      });
      if (tape.length !== 0) throw new Error(`${tape.length} nodes left after backward`);
      for (const [name, input] of Object.entries(inputs)) {
        if (input.parameter !== null) result[name] = input.parameter.grad?.toFloat32Array() ?? new Float32Array(input.size);
        else {
          using grad = tape.takeGrad(input);
          if (grad !== null && grad.dtype !== input.dtype)
            throw new Error(`the gradient of ${name} is ${grad.dtype}, the value ${input.dtype}`);
          result[name] = grad?.toFloat32Array() ?? new Float32Array(input.size);
        }
      }
    }
    for (const input of Object.values(inputs)) {
      input.parameter?.grad?.dispose();
      input.dispose();
    }
    return result;
  });
}

function finiteDifferences(check: GradientCheck, values: Values): Gradients {
  return withEngine((engine) => {
    const inputs = makeInputs(engine, check, values, {});
    const objective = (): number =>
      engine.scope(() => {
        let total = 0;
        for (const [i, output] of check.run(inputs, engine).entries()) {
          const weights = projection(output.size, i, 0);
          output.toFloat32Array().forEach((value, j) => (total += value * (weights[j] ?? 0)));
        }
        return total;
      });
    const result: Record<string, Float32Array> = {};
    for (const [name, input] of Object.entries(inputs)) {
      const data = part(values, name);
      result[name] = Float32Array.from(data, (value, i) => {
        const at = (offset: number): number => {
          const moved = data.slice();
          moved[i] = value + offset;
          engine.backend.write(input.ptr, moved);
          return objective();
        };
        const step = 1 / 32;
        const slope = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
        at(0);
        return slope;
      });
    }
    for (const input of Object.values(inputs)) input.dispose();
    return result;
  });
}

/** Runs `fn` in a fresh reference engine and throws if bytes are alive afterwards. */
export function withEngine<T>(fn: (engine: Engine) => T): T {
  const backend = createReferenceBackend();
  using engine = new Engine(backend);
  const result = fn(engine);
  if (backend.liveBytes !== 0) throw new Error(`${backend.liveBytes} bytes are still alive`);
  return result;
}

function makeInputs(
  engine: Engine,
  check: GradientCheck,
  values: Values,
  { bf16 = false, parameters = false }: Variant,
): Record<string, Tensor> {
  const made: Record<string, Tensor> = {};
  for (const [name, { shape, bf16: allowed = true }] of Object.entries(check.inputs)) {
    const dtype: DType = bf16 && allowed ? "bf16" : "f32";
    const tensor = engine.from(part(values, name), shape, dtype);
    tensor.requiresGrad = true;
    if (parameters) tensor.parameter = { name, grad: null, gradIsSet: false };
    made[name] = tensor;
  }
  return made;
}

function inputValues(inputs: GradientCheck["inputs"]): Values {
  return Object.fromEntries(
    Object.entries(inputs).map(([name, { shape, data }], i) => {
      const size = shape.reduce((n, dim) => n * dim, 1);
      return [name, data === undefined ? Random.keyed(1, i).fillNormal(new Float32Array(size), 1) : Float32Array.from(data)];
    }),
  );
}

/** Weights of an output's elements; multiples of 1/64 below 2, so that bf16 holds them exactly. */
function projection(size: number, output: number, salt: number): Float32Array {
  const random = Random.keyed(2, output, salt);
  return Float32Array.from({ length: size }, () => (Math.floor(random.uniform() * 127) - 63) / 32);
}

function roundedToBf16(data: Float32Array): Float32Array {
  return withEngine((engine) => engine.scope(() => engine.from(data, [data.length], "bf16").toFloat32Array()));
}

function named(like: Readonly<Record<string, Tensor>>, tensors: readonly Tensor[]): Record<string, Tensor> {
  const result: Record<string, Tensor> = {};
  Object.keys(like).forEach((name, i) => {
    const tensor = tensors[i];
    if (tensor !== undefined) result[name] = tensor;
  });
  return result;
}

function part(values: Values, name: string): Float32Array {
  const found = values[name];
  if (found === undefined) throw new Error(`no input named ${name}`);
  return found;
}

function sum(a: Gradients, b: Gradients): Gradients {
  return Object.fromEntries(Object.entries(a).map(([name, values]) => [name, values.map((value, i) => value + (part(b, name)[i] ?? NaN))]));
}

/** Deviation of each gradient in norm, relative to the norm expected; tolerance 0 asks for the same bits. */
function compare(what: string, got: Gradients, expected: Gradients, tolerance: number): void {
  for (const [name, values] of Object.entries(expected)) {
    const other = part(got, name);
    let difference = 0;
    let norm = 0;
    values.forEach((value, i) => {
      difference += (value - (other[i] ?? NaN)) ** 2;
      norm += value ** 2;
    });
    if (!(Math.sqrt(difference) <= tolerance * Math.sqrt(norm))) {
      throw new Error(
        `${what}: the gradient of ${name} deviates by ${Math.sqrt(difference / norm)} of its norm (allowed ${tolerance}): ${other.slice(0, 8).join(", ")} against ${values.slice(0, 8).join(", ")}`,
      );
    }
  }
}

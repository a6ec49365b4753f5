/**
 * AdamW with decoupled weight decay (arXiv 1711.05101): moments in f32, and f32 masters of weights that are stored in
 * bf16, one fused kernel per parameter. With f32 weights the weight is its own master.
 *
 * The optimizer reads the gradients that the tape left in `parameter.grad` and never averages them: normalizing by tokens is
 * the loss's business (`scale`), summing over ranks that of whoever owns the ranks. Neither does it decide what happens
 * when a gradient is not finite: `step` then changes nothing and says so, and the caller stops.
 */
import { dtypeCodes } from "../backend/kernels.ts";
import type { Engine } from "../tensor/engine.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { MoeError } from "../util/errors.ts";
import { didYouMean } from "../util/nearest.ts";

export interface AdamWOptions {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly weightDecay: number;
  /** Which parameters decay. Default: those with more than one dimension (matrices, not norm weights and biases). */
  readonly decays?: (name: string, parameter: Tensor) => boolean;
}

export interface StepOptions {
  readonly learningRate: number;
  /** Gradients are scaled down so that their global norm is at most this; null: no clipping. */
  readonly maxGradNorm: number | null;
  /** Factor of every gradient, applied before the norm is taken. Default 1. */
  readonly gradScale?: number;
  /** The global norm (after `gradScale`), where the caller knows it: over more ranks than this one. Default: computed from the parameters given. */
  readonly gradNorm?: number;
}

export interface StepResult {
  /** Euclidean norm of all gradients, after `gradScale`, before clipping. */
  readonly gradNorm: number;
  /** False: the norm is not finite and nothing was changed. */
  readonly applied: boolean;
}

/** What a checkpoint holds: `<name>.exp_avg`, `<name>.exp_avg_sq` (f32) and, for bf16 weights, `<name>.master` (f32). */
export interface AdamWState {
  /** Updates made. */
  readonly step: number;
  readonly tensors: ReadonlyMap<string, Tensor>;
}

interface Slot {
  readonly name: string;
  readonly parameter: Tensor;
  readonly expAvg: Tensor;
  readonly expAvgSq: Tensor;
  /** Null: the weight is f32 and its own master. */
  readonly master: Tensor | null;
  readonly weightDecay: number;
}

export class AdamW implements Disposable {
  readonly #engine: Engine;
  readonly #options: AdamWOptions;
  readonly #slots: readonly Slot[];
  #step = 0;

  /**
   * For those of `parameters` that require a gradient, in this order. Masters are made from the weights as they are now:
   * load the weights first. Owns its state: dispose it. Throws `configuration` for options out of range, `internal` for
   * tensors that are not parameters or that share a name.
   */
  constructor(engine: Engine, parameters: Iterable<Tensor>, options: AdamWOptions) {
    checkOptions(options);
    this.#engine = engine;
    this.#options = options;
    const named = new Map<string, Tensor>();
    for (const parameter of parameters) {
      if (!parameter.requiresGrad) continue;
      const name = parameter.parameter?.name;
      if (name === undefined) throw new MoeError("internal", `AdamW: a tensor of shape [${parameter.shape.join(", ")}] is not a parameter`);
      if (named.has(name)) throw new MoeError("internal", `AdamW: two parameters are named ${name}`);
      named.set(name, parameter);
    }
    this.#slots = Array.from(named, ([name, parameter]) => makeSlot(engine, name, parameter, options));
  }

  /** Updates made so far. */
  get numSteps(): number {
    return this.#step;
  }

  /**
   * Sum of squares of all gradients that are set, as f64 in the order of the parameters: the same bits on every backend and
   * for any number of threads. Not finite where a gradient is not. `counts`: of these parameters; default: all.
   */
  gradSumSquares(counts: (name: string) => boolean = () => true): number {
    const { backend } = this.#engine;
    const gradients = this.#slots.flatMap(({ name, parameter }) => (counts(name) ? (gradOf(parameter) ?? []) : []));
    const sums = new Float64Array(gradients.length);
    using buffer = this.#engine.detached([2 * gradients.length], "f32");
    for (const [i, grad] of gradients.entries()) backend.kernels.sumSquares(buffer.ptr + 8 * i, grad.ptr, grad.size);
    backend.read(sums, buffer.ptr);
    return sums.reduce((total, sum) => total + sum, 0);
  }

  /** Name of the first parameter whose gradient holds an infinity or NaN, or null. For the message when `applied` is false. */
  firstNonFinite(): string | null {
    using flag = this.#engine.detached([1], "i32");
    for (const { name, parameter } of this.#slots) {
      const grad = gradOf(parameter);
      if (grad === null) continue;
      this.#engine.backend.kernels.allFinite(flag.ptr, grad.ptr, grad.size);
      if (flag.item() === 0) return name;
    }
    return null;
  }

  /** One update of every parameter whose gradient is set; the others are left as they are, decay included. */
  step({ learningRate, maxGradNorm, gradScale = 1, gradNorm = gradScale * Math.sqrt(this.gradSumSquares()) }: StepOptions): StepResult {
    if (!Number.isFinite(gradNorm)) return { gradNorm, applied: false };
    const { kernels } = this.#engine.backend;
    const { beta1, beta2, eps } = this.#options;
    this.#step++;
    const biasCorrection1 = 1 - beta1 ** this.#step;
    const biasCorrection2 = 1 - beta2 ** this.#step;
    const factor = gradScale * clipFactor(gradNorm, maxGradNorm);
    for (const { parameter, expAvg, expAvgSq, master, weightDecay } of this.#slots) {
      const grad = gradOf(parameter);
      if (grad === null) continue;
      const [weightPtr, masterPtr] = master === null ? [0, parameter.ptr] : [parameter.ptr, master.ptr];
      kernels.adamwStep(
        weightPtr,
        masterPtr,
        expAvg.ptr,
        expAvgSq.ptr,
        grad.ptr,
        parameter.size,
        learningRate,
        beta1,
        beta2,
        eps,
        weightDecay,
        biasCorrection1,
        biasCorrection2,
        factor,
        dtypeCodes[parameter.dtype],
      );
      parameter.storage.version++;
    }
    return { gradNorm, applied: true };
  }

  /** Marks every gradient as unset: the next backward pass overwrites it. The memory stays. */
  zeroGrad(): void {
    for (const { parameter } of this.#slots) if (parameter.parameter !== null) parameter.parameter.gradIsSet = false;
  }

  /** The state itself, not a copy: write it out before the next step. */
  state(): AdamWState {
    const tensors = new Map<string, Tensor>();
    for (const { name, expAvg, expAvgSq, master } of this.#slots) {
      tensors.set(`${name}.exp_avg`, expAvg);
      tensors.set(`${name}.exp_avg_sq`, expAvgSq);
      if (master !== null) tensors.set(`${name}.master`, master);
    }
    return { step: this.#step, tensors };
  }

  /**
   * Copies `state` into this optimizer, and masters into their bf16 weights. It must have exactly the tensors of `state()`.
   * Throws `file` for a missing, unexpected or misshapen tensor, before anything is changed.
   */
  loadState(state: AdamWState): void {
    const own = this.state().tensors;
    if (!(Number.isSafeInteger(state.step) && state.step >= 0))
      throw new MoeError("file", `optimizer state: expected a step count, got ${state.step}`);
    for (const name of state.tensors.keys()) {
      if (!own.has(name)) throw new MoeError("file", `optimizer state: unexpected tensor ${name}${didYouMean(name, own.keys())}`);
    }
    for (const [name, target] of own) {
      const source = state.tensors.get(name);
      const got = source === undefined ? "nothing" : `[${source.shape.join(", ")}] ${source.dtype}`;
      const expected = `[${target.shape.join(", ")}] ${target.dtype}`;
      if (got !== expected) throw new MoeError("file", `optimizer state: ${name} must be ${expected}, got ${got}`);
    }
    for (const [name, target] of own) {
      const source = state.tensors.get(name);
      if (source !== undefined && source !== target) this.#engine.cast(target, source);
    }
    for (const { parameter, master } of this.#slots) if (master !== null) this.#engine.cast(parameter, master);
    this.#step = state.step;
  }

  [Symbol.dispose](): void {
    for (const tensor of this.state().tensors.values()) tensor.dispose();
  }
}

/** Factor that brings gradients of this norm to at most `maxNorm`, as torch.nn.utils.clip_grad_norm_ has it (1e-6 in the divisor). */
export function clipFactor(norm: number, maxNorm: number | null): number {
  return maxNorm === null ? 1 : Math.min(1, maxNorm / (norm + 1e-6));
}

function gradOf(parameter: Tensor): Tensor | null {
  const state = parameter.parameter;
  return state !== null && state.gradIsSet ? state.grad : null;
}

function makeSlot(engine: Engine, name: string, parameter: Tensor, options: AdamWOptions): Slot {
  const { decays = (_, { shape }) => shape.length > 1 } = options;
  const [expAvg, expAvgSq] = [engine.detached(parameter.shape, "f32"), engine.detached(parameter.shape, "f32")];
  engine.fillZero(expAvg);
  engine.fillZero(expAvgSq);
  const master = parameter.dtype === "f32" ? null : engine.detached(parameter.shape, "f32");
  if (master !== null) engine.cast(master, parameter);
  return { name, parameter, expAvg, expAvgSq, master, weightDecay: decays(name, parameter) ? options.weightDecay : 0 };
}

function checkOptions({ beta1, beta2, eps, weightDecay }: AdamWOptions): void {
  for (const [name, value, fits] of [
    ["beta1", beta1, beta1 >= 0 && beta1 < 1],
    ["beta2", beta2, beta2 >= 0 && beta2 < 1],
    ["eps", eps, eps > 0 && eps < Infinity],
    ["weightDecay", weightDecay, weightDecay >= 0 && weightDecay < Infinity],
  ] as const) {
    if (!fits)
      throw new MoeError(
        "configuration",
        `AdamW: ${name} must be ${name.startsWith("beta") ? "in [0, 1)" : name === "eps" ? "above 0" : "0 or more"}, got ${value}`,
      );
  }
}

/**
 * Define-by-run reverse-mode differentiation. Ops record a node each while a tape is active; `backward` runs the nodes in
 * reverse. A node keeps the tensors its backward needs (retained, so scopes may end in between) and lets them go as soon as
 * it has run, so that activations are freed on the way back.
 *
 * Gradients of values have the value's dtype and live here; gradients of parameters are f32 and live in the parameter,
 * over any number of backward passes, until the optimizer clears them.
 */
import { dtypeCodes, type DType, type Ptr } from "../backend/kernels.ts";
import { MoeError } from "../util/errors.ts";
import type { Engine } from "./engine.ts";
import { Tensor } from "./tensor.ts";

/** Where a backward kernel writes the gradient of an input. */
export interface GradTarget {
  readonly ptr: Ptr;
  readonly dtype: DType;
  /** 1: add to what is there. 0: overwrite. */
  readonly accumulate: 0 | 1;
}

interface Node {
  readonly outputId: number;
  readonly inPlace: boolean;
  readonly saved: readonly Tensor[];
  readonly backward: (dOut: Tensor, saved: readonly Tensor[]) => void;
}

export class Tape implements Disposable {
  readonly engine: Engine;
  #nodes: Node[] = [];
  #grads = new Map<number, Tensor>();

  constructor(engine: Engine) {
    this.engine = engine;
  }

  /**
   * Records that `output` was computed from `inputs`. `backward` gets the output's gradient and the saved tensors in order;
   * it writes input gradients through `gradTarget` or `addGrad`. Marks the output as requiring a gradient.
   * Does nothing when no input requires one.
   */
  record(inputs: readonly Tensor[], output: Tensor, saved: readonly Tensor[], backward: Node["backward"]): void {
    if (!inputs.some((input) => input.requiresGrad)) return;
    output.requiresGrad = true;
    this.#nodes.push({ outputId: output.valueId, inPlace: false, saved: saved.map((t) => t.retain()), backward });
  }
  /** Records that `value` was changed in place; `backward` changes its gradient in place. */
  recordInPlace(value: Tensor, saved: readonly Tensor[], backward: Node["backward"]): void {
    if (!value.requiresGrad) return;
    this.#nodes.push({ outputId: value.valueId, inPlace: true, saved: saved.map((t) => t.retain()), backward });
  }

  /**
   * Target for the gradient of `x`, or null where none is wanted. With `zeroed`, the target is cleared when new and
   * `accumulate` is 1, for kernels that can only add. A kernel must write the target before the next call for the same x.
   */
  gradTarget(x: Tensor, { zeroed = false } = {}): GradTarget | null {
    if (!x.requiresGrad) return null;
    const state = x.parameter;
    if (state !== null) {
      const fresh = !state.gradIsSet;
      state.grad ??= this.engine.detached(x.shape, "f32");
      state.gradIsSet = true;
      if (fresh && zeroed) this.engine.fillZero(state.grad);
      return { ptr: state.grad.ptr, dtype: "f32", accumulate: fresh && !zeroed ? 0 : 1 };
    }
    const existing = this.#grads.get(x.valueId);
    if (existing !== undefined) return { ptr: this.#unshared(x.valueId, existing).ptr, dtype: x.dtype, accumulate: 1 };
    const grad = this.engine.detached(x.shape, x.dtype);
    this.#grads.set(x.valueId, grad);
    if (zeroed) this.engine.fillZero(grad);
    return { ptr: grad.ptr, dtype: x.dtype, accumulate: zeroed ? 1 : 0 };
  }
  /** Adds `g` (x's dtype and size) to the gradient of `x`; shares g's memory where x has none yet. */
  addGrad(x: Tensor, g: Tensor): void {
    if (!x.requiresGrad) return;
    if (x.parameter === null && !this.#grads.has(x.valueId)) {
      this.#grads.set(x.valueId, g.retain());
      return;
    }
    const target = this.gradTarget(x, { zeroed: true });
    if (target === null) return;
    const { kernels } = this.engine.backend;
    if (target.dtype === "f32") kernels.accumulate(target.ptr, g.ptr, g.size, 1, dtypeCodes[g.dtype]);
    else kernels.add(target.ptr, target.ptr, g.ptr, g.size, dtypeCodes[g.dtype]);
  }
  /** Removes and returns the gradient of `x`: the caller disposes it. Null where there is none. */
  takeGrad(x: Tensor): Tensor | null {
    const grad = this.#grads.get(x.valueId) ?? null;
    this.#grads.delete(x.valueId);
    return grad;
  }
  #unshared(valueId: number, grad: Tensor): Tensor {
    if (grad.storage.references === 1) return grad;
    const copy = this.engine.detached(grad.shape, grad.dtype);
    this.engine.backend.kernels.copyRows(copy.ptr, grad.ptr, 1, grad.byteLength, grad.byteLength, grad.byteLength);
    grad.dispose();
    this.#grads.set(valueId, copy);
    return copy;
  }

  /** Seeds each root's gradient (a tensor of its shape, or a number for every element) and runs all nodes in reverse. */
  backward(roots: readonly { readonly value: Tensor; readonly grad: Tensor | number }[]): void {
    this.engine.withTape(null, () => {
      for (const { value, grad } of roots) {
        if (grad instanceof Tensor) this.addGrad(value, grad);
        else {
          using seed = this.#constant(value, grad);
          this.addGrad(value, seed);
        }
      }
      for (let node = this.#nodes.pop(); node !== undefined; node = this.#nodes.pop()) this.#run(node);
    });
  }
  #constant(like: Tensor, value: number): Tensor {
    const seed = this.engine.detached(like.shape, like.dtype);
    using f32 = this.engine.detached(like.shape, "f32");
    this.engine.backend.kernels.fillF32(f32.ptr, like.size, value);
    this.engine.cast(seed, f32);
    return seed;
  }
  #run(node: Node): void {
    let grad = this.#grads.get(node.outputId);
    try {
      if (grad === undefined) return;
      if (node.inPlace) grad = this.#unshared(node.outputId, grad);
      else this.#grads.delete(node.outputId);
      const dOut = grad;
      this.engine.scope(() => {
        node.backward(dOut, node.saved);
      });
      if (!node.inPlace) dOut.dispose();
    } finally {
      for (const tensor of node.saved) tensor.dispose();
    }
  }

  /** Number of nodes not yet run. */
  get length(): number {
    return this.#nodes.length;
  }
  /** Drops whatever was recorded and not run. */
  [Symbol.dispose](): void {
    for (const node of this.#nodes) for (const tensor of node.saved) tensor.dispose();
    this.#nodes = [];
    for (const grad of this.#grads.values()) grad.dispose();
    this.#grads.clear();
  }
}

/**
 * Activation recomputation: runs `fn` without recording, keeps only its inputs, and runs it again in the backward pass.
 * `fn` must be a pure function of `inputs` and of parameters (random numbers keyed by step, not drawn from a stream).
 */
export function recompute(engine: Engine, inputs: readonly Tensor[], fn: (inputs: readonly Tensor[]) => Tensor): Tensor {
  const tape = engine.tape;
  if (tape === null) return engine.scope(() => fn(inputs));
  const output = engine.withTape(null, () => engine.scope(() => fn(inputs)));
  if (inputs.includes(output)) throw new MoeError("internal", "recompute: the span returned one of its inputs");
  output.requiresGrad = true;
  tape.record([output], output, inputs, (dOut, saved) => {
    using inner = new Tape(engine);
    const again = engine.withTape(inner, () => engine.scope(() => fn(saved)));
    inner.backward([{ value: again, grad: dOut }]);
    for (const input of saved) {
      using grad = inner.takeGrad(input);
      if (grad !== null) tape.addGrad(input, grad);
    }
  });
  return output;
}

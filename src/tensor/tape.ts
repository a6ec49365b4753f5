/**
 * Define-by-run reverse-mode differentiation. Ops record a node each while a tape is active; `backward` runs the nodes in
 * reverse. A node keeps the tensors its backward needs (retained, so scopes may end in between) and lets them go as soon as
 * it has run, so that activations are freed on the way back.
 *
 * Gradients of values have the value's dtype and live here; gradients of parameters are f32 and live in the parameter,
 * over any number of backward passes, until the optimizer clears them.
 *
 * ```ts
 * using tape = new Tape(engine);
 * const loss = engine.withTape(tape, () => balanceLoss(router(linear(x, gate), { topK: 2, normalization: null }).probs));
 * tape.backward([{ value: loss, grad: 0.01 }]); // gate.parameter.grad now holds 0.01 * the gradient
 * ```
 *
 * Not here: second derivatives (nothing is recorded during a backward), broadcasting, and any op.
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

type Saved = readonly (Tensor | null)[];

interface Node {
  readonly outputIds: readonly number[];
  readonly inPlace: boolean;
  readonly saved: Saved;
  /** Storage versions of `saved` at the time of recording: a later change in place would make the backward wrong. */
  readonly versions: readonly number[];
  readonly backward: (dOuts: readonly (Tensor | null)[], saved: Saved) => void;
}

export class Tape implements Disposable {
  readonly engine: Engine;
  #nodes: Node[] = [];
  #grads = new Map<number, Tensor>();

  constructor(engine: Engine) {
    this.engine = engine;
  }

  /**
   * Records that `output` was computed from `inputs`. `backward` gets the output's gradient (read-only: others may share
   * it) and the saved tensors in order (null stays null); it writes input gradients through `writeGrad` or `addGrad`.
   * Marks the output as requiring a gradient. Does nothing when no input requires one.
   */
  record<const S extends Saved>(inputs: readonly Tensor[], output: Tensor, saved: S, backward: (dOut: Tensor, saved: S) => void): void {
    this.recordMany(inputs, [output], saved, ([dOut], kept: S) => {
      if (dOut !== undefined && dOut !== null) backward(dOut, kept);
    });
  }
  /** `record` for an op with several differentiable outputs. A gradient is null where none arrived; not all of them are. */
  recordMany<const S extends Saved>(
    inputs: readonly Tensor[],
    outputs: readonly Tensor[],
    saved: S,
    backward: (dOuts: readonly (Tensor | null)[], saved: S) => void,
  ): void {
    if (!inputs.some((input) => input.requiresGrad)) return;
    for (const output of outputs) output.requiresGrad = true;
    this.#push(outputs, false, saved, backward);
  }
  /** Records that `value` was changed in place; `backward` changes its gradient in place. */
  recordInPlace<const S extends Saved>(value: Tensor, saved: S, backward: (dOut: Tensor, saved: S) => void): void {
    if (!value.requiresGrad) return;
    this.#push([value], true, saved, ([dOut], kept: S) => {
      if (dOut !== undefined && dOut !== null) backward(dOut, kept);
    });
  }
  #push<S extends Saved>(
    outputs: readonly Tensor[],
    inPlace: boolean,
    saved: S,
    backward: (dOuts: readonly (Tensor | null)[], saved: S) => void,
  ): void {
    this.#nodes.push({
      outputIds: outputs.map((output) => output.valueId),
      inPlace,
      saved: saved.map((tensor) => tensor?.retain() ?? null),
      versions: saved.map((tensor) => tensor?.storage.version ?? 0),
      // The tensors of `saved` come back in the places where they were given.
      backward: backward as Node["backward"],
    });
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
  /** Adds `g` (x's size, f32 or x's dtype) to the gradient of `x`; shares g's memory where x has none yet. */
  addGrad(x: Tensor, g: Tensor): void {
    if (!x.requiresGrad) return;
    if (g.size !== x.size)
      throw new MoeError("internal", `a gradient of shape [${g.shape.join(", ")}] for a value of shape [${x.shape.join(", ")}]`);
    if (x.parameter === null && g.dtype !== x.dtype) {
      using converted = this.engine.detached(x.shape, x.dtype);
      this.engine.cast(converted, g);
      this.addGrad(x, converted);
      return;
    }
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
  /**
   * Lets a kernel write the gradient of `x`: `write` is called once with an address, whether to add to it (1) or overwrite
   * it (0), and the element type there. `dtype` is the one type that the kernel can write (absent: any); where it is not
   * that of the gradient, the result is converted and added. `addOnly`: the kernel can only add. Not called when x wants no gradient.
   */
  writeGrad(
    x: Tensor,
    { dtype, addOnly = false }: { dtype?: DType; addOnly?: boolean },
    write: (ptr: Ptr, accumulate: 0 | 1, dtype: DType) => void,
  ): void {
    if (!x.requiresGrad) return;
    const gradDtype = x.parameter === null ? x.dtype : "f32";
    if (dtype === undefined || dtype === gradDtype) {
      const target = this.gradTarget(x, { zeroed: addOnly });
      if (target !== null) write(target.ptr, target.accumulate, target.dtype);
      return;
    }
    using written = this.engine.detached(x.shape, dtype);
    if (addOnly) this.engine.fillZero(written);
    write(written.ptr, addOnly ? 1 : 0, dtype);
    this.addGrad(x, written);
  }
  /** Removes and returns the gradient of `x`: the caller disposes it. Null where there is none. */
  takeGrad(x: Tensor): Tensor | null {
    const grad = this.#grads.get(x.valueId) ?? null;
    this.#grads.delete(x.valueId);
    return grad;
  }
  /** Number of values whose gradient is waiting: for their nodes to run, or to be taken. */
  get numGrads(): number {
    return this.#grads.size;
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
    const dOuts = node.outputIds.map((id) => this.#grads.get(id) ?? null);
    const taken: Tensor[] = [];
    try {
      if (dOuts.every((grad) => grad === null)) return;
      for (const [i, id] of node.outputIds.entries()) {
        const grad = dOuts[i] ?? null;
        if (grad === null) continue;
        if (node.inPlace) dOuts[i] = this.#unshared(id, grad);
        else {
          this.#grads.delete(id);
          taken.push(grad);
        }
      }
      for (const [i, tensor] of node.saved.entries()) {
        if (tensor !== null && tensor.storage.version !== node.versions[i]) {
          throw new MoeError(
            "internal",
            `a tensor of shape [${tensor.shape.join(", ")}] saved for the backward pass was changed in place afterwards`,
          );
        }
      }
      this.engine.scope(() => {
        node.backward(dOuts, node.saved);
      });
    } finally {
      for (const grad of taken) grad.dispose();
      for (const tensor of node.saved) tensor?.dispose();
    }
  }

  /** Number of nodes not yet run. */
  get length(): number {
    return this.#nodes.length;
  }
  /** Drops whatever was recorded and not run. */
  [Symbol.dispose](): void {
    for (const node of this.#nodes) for (const tensor of node.saved) tensor?.dispose();
    this.#nodes = [];
    for (const grad of this.#grads.values()) grad.dispose();
    this.#grads.clear();
  }
}

/**
 * Activation recomputation: runs `fn` without recording, keeps only its inputs, and runs it again in the backward pass.
 * `fn` must be a pure function of `inputs` and of parameters (random numbers keyed by step, not drawn from a stream), and
 * must change none of its inputs in place. Other tensors that it uses must live until the backward pass: give them as inputs.
 * A differentiable one that is neither input nor parameter makes the backward throw `internal`.
 */
export function recompute(engine: Engine, inputs: readonly Tensor[], fn: (inputs: readonly Tensor[]) => Tensor): Tensor {
  const [output] = recomputeMany(engine, inputs, (again) => [fn(again)]);
  if (output === undefined) throw new MoeError("internal", "recompute: the span returned nothing");
  return output;
}

/** `recompute` for a span with several outputs (a layer's hidden states and its balance loss). i32 outputs are not differentiable. */
export function recomputeMany(
  engine: Engine,
  inputs: readonly Tensor[],
  fn: (inputs: readonly Tensor[]) => readonly Tensor[],
): readonly Tensor[] {
  const tape = engine.tape;
  if (tape === null) return engine.scope(() => fn(inputs));
  const outputs = engine.withTape(null, () => engine.scope(() => fn(inputs)));
  const inputIds = new Set(inputs.map((input) => input.valueId));
  if (outputs.some((output) => inputIds.has(output.valueId)))
    throw new MoeError("internal", "recompute: the span returned one of its inputs");
  const differentiable = outputs.map((output) => output.dtype !== "i32");
  for (const [i, output] of outputs.entries()) output.requiresGrad = differentiable[i] === true;
  const roots = outputs.filter((output) => output.requiresGrad);
  tape.recordMany(roots, roots, inputs, (dOuts, saved) => {
    const kept = saved.filter((tensor) => tensor !== null);
    using inner = new Tape(engine);
    const again = engine.withTape(inner, () => engine.scope(() => fn(kept))).filter((_, i) => differentiable[i] === true);
    inner.backward(again.flatMap((value, i) => (dOuts[i] ? [{ value, grad: dOuts[i] }] : [])));
    for (const input of kept) {
      using grad = inner.takeGrad(input);
      if (grad !== null) tape.addGrad(input, grad);
    }
    // What is left belongs to values from outside that the span used without naming them: it would be lost.
    if (inner.numGrads > 0)
      throw new MoeError(
        "internal",
        `recompute: the span uses ${inner.numGrads} differentiable tensors that are neither inputs nor parameters`,
      );
  });
  return outputs;
}

/**
 * AdamW over ranks: adds up gradients of all who hold a parameter, clips by the norm of the whole gradient, updates, and under ZeRO-1 (arXiv 1910.02054) does
 * so for an interval of each parameter's elements only, and gathers what the others updated.
 *
 * Reductions start as soon as a layer's gradients are complete (`onGradients`), in the order of the backward pass, and run beside what is left of it;
 * gathers start with the update, in the order of the forward pass, and a layer's weights are waited for when they are needed (`beforeLayer`).
 *
 * - Small parameters (norms, biases, routers: below `smallElements`) go in one message a layer and axis, and are updated by everybody, even under ZeRO: sharding
 *   them would save nothing and cost a message each.
 * - The others go by themselves, in place, without a copy.
 * - Sums are taken in rank order (see `Communicator`), so all holders of an element get the same bits, and their weights stay equal without being compared.
 */
import { dtypeBytes } from "../../backend/kernels.ts";
import type { ModelConfig } from "../../config/model.ts";
import type { Decoder, ParameterSpec } from "../../model/index.ts";
import { AdamW, type AdamWOptions, type AdamWState, type StepResult } from "../../optim/index.ts";
import type { Communicator, Pending } from "../../parallel/index.ts";
import type { Engine, Tensor } from "../../tensor/index.ts";
import { MoeError } from "../../util/errors.ts";
import { equalSpeeds, intervalLength, partition, type Interval } from "../../util/partition.ts";
import type { StepHooks } from "../executor.ts";
import type { StepOptimizer } from "../ranks.ts";
import { classOf, sharedHeads, type ParameterClass } from "./classes.ts";
import type { RankPlace } from "./place.ts";

/** Below this many elements a parameter is small. */
export const smallElements = 4096;

interface Held {
  readonly spec: ParameterSpec;
  readonly parameter: Tensor;
  /** f32, of all elements; owned by the parameter. */
  readonly grad: Tensor;
  readonly kind: ParameterClass;
  readonly layer: number;
  /** Elements that each rank of its axis updates; null: all of them on every rank. */
  readonly shares: readonly Interval[] | null;
}

/** Gradients on their way. `done` puts them where they belong. */
interface Reduction {
  readonly pending: Pending;
  done(): void;
}

export class RankOptimizer implements StepHooks, StepOptimizer {
  readonly #engine: Engine;
  readonly #place: RankPlace;
  readonly #config: ModelConfig;
  readonly #held: readonly Held[];
  readonly #byLayer: ReadonlyMap<number, readonly Held[]>;
  readonly #adamw: AdamW;
  /** Of the intervals that this rank updates. */
  readonly #views: Tensor[] = [];
  #reductions: Reduction[] = [];
  readonly #gathers = new Map<number, Pending[]>();

  /** For the parameters of this rank's models that train. Their gradients are made here. Owns its state: dispose it before the models. */
  constructor(models: readonly Decoder[], place: RankPlace, options: AdamWOptions) {
    const [first] = models;
    if (first === undefined) throw new MoeError("internal", "a rank without a model");
    this.#engine = first.engine;
    this.#config = first.config;
    this.#place = place;
    this.#held = models.flatMap((model) => this.#holdings(model));
    this.#byLayer = Map.groupBy(this.#held, ({ layer }) => layer);
    // Decided by the parameter, not by the interval of it that is updated here.
    const matrices = new Set(this.#held.flatMap(({ spec }) => (spec.shape.length > 1 ? [spec.name] : [])));
    const decays = options.decays ?? ((name: string): boolean => matrices.has(name));
    this.#adamw = this.#engine.scope(() => {
      const updated = this.#held.map((held) => this.#updated(held)).filter(({ size }) => size > 0);
      return new AdamW(this.#engine, updated, { ...options, decays });
    });
  }

  get numSteps(): number {
    return this.#adamw.numSteps;
  }
  /** Of the elements that this rank updates (`elementsOf`). */
  state(): AdamWState {
    return this.#adamw.state();
  }
  loadState(state: AdamWState): void {
    this.#adamw.loadState(state);
    this.#startGathers();
    this.finishGathers();
  }
  /** Elements of this rank's part of a parameter that it updates; undefined: all. */
  elementsOf(name: string): Interval | undefined {
    const held = this.#held.find(({ spec }) => spec.name === name);
    return held === undefined || held.shares === null ? undefined : ownOf(held, this.#axis(held));
  }

  // ---- while the passes run

  /** Waits for a layer's weights, which the ranks that updated them send since the last step. */
  beforeLayer(layer: number): void {
    const pending = this.#gathers.get(layer);
    if (pending === undefined) return;
    this.#gathers.delete(layer);
    for (const gather of pending) gather.wait();
  }
  /** Waits for all weights: before anything but a step reads them. */
  finishGathers(): void {
    for (const layer of this.#gathers.keys()) this.beforeLayer(layer);
  }

  /** Starts to add up a layer's gradients. All ranks of a pipeline stage call it for the same layers in the same order. */
  onGradients(layer: number): void {
    const held = this.#byLayer.get(layer) ?? [];
    for (const one of held) this.#requireGradient(one);
    this.#sumOverTp(held);
    for (const axis of ["dp", "edp"] as const) {
      const communicator = this.#place.axes[axis];
      if (communicator.size === 1) continue;
      const ofAxis = held.filter(({ kind }) => kind.axis === axis);
      const [small, large] = [ofAxis.filter(isSmall), ofAxis.filter((one) => !isSmall(one))];
      for (const one of large) this.#reductions.push(reduceLarge(one, communicator));
      if (small.length > 0) this.#reductions.push(this.#reduceSmall(small, communicator));
    }
  }
  /** A parameter that no token reached has a gradient of zeros, on whichever rank. */
  #requireGradient({ parameter, grad }: Held): void {
    if (parameter.parameter === null || parameter.parameter.gradIsSet) return;
    this.#engine.fillZero(grad);
    parameter.parameter.gradIsSet = true;
  }

  /** At once: few bytes, and what follows needs them. */
  #sumOverTp(held: readonly Held[]): void {
    const { tp } = this.#place.axes;
    if (tp.size === 1) return;
    const whole = held
      .filter(({ kind }) => kind.overTp === "all")
      .map(({ grad }) => ({ grad, elements: [{ start: 0, end: grad.size, length: grad.size }] }));
    const heads = sharedHeads(this.#place.shard?.shares ?? []);
    // Every rank puts in all shared heads, zeros for those that it does not hold.
    const shared = held
      .filter(({ kind }) => kind.overTp === "sharedHeads")
      .map(({ grad, spec }) => ({ grad, elements: this.#elementsOfHeads(spec, heads) }));
    const parts = [...whole, ...shared];
    const total = parts.reduce((sum, { elements }) => sum + elements.reduce((n, { length }) => n + length, 0), 0);
    if (total === 0) return;
    using buffer = this.#engine.detached([total], "f32");
    this.#engine.fillZero(buffer);
    const move = (copy: (inBuffer: number, inGrad: number, bytes: number) => void): void => {
      let at = 0;
      for (const { grad, elements } of parts) {
        for (const { start, end, length } of elements) {
          if (end > start) copy(buffer.ptr + 4 * at, grad.ptr + 4 * start, 4 * (end - start));
          at += length;
        }
      }
    };
    const { kernels } = this.#engine.backend;
    move((inBuffer, inGrad, bytes) => kernels.copyRows(inBuffer, inGrad, 1, bytes, bytes, bytes));
    tp.allReduce(buffer.ptr, total, "f32");
    move((inBuffer, inGrad, bytes) => kernels.copyRows(inGrad, inBuffer, 1, bytes, bytes, bytes));
  }
  /** Of each of these heads, this rank's elements in its part of the parameter (none: an empty interval of that length). */
  #elementsOfHeads({ shape }: ParameterSpec, heads: readonly number[]): readonly HeadElements[] {
    const own = this.#place.shard?.shares[this.#place.at.tp]?.kvHeads ?? { start: 0, end: 0 };
    const perHead = this.#config.headDim * shape.slice(1).reduce((a, b) => a * b, 1);
    return heads.map((head) => {
      const start = (head - own.start) * perHead;
      const isHeld = head >= own.start && head < own.end;
      return isHeld ? { start, end: start + perHead, length: perHead } : { start: 0, end: 0, length: perHead };
    });
  }

  #reduceSmall(small: readonly Held[], communicator: Communicator): Reduction {
    const { kernels } = this.#engine.backend;
    const total = small.reduce((n, { grad }) => n + grad.size, 0);
    const buffer = this.#engine.detached([total], "f32");
    const move = (copy: (inBuffer: number, grad: Tensor) => void): void => {
      let at = buffer.ptr;
      for (const { grad } of small) {
        if (grad.size > 0) copy(at, grad);
        at += grad.byteLength;
      }
    };
    move((at, { ptr, byteLength: n }) => kernels.copyRows(at, ptr, 1, n, n, n));
    const pending = communicator.startAllReduce(buffer.ptr, total, "f32");
    return {
      pending,
      done: () => {
        move((at, { ptr, byteLength: n }) => kernels.copyRows(ptr, at, 1, n, n, n));
        buffer.dispose();
      },
    };
  }

  // ---- after them

  /** Waits for the reductions: from here on the gradients of what this rank updates are those of the global batch. */
  finishReductions(): void {
    for (const reduction of this.#reductions) {
      reduction.pending.wait();
      reduction.done();
    }
    this.#reductions = [];
    this.#sumTied();
  }
  /** Looked up on one stage, multiplied by on another: two parts of one gradient. */
  #sumTied(): void {
    const { tied } = this.#place;
    const held = this.#held.find(({ spec }) => spec.name === "embedding.weight");
    if (tied === null || held === undefined) return;
    const { start, end } = held.shares === null ? { start: 0, end: held.grad.size } : ownOf(held, this.#axis(held));
    if (end > start) tied.allReduce(held.grad.ptr + 4 * start, end - start, "f32");
  }

  /** One update. `maxGradNorm` is of the whole model's gradient, over all ranks. A norm that is not finite changes nothing. */
  step({ learningRate, maxGradNorm }: { readonly learningRate: number; readonly maxGradNorm: number | null }): StepResult {
    this.finishReductions();
    const gradNorm = Math.sqrt(this.#sumSquares());
    const result = this.#adamw.step({ learningRate, maxGradNorm, gradNorm });
    if (result.applied) this.#startGathers();
    return result;
  }
  zeroGrad(): void {
    for (const { parameter } of this.#held) if (parameter.parameter !== null) parameter.parameter.gradIsSet = false;
  }
  firstNonFinite(): string | null {
    this.finishReductions();
    return this.#adamw.firstNonFinite();
  }

  /** Of the whole model's gradient: every element by one rank, in f64, added up in rank order. */
  #sumSquares(): number {
    const { backend } = this.#engine;
    const ranges = this.#held.flatMap((held) => {
      const { start, end } = this.#counted(held);
      return end > start ? [{ ptr: held.grad.ptr + 4 * start, size: end - start }] : [];
    });
    const sums = new Float64Array(ranges.length);
    using buffer = this.#engine.detached([2 * Math.max(1, ranges.length)], "f32");
    for (const [i, { ptr, size }] of ranges.entries()) backend.kernels.sumSquares(buffer.ptr + 8 * i, ptr, size);
    backend.read(sums, buffer.ptr);
    const own = sums.reduce((a, b) => a + b, 0);
    const { world } = this.#place;
    using mine = this.#engine.detached([2], "f32");
    using all = this.#engine.detached([2 * world.size], "f32");
    backend.write(mine.ptr, Float64Array.of(own));
    world.allGather(
      all.ptr,
      mine.ptr,
      Array.from({ length: world.size }, () => 8),
    );
    const perRank = new Float64Array(world.size);
    backend.read(perRank, all.ptr);
    return perRank.reduce((a, b) => a + b, 0);
  }
  #counted(held: Held): Interval {
    const { kind, shares, spec } = held;
    const axis = this.#axis(held);
    const none = { start: 0, end: 0 };
    // A tied embedding is counted where the tokens are looked up.
    if (spec.name === "embedding.weight" && held.layer !== -1) return none;
    if (shares === null) return axis.rank === 0 ? kind.counted : none;
    const own = ownOf(held, axis);
    return { start: Math.max(own.start, kind.counted.start), end: Math.min(own.end, kind.counted.end) };
  }

  #startGathers(): void {
    if (this.#place.layout.zero === 0) return;
    for (const layer of [...this.#byLayer.keys()].toSorted((a, b) => a - b)) {
      const pending = (this.#byLayer.get(layer) ?? []).flatMap((held) => {
        const { parameter, shares } = held;
        const axis = this.#axis(held);
        if (shares === null || axis.size === 1) return [];
        const bytes = dtypeBytes[parameter.dtype];
        parameter.storage.version++;
        const from = parameter.ptr + bytes * ownOf(held, axis).start;
        return [
          axis.startAllGather(
            parameter.ptr,
            from,
            shares.map((share) => bytes * intervalLength(share)),
          ),
        ];
      });
      if (pending.length > 0) this.#gathers.set(layer, pending);
    }
  }

  // ---- what there is

  #axis({ kind }: Pick<Held, "kind">): Communicator {
    return this.#place.axes[kind.axis];
  }
  #holdings(model: Decoder): Held[] {
    return model.specs.flatMap((spec) => {
      const parameter = model.parameters.get(spec.name);
      if (parameter?.parameter === undefined || parameter.parameter === null || !parameter.requiresGrad) return [];
      const grad = parameter.parameter.grad ?? this.#engine.detached(parameter.shape, "f32");
      parameter.parameter.grad = grad;
      const kind = classOf(spec, model.config, this.#place);
      const ranks = this.#place.axes[kind.axis].size;
      const isSharded = this.#place.layout.zero === 1 && ranks > 1 && parameter.size >= smallElements;
      const shares = isSharded ? partition(parameter.size, equalSpeeds(ranks)) : null;
      return [{ spec, parameter, grad, kind, layer: layerOf(spec.name, model), shares }];
    });
  }
  /** What AdamW sees of a parameter: all of it, or this rank's interval as a parameter of its own. */
  #updated(held: Held): Tensor {
    const { parameter, grad, shares, spec } = held;
    if (shares === null) return parameter;
    const { start, end } = ownOf(held, this.#axis(held));
    const part = parameter.view(-1).rows(start, end).retain();
    part.requiresGrad = true;
    // Of no tape: a step's gradient is always there.
    const gradPart = grad.view(-1).rows(start, end).retain();
    part.parameter = { name: spec.name, grad: gradPart, gradIsSet: true };
    this.#views.push(part, gradPart);
    return part;
  }

  [Symbol.dispose](): void {
    this.#adamw[Symbol.dispose]();
    for (const view of this.#views) view.dispose();
  }
}

interface HeadElements extends Interval {
  /** In the message. */
  readonly length: number;
}

function isSmall({ parameter }: Held): boolean {
  return parameter.size < smallElements;
}
function ownOf({ shares }: Held, axis: Communicator): Interval {
  return shares?.[axis.rank] ?? { start: 0, end: 0 };
}

function reduceLarge(held: Held, communicator: Communicator): Reduction {
  const { grad, shares } = held;
  const done = (): void => {};
  if (shares === null) return { pending: communicator.startAllReduce(grad.ptr, grad.size, "f32"), done };
  const out = grad.ptr + 4 * ownOf(held, communicator).start;
  return { pending: communicator.startReduceScatter(out, grad.ptr, shares.map(intervalLength), "f32"), done };
}

/** The layer with which a parameter's gradient is complete: -1 is the embedding, the number of layers final norm and head. */
function layerOf(name: string, { layers, config }: Decoder): number {
  const layer = /^layers\.(\d+)\./.exec(name)?.[1];
  if (layer !== undefined) return Number(layer);
  return name === "embedding.weight" && layers.start === 0 ? -1 : config.numLayers;
}

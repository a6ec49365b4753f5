/**
 * A group of ranks as layers see it: collectives on tensors, differentiable. A layer that was given a group computes its part of every token and calls
 * `enter` before and `leave` after; without a group it is alone, and there is nothing to add up.
 *
 * Two ways of keeping what is between layers (the residual stream):
 * - whole on every rank: `enter` is the identity and `leave` a sum. Backwards it is the other way round: gradients of what every rank
 *   used are added up, the gradient of a sum goes to all its parts (Megatron-LM, arXiv 1909.08053, f and g).
 * - sequence-parallel: each rank has some of the tokens; `enter` gathers them, `leave` adds up and leaves each rank its own (arXiv 2205.05198).
 *   Backwards again the other way round.
 *
 * Parts are summed in f32 whatever the model computes in, and rounded once: a sum of rounded parts would be further from one rank's result.
 *
 * All ranks of a group call the same, also those whose part is nothing: of them the others would wait for the gradient in vain (`nothingOf`).
 *
 * Legend: T tokens, L tokens of this rank, H columns.
 */
import { dtypeBytes } from "../backend/kernels.ts";
import { castTo, columns, type Engine, type Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { equalSpeeds, intervalLength, partition, type Interval } from "../util/partition.ts";
import type { Communicator } from "./communicator.ts";

/** What a gradient is on the ranks that gathered a tensor: a part each, to be added up, or the same on all. */
export type GradientKind = "parts" | "same";

export class TensorGroup {
  readonly engine: Engine;
  readonly communicator: Communicator;
  readonly sequenceParallel: boolean;

  constructor(engine: Engine, communicator: Communicator, { sequenceParallel = false }: { readonly sequenceParallel?: boolean } = {}) {
    this.engine = engine;
    this.communicator = communicator;
    this.sequenceParallel = sequenceParallel;
  }
  get rank(): number {
    return this.communicator.rank;
  }
  get size(): number {
    return this.communicator.size;
  }

  /** Which of `numTokens` tokens each rank has, where tokens are cut. */
  rows(numTokens: number): Interval[] {
    return partition(numTokens, equalSpeeds(this.size));
  }
  /** The tokens of this rank. */
  ownRows(numTokens: number): Interval {
    return this.rows(numTokens)[this.rank] ?? { start: 0, end: 0 };
  }

  /** [T, H] for a layer that computes a part of every token, from what is between layers: x [T, H], or [L, H] under sequence parallelism. */
  enter(x: Tensor, numTokens: number): Tensor {
    return this.sequenceParallel ? this.gatherRows(x, numTokens, "parts") : this.spread(x);
  }
  /** What is between layers, in `dtype`, from the ranks' parts [T, H] of a sum. May overwrite `part`. */
  leave(part: Tensor, dtype: "f32" | "bf16"): Tensor {
    return this.sequenceParallel ? this.#scatterSum(part, dtype) : this.sum(part, dtype);
  }

  /** x, which the ranks hold alike, each for a part of a computation: its gradients are added up. */
  spread(x: Tensor): Tensor {
    const { tape } = this.engine;
    if (this.size === 1 || tape === null || !x.requiresGrad) return x;
    const out = x.rows(0, x.dim(0));
    tape.record([x], out, [], (dOut) => {
      const sum = this.#copied(dOut);
      this.communicator.allReduce(sum.ptr, sum.size, activationDtype(sum));
      tape.addGrad(x, sum);
    });
    return out;
  }

  /** The sum of the ranks' parts (f32 or bf16, the same shape everywhere) in `dtype`. Overwrites `part`. */
  sum(part: Tensor, dtype: "f32" | "bf16"): Tensor {
    const partDtype = activationDtype(part);
    if (this.size > 1) {
      // The gradient of the sum is that of each part: the sum takes the part's place, and nothing is recorded.
      this.communicator.allReduce(part.ptr, part.size, partDtype);
      part.storage.version++;
    }
    return castTo(part, dtype);
  }

  #scatterSum(part: Tensor, dtype: "f32" | "bf16"): Tensor {
    if (this.size === 1) return castTo(part, dtype);
    const [T, H] = [part.dim(0), part.dim(1)];
    const counts = this.rows(T).map((rows) => intervalLength(rows) * H);
    const partDtype = activationDtype(part);
    const sum = this.engine.empty([intervalLength(this.ownRows(T)), H], partDtype);
    this.communicator.reduceScatter(sum.ptr, part.ptr, counts, partDtype);
    const { tape } = this.engine;
    const out = this.engine.withTape(null, () => castTo(sum, dtype).rows(0, sum.dim(0)));
    tape?.record([part], out, [], (dOut) => tape.addGrad(part, this.#gathered(dOut, T)));
    return out;
  }

  /** [T, H]: the ranks' tokens, x [L, H] each, one after the other. */
  gatherRows(x: Tensor, numTokens: number, gradient: GradientKind): Tensor {
    if (this.size === 1) return x;
    const own = this.ownRows(numTokens);
    if (x.dim(0) !== intervalLength(own))
      throw new MoeError("shape", `gather of rows: rank ${this.rank} has ${x.dim(0)} of ${numTokens}, expected ${intervalLength(own)}`);
    const out = this.#gathered(x, numTokens);
    const { tape } = this.engine;
    tape?.record([x], out, [], (dOut) => {
      if (gradient === "same") {
        tape.addGrad(x, dOut.rows(own.start, own.end));
        return;
      }
      const dx = this.engine.empty(x.shape, dOut.dtype);
      const counts = this.rows(numTokens).map((rows) => intervalLength(rows) * x.dim(1));
      this.communicator.reduceScatter(dx.ptr, dOut.ptr, counts, activationDtype(dOut));
      tape.addGrad(x, dx);
    });
    return out;
  }
  /** [L, H]: this rank's tokens of x [T, H], which all ranks hold alike. Every rank then knows the gradients of its own, and gathers the others'. */
  takeOwnRows(x: Tensor): Tensor {
    if (this.size === 1) return x;
    const T = x.dim(0);
    const { start, end } = this.ownRows(T);
    const out = x.rows(start, end);
    const { tape } = this.engine;
    tape?.record([x], out, [], (dOut) => tape.addGrad(x, this.#gathered(dOut, T)));
    return out;
  }

  /** [T, sum of widths]: the ranks' columns side by side. x [T, widths[rank]], T the same everywhere. Gradients are parts. Throws `shape`. */
  gatherColumns(x: Tensor, widths: readonly number[]): Tensor {
    const T = x.dim(0);
    if (widths.length !== this.size || x.dim(1) !== widths[this.rank])
      throw new MoeError("shape", `gather of columns: rank ${this.rank} has ${x.dim(1)}, expected one of [${widths.join(", ")}]`);
    const bytes = dtypeBytes[x.dtype];
    const width = widths.reduce((a, b) => a + b, 0);
    const out = this.engine.empty([T, width], x.dtype);
    using blocks = this.engine.detached([T * width], x.dtype);
    this.communicator.allGather(
      blocks.ptr,
      x.ptr,
      widths.map((count) => T * count * bytes),
    );
    let column = 0;
    for (const count of widths) {
      const [rowBytes, from] = [count * bytes, blocks.ptr + T * column * bytes];
      if (count > 0) this.engine.backend.kernels.copyRows(out.ptr + column * bytes, from, T, rowBytes, width * bytes, rowBytes);
      column += count;
    }
    const { tape } = this.engine;
    tape?.record([x], out, [], (dOut) => {
      const sum = this.#copied(dOut);
      this.communicator.allReduce(sum.ptr, sum.size, activationDtype(sum));
      const start = widths.slice(0, this.rank).reduce((a, b) => a + b, 0);
      tape.addGrad(x, columns(sum, start, start + x.dim(1)));
    });
    return out;
  }

  /** [T, H] of all ranks' rows, without a tape. */
  #gathered(x: Tensor, numTokens: number): Tensor {
    const H = x.dim(1);
    const out = this.engine.empty([numTokens, H], x.dtype);
    const rowBytes = H * dtypeBytes[x.dtype];
    const lengths = this.rows(numTokens).map((rows) => intervalLength(rows) * rowBytes);
    this.communicator.allGather(out.ptr, x.ptr, lengths);
    return out;
  }
  #copied(x: Tensor): Tensor {
    const copy = this.engine.empty(x.shape, x.dtype);
    if (x.byteLength > 0) this.engine.backend.kernels.copyRows(copy.ptr, x.ptr, 1, x.byteLength, x.byteLength, x.byteLength);
    return copy;
  }
}

/** The dtype of an activation, which a sum is rounded to. Throws `shape` for a tensor that is none. */
export function activationDtype({ dtype }: Tensor): "f32" | "bf16" {
  if (dtype === "f32" || dtype === "bf16") return dtype;
  throw new MoeError("shape", `activations: expected f32 or bf16, got ${dtype}`);
}

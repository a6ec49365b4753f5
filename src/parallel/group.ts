/**
 * A group of ranks as layers see it: collectives on tensors. A layer that was given a group computes its part and then calls one of
 * these; without a group it is alone, and there is nothing to add up.
 *
 * Parts are summed in f32 whatever the model computes in, and rounded once: a sum of rounded parts would be further from one rank's result.
 *
 * Inference only: under a tape these throw `unsupported`.
 */
import { dtypeBytes } from "../backend/kernels.ts";
import { castTo, type Engine, type Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import type { Communicator } from "./communicator.ts";

export class TensorGroup {
  readonly engine: Engine;
  readonly communicator: Communicator;

  constructor(engine: Engine, communicator: Communicator) {
    this.engine = engine;
    this.communicator = communicator;
  }
  get rank(): number {
    return this.communicator.rank;
  }
  get size(): number {
    return this.communicator.size;
  }

  /** The sum of the ranks' parts (f32 or bf16, the same shape everywhere) in `dtype`. Overwrites `part`. */
  sum(part: Tensor, dtype: "f32" | "bf16"): Tensor {
    this.#checkTape("sum");
    if (part.dtype !== "f32" && part.dtype !== "bf16") throw new MoeError("shape", `group sum: expected f32 or bf16, got ${part.dtype}`);
    this.communicator.allReduce(part.ptr, part.size, part.dtype);
    part.storage.version++;
    return castTo(part, dtype);
  }

  /** [T, sum of widths]: the ranks' columns side by side. x [T, widths[rank]], T the same everywhere. Throws `shape`. */
  gatherColumns(x: Tensor, widths: readonly number[]): Tensor {
    this.#checkTape("gatherColumns");
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
      widths.map((columns) => T * columns * bytes),
    );
    let column = 0;
    for (const columns of widths) {
      const [rowBytes, from] = [columns * bytes, blocks.ptr + T * column * bytes];
      if (columns > 0) this.engine.backend.kernels.copyRows(out.ptr + column * bytes, from, T, rowBytes, width * bytes, rowBytes);
      column += columns;
    }
    return out;
  }

  #checkTape(operation: string): void {
    if (this.engine.tape !== null)
      throw new MoeError("unsupported", `group ${operation} under a tape: tensor parallelism is for inference`);
  }
}

/** The dtype of an activation, which a sum is rounded to. Throws `shape` for a tensor that is none. */
export function activationDtype({ dtype }: Tensor): "f32" | "bf16" {
  if (dtype === "f32" || dtype === "bf16") return dtype;
  throw new MoeError("shape", `activations: expected f32 or bf16, got ${dtype}`);
}

/** Columns start..end-1 of x [T, N], copied. */
export function columnsOf(x: Tensor, start: number, end: number): Tensor {
  const { engine } = x;
  const [T, N, bytes] = [x.dim(0), x.dim(1), dtypeBytes[x.dtype]];
  if (!(start >= 0 && start <= end && end <= N))
    throw new MoeError("shape", `columns ${start}..${end} of a tensor of shape [${x.shape.join(", ")}]`);
  const out = engine.empty([T, end - start], x.dtype);
  const rowBytes = (end - start) * bytes;
  if (rowBytes > 0) engine.backend.kernels.copyRows(out.ptr, x.ptr + start * bytes, T, rowBytes, rowBytes, N * bytes);
  return out;
}

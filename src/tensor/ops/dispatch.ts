/**
 * From tokens to expert rows and back. `dispatch` sorts the T * k assignments by expert and gathers a copy of each token's
 * row; the experts run on runs of rows (`groupedLinear`); `combine` adds each token's rows up, weighted. With a capacity an
 * expert keeps only so many assignments; a dropped one contributes nothing (the token keeps its residual).
 *
 * Legend: T tokens, k choices, E experts, R rows = assignments kept, H hidden.
 */
import { dtypeBytes, dtypeCodes } from "../../backend/kernels.ts";
import type { Tensor } from "../tensor.ts";
import { computeDtypes, expectTensor, shapeError } from "./check.ts";

export interface DispatchOptions {
  readonly numExperts: number;
  /** Assignments that an expert keeps at most; 0: all (dropless). */
  readonly capacity: number;
  /** Which assignments are kept when there are more: those of the largest weight, or of the first tokens. */
  readonly dropBy: "probability" | "position";
}

export interface Dispatched {
  /** [R, H] in x's dtype, sorted by expert, then token. Differentiable with respect to x. */
  readonly rows: Tensor;
  /** i32 [E+1]: rows offsets[e]..offsets[e+1]-1 are expert e's. */
  readonly offsets: Tensor;
  /** i32 [R]: the token of each row. */
  readonly rowToken: Tensor;
  /** i32 [T, k]: the row of each assignment, -1 where dropped. */
  readonly slotRow: Tensor;
  /** i32 [E]: assignments of each expert before dropping. */
  readonly counts: Tensor;
  /** R. */
  readonly numRows: number;
}

/** Sorts and gathers x [T, H] by indices i32 [T, k] (weights f32 [T, k] decide who is dropped). Throws `shape`. */
export function dispatch(x: Tensor, indices: Tensor, weights: Tensor, { numExperts, capacity, dropBy }: DispatchOptions): Dispatched {
  expectTensor("dispatch", "x", x, [null, null], computeDtypes);
  const [T, H] = [x.dim(0), x.dim(1)];
  expectTensor("dispatch", "indices", indices, [T, null], ["i32"]);
  expectTensor("dispatch", "weights", weights, indices.shape, ["f32"]);
  if (!(Number.isSafeInteger(capacity) && capacity >= 0))
    throw shapeError("dispatch", "capacity", "0 (dropless) or a positive integer", String(capacity));
  const k = indices.dim(1);
  const { engine } = x;
  const { kernels } = engine.backend;
  const offsets = engine.empty([numExperts + 1], "i32");
  const slotRow = engine.empty([T, k], "i32");
  const counts = engine.empty([numExperts], "i32");
  using room = engine.detached([T * k], "i32");
  kernels.dispatchPlan(
    offsets.ptr,
    room.ptr,
    slotRow.ptr,
    counts.ptr,
    indices.ptr,
    weights.ptr,
    T,
    k,
    numExperts,
    capacity,
    dropBy === "probability" ? 1 : 0,
  );
  const numRows = capacity === 0 ? T * k : lastOffset(offsets);
  const rowToken = room.rows(0, numRows);
  const rows = engine.empty([numRows, H], x.dtype);
  const code = dtypeCodes[x.dtype];
  kernels.gatherRows(rows.ptr, x.ptr, rowToken.ptr, numRows, H * dtypeBytes[x.dtype]);
  const { tape } = engine;
  tape?.record([x], rows, [slotRow], (dOut, [savedSlotRow]) => {
    tape.writeGrad(x, { dtype: x.dtype }, (dx, accumulate) => {
      kernels.permuteBackward(dx, dOut.ptr, savedSlotRow.ptr, T, k, H, code, accumulate);
    });
  });
  return { rows, offsets, rowToken, slotRow, counts, numRows };
}

function lastOffset(offsets: Tensor): number {
  const E = offsets.dim(0) - 1;
  using last = offsets.rows(E, E + 1);
  return last.item();
}

/**
 * [T, H] = sum over the choices j of weights[t, j] * y[slotRow[t, j]], dropped ones left out. y [R, H], slotRow i32 [T, k],
 * weights f32 [T, k]; y's dtype. Gradients go to y and to the weights. Throws `shape`.
 */
export function combine(y: Tensor, slotRow: Tensor, weights: Tensor): Tensor {
  expectTensor("combine", "y", y, [null, null], computeDtypes);
  expectTensor("combine", "slotRow", slotRow, [null, null], ["i32"]);
  expectTensor("combine", "weights", weights, slotRow.shape, ["f32"]);
  const [T, k, H] = [slotRow.dim(0), slotRow.dim(1), y.dim(1)];
  const { engine } = y;
  const { kernels } = engine.backend;
  const code = dtypeCodes[y.dtype];
  const out = engine.empty([T, H], y.dtype);
  kernels.combineForward(out.ptr, y.ptr, slotRow.ptr, weights.ptr, T, k, H, code);
  const { tape } = engine;
  tape?.record([y, weights], out, [y, slotRow, weights], (dOut, [savedY, savedSlotRow, savedWeights]) => {
    const dy = engine.empty(y.shape, y.dtype);
    const dWeights = engine.empty([T, k], "f32");
    kernels.combineBackward(dy.ptr, dWeights.ptr, dOut.ptr, savedY.ptr, savedSlotRow.ptr, savedWeights.ptr, T, k, H, code);
    tape.addGrad(y, dy);
    tape.addGrad(weights, dWeights);
  });
  return out;
}

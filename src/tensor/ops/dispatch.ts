/**
 * From tokens to expert rows and back. `dispatch` sorts the T * k assignments by expert and gathers a copy of each token's
 * row; the experts run on runs of rows (`groupedLinear`); `combine` adds each token's rows up, weighted. With capacities an
 * expert keeps only so many assignments of each balance group; a dropped one contributes nothing (the token keeps its residual).
 *
 * Legend: T tokens, k choices, E experts, R rows = assignments kept (or padded to capacity), H hidden, G balance groups.
 */
import { dtypeBytes, dtypeCodes } from "../../backend/kernels.ts";
import type { Engine } from "../engine.ts";
import type { Tensor } from "../tensor.ts";
import { computeDtypes, expectGroupOffsets, expectTensor, shapeError } from "./check.ts";

export interface DispatchOptions {
  readonly numExperts: number;
  /** G + 1 ascending row numbers from 0 to T; group g is rows groupOffsets[g]..groupOffsets[g+1]-1. Default: one group. */
  readonly groupOffsets?: readonly number[];
  /** For each group, the assignments that an expert keeps at most; null: all (dropless). */
  readonly capacities: readonly number[] | null;
  /** Which assignments are kept when there are more: those of the largest weight (ties: lower token), or of the first tokens. */
  readonly dropBy: "probability" | "position";
  /** Every expert gets exactly its capacity in rows, those without a token zero. Needs capacities. Default: false. */
  readonly pad?: boolean;
  /** True where no index is -1: spares a dropless dispatch the look at how many rows there are. Default: false. */
  readonly allValid?: boolean;
}

export interface Dispatched {
  /** [R, H] in x's dtype, sorted by expert, then group, then token. Differentiable with respect to x. */
  readonly rows: Tensor;
  /** i32 [E+1]: rows offsets[e]..offsets[e+1]-1 are expert e's. */
  readonly offsets: Tensor;
  /** i32 [R]: the token of each row, -1 for a row of zeros. */
  readonly rowToken: Tensor;
  /** i32 [T, k]: the row of each assignment, -1 where dropped or where the token takes no part. */
  readonly slotRow: Tensor;
  /** i32 [G, E]: assignments of each expert before dropping. */
  readonly counts: Tensor;
  /** R. */
  readonly numRows: number;
  /** There may be rows without a token: `combine` must be told. */
  readonly padded: boolean;
}

/** Sorts and gathers x [T, H] by indices i32 [T, k] (weights f32 [T, k] decide who is dropped). Throws `shape`. */
export function dispatch(x: Tensor, indices: Tensor, weights: Tensor, options: DispatchOptions): Dispatched {
  expectTensor("dispatch", "x", x, [null, null], computeDtypes);
  const [T, H] = [x.dim(0), x.dim(1)];
  expectTensor("dispatch", "indices", indices, [T, null], ["i32"]);
  expectTensor("dispatch", "weights", weights, indices.shape, ["f32"]);
  const k = indices.dim(1);
  const { engine } = x;
  const { kernels } = engine.backend;
  const plan = makePlan(engine, indices, weights, options);
  const { rowToken, slotRow, numRows } = plan;
  const rows = engine.empty([numRows, H], x.dtype);
  const code = dtypeCodes[x.dtype];
  kernels.gatherRows(rows.ptr, x.ptr, rowToken.ptr, numRows, H * dtypeBytes[x.dtype]);
  const { tape } = engine;
  tape?.record([x], rows, [slotRow], (dOut, [savedSlotRow]) => {
    tape.writeGrad(x, { dtype: x.dtype }, (dx, accumulate) => {
      kernels.permuteBackward(dx, dOut.ptr, savedSlotRow.ptr, T, k, H, code, accumulate);
    });
  });
  return { rows, ...plan };
}

/** Where `dispatch` would put rows, without moving any: who is kept, and how many assignments each expert has. Throws `shape`. */
export function planDispatch(indices: Tensor, weights: Tensor, options: DispatchOptions): Omit<Dispatched, "rows"> {
  expectTensor("planDispatch", "indices", indices, [null, null], ["i32"]);
  expectTensor("planDispatch", "weights", weights, indices.shape, ["f32"]);
  return makePlan(indices.engine, indices, weights, options);
}

function makePlan(engine: Engine, indices: Tensor, weights: Tensor, options: DispatchOptions): Omit<Dispatched, "rows"> {
  const [T, k] = [indices.dim(0), indices.dim(1)];
  const { numExperts, capacities, dropBy, pad = false, allValid = false, groupOffsets = [0, T] } = options;
  expectGroupOffsets("dispatch", groupOffsets, T);
  const G = groupOffsets.length - 1;
  checkCapacities(capacities, G, pad);
  const paddedRows = pad && capacities !== null ? numExperts * capacities.reduce((sum, capacity) => sum + capacity, 0) : null;
  if (paddedRows !== null && paddedRows >= 2 ** 31)
    throw shapeError("dispatch", "capacities", "below 2^31 rows of all experts together, which are padded", String(paddedRows));
  const offsets = engine.empty([numExperts + 1], "i32");
  const slotRow = engine.empty([T, k], "i32");
  const counts = engine.empty([G, numExperts], "i32");
  using room = engine.detached([paddedRows ?? T * k], "i32");
  using starts = engine.from(groupOffsets, [G + 1], "i32");
  // A capacity above all assignments is that of all: it need not fit 32 bits. (Padded rows of that many could not be had.)
  const most = pad ? Infinity : T * k;
  using limits =
    capacities === null
      ? null
      : engine.from(
          Int32Array.from(capacities, (capacity) => Math.min(capacity, most)),
          [G],
          "i32",
        );
  engine.backend.kernels.dispatchPlan(
    offsets.ptr,
    room.ptr,
    slotRow.ptr,
    counts.ptr,
    indices.ptr,
    weights.ptr,
    starts.ptr,
    limits?.ptr ?? 0,
    T,
    k,
    numExperts,
    G,
    Number(dropBy === "probability"),
    Number(pad),
  );
  const numRows = paddedRows ?? (capacities === null && allValid ? T * k : lastOffset(offsets));
  return { offsets, slotRow, counts, rowToken: room.rows(0, numRows), numRows, padded: paddedRows !== null };
}

function checkCapacities(capacities: readonly number[] | null, G: number, pad: boolean): void {
  if (capacities === null) {
    if (pad) throw shapeError("dispatch", "pad", "false without capacities", "true");
    return;
  }
  if (capacities.length === G && capacities.every((capacity) => Number.isSafeInteger(capacity) && capacity >= 0)) return;
  throw shapeError("dispatch", "capacities", `an integer of at least 0 for each of ${G} groups`, `[${capacities.join(", ")}]`);
}

function lastOffset(offsets: Tensor): number {
  const E = offsets.dim(0) - 1;
  using last = offsets.rows(E, E + 1);
  return last.item();
}

/**
 * [T, H] = sum over the choices j of weights[t, j] * y[slotRow[t, j]], dropped ones left out. y [R, H], slotRow i32 [T, k],
 * weights f32 [T, k]; y's dtype. Gradients go to y and to the weights; with `padded`, rows of y without a token get zeros.
 * Throws `shape`.
 */
export function combine(y: Tensor, slotRow: Tensor, weights: Tensor, { padded = false }: { padded?: boolean } = {}): Tensor {
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
    const dy = padded ? engine.zeros(y.shape, y.dtype) : engine.empty(y.shape, y.dtype);
    const dWeights = engine.empty([T, k], "f32");
    kernels.combineBackward(dy.ptr, dWeights.ptr, dOut.ptr, savedY.ptr, savedSlotRow.ptr, savedWeights.ptr, T, k, H, code);
    tape.addGrad(y, dy);
    tape.addGrad(weights, dWeights);
  });
  return out;
}

/**
 * Parts of tensors, with gradients: rows taken by index, runs of columns, columns side by side, and the part of somebody who has none. What
 * ranks that share a computation cut and join with; one rank alone needs none of them.
 *
 * Legend: T rows, H columns, R rows taken, k places that a row goes to.
 */
import { dtypeBytes, dtypeCodes, type DType } from "../../backend/kernels.ts";
import type { Tensor } from "../tensor.ts";
import { computeDtypes, expectTensor, shapeError } from "./check.ts";

/**
 * [R, H]: row index[r] of x [T, H] for every r (index i32 [R], below 0 for a row of zeros). `slotRow` (i32 [T, k]) is the same seen from x: the
 * rows of the output that a row of x went to, -1 where there are fewer than k. The caller makes both. Throws `shape`.
 */
export function takeRows(x: Tensor, index: Tensor, slotRow: Tensor): Tensor {
  expectTensor("takeRows", "x", x, [null, null], computeDtypes);
  expectTensor("takeRows", "index", index, [null], ["i32"]);
  const [T, H] = [x.dim(0), x.dim(1)];
  expectTensor("takeRows", "slotRow", slotRow, [T, null], ["i32"]);
  const { engine } = x;
  const { kernels } = engine.backend;
  const [R, k, code] = [index.size, slotRow.dim(1), dtypeCodes[x.dtype]];
  const out = engine.empty([R, H], x.dtype);
  kernels.gatherRows(out.ptr, x.ptr, index.ptr, R, H * dtypeBytes[x.dtype]);
  const { tape } = engine;
  tape?.record([x], out, [slotRow], (dOut, [saved]) => {
    tape.writeGrad(x, { dtype: x.dtype }, (dx, accumulate) => {
      kernels.permuteBackward(dx, dOut.ptr, saved.ptr, T, k, H, code, accumulate);
    });
  });
  return out;
}

/** Columns start..end-1 of x [T, H], copied. Throws `shape`. */
export function columns(x: Tensor, start: number, end: number): Tensor {
  expectTensor("columns", "x", x, [null, null], computeDtypes);
  const [T, H, bytes] = [x.dim(0), x.dim(1), dtypeBytes[x.dtype]];
  if (!(start >= 0 && start <= end && end <= H)) throw shapeError("columns", "start and end", `within 0..${H}`, `${start}..${end}`);
  const { engine } = x;
  const { kernels } = engine.backend;
  const out = engine.empty([T, end - start], x.dtype);
  const width = (end - start) * bytes;
  if (width > 0) kernels.copyRows(out.ptr, x.ptr + start * bytes, T, width, width, H * bytes);
  const { tape } = engine;
  tape?.record([x], out, [], (dOut) => {
    const dx = engine.zeros([T, H], x.dtype);
    if (width > 0) kernels.copyRows(dx.ptr + start * bytes, dOut.ptr, T, width, H * bytes, width);
    tape.addGrad(x, dx);
  });
  return out;
}

/** [T, sum of the widths]: tensors [T, *] of one dtype side by side. Throws `shape`. */
export function concatColumns(parts: readonly Tensor[]): Tensor {
  const [first] = parts;
  if (first === undefined) throw shapeError("concatColumns", "parts", "at least one", "none");
  const { engine, dtype } = first;
  const { kernels } = engine.backend;
  const [T, bytes] = [first.dim(0), dtypeBytes[dtype]];
  for (const part of parts) expectTensor("concatColumns", "parts", part, [T, null], [dtype]);
  const widths = parts.map((part) => part.dim(1));
  const H = widths.reduce((a, b) => a + b, 0);
  const out = engine.empty([T, H], dtype);
  const each = (copy: (i: number, offset: number, width: number) => void): void => {
    let at = 0;
    for (const [i, width] of widths.entries()) {
      if (width > 0) copy(i, at * bytes, width * bytes);
      at += width;
    }
  };
  each((i, offset, width) => kernels.copyRows(out.ptr + offset, parts[i]?.ptr ?? 0, T, width, H * bytes, width));
  const { tape } = engine;
  tape?.recordMany(parts, [out], [], ([dOut]) => {
    if (dOut === undefined || dOut === null) return;
    each((i, offset, width) => {
      const part = parts[i];
      if (part?.requiresGrad !== true) return;
      const dPart = engine.empty([T, widths[i] ?? 0], dtype);
      kernels.copyRows(dPart.ptr, dOut.ptr + offset, T, width, width, H * bytes);
      tape.addGrad(part, dPart);
    });
  });
  return out;
}

/** [T, k * times] f32: every column of x [T, k] `times` times in a row. Small tensors (combine weights). Throws `shape`. */
export function repeatColumns(x: Tensor, times: number): Tensor {
  expectTensor("repeatColumns", "x", x, [null, null], ["f32"]);
  if (times === 1) return x.view(...x.shape);
  const { engine } = x;
  const [T, k] = [x.dim(0), x.dim(1)];
  const values = x.toFloat32Array();
  const repeated = new Float32Array(T * k * times);
  for (let i = 0; i < T * k; i++) repeated.fill(values[i] ?? 0, i * times, (i + 1) * times);
  const out = engine.from(repeated, [T, k * times], "f32");
  const { tape } = engine;
  tape?.record([x], out, [], (dOut) => {
    const gradients = dOut.toFloat32Array();
    const sums = Float32Array.from({ length: T * k }, (_, i) => {
      let sum = 0;
      for (let j = i * times; j < (i + 1) * times; j++) sum += gradients[j] ?? 0;
      return sum;
    });
    tape.addGrad(x, engine.from(sums, [T, k], "f32"));
  });
  return out;
}

/**
 * Zeros of this shape: what somebody computes from `inputs` who has no part in a computation. Recorded as computed from them, with gradients of
 * zeros, so that what comes before them (a sum over ranks, say) takes part in the backward pass as it does everywhere.
 */
export function nothingOf(inputs: readonly [Tensor, ...Tensor[]], shape: readonly number[], dtype: DType): Tensor {
  const { engine } = inputs[0];
  const out = engine.zeros(shape, dtype);
  const { tape } = engine;
  tape?.record(inputs, out, [], () => {
    for (const x of inputs) if (x.requiresGrad) tape.addGrad(x, engine.zeros(x.shape, x.dtype));
  });
  return out;
}

/** x; calls `fn` in the backward pass when it comes past here: everything computed from x has then left its gradients. */
export function onBackward(x: Tensor, fn: () => void): Tensor {
  const { tape } = x.engine;
  if (tape === null || !x.requiresGrad) return x;
  const out = x.rows(0, x.dim(0));
  tape.record([x], out, [], (dOut) => {
    fn();
    tape.addGrad(x, dOut);
  });
  return out;
}

/** Elementwise arithmetic without broadcasting: the sum of a residual connection, a constant factor, a change of dtype. */
import type { DType } from "../../backend/kernels.ts";
import type { Tensor } from "../tensor.ts";
import { computeCode, computeDtypes, expectLike, shapeError } from "./check.ts";

/** a + b, of the same shape and dtype. Throws `shape`. */
export function add(a: Tensor, b: Tensor): Tensor {
  expectLike("add", "b", b, a);
  const { engine } = a;
  const out = engine.empty(a.shape, a.dtype);
  engine.backend.kernels.add(out.ptr, a.ptr, b.ptr, a.size, computeCode("add", "a", a));
  const { tape } = engine;
  tape?.record([a, b], out, [], (dOut) => {
    tape.addGrad(a, dOut);
    tape.addGrad(b, dOut);
  });
  return out;
}

/** x * s for a number s. */
export function scale(x: Tensor, s: number): Tensor {
  const { engine } = x;
  const { kernels } = engine.backend;
  const code = computeCode("scale", "x", x);
  const out = engine.empty(x.shape, x.dtype);
  kernels.scale(out.ptr, x.ptr, x.size, s, code);
  const { tape } = engine;
  tape?.record([x], out, [], (dOut) => {
    const dx = engine.empty(x.shape, x.dtype);
    kernels.scale(dx.ptr, dOut.ptr, x.size, s, code);
    tape.addGrad(x, dx);
  });
  return out;
}

/** x rounded to `dtype` (f32 or bf16); the gradient goes back in x's dtype. Another handle of x where it has that dtype. */
export function castTo(x: Tensor, dtype: DType): Tensor {
  if (!computeDtypes.some((name) => name === dtype)) throw shapeError("castTo", "dtype", "f32 or bf16", dtype);
  computeCode("castTo", "x", x);
  if (x.dtype === dtype) return x.view(...x.shape);
  const { engine } = x;
  const out = engine.empty(x.shape, dtype);
  engine.cast(out, x);
  const { tape } = engine;
  tape?.record([x], out, [], (dOut) => {
    const dx = engine.empty(x.shape, x.dtype);
    engine.cast(dx, dOut);
    tape.addGrad(x, dx);
  });
  return out;
}

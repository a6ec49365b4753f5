/**
 * Small pieces of a MoE layer around the router: the tanh of a two-layer gate, the sigmoid gate of a shared expert, and the
 * multiplicative noise on a router's input.
 *
 * Legend: T tokens, H features.
 */
import { dtypeCodes } from "../../backend/kernels.ts";
import type { Tensor } from "../tensor.ts";
import { computeDtypes, expectGroupOffsets, expectTensor, shapeError } from "./check.ts";

/** Hyperbolic tangent of an f32 tensor. Throws `shape`. */
export function tanh(x: Tensor): Tensor {
  if (x.dtype !== "f32") throw shapeError("tanh", "x", "f32", x);
  const { engine } = x;
  const { kernels } = engine.backend;
  const out = engine.empty(x.shape, "f32");
  kernels.tanhForward(out.ptr, x.ptr, x.size);
  const { tape } = engine;
  tape?.record([x], out, [out], (dOut, [savedOut]) => {
    const dx = engine.empty(x.shape, "f32");
    kernels.tanhBackward(dx.ptr, dOut.ptr, savedOut.ptr, x.size);
    tape.addGrad(x, dx);
  });
  return out;
}

/** [T, H] = factor * sigmoid(gate[t]) * x[t], for x [T, H] and gate f32 [T, 1]; x's dtype. Throws `shape`. */
export function sigmoidGate(x: Tensor, gate: Tensor, factor = 1): Tensor {
  expectTensor("sigmoidGate", "x", x, [null, null], computeDtypes);
  const [T, H] = [x.dim(0), x.dim(1)];
  expectTensor("sigmoidGate", "gate", gate, [T, 1], ["f32"]);
  const { engine } = x;
  const { kernels } = engine.backend;
  const code = dtypeCodes[x.dtype];
  const out = engine.empty([T, H], x.dtype);
  kernels.sigmoidGateForward(out.ptr, x.ptr, gate.ptr, T, H, factor, code);
  const { tape } = engine;
  tape?.record([x, gate], out, [x, gate], (dOut, [savedX, savedGate]) => {
    const dx = engine.empty([T, H], x.dtype);
    const dGate = engine.empty([T, 1], "f32");
    kernels.sigmoidGateBackward(dx.ptr, dGate.ptr, dOut.ptr, savedX.ptr, savedGate.ptr, T, H, factor, code);
    tape.addGrad(x, dx);
    tape.addGrad(gate, dGate);
  });
  return out;
}

export interface JitterOptions {
  /** Below 1. */
  readonly epsilon: number;
  /** Two unsigned 32-bit words that name this use of noise. */
  readonly key: readonly [number, number];
  /** G + 1 ascending row numbers from 0 to T; rows of one group are consecutive in the numbering of `rowOffsets`. */
  readonly groupOffsets: readonly number[];
  /** For each group, the number of its first row: with the key and the column it determines the noise. */
  readonly rowOffsets: readonly number[];
}

/**
 * x * u for f32 x [T, H], u uniform in [1 - epsilon, 1 + epsilon] from a counter-based generator: a function of (key, row number,
 * column), whatever else is computed. The gradient is multiplied by the same u. Throws `shape`.
 */
export function jitter(x: Tensor, { epsilon, key: [high, low], groupOffsets, rowOffsets }: JitterOptions): Tensor {
  expectTensor("jitter", "x", x, [null, null], ["f32"]);
  const [T, H] = [x.dim(0), x.dim(1)];
  expectGroupOffsets("jitter", groupOffsets, T);
  if (rowOffsets.length !== groupOffsets.length - 1)
    throw shapeError("jitter", "rowOffsets", `one for each of ${groupOffsets.length - 1} groups`, `[${rowOffsets.join(", ")}]`);
  const { engine } = x;
  const run = (source: Tensor): Tensor => {
    const out = engine.empty([T, H], "f32");
    for (const [g, firstRow] of rowOffsets.entries()) {
      const start = groupOffsets[g] ?? 0;
      const offset = 4 * start * H;
      const rows = (groupOffsets[g + 1] ?? T) - start;
      engine.backend.kernels.jitter(out.ptr + offset, source.ptr + offset, rows, H, firstRow, high | 0, low | 0, epsilon);
    }
    return out;
  };
  const out = run(x);
  const { tape } = engine;
  tape?.record([x], out, [], (dOut) => {
    tape.addGrad(x, run(dOut));
  });
  return out;
}

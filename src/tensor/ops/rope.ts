/**
 * Rotary position embedding (arXiv 2104.09864), "neox" pairing: elements j and j + half of a head rotate by the angle of
 * their position. The table of cosines and sines is made once for a model; scaled variants (Llama 3, YaRN, linear) differ
 * only in the inverse frequencies and the attention scale that go into it, which the model computes.
 */
import type { Engine } from "../engine.ts";
import type { Tensor } from "../tensor.ts";
import { computeCode, expectTensor, shapeError } from "./check.ts";

/**
 * f32 [numPositions, half, 2]: (cos, sin) of position * invFreq[j], times `attentionScale`. `half` = invFreq.length rotates
 * the first 2 * half elements of each head.
 */
export function makeRopeTable(engine: Engine, invFreq: Float32Array, numPositions: number, attentionScale: number): Tensor {
  const half = invFreq.length;
  const table = engine.empty([numPositions, half, 2], "f32");
  using frequencies = engine.detached([half], "f32");
  engine.backend.write(frequencies.ptr, invFreq);
  engine.backend.kernels.ropeTable(table.ptr, frequencies.ptr, numPositions, half, attentionScale);
  return table;
}

/**
 * Rotates x [T, heads * headDim] in place by table [P, half, 2] at positions i32[T] (all below P: the caller checks).
 * The backward rotates the gradient back (and multiplies it by the table's attention scale, as the forward did).
 * Throws `shape`; the backward throws `internal` if an op before saved x for its own backward.
 */
export function ropeInPlace(x: Tensor, table: Tensor, positions: Tensor, headDim: number): void {
  expectTensor("ropeInPlace", "table", table, [null, null, 2], ["f32"]);
  const half = table.dim(1);
  const T = x.dim(0);
  const width = x.size / Math.max(T, 1);
  if (2 * half > headDim) throw shapeError("ropeInPlace", "table", `[P, at most ${headDim / 2}, 2] for heads of ${headDim}`, table);
  if (width % headDim !== 0) throw shapeError("ropeInPlace", "x", `[T, a multiple of headDim ${headDim}]`, x);
  expectTensor("ropeInPlace", "positions", positions, [T], ["i32"]);
  const { engine } = x;
  const { kernels } = engine.backend;
  const code = computeCode("ropeInPlace", "x", x);
  const heads = width / headDim;
  kernels.ropeApply(x.ptr, table.ptr, positions.ptr, T, heads, headDim, width, half, 0, code);
  x.storage.version++;
  engine.tape?.recordInPlace(x, [table, positions], (dOut, [savedTable, savedPositions]) => {
    kernels.ropeApply(dOut.ptr, savedTable.ptr, savedPositions.ptr, T, heads, headDim, width, half, 1, code);
  });
}

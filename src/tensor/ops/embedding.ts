/** Token embedding: rows of a table by id. */
import { dtypeCodes } from "../../backend/kernels.ts";
import type { Tensor } from "../tensor.ts";
import { computeDtypes, expectTensor } from "./check.ts";

/**
 * [T, H] = table[ids[t]] of table [V, H], in the table's dtype. ids i32[T] must lie in 0..V-1: the caller checks, where
 * they enter the program (here a wrong one would give zeros). Throws `shape`.
 */
export function embedding(table: Tensor, ids: Tensor): Tensor {
  expectTensor("embedding", "table", table, [null, null], computeDtypes);
  expectTensor("embedding", "ids", ids, [null], ["i32"]);
  const { engine } = table;
  const { kernels } = engine.backend;
  const [V, H, T] = [table.dim(0), table.dim(1), ids.dim(0)];
  const code = dtypeCodes[table.dtype];
  const out = engine.empty([T, H], table.dtype);
  kernels.embeddingForward(out.ptr, table.ptr, ids.ptr, T, H, V, code);
  const { tape } = engine;
  tape?.record([table], out, [ids], (dOut, [savedIds]) => {
    tape.writeGrad(table, { dtype: "f32", addOnly: true }, (ptr) => {
      kernels.embeddingBackward(ptr, dOut.ptr, savedIds.ptr, T, H, V, code);
    });
  });
  return out;
}

/**
 * Softmax attention with grouped query heads (arXiv 2305.13245). Which keys a query sees is an interval per query, so
 * causality, packed documents, a KV cache and a sliding window are all data: query t sees rows lo..keyEnd[t]-1 of k and v,
 * with lo = keyBase[t], or max(keyBase[t], keyEnd[t] - window) under a window.
 *
 * Legend: T queries, S rows of keys and values, Hq query heads, Hkv key heads, D head dimension.
 */
import { dtypeCodes } from "../../backend/kernels.ts";
import type { Tensor } from "../tensor.ts";
import { computeDtypes, expectTensor, shapeError } from "./check.ts";

export interface AttentionOptions {
  readonly numHeads: number;
  /** Divides numHeads: each key head serves numHeads / numKvHeads consecutive query heads. */
  readonly numKvHeads: number;
  readonly headDim: number;
  /** i32[T], non-decreasing: first row of k and v that the query's document has. */
  readonly keyBase: Tensor;
  /** i32[T], non-decreasing: one past the last row that the query sees (its own row + 1 when causal). At most S. */
  readonly keyEnd: Tensor;
  /** Keys seen at most, counted back from keyEnd; 0: all. */
  readonly window: number;
  /** Factor of the scores, usually 1 / sqrt(headDim). */
  readonly scale: number;
  /**
   * i32[B]: k and v are in pages of 64 rows. keyBase (multiples of 64) and keyEnd are then rows of a space of B * 64, whose page j is rows
   * blocks[j] * 64 and on of k and v. Inference only: no gradient. Absent or null: rows are rows.
   */
  readonly blocks?: Tensor | null;
}

/**
 * [T, Hq*D] from q [T, Hq*D], k and v [S, Hkv*D], all of one dtype. k and v may be cache buffers with rows beyond what is
 * filled: only keyEnd says what is read. A query that sees nothing gives zeros. Throws `shape`.
 */
export function attention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions): Tensor {
  const { numHeads: Hq, numKvHeads: Hkv, headDim: D, keyBase, keyEnd, window, scale, blocks = null } = options;
  if (Hkv < 1 || Hq % Hkv !== 0) throw shapeError("attention", "numHeads", `a multiple of numKvHeads ${Hkv}`, String(Hq));
  expectTensor("attention", "q", q, [null, Hq * D], computeDtypes);
  expectTensor("attention", "k", k, [null, Hkv * D], [q.dtype]);
  expectTensor("attention", "v", v, k.shape, [q.dtype]);
  const [T, S] = [q.dim(0), k.dim(0)];
  expectTensor("attention", "keyBase", keyBase, [T], ["i32"]);
  expectTensor("attention", "keyEnd", keyEnd, [T], ["i32"]);
  const { engine } = q;
  const { kernels } = engine.backend;
  const code = dtypeCodes[q.dtype];
  const [qStride, kvStride] = [Hq * D, Hkv * D];
  const out = engine.empty(q.shape, q.dtype);
  if (blocks !== null) {
    expectTensor("attention", "blocks", blocks, [null], ["i32"]);
    const sizes = [T, blocks.size * 64, S, Hq, Hkv, D, qStride, kvStride, kvStride, window] as const;
    kernels.attentionPagedForward(out.ptr, q.ptr, k.ptr, v.ptr, keyBase.ptr, keyEnd.ptr, blocks.ptr, ...sizes, scale, code);
    return out;
  }
  const tape = q.requiresGrad || k.requiresGrad || v.requiresGrad ? engine.tape : null;
  const lse = tape === null ? null : engine.empty([Hq, T], "f32");
  kernels.attentionForward(
    out.ptr,
    lse?.ptr ?? 0,
    q.ptr,
    k.ptr,
    v.ptr,
    keyBase.ptr,
    keyEnd.ptr,
    T,
    S,
    Hq,
    Hkv,
    D,
    qStride,
    kvStride,
    kvStride,
    window,
    scale,
    code,
  );
  if (lse === null) return out;
  tape?.record([q, k, v], out, [q, k, v, out, lse, keyBase, keyEnd], (dOut, [qs, ks, vs, os, ls, base, end]) => {
    // Fresh buffers: where q, k and v have no gradient yet, as in a decoder, the tape takes them over without a copy.
    const [dq, dk, dv] = [engine.empty(q.shape, q.dtype), engine.empty(k.shape, k.dtype), engine.empty(v.shape, v.dtype)];
    kernels.attentionBackward(
      dq.ptr,
      dk.ptr,
      dv.ptr,
      dOut.ptr,
      qs.ptr,
      ks.ptr,
      vs.ptr,
      os.ptr,
      ls.ptr,
      base.ptr,
      end.ptr,
      T,
      S,
      Hq,
      Hkv,
      D,
      qStride,
      kvStride,
      kvStride,
      window,
      scale,
      code,
      0,
    );
    tape.addGrad(q, dq);
    tape.addGrad(k, dk);
    tape.addGrad(v, dv);
  });
  return out;
}

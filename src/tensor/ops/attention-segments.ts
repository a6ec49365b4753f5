/**
 * Attention of query heads that are not spread evenly over their key heads: runs of heads, each even in itself, one after another.
 * A rank that has part of a model's heads sees them so (4 query heads on one key head and 2 on the next, say).
 *
 * Legend: T queries, S rows of keys and values, Q = query heads * headDim, C = key heads * headDim.
 */
import { dtypeBytes, dtypeCodes } from "../../backend/kernels.ts";
import type { Tensor } from "../tensor.ts";
import { attention, type AttentionOptions } from "./attention.ts";
import { columns, concatColumns } from "./rows.ts";
import { computeDtypes, expectTensor, shapeError } from "./check.ts";

/** `numHeads / numKvHeads` consecutive query heads read each of `numKvHeads` consecutive key heads. */
export interface AttentionSegment {
  readonly numHeads: number;
  readonly numKvHeads: number;
}

/**
 * `attention` [T, Q] from q [T, Q], k and v [S, C] whose heads are those of the segments, in order. Throws `shape`.
 */
export function attentionSegments(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  segments: readonly AttentionSegment[],
  options: Omit<AttentionOptions, "numHeads" | "numKvHeads">,
): Tensor {
  const [only, ...more] = segments;
  if (only !== undefined && more.length === 0) return attention(q, k, v, { ...options, ...only });
  const { headDim: D, keyBase, keyEnd, window, scale, blocks = null } = options;
  const numHeads = segments.reduce((n, segment) => n + segment.numHeads, 0);
  const numKvHeads = segments.reduce((n, segment) => n + segment.numKvHeads, 0);
  expectTensor("attentionSegments", "q", q, [null, numHeads * D], computeDtypes);
  expectTensor("attentionSegments", "k", k, [null, numKvHeads * D], [q.dtype]);
  expectTensor("attentionSegments", "v", v, k.shape, [q.dtype]);
  const { engine } = q;
  if (engine.tape !== null) return recorded(q, k, v, segments, options);
  const { kernels } = engine.backend;
  const [T, S, bytes, code] = [q.dim(0), k.dim(0), dtypeBytes[q.dtype], dtypeCodes[q.dtype]];
  const out = engine.empty(q.shape, q.dtype);
  using part = engine.detached([Math.max(...segments.map((segment) => segment.numHeads)) * D * T], q.dtype);
  let [head, kvHead] = [0, 0];
  for (const { numHeads: Hq, numKvHeads: Hkv } of segments) {
    if (Hkv < 1 || Hq % Hkv !== 0) throw shapeError("attentionSegments", "numHeads", `a multiple of numKvHeads ${Hkv}`, String(Hq));
    const [qs, ks, vs] = [q.ptr + head * D * bytes, k.ptr + kvHead * D * bytes, v.ptr + kvHead * D * bytes];
    const strides = [numHeads * D, numKvHeads * D, numKvHeads * D] as const;
    const ranges = [keyBase.ptr, keyEnd.ptr] as const;
    if (blocks === null) kernels.attentionForward(part.ptr, 0, qs, ks, vs, ...ranges, T, S, Hq, Hkv, D, ...strides, window, scale, code);
    else
      kernels.attentionPagedForward(
        part.ptr,
        qs,
        ks,
        vs,
        ...ranges,
        blocks.ptr,
        T,
        blocks.size * 64,
        S,
        Hq,
        Hkv,
        D,
        ...strides,
        window,
        scale,
        code,
      );
    kernels.copyRows(out.ptr + head * D * bytes, part.ptr, T, Hq * D * bytes, numHeads * D * bytes, Hq * D * bytes);
    head += Hq;
    kvHead += Hkv;
  }
  return out;
}

/** Under a tape: ops that it knows. Their copies cost little beside the attention. */
function recorded(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  segments: readonly AttentionSegment[],
  options: Omit<AttentionOptions, "numHeads" | "numKvHeads">,
): Tensor {
  const D = options.headDim;
  let [head, kvHead] = [0, 0];
  return concatColumns(
    segments.map((segment) => {
      const [q0, kv0] = [head * D, kvHead * D];
      head += segment.numHeads;
      kvHead += segment.numKvHeads;
      const [qs, ks, vs] = [columns(q, q0, head * D), columns(k, kv0, kvHead * D), columns(v, kv0, kvHead * D)];
      return attention(qs, ks, vs, { ...options, ...segment });
    }),
  );
}

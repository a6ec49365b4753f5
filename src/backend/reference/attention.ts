/**
 * Softmax attention with grouped query heads, over a range of keys for each query: the plain twin of native/attention.c.
 *
 * Here each query's scores are all held at once and the softmax is taken in two passes, f64, rounded once: the definition, not the
 * online algorithm (arXiv 2205.14135) of the fast kernels. The backward takes the probabilities from the forward's lse,
 * p = exp(scale q k - lse), as they do (equations of appendix B.4 there).
 * Legend: T queries, S keys, Hq query heads, Hkv key heads (query head h reads key head floor(h / (Hq / Hkv))), D head size.
 */
import type { DTypeCode, Ptr } from "../kernels.ts";
import { dtypeBytes, dtypeCodes } from "../kernels.ts";
import { MoeError } from "../../util/errors.ts";
import type { ReferenceMemory } from "./memory.ts";
import { at } from "./memory.ts";

/** Rows of a page. */
const pageRows = 64;

interface Shape {
  readonly T: number;
  readonly S: number;
  readonly Hq: number;
  readonly Hkv: number;
  readonly D: number;
}

/** Elements from the first to the last of `rows` rows of `width` that lie `stride` apart. */
function extent(rows: number, width: number, stride: number): number {
  return rows === 0 ? 0 : (rows - 1) * stride + width;
}

/** Keys first..end-1 of every query (end <= first: none). Throws `internal` where a key outside 0..S-1 is asked for. */
function keyRanges(
  memory: ReferenceMemory,
  keyBase: Ptr,
  keyEnd: Ptr,
  T: number,
  S: number,
  window: number,
): { first: number; end: number }[] {
  const bases = memory.loadI32(keyBase, T);
  const ends = memory.loadI32(keyEnd, T);
  return Array.from({ length: T }, (_, t) => {
    const end = at(ends, t);
    const first = window > 0 ? Math.max(at(bases, t), end - window) : at(bases, t);
    if (end > first && (first < 0 || end > S)) {
      throw new MoeError("internal", `reference attention: expected keys within 0..${S}, got ${first}..${end} for query ${t}`);
    }
    return { first, end };
  });
}

function dot(a: Float64Array, aStart: number, b: Float64Array, bStart: number, n: number): number {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += at(a, aStart + i) * at(b, bStart + i);
  return sum;
}

/** to[toStart..] += factor * from[fromStart..], n elements. */
function addScaled(to: Float64Array, toStart: number, factor: number, from: Float64Array, fromStart: number, n: number): void {
  for (let i = 0; i < n; i++) to[toStart + i] = at(to, toStart + i) + factor * at(from, fromStart + i);
}

function keyHead(h: number, { Hq, Hkv }: Shape): number {
  if (Hq % Hkv !== 0)
    throw new MoeError("internal", `reference attention: expected query heads to be a multiple of key heads, got ${Hq} and ${Hkv}`);
  return Math.floor(h / (Hq / Hkv));
}

export function attentionForward(
  memory: ReferenceMemory,
  out: Ptr,
  lse: Ptr,
  q: Ptr,
  k: Ptr,
  v: Ptr,
  keyBase: Ptr,
  keyEnd: Ptr,
  T: number,
  S: number,
  Hq: number,
  Hkv: number,
  D: number,
  qStride: number,
  kStride: number,
  vStride: number,
  window: number,
  scale: number,
  dtype: DTypeCode,
): void {
  const shape = { T, S, Hq, Hkv, D };
  const qs = memory.load(q, extent(T, Hq * D, qStride), dtype);
  const ks = memory.load(k, extent(S, Hkv * D, kStride), dtype);
  const vs = memory.load(v, extent(S, Hkv * D, vStride), dtype);
  const outs = new Float64Array(T * Hq * D);
  const lses = new Float64Array(Hq * T).fill(-Infinity);
  for (const [t, { first, end }] of keyRanges(memory, keyBase, keyEnd, T, S, window).entries()) {
    if (end <= first) continue;
    for (let h = 0; h < Hq; h++) {
      const head = keyHead(h, shape) * D;
      const scores = Float64Array.from(
        { length: end - first },
        (_, i) => scale * dot(qs, t * qStride + h * D, ks, (first + i) * kStride + head, D),
      );
      const max = scores.reduce((a, b) => Math.max(a, b));
      const sum = scores.reduce((total, score) => total + Math.exp(score - max), 0);
      lses[h * T + t] = max + Math.log(sum);
      for (let i = 0; i < scores.length; i++) {
        const p = Math.exp(at(scores, i) - max) / sum;
        addScaled(outs, (t * Hq + h) * D, p, vs, (first + i) * vStride + head, D);
      }
    }
  }
  memory.store(out, outs, dtype);
  if (lse !== 0) memory.storeF32(lse, lses);
}

/** Gathers the pages, then attends: the definition of the paged kernel. */
export function attentionPagedForward(
  memory: ReferenceMemory,
  out: Ptr,
  q: Ptr,
  k: Ptr,
  v: Ptr,
  keyBase: Ptr,
  keyEnd: Ptr,
  blocks: Ptr,
  T: number,
  S: number,
  P: number,
  Hq: number,
  Hkv: number,
  D: number,
  qStride: number,
  kStride: number,
  vStride: number,
  window: number,
  scale: number,
  dtype: DTypeCode,
): void {
  const table = memory.loadI32(blocks, S / pageRows);
  const base = memory.loadI32(keyBase, T).find((row) => row % pageRows !== 0);
  if (base !== undefined) throw new MoeError("internal", `reference attention: expected keyBase in multiples of ${pageRows}, got ${base}`);
  const width = Hkv * D;
  const gathered = (from: Ptr, stride: number): Ptr => {
    const rows = memory.load(from, extent(P, width, stride), dtype);
    const dense = new Float64Array(S * width);
    for (let s = 0; s < S; s++) {
      const row = at(table, Math.floor(s / pageRows)) * pageRows + (s % pageRows);
      if (row >= P)
        throw new MoeError("internal", `reference attention: block ${Math.floor(s / pageRows)} is beyond the ${P} rows of keys`);
      dense.set(rows.subarray(row * stride, row * stride + width), s * width);
    }
    const to = memory.alloc(dense.length * dtypeBytes[dtype === dtypeCodes.f32 ? "f32" : "bf16"]);
    memory.store(to, dense, dtype);
    return to;
  };
  const keys = gathered(k, kStride);
  const values = gathered(v, vStride);
  attentionForward(memory, out, 0, q, keys, values, keyBase, keyEnd, T, S, Hq, Hkv, D, qStride, width, width, window, scale, dtype);
  memory.free(keys);
  memory.free(values);
}

export function attentionBackward(
  memory: ReferenceMemory,
  dq: Ptr,
  dk: Ptr,
  dv: Ptr,
  dOut: Ptr,
  q: Ptr,
  k: Ptr,
  v: Ptr,
  out: Ptr,
  lse: Ptr,
  keyBase: Ptr,
  keyEnd: Ptr,
  T: number,
  S: number,
  Hq: number,
  Hkv: number,
  D: number,
  qStride: number,
  kStride: number,
  vStride: number,
  window: number,
  scale: number,
  dtype: DTypeCode,
  accumulate: number,
): void {
  const shape = { T, S, Hq, Hkv, D };
  const qs = memory.load(q, extent(T, Hq * D, qStride), dtype);
  const ks = memory.load(k, extent(S, Hkv * D, kStride), dtype);
  const vs = memory.load(v, extent(S, Hkv * D, vStride), dtype);
  const dOuts = memory.load(dOut, T * Hq * D, dtype);
  const outs = memory.load(out, T * Hq * D, dtype);
  const lses = memory.load(lse, Hq * T, dtypeCodes.f32);
  const dqs = new Float64Array(T * Hq * D);
  const dks = new Float64Array(S * Hkv * D);
  const dvs = new Float64Array(S * Hkv * D);
  for (const [t, { first, end }] of keyRanges(memory, keyBase, keyEnd, T, S, window).entries()) {
    for (let h = 0; h < Hq; h++) {
      const head = keyHead(h, shape) * D;
      const query = t * qStride + h * D;
      const row = (t * Hq + h) * D;
      const delta = dot(dOuts, row, outs, row, D);
      for (let s = first; s < end; s++) {
        const p = Math.exp(scale * dot(qs, query, ks, s * kStride + head, D) - at(lses, h * T + t));
        const dScore = p * (dot(dOuts, row, vs, s * vStride + head, D) - delta) * scale;
        addScaled(dvs, s * Hkv * D + head, p, dOuts, row, D);
        addScaled(dqs, row, dScore, ks, s * kStride + head, D);
        addScaled(dks, s * Hkv * D + head, dScore, qs, query, D);
      }
    }
  }
  memory.storeOrAdd(dq, dqs, dtype, accumulate);
  memory.storeOrAdd(dk, dks, dtype, accumulate);
  memory.storeOrAdd(dv, dvs, dtype, accumulate);
}

/**
 * Cases of attention: causal, packed documents, caches, windows, grouped heads, strided rows, queries that see nothing.
 * Legend: T queries, S keys, Hq query heads, Hkv key heads, D head size.
 */
import type { Case, Check } from "../harness/operands.ts";
import { accumulated, input, output, u } from "../harness/operands.ts";
import { Random, representable } from "../harness/random.ts";

type FloatType = "f32" | "bf16";

export interface AttentionShape {
  readonly Hq: number;
  readonly Hkv: number;
  readonly D: number;
  readonly window: number;
  /** Elements of a row of q, k and v beyond the heads, as where they are parts of one projection. */
  readonly gap: number;
  readonly keyBase: readonly number[];
  readonly keyEnd: readonly number[];
  readonly S: number;
}

/** Query t of T after `past` keys sees all before it and itself. */
export function causal(T: number, past = 0): Pick<AttentionShape, "keyBase" | "keyEnd" | "S"> {
  return { keyBase: Array.from({ length: T }, () => 0), keyEnd: Array.from({ length: T }, (_, t) => past + t + 1), S: past + T };
}

/** Causal within each of several documents that lie one after another. */
export function packed(lengths: readonly number[]): Pick<AttentionShape, "keyBase" | "keyEnd" | "S"> {
  const keyBase: number[] = [];
  for (const length of lengths) {
    const start = keyBase.length;
    for (let i = 0; i < length; i++) keyBase.push(start);
  }
  return { keyBase, keyEnd: keyBase.map((_, t) => t + 1), S: keyBase.length };
}

const shapes: readonly AttentionShape[] = [
  { Hq: 2, Hkv: 1, D: 8, window: 0, gap: 0, ...causal(0) },
  { Hq: 1, Hkv: 1, D: 1, window: 0, gap: 0, ...causal(1) },
  { Hq: 1, Hkv: 1, D: 4, window: 0, gap: 0, ...causal(3) },
  { Hq: 3, Hkv: 3, D: 16, window: 0, gap: 7, ...causal(17) },
  { Hq: 6, Hkv: 2, D: 64, window: 0, gap: 0, ...causal(65) },
  { Hq: 4, Hkv: 1, D: 33, window: 0, gap: 3, ...causal(130) },
  { Hq: 2, Hkv: 2, D: 128, window: 0, gap: 0, ...causal(31) },
  { Hq: 3, Hkv: 1, D: 20, window: 0, gap: 0, ...causal(1, 200) },
  { Hq: 9, Hkv: 3, D: 64, window: 0, gap: 0, ...causal(1, 63) },
  { Hq: 4, Hkv: 2, D: 24, window: 0, gap: 5, ...causal(13, 67) },
  { Hq: 2, Hkv: 1, D: 16, window: 5, gap: 0, ...causal(40) },
  { Hq: 2, Hkv: 2, D: 12, window: 64, gap: 0, ...causal(150) },
  { Hq: 2, Hkv: 1, D: 16, window: 100, gap: 0, ...causal(10, 190) },
  { Hq: 4, Hkv: 2, D: 16, window: 0, gap: 0, ...packed([5, 1, 70, 17]) },
  { Hq: 2, Hkv: 2, D: 17, window: 9, gap: 2, ...packed([64, 3, 65]) },
  // Bidirectional; then nothing seen by the first two and the last query, with keys that nobody sees.
  { Hq: 2, Hkv: 1, D: 8, window: 0, gap: 0, keyBase: [0, 0, 0], keyEnd: [7, 7, 7], S: 7 },
  { Hq: 2, Hkv: 2, D: 10, window: 0, gap: 1, keyBase: [0, 3, 3, 9], keyEnd: [0, 3, 8, 9], S: 11 },
];

export interface AttentionInputs {
  readonly T: number;
  readonly q: Float64Array;
  readonly k: Float64Array;
  readonly v: Float64Array;
  readonly qStride: number;
  readonly kvStride: number;
  readonly scale: number;
}

export function attentionInputs({ Hq, Hkv, D, gap, S, keyEnd }: AttentionShape, dtype: FloatType, seed: number): AttentionInputs {
  const random = new Random(seed);
  const T = keyEnd.length;
  const qStride = Hq * D + gap;
  const kvStride = Hkv * D + gap;
  const rows = (count: number, stride: number): Float64Array => random.normal(count === 0 ? 0 : count * stride - gap, dtype);
  return { T, q: rows(T, qStride), k: rows(S, kvStride), v: rows(S, kvStride), qStride, kvStride, scale: Math.fround(1 / Math.sqrt(D)) };
}

function value(values: Float64Array, i: number): number {
  return values[i] ?? 0;
}

function size(values: Float64Array, i: number): number {
  return Math.abs(value(values, i));
}

function plus(values: Float64Array, i: number, amount: number): void {
  values[i] = value(values, i) + amount;
}

/** What each (query, head, key) adds to the results, and bounds on the rounding errors of all of them. */
interface Analysis {
  readonly out: Float64Array;
  readonly lse: Float64Array;
  readonly dqError: Float64Array;
  readonly dkError: Float64Array;
  readonly dvError: Float64Array;
  readonly outError: Float64Array;
  readonly lseError: Float64Array;
}

/**
 * Error analysis in plain loops. A score is off by about (D + 4) u scale sum|q||k|; a probability by that much and (keys + 20) u, relatively;
 * a sum of products with probabilities by as much of the sum of their absolute values.
 */
function analyse(shape: AttentionShape, inputs: AttentionInputs, dOut: Float64Array): Analysis {
  const { Hq, Hkv, D, S, keyBase, keyEnd, window } = shape;
  const { T, q, k, v, qStride, kvStride, scale } = inputs;
  const heads = T * Hq * D;
  const result: Analysis = {
    out: new Float64Array(heads),
    outError: new Float64Array(heads),
    lse: new Float64Array(Hq * T).fill(-Infinity),
    lseError: new Float64Array(Hq * T),
    dqError: new Float64Array(heads),
    dkError: new Float64Array(S * Hkv * D),
    dvError: new Float64Array(S * Hkv * D),
  };
  for (let t = 0; t < T; t++) {
    const end = keyEnd[t] ?? 0;
    const first = window > 0 ? Math.max(keyBase[t] ?? 0, end - window) : (keyBase[t] ?? 0);
    if (end <= first) continue;
    for (let h = 0; h < Hq; h++) {
      const head = Math.floor((h * Hkv) / Hq) * D;
      const row = (t * Hq + h) * D;
      const scores: number[] = [];
      let largest = 0;
      for (let s = first; s < end; s++) {
        let dot = 0;
        let absolute = 0;
        for (let d = 0; d < D; d++) {
          const product = scale * value(q, t * qStride + h * D + d) * value(k, s * kvStride + head + d);
          dot += product;
          absolute += Math.abs(product);
        }
        scores.push(dot);
        largest = Math.max(largest, absolute);
      }
      const max = Math.max(...scores);
      const lse = max + Math.log(scores.reduce((sum, score) => sum + Math.exp(score - max), 0));
      const relative = (2 * (D + 6) * largest + scores.length + 20 + 2 * Math.abs(lse)) * u;
      result.lse[h * T + t] = lse;
      result.lseError[h * T + t] = relative;
      for (const [i, score] of scores.entries()) {
        const p = Math.exp(score - lse);
        for (let d = 0; d < D; d++) {
          plus(result.out, row + d, p * value(v, (first + i) * kvStride + head + d));
          plus(result.outError, row + d, relative * p * Math.abs(value(v, (first + i) * kvStride + head + d)));
        }
      }
      addGradientErrors({ shape, inputs, dOut, result, t, h, first, scores, lse, relative });
    }
  }
  return result;
}

interface QueryHead {
  readonly shape: AttentionShape;
  readonly inputs: AttentionInputs;
  readonly dOut: Float64Array;
  readonly result: Analysis;
  readonly t: number;
  readonly h: number;
  readonly first: number;
  readonly scores: readonly number[];
  readonly lse: number;
  readonly relative: number;
}

function addGradientErrors({ shape, inputs, dOut, result, t, h, first, scores, lse, relative }: QueryHead): void {
  const { Hq, Hkv, D } = shape;
  const { q, k, v, qStride, kvStride, scale } = inputs;
  const head = Math.floor((h * Hkv) / Hq) * D;
  const row = (t * Hq + h) * D;
  let delta = 0;
  for (let d = 0; d < D; d++) delta += size(dOut, row + d) * size(result.out, row + d);
  // Sums over queries in dk and dv add an error of their own, of their length.
  const error = 2 * relative + (D + inputs.T * (Hq / Hkv) + 8) * u;
  for (const [i, score] of scores.entries()) {
    const s = first + i;
    const p = Math.exp(score - lse);
    let dp = delta;
    for (let d = 0; d < D; d++) dp += size(dOut, row + d) * size(v, s * kvStride + head + d);
    for (let d = 0; d < D; d++) {
      plus(result.dqError, row + d, error * p * dp * scale * size(k, s * kvStride + head + d));
      plus(result.dkError, s * Hkv * D + head + d, error * p * dp * scale * size(q, t * qStride + h * D + d));
      plus(result.dvError, s * Hkv * D + head + d, error * p * size(dOut, row + d));
    }
  }
}

function within(absolute: Float64Array): Check {
  return { kind: "within", relative: 0, absolute };
}

function title({ Hq, Hkv, D, window, S, gap }: AttentionShape, T: number, dtype: FloatType): string {
  return `T${T} S${S} Hq${Hq} Hkv${Hkv} D${D} window ${window} gap ${gap} ${dtype}`;
}

export function attentionForwardCase(shape: AttentionShape, dtype: FloatType, withLse: boolean): Case {
  const { Hq, Hkv, D, S, window } = shape;
  const inputs = attentionInputs(shape, dtype, S * 1009 + D);
  const { T, qStride, kvStride, scale } = inputs;
  const analysis = analyse(shape, inputs, new Float64Array(T * Hq * D));
  const q = input(dtype, inputs.q);
  const out = output(dtype, T * Hq * D, within(analysis.outError));
  const lse = withLse ? output("f32", Hq * T, within(analysis.lseError)) : 0;
  const ranges = [input("i32", shape.keyBase), input("i32", shape.keyEnd)];
  return {
    kernel: "attentionForward",
    title: `${title(shape, T, dtype)}${withLse ? " lse" : ""}`,
    args: [
      out,
      lse,
      q,
      input(dtype, inputs.k),
      input(dtype, inputs.v),
      ...ranges,
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
      { dtypeOf: q },
    ],
  };
}

/** Keys of a shape in pages of 64 rows, every page before the one it follows; others hold NaN. */
function pagedInputs({ keyBase, keyEnd, Hkv, D }: AttentionShape, { k, v, kvStride }: AttentionInputs) {
  const numPages = new Map<number, number>();
  for (const [t, base] of keyBase.entries())
    numPages.set(base, Math.max(numPages.get(base) ?? 0, Math.ceil(((keyEnd[t] ?? 0) - base) / 64)));
  const S = 64 * [...numPages.values()].reduce((a, b) => a + b, 0);
  const P = S + 192;
  const blocks = Array.from({ length: S / 64 }, (_, i) => P / 64 - 2 - i);
  const paged = (): Float64Array => new Float64Array(P * kvStride).fill(Number.NaN);
  const [keys, values] = [paged(), paged()];
  const bases = new Map<number, number>();
  let next = 0;
  for (const [base, pages] of numPages) {
    bases.set(base, 64 * next);
    for (let i = 0; i < 64 * pages && (base + i) * kvStride < k.length; i++) {
      const row = (blocks[next + Math.floor(i / 64)] ?? 0) * 64 + (i % 64);
      const from = (base + i) * kvStride;
      keys.set(k.subarray(from, from + Hkv * D), row * kvStride);
      values.set(v.subarray(from, from + Hkv * D), row * kvStride);
    }
    next += pages;
  }
  const base = keyBase.map((b) => bases.get(b) ?? 0);
  return { S, P, blocks, k: keys, v: values, keyBase: base, keyEnd: keyEnd.map((end, t) => (base[t] ?? 0) + end - (keyBase[t] ?? 0)) };
}

export function attentionPagedCase(shape: AttentionShape, dtype: FloatType): Case {
  const { Hq, Hkv, D, window } = shape;
  const inputs = attentionInputs(shape, dtype, shape.S * 1009 + D);
  const { T, qStride, kvStride, scale } = inputs;
  const paged = pagedInputs(shape, inputs);
  const analysis = analyse(shape, inputs, new Float64Array(T * Hq * D));
  const q = input(dtype, inputs.q);
  return {
    kernel: "attentionPagedForward",
    title: title(shape, T, dtype),
    args: [
      output(dtype, T * Hq * D, within(analysis.outError)),
      q,
      input(dtype, paged.k),
      input(dtype, paged.v),
      input("i32", paged.keyBase),
      input("i32", paged.keyEnd),
      input("i32", paged.blocks),
      T,
      paged.S,
      paged.P,
      Hq,
      Hkv,
      D,
      qStride,
      kvStride,
      kvStride,
      window,
      scale,
      { dtypeOf: q },
    ],
  };
}

export function attentionBackwardCase(shape: AttentionShape, dtype: FloatType, accumulate: number): Case {
  const { Hq, Hkv, D, S, window } = shape;
  const inputs = attentionInputs(shape, dtype, S * 1013 + D);
  const { T, qStride, kvStride, scale } = inputs;
  const random = new Random(S + D);
  const dOut = random.normal(T * Hq * D, dtype);
  const analysis = analyse(shape, inputs, dOut);
  const gradient = (error: Float64Array) => {
    const before = random.normal(error.length, dtype);
    const check = within(error.map((amount, i) => amount + accumulate * 4 * u * Math.abs(before[i] ?? 0)));
    return accumulated(dtype, before, check, accumulate);
  };
  const [dq, dk, dv] = [gradient(analysis.dqError), gradient(analysis.dkError), gradient(analysis.dvError)];
  const forward = [
    input(dtype, inputs.q),
    input(dtype, inputs.k),
    input(dtype, inputs.v),
    input(dtype, representable(analysis.out, dtype)),
    input("f32", analysis.lse),
  ];
  const ranges = [input("i32", shape.keyBase), input("i32", shape.keyEnd)];
  return {
    kernel: "attentionBackward",
    title: `${title(shape, T, dtype)} accumulate ${accumulate}`,
    args: [
      dq,
      dk,
      dv,
      input(dtype, dOut),
      ...forward,
      ...ranges,
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
      { dtypeOf: dq },
      accumulate,
    ],
  };
}

export function attentionCases(): Case[] {
  return shapes.flatMap((shape) =>
    (["f32", "bf16"] as const).flatMap((dtype) => [
      attentionForwardCase(shape, dtype, true),
      attentionForwardCase(shape, dtype, false),
      attentionPagedCase(shape, dtype),
      attentionBackwardCase(shape, dtype, 0),
      attentionBackwardCase(shape, dtype, 1),
    ]),
  );
}

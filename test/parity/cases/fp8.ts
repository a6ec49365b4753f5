/**
 * Cases of the FP8 kernels: conversions of all codes and of values at every boundary, and linear layers with E4M3 weights (subnormals, zeros and
 * both signs among them) under the three kinds of scales. Legend: M rows, K inputs, N outputs, E experts.
 */
import { fp8Formats, fp8Scalings, type Fp8Scaling } from "../../../src/backend/kernels.ts";
import { decodeFp8, encodeFp8, fp8Values } from "../../../src/util/fp8.ts";
import type { Case, Operand } from "../harness/operands.ts";
import { input, output } from "../harness/operands.ts";
import { Random } from "../harness/random.ts";
import type { Groups, Shape } from "./linear.ts";

export type FloatType = "f32" | "bf16";
const floatTypes: readonly FloatType[] = ["f32", "bf16"];
export const scalings = Object.keys(fp8Scalings) as Fp8Scaling[];

/** Weights that E4M3 holds: most of them spread as a scaled matrix's are, every seventh any finite code. */
export function fp8Weights(random: Random, count: number): Float64Array {
  return random
    .normal(count, "f32", 120)
    .map((value, i) => decodeFp8("e4m3", i % 7 === 0 ? random.integer(0, 126) + 128 * random.integer(0, 1) : encodeFp8("e4m3", value)));
}

export function fp8ScaleCount(N: number, K: number, scaling: Fp8Scaling): number {
  if (scaling === "tensor") return 1;
  return scaling === "channel" ? N : Math.ceil(N / 128) * Math.ceil(K / 128);
}

/** Scales as weights of a model have them: amax / 448, spread over two binades. */
export function fp8Scales(random: Random, count: number): Operand {
  return input(
    "f32",
    Float64Array.from({ length: count }, () => Math.fround(0.0005 * (1 + 3 * random.uniform()))),
  );
}

export function linearFp8Case({ M, N, K }: Shape, outType: FloatType, xType: FloatType, scaling: Fp8Scaling, withBias: boolean): Case {
  const random = new Random(M * 1_000_003 + N * 1009 + K);
  const x = input(xType, random.normal(M * K, xType));
  const w = input("fp8", fp8Weights(random, N * K));
  const scales = fp8Scales(random, fp8ScaleCount(N, K, scaling));
  const out = output(outType, M * N, { kind: "sum", terms: K + 3 });
  const bias = withBias ? input("f32", random.normal(N)) : 0;
  return {
    kernel: "linearFp8Forward",
    title: `M${M} N${N} K${K} ${outType}<-${xType} ${scaling}${withBias ? " bias" : ""}`,
    args: [out, x, w, scales, bias, M, N, K, { dtypeOf: x }, fp8Scalings[scaling], { dtypeOf: out }],
  };
}

/** Up to three matrices of `sizes` outputs; the second has no bias. */
function linearFp8ManyCase(M: number, sizes: readonly [number, number, number], K: number, type: FloatType, scaling: Fp8Scaling): Case {
  const random = new Random(M * 1_000_003 + K);
  const x = input(type, random.normal(M * K, type));
  const each = (make: (N: number, i: number) => Operand | 0): (Operand | 0)[] => sizes.map((N, i) => (N === 0 ? 0 : make(N, i)));
  const outs = each((N) => output(type, M * N, { kind: "sum", terms: K + 3 }));
  const ws = each((N) => input("fp8", fp8Weights(random, N * K)));
  const scales = each((N) => fp8Scales(random, fp8ScaleCount(N, K, scaling)));
  const biases = each((N, i) => (i === 1 ? 0 : input("f32", random.normal(N))));
  return {
    kernel: "linearFp8ForwardMany",
    title: `M${M} N${sizes.join("+")} K${K} ${type} ${scaling}`,
    args: [...outs, x, ...ws, ...scales, ...biases, M, ...sizes, K, { dtypeOf: x }, fp8Scalings[scaling], { dtypeOf: x }],
  };
}

export function groupedFp8Case({ rows, N, K }: Groups, outType: FloatType, xType: FloatType, scaling: Fp8Scaling): Case {
  const offsets = [0];
  for (const count of rows) offsets.push((offsets.at(-1) ?? 0) + count);
  const R = offsets.at(-1) ?? 0;
  const E = rows.length;
  const random = new Random(R * 1009 + N * 31 + K);
  const x = input(xType, random.normal(R * K, xType));
  const w = input("fp8", fp8Weights(random, E * N * K));
  const scales = fp8Scales(random, E * fp8ScaleCount(N, K, scaling));
  const out = output(outType, R * N, { kind: "sum", terms: K + 3 });
  return {
    kernel: "groupedLinearFp8Forward",
    title: `rows ${rows.join("+")} N${N} K${K} ${outType}<-${xType} ${scaling}`,
    args: [out, x, w, scales, input("i32", offsets), E, N, K, { dtypeOf: x }, fp8Scalings[scaling], { dtypeOf: out }],
  };
}

function castCases(format: "e4m3" | "e5m2"): Case[] {
  const code = fp8Formats[format];
  const finite = [...new Set(Array.from(fp8Values(format)).filter((value) => Number.isFinite(value)))].sort((a, b) => a - b);
  const middles = finite.slice(1).map((value, i) => (value + (finite[i] ?? 0)) / 2);
  const near = [...finite, ...middles].flatMap((value) => [value, value * (1 + 2 ** -23), value * (1 - 2 ** -23)]);
  const rest = [
    -0,
    1e-45,
    -1e-30,
    3e38,
    -1e9,
    460,
    464,
    500,
    60000,
    61440,
    70000,
    Number.POSITIVE_INFINITY,
    Number.NEGATIVE_INFINITY,
    Number.NaN,
  ];
  const edges = Float64Array.from([...near, ...rest], Math.fround);
  const random = new Random(code + 9);
  const exactly = { kind: "exact" } as const;
  const toCodes = (values: Float64Array, type: FloatType, divisor: number): Case => {
    const x = input(type, values);
    return {
      kernel: "castToFp8",
      title: `${format} n${values.length} ${type} / ${divisor}`,
      args: [output("bytes", values.length, exactly), x, values.length, divisor, { dtypeOf: x }, code],
    };
  };
  const fromCodes = (codes: number[], type: FloatType, factor: number): Case => {
    const out = output(type, codes.length, exactly);
    return {
      kernel: "castFromFp8",
      title: `${format} n${codes.length} ${type} * ${factor}`,
      args: [out, input("bytes", codes), codes.length, factor, { dtypeOf: out }, code],
    };
  };
  const all = Array.from({ length: 256 }, (_, i) => i);
  return [
    toCodes(edges, "f32", 1),
    toCodes(edges, "f32", Math.fround(0.37)),
    ...floatTypes.flatMap((type) => [0, 1, 15, 16, 33, 20_011].map((n) => toCodes(random.normal(n, type, 100), type, Math.fround(0.7)))),
    ...floatTypes.flatMap((type) => [fromCodes(all, type, 1), fromCodes(all, type, Math.fround(0.0137))]),
    ...floatTypes.flatMap((type) => [0, 1, 17, 20_011].map((n) => fromCodes([...random.integers(n, 0, 255)], type, 1.5))),
  ];
}

/** Rows of activations: spread over many powers of two, with zeros, subnormal codes, ties and rows of zeros or of tiny values. */
function roundRowsCases(): Case[] {
  const make = (M: number, K: number, group: number, type: FloatType, change: (values: Float64Array) => void = () => undefined): Case => {
    const random = new Random(M * 977 + K + group);
    const values = random.normal(M * K, type).map((value, i) => value * 2 ** ((i % 23) - 14));
    change(values);
    const x = input(type, values);
    return {
      kernel: "roundRowsToFp8",
      title: `M${M} K${K} group${group} ${type}`,
      args: [output("f32", M * K, { kind: "exact" }), x, M, K, group, { dtypeOf: x }],
    };
  };
  // With 448 in it a run has scale 1: every code, every middle between two, and the floats beside them.
  const finite = Array.from(fp8Values("e4m3")).filter((value) => Number.isFinite(value) && value >= 0);
  const edges = finite.flatMap((value, i) => {
    const middle = (value + (finite[i + 1] ?? value)) / 2;
    return [value, -value, middle, -middle, middle * (1 + 2 ** -23), middle * (1 - 2 ** -23)];
  });
  return [
    make(0, 5, 5, "f32"),
    make(3, 0, 1, "f32"),
    ...floatTypes.flatMap((type) => [
      make(1, 1, 1, type),
      make(5, 131, 131, type),
      make(3, 576, 576, type),
      make(3, 300, 128, type),
      make(1, 2 * 1536, 2 * 1536, type),
      make(17, 40, 16, type),
    ]),
    make(1, edges.length, edges.length, "f32", (values) => values.set(edges)),
    make(4, 16, 16, "f32", (values) => {
      values.fill(0, 0, 16);
      values.fill(1e-40, 16, 32);
      values[40] = Number.NaN;
      values[50] = Number.NEGATIVE_INFINITY;
    }),
  ];
}

const shapes: readonly Shape[] = [
  [0, 5, 7],
  [3, 0, 5],
  [2, 3, 0],
  [1, 1, 1],
  [1, 2, 3],
  [1, 33, 64],
  [1, 129, 97],
  [2, 31, 65],
  [2, 130, 257],
  [3, 16, 130],
  [4, 32, 63],
  [8, 150, 200],
  [11, 47, 13],
  [15, 63, 133],
  [33, 100, 64],
  [65, 19, 137],
  [23, 257, 529],
  [29, 37, 521],
  [1, 67, 1031],
].map(([M = 0, N = 0, K = 0]) => ({ M, N, K }));

const groupings: readonly Groups[] = [
  { rows: [], N: 3, K: 4 },
  { rows: [0, 0], N: 17, K: 5 },
  { rows: [5, 0, 3, 1], N: 33, K: 17 },
  { rows: [0, 13, 0, 0, 2], N: 130, K: 264 },
  { rows: [29, 1, 14], N: 47, K: 129 },
];

export function fp8Cases(): Case[] {
  return [
    ...castCases("e4m3"),
    ...castCases("e5m2"),
    ...roundRowsCases(),
    ...shapes.flatMap((shape) =>
      scalings.flatMap((scaling) => floatTypes.map((type) => linearFp8Case(shape, type, type, scaling, shape.N % 2 === 1))),
    ),
    ...scalings.flatMap((scaling) => [
      linearFp8Case({ M: 13, N: 35, K: 167 }, "f32", "bf16", scaling, true),
      linearFp8Case({ M: 5, N: 35, K: 167 }, "bf16", "f32", scaling, false),
      // So many rows that the sides of the product are swapped.
      linearFp8Case({ M: 531, N: 150, K: 170 }, "bf16", "bf16", scaling, true),
    ]),
    ...(
      [
        [0, 19, 5],
        [33, 0, 0],
        [130, 64, 17],
      ] as const
    ).flatMap((sizes) =>
      [1, 3, 21].flatMap((M) => scalings.flatMap((scaling) => floatTypes.map((type) => linearFp8ManyCase(M, sizes, 264, type, scaling)))),
    ),
    ...groupings.flatMap((groups) => scalings.flatMap((scaling) => floatTypes.map((type) => groupedFp8Case(groups, type, type, scaling)))),
  ];
}

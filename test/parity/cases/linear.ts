/**
 * Cases of the linear kernels. Sizes sit around the tiles of fast kernels (8 to 64 columns, 4 to 14 rows, blocks of some hundred
 * reduced elements) and at 0 and 1. Legend: M rows, K inputs, N outputs, E experts.
 */
import type { Case, ElementType } from "../harness/operands.ts";
import { accumulated, input, output } from "../harness/operands.ts";
import { Random } from "../harness/random.ts";

type FloatType = "f32" | "bf16";
/** Types of the output, the left operand and the right operand. */
export type Types = readonly [FloatType, FloatType, FloatType];

export interface Shape {
  readonly M: number;
  readonly N: number;
  readonly K: number;
}

const shapes: readonly Shape[] = [
  [0, 5, 7],
  [3, 0, 5],
  [2, 3, 0],
  [1, 1, 1],
  [1, 2, 3],
  [3, 1, 17],
  [5, 7, 1],
  [7, 5, 31],
  [1, 33, 64],
  [1, 129, 97],
  [2, 31, 65],
  [4, 32, 63],
  [6, 16, 16],
  [8, 8, 8],
  [11, 47, 13],
  [12, 32, 40],
  [13, 33, 41],
  [14, 64, 15],
  [15, 63, 33],
  [16, 65, 32],
  [17, 17, 127],
  [31, 96, 9],
  [33, 100, 64],
  [65, 19, 37],
  [23, 257, 29],
  [29, 37, 521],
  [2, 67, 1031],
  [97, 7, 71],
].map(([M = 0, N = 0, K = 0]) => ({ M, N, K }));

const mainTypes: readonly Types[] = [
  ["f32", "f32", "f32"],
  ["bf16", "bf16", "bf16"],
  ["f32", "bf16", "bf16"],
  ["f32", "f32", "bf16"],
];
const allTypes: readonly Types[] = (["f32", "bf16"] as const).flatMap((a) =>
  (["f32", "bf16"] as const).flatMap((b) => (["f32", "bf16"] as const).map((c): Types => [a, b, c])),
);
const mixedShape = { M: 13, N: 35, K: 67 };

function name({ M, N, K }: Shape, types: readonly ElementType[], extra: string): string {
  return `M${M} N${N} K${K} ${types.join("<-")} ${extra}`;
}

function seedOf({ M, N, K }: Shape): number {
  return M * 1_000_003 + N * 1009 + K;
}

export function linearForwardCase(shape: Shape, [outType, xType, wType]: Types, withBias: boolean): Case {
  const { M, N, K } = shape;
  const random = new Random(seedOf(shape));
  const x = input(xType, random.normal(M * K, xType));
  const w = input(wType, random.normal(N * K, wType));
  const out = output(outType, M * N, { kind: "sum", terms: K + 1 });
  const bias = withBias ? input("f32", random.normal(N)) : 0;
  return {
    kernel: "linearForward",
    title: name(shape, [outType, xType, wType], withBias ? "bias" : ""),
    args: [out, x, w, bias, M, N, K, { dtypeOf: x }, { dtypeOf: w }, { dtypeOf: out }],
  };
}

/** Like `linearForwardCase`, with up to three matrices of `sizes` outputs; the second has no bias. */
function linearForwardManyCase(M: number, sizes: readonly [number, number, number], K: number, [outType, xType, wType]: Types): Case {
  const random = new Random(M * 1_000_003 + K);
  const x = input(xType, random.normal(M * K, xType));
  const ws = sizes.map((N) => (N === 0 ? 0 : input(wType, random.normal(N * K, wType))));
  const outs = sizes.map((N) => (N === 0 ? 0 : output(outType, M * N, { kind: "sum", terms: K + 1 })));
  const biases = sizes.map((N, i) => (N === 0 || i === 1 ? 0 : input("f32", random.normal(N))));
  const codes = { f32: 0, bf16: 1 } as const;
  const [anyW] = ws.filter((w) => w !== 0);
  const [anyOut] = outs.filter((out) => out !== 0);
  return {
    kernel: "linearForwardMany",
    title: `M${M} N${sizes.join("+")} K${K} ${outType}<-${xType}<-${wType}`,
    args: [
      ...outs,
      x,
      ...ws,
      ...biases,
      M,
      ...sizes,
      K,
      { dtypeOf: x },
      anyW ? { dtypeOf: anyW } : codes[wType],
      anyOut ? { dtypeOf: anyOut } : codes[outType],
    ],
  };
}

const manySizes: readonly [number, number, number][] = [
  [0, 0, 0],
  [1, 1, 1],
  [33, 0, 0],
  [0, 19, 5],
  [64, 17, 17],
  [31, 130, 0],
];

export function linearBackwardInputCase(shape: Shape, [dxType, dyType, wType]: Types, accumulate: number): Case {
  const { M, N, K } = shape;
  const random = new Random(seedOf(shape) + 1);
  const dy = input(dyType, random.normal(M * N, dyType));
  const w = input(wType, random.normal(N * K, wType));
  const dx = accumulated(dxType, random.normal(M * K, dxType), { kind: "sum", terms: N + 1 }, accumulate);
  return {
    kernel: "linearBackwardInput",
    title: name(shape, [dxType, dyType, wType], `accumulate ${accumulate}`),
    args: [dx, dy, w, M, N, K, { dtypeOf: dy }, { dtypeOf: w }, { dtypeOf: dx }, accumulate],
  };
}

export function linearBackwardWeightCase(shape: Shape, dyType: FloatType, xType: FloatType, accumulate: number): Case {
  const { M, N, K } = shape;
  const random = new Random(seedOf(shape) + 2);
  const dy = input(dyType, random.normal(M * N, dyType));
  const x = input(xType, random.normal(M * K, xType));
  const dw = accumulated("f32", random.normal(N * K), { kind: "sum", terms: M + 1 }, accumulate);
  return {
    kernel: "linearBackwardWeight",
    title: name(shape, ["f32", dyType, xType], `accumulate ${accumulate}`),
    args: [dw, dy, x, M, N, K, { dtypeOf: dy }, { dtypeOf: x }, accumulate],
  };
}

function linearBackwardBiasCase(M: number, N: number, dyType: FloatType, accumulate: number): Case {
  const random = new Random(M * 1009 + N);
  const dy = input(dyType, random.normal(M * N, dyType));
  const db = accumulated("f32", random.normal(N), { kind: "sum", terms: M + 1 }, accumulate);
  return {
    kernel: "linearBackwardBias",
    title: `M${M} N${N} ${dyType} accumulate ${accumulate}`,
    args: [db, dy, M, N, { dtypeOf: dy }, accumulate],
  };
}

export interface Groups {
  /** Rows of each expert. */
  readonly rows: readonly number[];
  readonly N: number;
  readonly K: number;
}

const groupings: readonly Groups[] = [
  { rows: [], N: 3, K: 4 },
  { rows: [0], N: 3, K: 4 },
  { rows: [0, 0, 0], N: 17, K: 5 },
  { rows: [1], N: 1, K: 1 },
  { rows: [5, 0, 3, 1], N: 33, K: 17 },
  { rows: [0, 13, 0, 0, 2], N: 16, K: 64 },
  { rows: [1, 1, 1, 1, 1, 1, 1], N: 65, K: 31 },
  { rows: [29, 1, 14], N: 47, K: 129 },
  { rows: [3, 66], N: 7, K: 300 },
];

/** offsets and the operands' shapes of a grouping. */
function grouped({ rows, N, K }: Groups): { offsets: number[]; R: number; E: number; random: Random; title: string } {
  const offsets = [0];
  for (const count of rows) offsets.push((offsets.at(-1) ?? 0) + count);
  const R = offsets.at(-1) ?? 0;
  return { offsets, R, E: rows.length, random: new Random(R * 1009 + N * 31 + K), title: `rows ${rows.join("+")} N${N} K${K}` };
}

export function groupedForwardCase(groups: Groups, [outType, xType, wType]: Types): Case {
  const { N, K } = groups;
  const { offsets, R, E, random, title } = grouped(groups);
  const x = input(xType, random.normal(R * K, xType));
  const w = input(wType, random.normal(E * N * K, wType));
  const out = output(outType, R * N, { kind: "sum", terms: K });
  return {
    kernel: "groupedLinearForward",
    title: `${title} ${outType}<-${xType}<-${wType}`,
    args: [out, x, w, input("i32", offsets), E, N, K, { dtypeOf: x }, { dtypeOf: w }, { dtypeOf: out }],
  };
}

export function groupedBackwardInputCase(groups: Groups, [dxType, dyType, wType]: Types, accumulate: number): Case {
  const { N, K } = groups;
  const { offsets, R, E, random, title } = grouped(groups);
  const dy = input(dyType, random.normal(R * N, dyType));
  const w = input(wType, random.normal(E * N * K, wType));
  const dx = accumulated(dxType, random.normal(R * K, dxType), { kind: "sum", terms: N + 1 }, accumulate);
  return {
    kernel: "groupedLinearBackwardInput",
    title: `${title} ${dxType}<-${dyType}<-${wType} accumulate ${accumulate}`,
    args: [dx, dy, w, input("i32", offsets), E, N, K, { dtypeOf: dy }, { dtypeOf: w }, { dtypeOf: dx }, accumulate],
  };
}

export function groupedBackwardWeightCase(groups: Groups, dyType: FloatType, xType: FloatType, accumulate: number): Case {
  const { N, K } = groups;
  const { offsets, R, E, random, title } = grouped(groups);
  const dy = input(dyType, random.normal(R * N, dyType));
  const x = input(xType, random.normal(R * K, xType));
  const dw = accumulated("f32", random.normal(E * N * K), { kind: "sum", terms: Math.max(0, ...groups.rows) + 1 }, accumulate);
  return {
    kernel: "groupedLinearBackwardWeight",
    title: `${title} ${dyType} ${xType} accumulate ${accumulate}`,
    args: [dw, dy, x, input("i32", offsets), E, N, K, { dtypeOf: dy }, { dtypeOf: x }, accumulate],
  };
}

/** Every linear kernel on one shape and one choice of types. */
export function casesOfShape(shape: Shape, types: Types): Case[] {
  const [result, left, right] = types;
  return [0, 1].flatMap((flag) => [
    linearForwardCase(shape, types, flag === 1),
    linearBackwardInputCase(shape, types, flag),
    // Its result is always f32: once a choice of operand types.
    ...(result === "f32" ? [linearBackwardWeightCase(shape, left, right, flag)] : []),
  ]);
}

export function casesOfGroups(groups: Groups, types: Types): Case[] {
  const [result, left, right] = types;
  return [
    groupedForwardCase(groups, types),
    ...[0, 1].map((flag) => groupedBackwardInputCase(groups, types, flag)),
    ...(result === "f32" ? [0, 1].map((flag) => groupedBackwardWeightCase(groups, left, right, flag)) : []),
  ];
}

export function linearCases(): Case[] {
  const biasShapes = [
    [0, 3],
    [1, 1],
    [5, 0],
    [7, 33],
    [33, 7],
    [130, 65],
  ] as const;
  return [
    ...shapes.flatMap((shape) => mainTypes.flatMap((types) => casesOfShape(shape, types))),
    ...allTypes.flatMap((types) => casesOfShape(mixedShape, types)),
    ...biasShapes.flatMap(([M, N]) =>
      (["f32", "bf16"] as const).flatMap((type) => [0, 1].map((flag) => linearBackwardBiasCase(M, N, type, flag))),
    ),
    ...manySizes.flatMap((sizes) =>
      [0, 1, 3, 8, 21].flatMap((M) => [0, 7, 64, 523].flatMap((K) => mainTypes.map((types) => linearForwardManyCase(M, sizes, K, types)))),
    ),
    ...groupings.flatMap((groups) => mainTypes.flatMap((types) => casesOfGroups(groups, types))),
    ...allTypes.flatMap((types) => casesOfGroups({ rows: [9, 0, 4], N: 21, K: 34 }, types)),
  ];
}

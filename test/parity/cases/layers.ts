/**
 * Cases of norm, rope, activation and embedding kernels. Legend: M rows, H width.
 */
import type { Case } from "../harness/operands.ts";
import { accumulated, inOut, input, output, u } from "../harness/operands.ts";
import { Random } from "../harness/random.ts";

const dtypes = ["f32", "bf16"] as const;
type FloatType = (typeof dtypes)[number];

/** Lengths around vector widths of 4, 8, 16 and 32 and their multiples. */
export const lengths: readonly number[] = [0, 1, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 1000, 4097];

export function rmsNormForwardCase(M: number, H: number, dtype: FloatType, withRstd: boolean, scale = 1): Case {
  const random = new Random(M * 1009 + H);
  const x = input(dtype, random.normal(M * H, dtype, scale));
  const w = input("f32", random.normal(H));
  const relative = (H + 12) * u;
  const rstd = withRstd ? output("f32", M, { kind: "within", relative, absolute: 0 }) : 0;
  return {
    kernel: "rmsNormForward",
    title: `M${M} H${H} ${dtype} scale ${scale}${withRstd ? " rstd" : ""}`,
    args: [output(dtype, M * H, { kind: "within", relative, absolute: 0 }), rstd, x, w, M, H, 1e-5, { dtypeOf: x }],
  };
}

export function rmsNormBackwardCase(M: number, H: number, dtype: FloatType, withDw: boolean, accumulate: number): Case {
  const random = new Random(M * 1013 + H);
  const dy = random.normal(M * H, dtype);
  const x = random.normal(M * H, dtype);
  const w = random.normal(H);
  const before = random.normal(M * H, dtype);
  const dwBefore = random.normal(H);
  const rstd = Float64Array.from({ length: M }, (_, m) => {
    const squares = x.subarray(m * H, (m + 1) * H).reduce((sum, value) => sum + value * value, 0);
    return Math.fround(1 / Math.sqrt(squares / H + 1e-5));
  });
  const dxError = new Float64Array(M * H);
  const dwError = dwBefore.map((value) => Math.abs(value) * (M + 4) * u);
  for (let m = 0; m < M; m++) {
    const r = rstd[m] ?? 0;
    const row = (values: Float64Array, h: number): number => Math.abs(values[m * H + h] ?? 0);
    let dot = 0;
    for (let h = 0; h < H; h++) dot += row(dy, h) * Math.abs(w[h] ?? 0) * row(x, h) * r;
    for (let h = 0; h < H; h++) {
      const size = r * (row(dy, h) * Math.abs(w[h] ?? 0) + row(x, h) * r * (dot / H)) + accumulate * row(before, h);
      dxError[m * H + h] = (H + 12) * u * size;
      dwError[h] = (dwError[h] ?? 0) + (M + 6) * u * row(dy, h) * row(x, h) * r;
    }
  }
  const dx = accumulated(dtype, before, { kind: "within", relative: 0, absolute: dxError }, accumulate);
  const dw = withDw ? inOut("f32", dwBefore, { kind: "within", relative: 0, absolute: dwError }) : 0;
  return {
    kernel: "rmsNormBackward",
    title: `M${M} H${H} ${dtype} accumulate ${accumulate}${withDw ? " dw" : ""}`,
    args: [dx, dw, input(dtype, dy), input(dtype, x), input("f32", w), input("f32", rstd), M, H, { dtypeOf: dx }, accumulate],
  };
}

const normShapes = [
  [0, 8],
  [1, 1],
  [3, 5],
  [2, 16],
  [7, 64],
  [5, 97],
  [33, 31],
  [2, 1025],
  [130, 24],
] as const;

function normCases(): Case[] {
  const large = rmsNormForwardCase(3, 50, "f32", true, 1e4);
  const small = rmsNormForwardCase(3, 50, "f32", true, 1e-4);
  const swept = normShapes.flatMap(([M, H]) =>
    dtypes.flatMap((dtype) => [
      rmsNormForwardCase(M, H, dtype, true),
      rmsNormForwardCase(M, H, dtype, false),
      ...[0, 1].flatMap((accumulate) => [
        rmsNormBackwardCase(M, H, dtype, true, accumulate),
        rmsNormBackwardCase(M, H, dtype, false, accumulate),
      ]),
    ]),
  );
  return [...swept, large, small];
}

function ropeTableCase(P: number, half: number, attentionScale: number): Case {
  const frequencies = Float64Array.from({ length: half }, (_, j) => Math.fround(10_000 ** (-j / half)));
  // A few units of roundoff of the largest value; the angle itself is the same f32 on both sides.
  const check = { kind: "within", relative: 0, absolute: 6 * u * attentionScale } as const;
  return {
    kernel: "ropeTable",
    title: `P${P} half ${half} scale ${attentionScale}`,
    args: [output("f32", P * half * 2, check), input("f32", frequencies), P, half, attentionScale],
  };
}

interface RopeShape {
  readonly M: number;
  readonly heads: number;
  readonly headDim: number;
  readonly half: number;
  /** Elements of a row beyond heads x headDim. */
  readonly gap: number;
}

function ropeApplyCase({ M, heads, headDim, half, gap }: RopeShape, inverse: number, dtype: FloatType): Case {
  const random = new Random(M * 1009 + heads * 97 + headDim);
  const numPositions = 50;
  const table = Float64Array.from({ length: numPositions * half * 2 }, (_, i) => {
    const angle = Math.floor(i / (half * 2)) * 100 ** (-Math.floor((i % (half * 2)) / 2) / half);
    return Math.fround(i % 2 === 0 ? Math.cos(angle) : Math.sin(angle));
  });
  const rowStride = heads * headDim + gap;
  const values = random.normal(M === 0 ? 0 : (M - 1) * rowStride + heads * headDim, dtype);
  // A pair's length bounds both products; elements that are not rotated must not change at all.
  const absolute = values.map((_, i) => {
    const inHead = (i % rowStride) % headDim;
    if (i % rowStride >= heads * headDim || inHead >= 2 * half) return 0;
    const partner = inHead < half ? i + half : i - half;
    return 4 * u * Math.hypot(values[i] ?? 0, values[partner] ?? 0);
  });
  const x = inOut(dtype, values, { kind: "within", relative: 0, absolute });
  const positions = input("i32", random.integers(M, 0, numPositions - 1));
  return {
    kernel: "ropeApply",
    title: `M${M} heads ${heads} headDim ${headDim} half ${half} gap ${gap} inverse ${inverse} ${dtype}`,
    args: [x, input("f32", table), positions, M, heads, headDim, rowStride, half, inverse, { dtypeOf: x }],
  };
}

const ropeShapes: readonly RopeShape[] = [
  { M: 0, heads: 2, headDim: 8, half: 4, gap: 0 },
  { M: 1, heads: 1, headDim: 2, half: 1, gap: 0 },
  { M: 3, heads: 2, headDim: 6, half: 3, gap: 5 },
  { M: 5, heads: 3, headDim: 64, half: 32, gap: 128 },
  { M: 7, heads: 1, headDim: 80, half: 20, gap: 1 },
  { M: 17, heads: 5, headDim: 34, half: 17, gap: 0 },
  { M: 66, heads: 2, headDim: 16, half: 8, gap: 0 },
];

function ropeCases(): Case[] {
  const tables = [
    [0, 4, 1],
    [1, 1, 1],
    [5, 3, 1],
    [100, 17, 0.5],
    [33, 32, 1.25],
    [4000, 8, 1],
  ] as const;
  return [
    ...tables.map(([P, half, scale]) => ropeTableCase(P, half, scale)),
    ...ropeShapes.flatMap((shape) => dtypes.flatMap((dtype) => [0, 1].map((inverse) => ropeApplyCase(shape, inverse, dtype)))),
  ];
}

/** Values below this may be flushed to zero on the way (exp underflows there). */
const tiny = 1e-36;

export function swigluForwardCase(n: number, dtype: FloatType, scale: number): Case {
  const random = new Random(n + 5);
  const gate = input(dtype, random.normal(n, dtype, scale));
  const up = input(dtype, random.normal(n, dtype));
  return {
    kernel: "swigluForward",
    title: `n${n} ${dtype} scale ${scale}`,
    args: [output(dtype, n, { kind: "within", relative: 10 * u, absolute: tiny }), gate, up, n, { dtypeOf: gate }],
  };
}

function sigmoid(z: number): number {
  return 1 / (1 + Math.exp(-z));
}

export function swigluBackwardCase(n: number, dtype: FloatType, scale: number, mode: "overwrite" | "accumulate" | "in place"): Case {
  const random = new Random(n + 7);
  const gates = random.normal(n, dtype, scale);
  const ups = random.normal(n, dtype);
  const dOuts = random.normal(n, dtype);
  const before = random.normal(n, dtype);
  const accumulate = mode === "accumulate" ? 1 : 0;
  const errors = (size: (g: number, i: number) => number): Float64Array =>
    gates.map((g, i) => tiny + 12 * u * (size(g, i) + accumulate * Math.abs(before[i] ?? 0)));
  // 1 - sigmoid is rounded before it is multiplied by g: near sigmoid = 1 that is an error of |g| u by itself.
  const gateError = errors((g, i) => Math.abs((dOuts[i] ?? 0) * (ups[i] ?? 0)) * sigmoid(g) * (1 + Math.abs(g) * (1 - sigmoid(g) + 1 / 6)));
  const upError = errors((g, i) => Math.abs((dOuts[i] ?? 0) * g) * sigmoid(g));
  const gateCheck = { kind: "within", relative: 0, absolute: gateError } as const;
  const upCheck = { kind: "within", relative: 0, absolute: upError } as const;
  const inPlace = mode === "in place";
  const dGate = inPlace ? inOut(dtype, gates, gateCheck) : accumulated(dtype, before, gateCheck, accumulate);
  const dUp = inPlace ? inOut(dtype, ups, upCheck) : accumulated(dtype, before, upCheck, accumulate);
  return {
    kernel: "swigluBackward",
    title: `n${n} ${dtype} scale ${scale} ${mode}`,
    args: [
      dGate,
      dUp,
      input(dtype, dOuts),
      inPlace ? dGate : input(dtype, gates),
      inPlace ? dUp : input(dtype, ups),
      n,
      { dtypeOf: dGate },
      accumulate,
    ],
  };
}

function activationCases(): Case[] {
  const modes = ["overwrite", "accumulate", "in place"] as const;
  return dtypes.flatMap((dtype) => [
    ...lengths.flatMap((n) => [swigluForwardCase(n, dtype, 1), ...modes.map((mode) => swigluBackwardCase(n, dtype, 1, mode))]),
    swigluForwardCase(333, dtype, 60),
    swigluBackwardCase(333, dtype, 60, "overwrite"),
  ]);
}

export function embeddingCase(M: number, H: number, V: number, dtype: FloatType): Case[] {
  const random = new Random(M * 1009 + H * 31 + V);
  // Some ids repeat; some lie outside the table on both sides.
  const ids = random.integers(M, -1, V);
  const table = input(dtype, random.normal(V * H, dtype));
  const dOut = input(dtype, random.normal(M * H, dtype));
  const title = `M${M} H${H} V${V} ${dtype}`;
  return [
    {
      kernel: "embeddingForward",
      title,
      args: [output(dtype, M * H, { kind: "exact" }), table, input("i32", ids), M, H, V, { dtypeOf: table }],
    },
    {
      kernel: "embeddingBackward",
      title,
      args: [inOut("f32", random.normal(V * H), { kind: "sum", terms: M }), dOut, input("i32", ids), M, H, V, { dtypeOf: dOut }],
    },
  ];
}

export function layerCases(): Case[] {
  const embeddings = [
    [0, 4, 3],
    [1, 1, 1],
    [7, 5, 3],
    [64, 33, 10],
    [20, 129, 50],
    [300, 16, 7],
  ] as const;
  return [
    ...normCases(),
    ...ropeCases(),
    ...activationCases(),
    ...embeddings.flatMap(([M, H, V]) => dtypes.flatMap((dtype) => embeddingCase(M, H, V, dtype))),
  ];
}

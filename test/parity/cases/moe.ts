/**
 * Cases of loss and dispatch. Legend: T tokens, E experts, k choices, H width, M rows, V vocabulary.
 */
import type { Case, Operand } from "../harness/operands.ts";
import { accumulated, inOut, input, output, u } from "../harness/operands.ts";
import { Random } from "../harness/random.ts";
import { largest, outputsOf } from "../harness/run.ts";
import { gateCases, routerCases } from "./router.ts";

const dtypes = ["f32", "bf16"] as const;
const exact = { kind: "exact" } as const;

export function crossEntropyCase(M: number, V: number, scale: number, gradient: "none" | "separate" | "in place"): Case {
  const random = new Random(M * 1009 + V);
  const logits = random.normal(M * V, "f32", scale);
  const targets = random.integers(M, -1, V - 1);
  const size = largest(logits);
  const gradScale = -0.37;
  const error = (V + 16 + 4 * size) * u;
  const check = {
    kind: "within",
    relative: error,
    absolute: logits.map((_, i) => (i % V === targets[Math.floor(i / V)] ? error * 0.37 : 1e-36)),
  } as const;
  const logitsOperand = gradient === "in place" ? inOut("f32", logits, check) : input("f32", logits);
  const dLogits = gradient === "none" ? 0 : gradient === "in place" ? logitsOperand : output("f32", M * V, check);
  return {
    kernel: "crossEntropy",
    title: `M${M} V${V} scale ${scale} gradient ${gradient}`,
    args: [
      output("f32", M, { kind: "within", relative: 0, absolute: error + 4 * u * size }),
      dLogits,
      logitsOperand,
      input("i32", targets),
      M,
      V,
      gradScale,
    ],
  };
}

export function rowCases(M: number, N: number, scale: number): Case[] {
  const random = new Random(M * 1013 + N);
  const values = random.normal(M * N, "f32", scale);
  const ties = random.integers(M * N, -2, 2);
  const title = `M${M} N${N} scale ${scale}`;
  return [
    {
      kernel: "softmaxRows",
      title,
      args: [output("f32", M * N, { kind: "within", relative: (N + 16 + 8 * scale) * u, absolute: 1e-36 }), input("f32", values), M, N],
    },
    { kernel: "argmaxRows", title, args: [output("i32", M, exact), input("f32", values), M, N] },
    { kernel: "argmaxRows", title: `${title} with ties`, args: [output("i32", M, exact), input("f32", ties), M, N] },
  ];
}

function lossCases(): Case[] {
  const shapes = [
    [0, 5],
    [1, 1],
    [3, 2],
    [5, 17],
    [2, 64],
    [7, 129],
    [33, 50],
    [2, 4099],
  ] as const;
  const gradients = ["none", "separate", "in place"] as const;
  return shapes.flatMap(([M, V]) => [
    ...[1, 30].flatMap((scale) => gradients.map((gradient) => crossEntropyCase(M, V, scale, gradient))),
    ...rowCases(M, V, 1),
    ...rowCases(M, V, 30),
  ]);
}

export interface DispatchShape {
  readonly T: number;
  readonly k: number;
  readonly E: number;
  /** 0: dropless. Group g keeps this and g more. */
  readonly capacity: number;
  readonly byProbability: number;
  /** Balance groups of unequal size; default 1. */
  readonly numGroups?: number;
  /** To capacity. */
  readonly pad?: number;
  /** Every third token takes no part. */
  readonly masked?: boolean;
}

/** Distinct experts for each token; weights on a coarse grid, so that equal ones occur. */
export function assignments({ T, k, E, masked = false }: DispatchShape, seed: number): { indices: Float64Array; weights: Float64Array } {
  const random = new Random(seed);
  const indices = Array.from({ length: T }, (_, t) => {
    const chosen = random.permutation(E).slice(0, k);
    return masked && t % 3 === 1 ? chosen.map(() => -1) : chosen;
  }).flat();
  return { indices: Float64Array.from(indices), weights: random.integers(T * k, 1, 9).map((value) => value / 10) };
}

/** Ascending from 0 to T, with an empty group where there are several. */
function groupStarts({ T, numGroups = 1 }: DispatchShape): number[] {
  return Array.from({ length: numGroups + 1 }, (_, g) => (g === numGroups ? T : Math.floor((T * g * g) / (numGroups * numGroups))));
}

function keptRows(shape: DispatchShape, indices: Float64Array): number {
  const { k, E, capacity, pad = 0 } = shape;
  const starts = groupStarts(shape);
  let rows = 0;
  for (const [g, start] of starts.slice(0, -1).entries()) {
    const counts = new Array<number>(E).fill(0);
    for (const e of indices.subarray(start * k, (starts[g + 1] ?? 0) * k)) if (e >= 0) counts[e] = (counts[e] ?? 0) + 1;
    const limit = capacity === 0 ? Infinity : capacity + g;
    rows += pad === 1 ? limit * E : counts.reduce((sum, count) => sum + Math.min(count, limit), 0);
  }
  return rows;
}

export function dispatchPlanCase(shape: DispatchShape): Case {
  const { T, k, E, capacity, byProbability, numGroups = 1, pad = 0, masked = false } = shape;
  const { indices, weights } = assignments(shape, T * 31 + E);
  const rows = keptRows(shape, indices);
  const limits = Array.from({ length: numGroups }, (_, g) => capacity + g);
  return {
    kernel: "dispatchPlan",
    title: `T${T} k${k} E${E} capacity ${capacity}${byProbability === 1 ? " by probability" : ""} ${numGroups} groups pad ${pad}${masked ? " masked" : ""}`,
    args: [
      output("i32", E + 1, exact),
      output("i32", rows, exact),
      output("i32", T * k, exact),
      output("i32", numGroups * E, exact),
      input("i32", indices),
      byProbability === 1 ? input("f32", weights.map(Math.fround)) : 0,
      input("i32", groupStarts(shape)),
      capacity === 0 ? 0 : input("i32", limits),
      T,
      k,
      E,
      numGroups,
      byProbability,
      pad,
    ],
  };
}

/** Moving rows there and back, on the plan that the reference makes. */
export function movementCases(shape: DispatchShape, H: number): Case[] {
  const { T, k } = shape;
  const [, rowToken = new Float64Array(), slots = new Float64Array()] = outputsOf(dispatchPlanCase(shape));
  const R = rowToken.length;
  return dtypes.flatMap((dtype): Case[] => {
    const random = new Random(T * 1009 + H);
    const slotRow = input("i32", slots);
    const weights = input("f32", random.normal(T * k));
    const rows: Operand = input(dtype, random.normal(R * H, dtype));
    const tokens: Operand = input(dtype, random.normal(T * H, dtype));
    const before = random.normal(T * H, dtype);
    const title = `T${T} k${k} E${shape.E} capacity ${shape.capacity} H${H} ${dtype}`;
    return [
      ...[0, 1].map((accumulate): Case => {
        const dx = accumulated(dtype, before, { kind: "sum", terms: k + 1 }, accumulate);
        return {
          kernel: "permuteBackward",
          title: `${title} accumulate ${accumulate}`,
          args: [dx, rows, slotRow, T, k, H, { dtypeOf: rows }, accumulate],
        };
      }),
      {
        kernel: "combineForward",
        title,
        args: [output(dtype, T * H, { kind: "sum", terms: k }), rows, slotRow, weights, T, k, H, { dtypeOf: rows }],
      },
      {
        kernel: "combineBackward",
        title,
        args: [
          output(dtype, R * H, { kind: "sum", terms: 1 }),
          output("f32", T * k, { kind: "sum", terms: H }),
          tokens,
          rows,
          slotRow,
          weights,
          T,
          k,
          H,
          { dtypeOf: rows },
        ],
      },
    ];
  });
}

function dispatchCases(): Case[] {
  const sizes = [
    [0, 2, 4],
    [1, 1, 1],
    [3, 2, 2],
    [7, 2, 5],
    [64, 2, 8],
    [129, 3, 17],
    [33, 8, 64],
    [1000, 2, 16],
  ] as const;
  const limits = [
    [0, 0],
    [1, 0],
    [3, 0],
    [3, 1],
    [20, 1],
  ] as const;
  const shapes = sizes.flatMap(([T, k, E]) =>
    limits.map(([capacity, byProbability]): DispatchShape => ({ T, k, E, capacity, byProbability })),
  );
  const moved = shapes.filter(({ T, capacity }) => T < 200 && (capacity === 0 || capacity === 3));
  const grouped = sizes.flatMap(([T, k, E]): DispatchShape[] => [
    { T, k, E, capacity: 0, byProbability: 0, numGroups: 3, masked: true },
    { T, k, E, capacity: 2, byProbability: 1, numGroups: 4 },
    { T, k, E, capacity: 3, byProbability: 1, numGroups: 2, pad: 1, masked: true },
    { T, k, E, capacity: 5, byProbability: 0, numGroups: 1, pad: 1 },
  ]);
  return [
    ...[...shapes, ...grouped].map(dispatchPlanCase),
    ...moved.flatMap((shape, i) => movementCases(shape, [5, 16, 33, 67][i % 4] ?? 1)),
  ];
}

export function moeCases(): Case[] {
  return [...lossCases(), ...routerCases(), ...gateCases(), ...dispatchCases()];
}

/**
 * Cases of loss, router and dispatch. Legend: T tokens, E experts, k choices, H width, M rows, V vocabulary.
 */
import { routerScorings } from "../../../src/backend/kernels.ts";
import { createReferenceBackend } from "../../../src/backend/reference/index.ts";
import type { Case, Operand } from "../harness/operands.ts";
import { accumulated, inOut, input, output, u } from "../harness/operands.ts";
import { Random } from "../harness/random.ts";
import { runCase } from "../harness/run.ts";

const dtypes = ["f32", "bf16"] as const;
const exact = { kind: "exact" } as const;

function largest(values: Float64Array): number {
  return values.reduce((max, value) => Math.max(max, Math.abs(value)), 0);
}

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

export interface RouterShape {
  readonly T: number;
  readonly E: number;
  readonly k: number;
  readonly normalize: number;
  readonly unbiased: number;
  readonly lambda: number;
  readonly scoring?: RouterScoring;
  readonly renormalize?: number;
  readonly scale?: number;
  readonly numGroups?: number;
  readonly topGroups?: number;
  readonly forced?: number;
  /** With a selection bias. */
  readonly biased?: boolean;
  /** Every third token takes no part. */
  readonly masked?: boolean;
}
type RouterScoring = keyof typeof routerScorings;

const routerDefaults = { scoring: "softmax", renormalize: 1, scale: 1, numGroups: 1, topGroups: 1, forced: 0, biased: false, masked: false } as const;

/** Multiples of 1/4: equal logits are exact ties and unequal ones stay apart, so that the choice is not up to rounding. */
function routerLogits({ T, E }: RouterShape): Float64Array {
  return new Random(T * 1009 + E).integers(T * E, -12, 12).map((value) => value / 4);
}

/** A bound on the relative error of probabilities, from that of the (normalized) logits. */
function routerError(shape: RouterShape, logits: Float64Array): number {
  const { T, E, normalize, lambda, unbiased } = shape;
  let worst = 3;
  if (normalize === 0) return (4 * worst + E + 20) * u;
  for (let t = 0; t < T; t++) {
    const row = logits.subarray(t * E, (t + 1) * E);
    const mean = row.reduce((a, b) => a + b, 0) / E;
    const variance = row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / Math.max(1, E - unbiased);
    worst = Math.max(worst, ((E + 8) * 3 * lambda) / Math.sqrt(variance + 1e-6));
  }
  return (4 * worst + E + 20) * u;
}

/** Multiples of 1/16, some alike: far coarser than the rounding of scores. */
function routerBias({ E, biased = false }: RouterShape): Operand | 0 {
  return biased
    ? input(
        "f32",
        new Random(E + 5).integers(E, -2, 2).map((value) => value / 16),
      )
    : 0;
}
function routerMask({ T, masked = false }: RouterShape): Operand | 0 {
  return masked
    ? input(
        "i32",
        Array.from({ length: T }, (_, t) => (t % 3 === 1 ? 0 : 1)),
      )
    : 0;
}

function routerTitle(shape: RouterShape): string {
  const { T, E, k, normalize, unbiased, lambda, scoring, renormalize, scale, numGroups, topGroups, forced, biased, masked } = {
    ...routerDefaults,
    ...shape,
  };
  const parts = [
    `T${T} E${E} k${k} ${scoring}`,
    normalize === 1 && `normalized by ${lambda}${unbiased === 1 ? " unbiased" : ""}`,
    renormalize === 0 && "not renormalized",
    scale !== 1 && `scale ${scale}`,
    numGroups > 1 && `${topGroups} of ${numGroups} groups`,
    forced === 1 && "forced",
    biased && "biased",
    masked && "masked",
  ];
  return parts.filter((part) => part !== false).join(", ");
}

export function routerForwardCase(shape: RouterShape, logits = routerLogits(shape)): Case {
  const full = { ...routerDefaults, ...shape };
  const { T, E, k, normalize, unbiased, lambda, scoring, renormalize, scale, numGroups, topGroups, forced } = full;
  const check = { kind: "within", relative: routerError(shape, logits), absolute: 1e-36 } as const;
  return {
    kernel: "routerForward",
    title: routerTitle(shape),
    args: [
      output("f32", T * E, check),
      output("f32", T * k, check),
      output("i32", T * k, exact),
      input("f32", logits),
      routerBias(shape),
      routerMask(shape),
      ...[T, E, k, numGroups, topGroups, routerScorings[scoring], normalize, unbiased, renormalize, forced, lambda, 1e-6, scale],
    ],
  };
}

/** Runs the reference to have consistent outputs of a forward as inputs of a backward. */
function outputsOf(test: Case): Float64Array[] {
  const backend = createReferenceBackend();
  const results = runCase(backend, test);
  backend.dispose();
  return [...results.values()].map(({ values }) => values);
}

function routerBackwardCase(shape: RouterShape, withDProbs: boolean): Case {
  const { T, E, k, normalize, unbiased, lambda, scoring, renormalize, scale } = { ...routerDefaults, ...shape };
  const logits = routerLogits(shape);
  const [probs = new Float64Array(), weights = new Float64Array(), indices = new Float64Array()] = outputsOf(
    routerForwardCase(shape, logits),
  );
  const random = new Random(E + k);
  const dWeights = random.normal(T * k);
  const dProbs = random.normal(T * E);
  // Every term of dz is at most p (|dp| + sum p|dp|) with |dp| <= |dProbs| + 2 max|dWeights| / S; the normalization multiplies by lambda rstd.
  const S = Math.max(k / E, 1e-3);
  const rstd = normalize === 1 ? routerError(shape, logits) / (4 * u * (E + 8) * 3) + 1 : 1;
  const size = 2 * scale * (largest(dProbs) + (2 * largest(dWeights)) / S) * (normalize === 1 ? 3 * lambda * rstd : 1);
  const check = { kind: "within", relative: 0, absolute: (2 * E + k + 30) * u * size } as const;
  return {
    kernel: "routerBackward",
    title: `${routerTitle(shape)}${withDProbs ? " dProbs" : ""}`,
    args: [
      output("f32", T * E, check),
      input("f32", dWeights),
      withDProbs ? input("f32", dProbs) : 0,
      input("f32", probs),
      input("f32", weights),
      input("i32", indices),
      input("f32", logits),
      ...[T, E, k, routerScorings[scoring], normalize, unbiased, renormalize, lambda, 1e-6, scale],
    ],
  };
}

const routerSizes = [
  [0, 4, 2],
  [1, 2, 1],
  [3, 2, 2],
  [5, 7, 3],
  [17, 8, 2],
  [33, 16, 2],
  [7, 17, 17],
  [64, 64, 6],
  [9, 129, 8],
] as const;

function routerCases(): Case[] {
  const modes = [
    { normalize: 0, unbiased: 0, lambda: 1 },
    { normalize: 1, unbiased: 0, lambda: 1 },
    { normalize: 1, unbiased: 1, lambda: 2 },
  ];
  const sized = routerSizes.flatMap(([T, E, k]) => modes.map((mode): RouterShape => ({ T, E, k, ...mode })));
  const plain = { normalize: 0, unbiased: 0, lambda: 1 };
  const other = [...sized, ...routerVariants()];
  const extreme = Float64Array.of(300, -300, 0, -200, 0, 250);
  return [
    ...other.map((shape) => routerForwardCase(shape)),
    ...other.flatMap((shape) => [routerBackwardCase(shape, true), routerBackwardCase(shape, false)]),
    routerForwardCase({ T: 2, E: 3, k: 1, ...plain }, extreme),
    routerForwardCase({ T: 3, E: 5, k: 2, ...plain }, new Float64Array(15).fill(1.5)),
    routerForwardCase({ T: 3, E: 1, k: 1, ...plain }, Float64Array.of(1, -2, 3)),
  ];
}

/** Every scoring with everything that it can be combined with. */
function routerVariants(): RouterShape[] {
  const base = { normalize: 1, unbiased: 0, lambda: 1.5, masked: true } as const;
  return (["softmax", "softmaxOfTopK", "sigmoid"] as const).flatMap((scoring): RouterShape[] => [
    { T: 35, E: 16, k: 2, ...base, scoring, normalize: 0, scale: 2.5 },
    { T: 35, E: 18, k: 4, ...base, scoring, renormalize: 0, biased: true },
    { T: 70, E: 24, k: 5, ...base, scoring, numGroups: 4, topGroups: 2, biased: true, scale: 0.5 },
    { T: 9, E: 33, k: 3, ...base, scoring, numGroups: 33, topGroups: 5 },
    { T: 20, E: 7, k: 3, ...base, scoring, forced: 1 },
    { T: 20, E: 6, k: 6, ...base, scoring, normalize: 0, biased: true, numGroups: 2, topGroups: 2 },
  ]);
}

/** The z loss, the statistics, and the pieces around a router. */
/** T tokens of E features. */
export function gateCasesOf(T: number, E: number): Case[] {
  const random = new Random(T * 1013 + E);
  const [x, y] = [random.normal(T * E, "f32", 3), random.normal(T * E)];
  const title = `T${T} E${E}`;
  const probs = x.map((value) => Math.exp(value - 9));
  const valid = routerMask({ T, E, k: 1, normalize: 0, unbiased: 0, lambda: 1, masked: T > 3 });
  // |logsumexp| is below 20: its error is that of the sum, and the square doubles it.
  const z = { kind: "within", relative: 4e-7, absolute: 1e-6 * T * 20 } as const;
  const zGradient = { kind: "within", relative: 1e-5, absolute: 1e-5 } as const;
  const tanhs = x.map(Math.tanh);
  return [
    {
      kernel: "routerZLoss",
      title: `${title} forward`,
      args: [output("f64", 1, z), 0, input("f32", x), valid, T, E, 0],
    },
    {
      kernel: "routerZLoss",
      title: `${title} backward`,
      args: [0, output("f32", T * E, zGradient), input("f32", x), valid, T, E, 0.7],
    },
    {
      kernel: "routerStatistics",
      title,
      args: [output("f64", 3, { kind: "within", relative: 1e-9, absolute: 1e-9 * T }), input("f32", probs), T, E],
    },
    {
      kernel: "jitter",
      title,
      args: [output("f32", T * E, exact), input("f32", x), T, E, 1000, -77, 12345, 0.01],
    },
    {
      kernel: "tanhForward",
      title,
      args: [output("f32", T * E, { kind: "within", relative: 4 * u, absolute: 0 }), input("f32", x), T * E],
    },
    {
      kernel: "tanhBackward",
      title,
      args: [output("f32", T * E, { kind: "within", relative: 4 * u, absolute: 4e-7 }), input("f32", y), input("f32", tanhs), T * E],
    },
    ...dtypes.flatMap((dtype): Case[] => {
      const rows = input(dtype, random.normal(T * E, dtype));
      const gate = input("f32", random.normal(T, "f32", 4));
      const dOut = input(dtype, random.normal(T * E, dtype));
      return [
        {
          kernel: "sigmoidGateForward",
          title: `${title} ${dtype}`,
          args: [output(dtype, T * E, { kind: "within", relative: 12 * u, absolute: 0 }), rows, gate, T, E, 1.5, { dtypeOf: rows }],
        },
        {
          kernel: "sigmoidGateBackward",
          title: `${title} ${dtype}`,
          args: [
            output(dtype, T * E, { kind: "within", relative: 12 * u, absolute: 0 }),
            output("f32", T, { kind: "within", relative: 12 * u, absolute: (E + 12) * u * 16 }),
            dOut,
            rows,
            gate,
            T,
            E,
            1.5,
            { dtypeOf: rows },
          ],
        },
      ];
    }),
  ];
}

function gateCases(): Case[] {
  const sizes = [
    [0, 4],
    [1, 1],
    [3, 2],
    [65, 8],
    [130, 17],
    [7, 129],
  ] as const;
  return sizes.flatMap(([T, E]) => gateCasesOf(T, E));
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
  return [...[...shapes, ...grouped].map(dispatchPlanCase), ...moved.flatMap((shape, i) => movementCases(shape, [5, 16, 33, 67][i % 4] ?? 1))];
}

export function moeCases(): Case[] {
  return [...lossCases(), ...routerCases(), ...gateCases(), ...dispatchCases()];
}

/**
 * Cases of the router, its losses and the pieces around it. Legend: T tokens, E experts (or features), k choices.
 */
import { routerScorings } from "../../../src/backend/kernels.ts";
import type { Case, Operand } from "../harness/operands.ts";
import { input, output, u } from "../harness/operands.ts";
import { Random } from "../harness/random.ts";
import { largest, outputsOf } from "../harness/run.ts";

const dtypes = ["f32", "bf16"] as const;
const exact = { kind: "exact" } as const;

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

const routerDefaults = {
  scoring: "softmax",
  renormalize: 1,
  scale: 1,
  numGroups: 1,
  topGroups: 1,
  forced: 0,
  biased: false,
  masked: false,
} as const;

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
      T,
      E,
      k,
      numGroups,
      topGroups,
      routerScorings[scoring],
      normalize,
      unbiased,
      renormalize,
      forced,
      lambda,
      1e-6,
      scale,
    ],
  };
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
      T,
      E,
      k,
      routerScorings[scoring],
      normalize,
      unbiased,
      renormalize,
      lambda,
      1e-6,
      scale,
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

export function routerCases(): Case[] {
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

/** The z loss, the statistics, and the pieces around a router, for T tokens of E features (experts). */
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
    ...dtypes.flatMap((dtype) => sharedGateCases(title, T, E, dtype, random)),
  ];
}

function sharedGateCases(title: string, T: number, E: number, dtype: (typeof dtypes)[number], random: Random): Case[] {
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
}

export function gateCases(): Case[] {
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

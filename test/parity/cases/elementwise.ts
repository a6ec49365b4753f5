/**
 * Cases of elementwise kernels, conversions, copies, reductions and AdamW.
 */
import type { Case, ElementType } from "../harness/operands.ts";
import { inOut, input, output, u } from "../harness/operands.ts";
import { Random } from "../harness/random.ts";
import { lengths } from "./layers.ts";

const dtypes = ["f32", "bf16"] as const;
type FloatType = (typeof dtypes)[number];
const sum = (terms: number) => ({ kind: "sum", terms }) as const;
const exact = { kind: "exact" } as const;

export function arithmeticCases(n: number, dtype: FloatType): Case[] {
  const random = new Random(n + 11);
  const a = random.normal(n, dtype);
  const b = input(dtype, random.normal(n, dtype));
  const x = input(dtype, a);
  const inPlace = inOut(dtype, a, sum(2));
  const title = `n${n} ${dtype}`;
  return [
    { kernel: "add", title, args: [output(dtype, n, sum(2)), x, b, n, { dtypeOf: x }] },
    { kernel: "add", title: `${title} in place of a`, args: [inPlace, inPlace, b, n, { dtypeOf: b }] },
    { kernel: "add", title: `${title} in place of b`, args: [inPlace, b, inPlace, n, { dtypeOf: b }] },
    { kernel: "scale", title, args: [output(dtype, n, sum(1)), x, n, -0.3, { dtypeOf: x }] },
    { kernel: "scale", title: `${title} in place`, args: [inPlace, inPlace, n, 2, { dtypeOf: inPlace }] },
    { kernel: "accumulate", title, args: [inOut("f32", random.normal(n), sum(2)), x, n, -1.7, { dtypeOf: x }] },
  ];
}

function addBiasCase(M: number, N: number, dtype: FloatType): Case {
  const random = new Random(M * 31 + N);
  const x = inOut(dtype, random.normal(M * N, dtype), sum(2));
  return { kernel: "addBias", title: `M${M} N${N} ${dtype}`, args: [x, input("f32", random.normal(N)), M, N, { dtypeOf: x }] };
}

/** Every value of a two-byte type, and f32 values at and beside the ties of both, subnormals and overflows included. */
function castValues(type: ElementType): Float64Array {
  if (type !== "f32") {
    const words = Uint16Array.from({ length: 65_536 }, (_, i) => i);
    if (type === "f16") return Float64Array.from(new Float16Array(words.buffer));
    return Float64Array.from(new Float32Array(Uint32Array.from(words, (word) => word << 16).buffer));
  }
  const random = new Random(3);
  const special = [
    0, 0x7f7fffff, 0x7f800000, 0x7fc00001, 1, 0x33000000, 0x33000001, 0x33800000, 0x477fefff, 0x477ff000, 0x38800000, 0x387fe000,
  ];
  const ties = Array.from({ length: 600 }, () => (random.integer(0, 0xffff) << 16) | 0x8000);
  const finer = Array.from({ length: 600 }, () => ((0x30000000 + random.integer(0, 0x1a000000)) & ~0x1fff) | 0x1000);
  const bits = [...special, ...ties, ...finer].flatMap((word) => [word, word + 1, word - 1, word | 0x80000000]);
  return Float64Array.from(new Float32Array(Uint32Array.from(bits).buffer));
}

function castCases(): Case[] {
  const types = ["f32", "bf16", "f16"] as const;
  return types.flatMap((from) =>
    types.flatMap((to): Case[] => {
      const all = castValues(from);
      return [0, 1, 7, 17, 33, all.length].map((n) => {
        const x = input(from, all.subarray(all.length - n));
        const out = output(to, n, exact);
        return { kernel: "cast", title: `n${n} ${from} to ${to}`, args: [out, x, n, { dtypeOf: out }, { dtypeOf: x }] };
      });
    }),
  );
}

function copyCases(): Case[] {
  const shapes = [
    [0, 8, 8, 8],
    [3, 0, 4, 4],
    [1, 1, 1, 1],
    [5, 12, 12, 12],
    [7, 24, 40, 28],
    [4, 13, 17, 64],
    [33, 130, 130, 200],
  ] as const;
  const gathers = [
    [0, 8, 2],
    [3, 0, 2],
    [1, 1, 1],
    [9, 20, 4],
    [70, 66, 13],
    [5, 4099, 3],
  ] as const;
  return [
    ...shapes.map(([M, rowBytes, outStride, xStride]): Case => {
      const random = new Random(M + rowBytes);
      // The gaps between output rows must survive.
      const out = inOut("bytes", random.integers(M === 0 ? 0 : (M - 1) * outStride + rowBytes, 0, 255), exact);
      const x = input("bytes", random.integers(M === 0 ? 0 : (M - 1) * xStride + rowBytes, 0, 255));
      return {
        kernel: "copyRows",
        title: `M${M} rowBytes ${rowBytes} strides ${outStride} ${xStride}`,
        args: [out, x, M, rowBytes, outStride, xStride],
      };
    }),
    ...gathers.map(([R, rowBytes, sources]): Case => {
      const random = new Random(R + rowBytes);
      const x = input("bytes", random.integers(sources * rowBytes, 0, 255));
      const index = input("i32", random.integers(R, 0, sources - 1));
      return {
        kernel: "gatherRows",
        title: `R${R} rowBytes ${rowBytes}`,
        args: [output("bytes", R * rowBytes, exact), x, index, R, rowBytes],
      };
    }),
  ];
}

function reductionCases(): Case[] {
  const sizes = [...lengths, 4096, 8193, 70_001];
  return sizes.flatMap((n): Case[] => {
    const values = new Random(n + 13).normal(n, "f32", 3);
    const withLast = (last: number): Float64Array => values.map((value, i) => (i === n - 1 ? last : value));
    const finite = [values, withLast(Infinity), withLast(-Infinity), withLast(Number.NaN), withLast(3.4e38)];
    return [
      {
        kernel: "sumSquares",
        title: `n${n}`,
        args: [output("f64", 1, { kind: "within", relative: 4097 * 2 ** -52, absolute: 0 }), input("f32", values), n],
      },
      ...finite.map((x, i): Case => ({
        kernel: "allFinite",
        title: `n${n} variant ${i}`,
        args: [output("i32", 1, exact), input("f32", x), n],
      })),
      { kernel: "fillF32", title: `n${n}`, args: [output("f32", n, exact), n, -1.3] },
    ];
  });
}

export function adamwCase(n: number, weight: FloatType | "none" | "master", weightDecay: number): Case {
  const random = new Random(n + 17);
  const [learningRate, beta1, beta2, eps, correction1, correction2, gradScale] = [3e-3, 0.9, 0.95, 1e-8, 0.271, 0.142625, 0.7];
  const masters = random.normal(n);
  const ms = random.normal(n, "f32", 0.1);
  const vs = random.normal(n, "f32", 0.1).map((value) => Math.fround(value * value));
  const grads = random.normal(n);
  // The error of m (which may cancel) passes through the division; everything else is relative.
  const stepError = masters.map((value, i) => {
    const mean = beta1 * Math.abs(ms[i] ?? 0) + (1 - beta1) * gradScale * Math.abs(grads[i] ?? 0);
    const square = beta2 * (vs[i] ?? 0) + (1 - beta2) * (gradScale * (grads[i] ?? 0)) ** 2;
    return (
      16 * u * learningRate * (mean / correction1 / Math.sqrt(square / correction2 + 1e-30) + weightDecay * Math.abs(value)) +
      2 * u * Math.abs(value)
    );
  });
  const check = { kind: "within", relative: 0, absolute: stepError } as const;
  const master = inOut("f32", masters, check);
  const weightOperand = weight === "none" ? 0 : weight === "master" ? master : output(weight, n, check);
  const dtype = weightOperand === 0 ? 0 : { dtypeOf: weightOperand };
  return {
    kernel: "adamwStep",
    title: `n${n} weight ${weight} decay ${weightDecay}`,
    args: [
      weightOperand,
      master,
      inOut("f32", ms, sum(3)),
      inOut("f32", vs, sum(4)),
      input("f32", grads),
      n,
      learningRate,
      beta1,
      beta2,
      eps,
      weightDecay,
      correction1,
      correction2,
      gradScale,
      dtype,
    ],
  };
}

export function elementwiseCases(): Case[] {
  const biases = [
    [0, 3],
    [3, 0],
    [1, 1],
    [5, 33],
    [31, 64],
    [2, 1025],
  ] as const;
  const weights = ["f32", "bf16", "none", "master"] as const;
  return [
    ...lengths.flatMap((n) => dtypes.flatMap((dtype) => arithmeticCases(n, dtype))),
    ...biases.flatMap(([M, N]) => dtypes.map((dtype) => addBiasCase(M, N, dtype))),
    ...castCases(),
    ...copyCases(),
    ...reductionCases(),
    ...lengths.flatMap((n) => weights.flatMap((weight) => [0, 0.1].map((decay) => adamwCase(n, weight, decay)))),
  ];
}

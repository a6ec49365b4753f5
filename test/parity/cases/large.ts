/**
 * Cases large enough to be cut into pieces for several threads (and, with MOE_LONG=1, swept against the reference).
 */
import type { Case } from "../harness/operands.ts";
import { input, output } from "../harness/operands.ts";
import { Random } from "../harness/random.ts";
import { attentionBackwardCase, attentionForwardCase, causal, packed } from "./attention.ts";
import { adamwCase, arithmeticCases } from "./elementwise.ts";
import { groupedFp8Case, linearFp8Case } from "./fp8.ts";
import { embeddingCase, rmsNormBackwardCase, rmsNormForwardCase, swigluBackwardCase, swigluForwardCase } from "./layers.ts";
import { casesOfGroups, casesOfShape } from "./linear.ts";
import { crossEntropyCase, dispatchPlanCase, movementCases, rowCases } from "./moe.ts";
import { gateCasesOf, routerForwardCase } from "./router.ts";

function sumSquaresCase(n: number): Case {
  const x = input("f32", new Random(n).normal(n));
  return {
    kernel: "sumSquares",
    title: `n${n}`,
    args: [output("f64", 1, { kind: "within", relative: 4097 * 2 ** -52, absolute: 0 }), x, n],
  };
}

export function largeCases(): Case[] {
  const attention = { Hq: 6, Hkv: 3, D: 32, window: 0, gap: 0 } as const;
  const dispatch = { T: 4001, k: 2, E: 16, capacity: 300, byProbability: 1 } as const;
  const typed = (["f32", "bf16"] as const).flatMap((dtype): Case[] => [
    ...casesOfShape({ M: 203, N: 517, K: 301 }, ["f32", dtype, dtype]),
    ...casesOfShape({ M: 1, N: 2049, K: 513 }, ["f32", dtype, dtype]),
    ...casesOfShape({ M: 700, N: 33, K: 65 }, ["f32", dtype, dtype]),
    ...casesOfGroups({ rows: [130, 0, 7, 300, 1], N: 131, K: 97 }, ["f32", dtype, dtype]),
    ...(["channel", "block128"] as const).flatMap((scaling) => [
      linearFp8Case({ M: 203, N: 517, K: 301 }, "f32", dtype, scaling, true),
      linearFp8Case({ M: 1, N: 2049, K: 513 }, "f32", dtype, scaling, false),
      linearFp8Case({ M: 700, N: 33, K: 265 }, dtype, dtype, scaling, false),
      groupedFp8Case({ rows: [130, 0, 7, 300, 1], N: 131, K: 197 }, dtype, dtype, scaling),
    ]),
    rmsNormForwardCase(601, 257, dtype, true),
    rmsNormBackwardCase(601, 257, dtype, true, 0),
    rmsNormBackwardCase(3, 20_011, dtype, true, 1),
    swigluForwardCase(200_003, dtype, 1),
    swigluBackwardCase(200_003, dtype, 1, "overwrite"),
    ...embeddingCase(2001, 65, 40, dtype),
    attentionForwardCase({ ...attention, ...causal(300) }, dtype, true),
    attentionBackwardCase({ ...attention, ...causal(300) }, dtype, 1),
    attentionBackwardCase({ ...attention, window: 50, ...packed([100, 3, 200]) }, dtype, 0),
    attentionForwardCase({ ...attention, ...causal(1, 3000) }, dtype, true),
    ...arithmeticCases(200_003, dtype),
    adamwCase(200_003, dtype, 0.1),
  ]);
  return [
    ...typed,
    ...movementCases(dispatch, 33),
    crossEntropyCase(150, 1025, 3, "separate"),
    ...rowCases(150, 1025, 3),
    routerForwardCase({ T: 2001, E: 16, k: 2, normalize: 1, unbiased: 0, lambda: 1 }),
    routerForwardCase({
      T: 2001,
      E: 24,
      k: 3,
      normalize: 0,
      unbiased: 0,
      lambda: 1,
      scoring: "sigmoid",
      numGroups: 4,
      topGroups: 2,
      biased: true,
    }),
    ...gateCasesOf(2001, 24),
    dispatchPlanCase(dispatch),
    dispatchPlanCase({ ...dispatch, capacity: 90, numGroups: 5, pad: 1, masked: true }),
    sumSquaresCase(300_007),
  ];
}

/**
 * Parity on shapes drawn at random, where the fixed sweep has chosen ones: what falls between the tiles that somebody thought of. A few
 * draws normally, many and larger with MOE_LONG=1. fast-check shrinks a failure to a small shape and prints its seed.
 */
import fc from "fast-check";
import { test } from "vitest";
import { createReferenceBackend } from "../../src/backend/reference/index.ts";
import { attentionBackwardCase, attentionForwardCase, causal, packed } from "./cases/attention.ts";
import { adamwCase, arithmeticCases } from "./cases/elementwise.ts";
import { largeCases } from "./cases/large.ts";
import { embeddingCase, rmsNormBackwardCase, rmsNormForwardCase, swigluBackwardCase, swigluForwardCase } from "./cases/layers.ts";
import { casesOfGroups, casesOfShape } from "./cases/linear.ts";
import { crossEntropyCase, dispatchPlanCase, movementCases } from "./cases/moe.ts";
import { routerForwardCase } from "./cases/router.ts";
import { difference, expectation } from "./harness/compare.ts";
import type { Case } from "./harness/operands.ts";
import { runCase } from "./harness/run.ts";
import { onEveryEngine } from "./harness/suite.ts";

const long = process.env["MOE_LONG"] === "1";
const numRuns = long ? 150 : 3;
// Normally the same draws every time: a check before a merge must not depend on luck.
const parameters = long ? { numRuns } : { numRuns, seed: 1 };
const timeout = long ? 1_800_000 : 60_000;
const size = (max: number) => fc.integer({ min: 0, max: long ? 3 * max : max });
const positive = (max: number) => fc.integer({ min: 1, max: long ? 3 * max : max });
const dtype = fc.constantFrom("f32" as const, "bf16" as const);
const flag = fc.constantFrom(0, 1);

const linear = fc
  .record({ M: size(40), N: size(80), K: size(80), types: fc.tuple(dtype, dtype, dtype) })
  .map(({ types, ...shape }) => casesOfShape(shape, types));

const grouped = fc
  .record({
    rows: fc.array(fc.integer({ min: 0, max: 30 }), { maxLength: 7 }),
    N: size(50),
    K: size(50),
    types: fc.tuple(dtype, dtype, dtype),
  })
  .map(({ types, ...groups }) => casesOfGroups(groups, types));

const layers = fc
  .record({ M: size(30), H: positive(200), type: dtype, accumulate: flag, scale: fc.constantFrom(0.01, 1, 20) })
  .map(({ M, H, type, accumulate, scale }) => [
    rmsNormForwardCase(M, H, type, true, scale),
    rmsNormBackwardCase(M, H, type, true, accumulate),
    swigluForwardCase(M * H, type, scale),
    swigluBackwardCase(M * H, type, scale, accumulate === 1 ? "accumulate" : "in place"),
    ...embeddingCase(M, H, 11, type),
  ]);

const attention = fc
  .record({
    documents: fc.array(positive(60), { maxLength: 4 }),
    past: size(100),
    Hkv: fc.integer({ min: 1, max: 3 }),
    group: fc.integer({ min: 1, max: 4 }),
    D: positive(70),
    window: fc.constantFrom(0, 1, 7, 64, 65),
    gap: fc.integer({ min: 0, max: 9 }),
    type: dtype,
    accumulate: flag,
  })
  .map(({ documents, past, Hkv, group, D, window, gap, type, accumulate }) => {
    const keys = documents.length === 1 ? causal(documents[0] ?? 1, past) : packed(documents);
    const shape = { Hq: Hkv * group, Hkv, D, window, gap, ...keys };
    return [attentionForwardCase(shape, type, true), attentionBackwardCase(shape, type, accumulate)];
  });

const moe = fc
  .record({
    T: size(100),
    E: fc.integer({ min: 2, max: 40 }),
    choices: fc.integer({ min: 1, max: 8 }),
    H: positive(70),
    capacity: fc.constantFrom(0, 1, 2, 5, 20),
    byProbability: flag,
    normalize: flag,
    unbiased: flag,
    scoring: fc.constantFrom("softmax" as const, "softmaxOfTopK" as const, "sigmoid" as const),
    numGroups: fc.integer({ min: 1, max: 5 }),
    masked: fc.boolean(),
    biased: fc.boolean(),
    renormalize: flag,
  })
  .map(({ T, E, choices, H, capacity, byProbability, normalize, unbiased, scoring, numGroups, masked, biased, renormalize }) => {
    const k = Math.min(choices, E);
    const dispatch = { T, k, E, capacity, byProbability, numGroups, masked, pad: capacity === 0 ? 0 : renormalize };
    const groups = E % numGroups === 0 ? { numGroups, topGroups: Math.ceil((k * numGroups) / E) } : {};
    return [
      routerForwardCase({ T, E, k, normalize, unbiased, lambda: 1, scoring, masked, biased, renormalize, ...groups }),
      dispatchPlanCase(dispatch),
      ...movementCases(dispatch, H),
      crossEntropyCase(T, E, 5, "in place"),
    ];
  });

const elementwise = fc.record({ n: size(3000), type: dtype }).map(({ n, type }) => [...arithmeticCases(n, type), adamwCase(n, type, 0.1)]);

const families: readonly (readonly [string, fc.Arbitrary<Case[]>])[] = [
  ["linear", linear],
  ["grouped linear", grouped],
  ["norm, activation and embedding", layers],
  ["attention", attention],
  ["router, dispatch and loss", moe],
  ["elementwise", elementwise],
];

const reference = createReferenceBackend();

await onEveryEngine((engine, open) => {
  if (engine.name === "reference") return;
  const judge = (cases: readonly Case[]): void => {
    for (const one of cases) {
      const found = difference(one, runCase(open(2), one), expectation(reference, one));
      if (found !== null) throw new Error(found);
    }
  };
  for (const [family, arbitrary] of families) {
    test(`${family} kernels agree with the reference on ${numRuns} random shapes`, { timeout }, () => {
      fc.assert(fc.property(arbitrary, judge), parameters);
    });
  }
  if (long) {
    test("kernels agree with the reference on large shapes", { timeout }, () => judge(largeCases()));
  }
});

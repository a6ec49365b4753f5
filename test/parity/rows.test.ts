/**
 * A row's bits depend on nothing but the row: not on how many others there are, where it stands, or which kernel of a family computes it.
 * This is what makes a prompt decode to the same tokens alone and in a batch, in one chunk and in many. Bit for bit, on every engine.
 */
import { expect, test } from "vitest";
import { fp8Scalings } from "../../src/backend/kernels.ts";
import type { Types } from "./cases/linear.ts";
import { fp8ScaleCount, fp8Scales, fp8Weights } from "./cases/fp8.ts";
import type { Argument, Operand } from "./harness/operands.ts";
import { elementWidth, input } from "./harness/operands.ts";
import { call, fresh } from "./harness/call.ts";
import { Random } from "./harness/random.ts";
import { onEveryEngine } from "./harness/suite.ts";

const allTypes: readonly Types[] = [
  ["f32", "f32", "f32"],
  ["bf16", "bf16", "bf16"],
  ["f32", "bf16", "bf16"],
  ["f32", "f32", "bf16"],
  ["bf16", "f32", "f32"],
];

/** Row r of outputs that have `rows` rows each. */
function rowOf(outputs: readonly Uint8Array[], rows: number, r: number): Buffer {
  return Buffer.concat(outputs.map((bytes) => bytes.subarray((r * bytes.length) / rows, ((r + 1) * bytes.length) / rows)));
}

/**
 * Expects `compute` of any choice of rows to give the rows of `compute` of all: each alone, neighbouring ones, and all in another order.
 */
function expectRowsAlone(rows: number, compute: (rows: readonly number[]) => Uint8Array[]): void {
  const whole = compute(Array.from({ length: rows }, (_, r) => r));
  const choices = [
    [0],
    [rows - 1],
    [Math.floor(rows / 2)],
    ...[2, 3, 5, 9, 17].map((length) => Array.from({ length: Math.min(length, rows) }, (_, i) => (i * 7 + length) % rows)),
    new Random(rows).permutation(rows),
  ];
  for (const choice of choices) {
    const part = compute(choice);
    for (const [i, r] of choice.entries()) {
      expect(rowOf(part, choice.length, i).equals(rowOf(whole, rows, r)), `row ${r} as ${i} of ${choice.length}`).toBe(true);
    }
  }
}

/** Rows `choice` of a matrix with `width` columns. */
function take(values: Float64Array, width: number, choice: readonly number[]): Float64Array {
  return Float64Array.from(choice.flatMap((r) => [...values.subarray(r * width, (r + 1) * width)]));
}

const linearShapes = [
  [40, 67, 131],
  [19, 130, 8],
  [33, 5, 1100],
  [70, 96, 64],
] as const;

await onEveryEngine((_engine, open) => {
  test("linearForward gives a row the same bits whatever the other rows", () => {
    for (const [M, N, K] of linearShapes) {
      for (const [outType, xType, wType] of allTypes) {
        const random = new Random(M + N + K);
        const xs = random.normal(M * K, xType);
        const w = input(wType, random.normal(N * K, wType));
        const bias = input("f32", random.normal(N));
        expectRowsAlone(M, (choice) => {
          const x = input(xType, take(xs, K, choice));
          const out = fresh(outType, choice.length * N);
          return call(open(2), "linearForward", [out, x, w, bias, choice.length, N, K, { dtypeOf: x }, { dtypeOf: w }, { dtypeOf: out }]);
        });
      }
    }
  });

  test("linearForwardMany gives the bits of linearForward, whatever the other rows", () => {
    const sizes = [67, 5, 130] as const;
    for (const K of [64, 131]) {
      for (const [outType, xType, wType] of allTypes) {
        const random = new Random(K);
        const M = 19;
        const xs = random.normal(M * K, xType);
        const ws = sizes.map((N) => input(wType, random.normal(N * K, wType)));
        const biases = sizes.map((N) => input("f32", random.normal(N)));
        const types = (x: Operand, w: Operand, out: Operand): Argument[] => [{ dtypeOf: x }, { dtypeOf: w }, { dtypeOf: out }];
        for (const choice of [[0], [3, 18], [7, 0, 4, 9, 1, 2, 3, 5], Array.from({ length: M }, (_, r) => r)]) {
          const rows = choice.length;
          const x = input(xType, take(xs, K, choice));
          const outs = sizes.map((N) => fresh(outType, rows * N));
          const [out0 = fresh(outType, 0)] = outs;
          const [w0 = x] = ws;
          const together = call(open(2), "linearForwardMany", [...outs, x, ...ws, ...biases, rows, ...sizes, K, ...types(x, w0, out0)]);
          for (const [i, N] of sizes.entries()) {
            const whole = input(xType, xs);
            const out = fresh(outType, M * N);
            const w = ws[i] ?? w0;
            const alone = call(open(2), "linearForward", [out, whole, w, biases[i] ?? 0, M, N, K, ...types(whole, w, out)]);
            for (const [at, r] of choice.entries()) {
              expect(
                rowOf([together[i] ?? new Uint8Array()], rows, at).equals(rowOf(alone, M, r)),
                `output ${i}, row ${r} of ${rows}`,
              ).toBe(true);
            }
          }
        }
      }
    }
  });

  test("linearForward gives a row the same bits among so many rows that the sides of the product are swapped", () => {
    const [M, N, K] = [531, 37, 70];
    for (const [outType, xType, wType] of allTypes) {
      const random = new Random(M);
      const xs = random.normal(M * K, xType);
      const w = input(wType, random.normal(N * K, wType));
      const bias = input("f32", random.normal(N));
      const compute = (choice: readonly number[]): Uint8Array[] => {
        const x = input(xType, take(xs, K, choice));
        const out = fresh(outType, choice.length * N);
        return call(open(2), "linearForward", [out, x, w, bias, choice.length, N, K, { dtypeOf: x }, { dtypeOf: w }, { dtypeOf: out }]);
      };
      const whole = compute(Array.from({ length: M }, (_, r) => r));
      for (const length of [1, 70, 512]) {
        const part = compute(Array.from({ length }, (_, r) => M - length + r));
        for (let r = 0; r < length; r++)
          expect(rowOf(part, length, r).equals(rowOf(whole, M, M - length + r)), `row ${M - length + r} of ${length} rows`).toBe(true);
      }
    }
  });

  test("linearBackwardInput gives a row the same bits whatever the other rows", () => {
    for (const [M, N, K] of linearShapes) {
      for (const [dxType, dyType, wType] of allTypes) {
        const random = new Random(M + N + K);
        const dys = random.normal(M * N, dyType);
        const w = input(wType, random.normal(N * K, wType));
        expectRowsAlone(M, (choice) => {
          const dy = input(dyType, take(dys, N, choice));
          const dx = fresh(dxType, choice.length * K);
          return call(open(2), "linearBackwardInput", [
            dx,
            dy,
            w,
            choice.length,
            N,
            K,
            { dtypeOf: dy },
            { dtypeOf: w },
            { dtypeOf: dx },
            0,
          ]);
        });
      }
    }
  });

  test("grouped linear kernels give each expert the bits of the dense ones", () => {
    const [N, K, E] = [67, 131, 5];
    const groups = [3, 0, 1, 18, 9];
    const offsets = groups.reduce<number[]>((all, count) => [...all, (all.at(-1) ?? 0) + count], [0]);
    const R = offsets.at(-1) ?? 0;
    for (const [outType, xType, wType] of allTypes) {
      const random = new Random(E);
      const [xs, dys, ws] = [random.normal(R * K, xType), random.normal(R * N, xType), random.normal(E * N * K, wType)];
      const [x, dy, w, offset] = [input(xType, xs), input(xType, dys), input(wType, ws), input("i32", offsets)];
      const [out, dx] = [fresh(outType, R * N), fresh(outType, R * K)];
      const types: Argument[] = [{ dtypeOf: x }, { dtypeOf: w }, { dtypeOf: out }];
      const grouped = {
        out: call(open(2), "groupedLinearForward", [out, x, w, offset, E, N, K, ...types]),
        dx: call(open(2), "groupedLinearBackwardInput", [dx, dy, w, offset, E, N, K, { dtypeOf: dy }, { dtypeOf: w }, { dtypeOf: dx }, 0]),
        dw: call(open(2), "groupedLinearBackwardWeight", [
          fresh("f32", E * N * K),
          dy,
          x,
          offset,
          E,
          N,
          K,
          { dtypeOf: dy },
          { dtypeOf: x },
          0,
        ]),
      };
      for (const [e, M] of groups.entries()) {
        const first = offsets[e] ?? 0;
        const [xOne, dyOne] = [
          input(xType, xs.subarray(first * K, (first + M) * K)),
          input(xType, dys.subarray(first * N, (first + M) * N)),
        ];
        const wOne = input(wType, ws.subarray(e * N * K, (e + 1) * N * K));
        const [outOne, dxOne] = [fresh(outType, M * N), fresh(outType, M * K)];
        const dense = {
          out: call(open(2), "linearForward", [outOne, xOne, wOne, 0, M, N, K, { dtypeOf: xOne }, { dtypeOf: wOne }, { dtypeOf: outOne }]),
          dx: call(open(2), "linearBackwardInput", [
            dxOne,
            dyOne,
            wOne,
            M,
            N,
            K,
            { dtypeOf: dyOne },
            { dtypeOf: wOne },
            { dtypeOf: dxOne },
            0,
          ]),
          dw: call(open(2), "linearBackwardWeight", [fresh("f32", N * K), dyOne, xOne, M, N, K, { dtypeOf: dyOne }, { dtypeOf: xOne }, 0]),
        };
        const width = elementWidth[outType];
        expectPart(grouped.out, dense.out, first * N * width, `out of expert ${e}, ${outType}<-${xType}<-${wType}`);
        expectPart(grouped.dx, dense.dx, first * K * width, `dx of expert ${e}, ${outType}<-${xType}<-${wType}`);
        expectPart(grouped.dw, dense.dw, e * N * K * 4, `dw of expert ${e}, ${xType}`);
      }
    }
  });

  test("linear layers with FP8 weights give a row the same bits whatever the other rows, in every kernel of the family", () => {
    for (const [M, N, K, scaling] of [
      [40, 67, 331, "channel"],
      [19, 260, 200, "block128"],
      [33, 5, 1100, "tensor"],
      [531, 150, 170, "block128"],
      [520, 17, 650, "channel"],
      [40, 70, 192, "channel"],
    ] as const) {
      const random = new Random(M + N + K);
      const [xs, ws] = [random.normal(M * K, "bf16"), input("fp8", fp8Weights(random, N * K))];
      const scales = fp8Scales(random, fp8ScaleCount(N, K, scaling));
      const bias = input("f32", random.normal(N));
      const code = fp8Scalings[scaling];
      expectRowsAlone(M, (choice) => {
        const x = input("bf16", take(xs, K, choice));
        const types = [{ dtypeOf: x }, code, { dtypeOf: x }];
        const out = fresh("bf16", choice.length * N);
        const alone = call(open(2), "linearFp8Forward", [out, x, ws, scales, bias, choice.length, N, K, ...types]);
        const two = [fresh("bf16", choice.length * N), fresh("bf16", choice.length * N)];
        const sizes = [choice.length, N, N, 0, K];
        const many = call(open(2), "linearFp8ForwardMany", [...two, 0, x, ws, ws, 0, scales, scales, 0, bias, bias, 0, ...sizes, ...types]);
        expect(many[0]).toEqual(alone[0]);
        expect(many[1]).toEqual(alone[0]);
        return alone;
      });
      const split = Math.floor(M / 3);
      const offsets = input("i32", [0, split, split, M]);
      const three = input("fp8", [...(ws.values ?? []), ...(ws.values ?? []), ...(ws.values ?? [])]);
      const threeScales = input("f32", [...(scales.values ?? []), ...(scales.values ?? []), ...(scales.values ?? [])]);
      const x = input("bf16", xs);
      const tail = [{ dtypeOf: x }, code, { dtypeOf: x }];
      const grouped = call(open(2), "groupedLinearFp8Forward", [fresh("bf16", M * N), x, three, threeScales, offsets, 3, N, K, ...tail]);
      const dense = call(open(2), "linearFp8Forward", [fresh("bf16", M * N), x, ws, scales, 0, M, N, K, ...tail]);
      expect(grouped[0], `${M} rows grouped, ${scaling}`).toEqual(dense[0]);
    }
  });

  test("rmsNormForward, softmaxRows and argmaxRows give a row the same bits whatever the other rows", () => {
    const [M, N] = [37, 101];
    const random = new Random(N);
    const w = input("f32", random.normal(N));
    for (const type of ["f32", "bf16"] as const) {
      const xs = random.normal(M * N, type);
      expectRowsAlone(M, (choice) => {
        const x = input(type, take(xs, N, choice));
        return call(open(2), "rmsNormForward", [
          fresh(type, choice.length * N),
          fresh("f32", choice.length),
          x,
          w,
          choice.length,
          N,
          1e-5,
          { dtypeOf: x },
        ]);
      });
    }
    const xs = random.normal(M * N);
    expectRowsAlone(M, (choice) =>
      call(open(2), "softmaxRows", [fresh("f32", choice.length * N), input("f32", take(xs, N, choice)), choice.length, N]),
    );
    expectRowsAlone(M, (choice) =>
      call(open(2), "argmaxRows", [fresh("i32", choice.length), input("f32", take(xs, N, choice)), choice.length, N]),
    );
  });

  test("crossEntropy gives a row the same bits whatever the other rows", () => {
    const [M, V] = [37, 515];
    const random = new Random(V);
    const [logits, targets] = [random.normal(M * V), random.integers(M, -1, V - 1)];
    expectRowsAlone(M, (choice) => {
      const inputs = [input("f32", take(logits, V, choice)), input("i32", take(targets, 1, choice))];
      return call(open(2), "crossEntropy", [
        fresh("f32", choice.length),
        fresh("f32", choice.length * V),
        ...inputs,
        choice.length,
        V,
        0.3,
      ]);
    });
  });

  test("routerForward gives a token the same bits whatever the other tokens", () => {
    for (const [normalize, scoring, numGroups] of [
      [0, 0, 1],
      [1, 0, 3],
      [1, 1, 1],
      [0, 2, 3],
    ] as const) {
      const [T, E, k] = [37, 21, 3];
      const logits = new Random(E).normal(T * E);
      const bias = new Random(k).normal(E, "f32", 0.1);
      expectRowsAlone(T, (choice) => {
        const n = choice.length;
        return call(open(2), "routerForward", [
          fresh("f32", n * E),
          fresh("f32", n * k),
          fresh("i32", n * k),
          input("f32", take(logits, E, choice)),
          input("f32", bias),
          0,
          n,
          E,
          k,
          numGroups,
          2,
          scoring,
          normalize,
          0,
          1,
          0,
          1.5,
          1e-6,
          1,
        ]);
      });
    }
  });

  test("swigluForward gives an element the same bits wherever it stands", () => {
    for (const type of ["f32", "bf16"] as const) {
      const n = 131;
      const random = new Random(n);
      const [gates, ups] = [random.normal(n, type, 3), random.normal(n, type)];
      expectRowsAlone(n, (choice) => {
        const gate = input(type, take(gates, 1, choice));
        return call(open(2), "swigluForward", [
          fresh(type, choice.length),
          gate,
          input(type, take(ups, 1, choice)),
          choice.length,
          { dtypeOf: gate },
        ]);
      });
    }
  });
});

function expectPart(whole: readonly Uint8Array[], part: readonly Uint8Array[], offset: number, what: string): void {
  const all = whole[0] ?? new Uint8Array();
  const some = part[0] ?? new Uint8Array();
  expect(Buffer.from(all.subarray(offset, offset + some.length)).equals(some), what).toBe(true);
}

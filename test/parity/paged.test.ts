/**
 * Attention over keys in pages has the bits of attention over keys in a row: what lets a request share, lose and regain its pages
 * without a trace. Bit for bit, on every engine.
 */
import { expect, test } from "vitest";
import { attentionInputs, attentionPagedCase, causal, packed, type AttentionShape } from "./cases/attention.ts";
import { input, output, type Argument } from "./harness/operands.ts";
import { runCase } from "./harness/run.ts";
import { onEveryEngine } from "./harness/suite.ts";

const shapes: readonly AttentionShape[] = [
  { Hq: 4, Hkv: 2, D: 64, window: 0, gap: 0, ...causal(150) },
  { Hq: 9, Hkv: 3, D: 64, window: 0, gap: 0, ...causal(1, 700) },
  { Hq: 3, Hkv: 1, D: 17, window: 0, gap: 0, ...causal(70, 61) },
  { Hq: 2, Hkv: 2, D: 32, window: 33, gap: 4, ...causal(140, 50) },
  { Hq: 2, Hkv: 1, D: 40, window: 0, gap: 0, ...packed([3, 77, 1, 64, 129]) },
];

await onEveryEngine((_, open) => {
  for (const type of ["f32", "bf16"] as const) {
    test(`paged attention in ${type} gives every query the bits of keys in a row`, () => {
      const backend = open(2);
      for (const shape of shapes) {
        const { Hq, Hkv, D, S, window, keyBase, keyEnd } = shape;
        const inputs = attentionInputs(shape, type, S * 1009 + D);
        const { T, qStride, kvStride, scale } = inputs;
        const q = input(type, inputs.q);
        const out = output(type, T * Hq * D, { kind: "exact" });
        const dense: Argument[] = [out, 0, q, input(type, inputs.k), input(type, inputs.v), input("i32", keyBase), input("i32", keyEnd)];
        const rest: Argument[] = [Hq, Hkv, D, qStride, kvStride, kvStride, window, scale, { dtypeOf: q }];
        const expected = [...runCase(backend, { kernel: "attentionForward", title: "dense", args: [...dense, T, S, ...rest] }).values()];
        const paged = attentionPagedCase(shape, type);
        const got = [...runCase(backend, paged).values()];
        expect(Buffer.from(got[0]?.bytes ?? []).equals(Buffer.from(expected[0]?.bytes ?? []))).toBe(true);
      }
    });
  }
});

/**
 * A query's bits depend on nothing but the query and its keys: not on how queries are cut into chunks, or where the keys lie. Bit for bit, on
 * every engine but the reference. The other kernels: rows.test.ts.
 */
import { expect, test } from "vitest";
import type { Backend } from "../../src/backend/backend.ts";
import type { AttentionInputs, AttentionShape } from "./cases/attention.ts";
import { attentionInputs, causal, packed } from "./cases/attention.ts";
import { call, fresh } from "./harness/call.ts";
import type { Operand } from "./harness/operands.ts";
import { elementWidth, input } from "./harness/operands.ts";
import { onEveryEngine } from "./harness/suite.ts";

await onEveryEngine((engine, open) => {
  // The reference has no blocks to go wrong, and takes seconds here.
  if (engine.name === "reference") return;
  for (const type of ["f32", "bf16"] as const) {
    test(`attentionForward in ${type} gives a query the same bits whole, in chunks, alone, and with its keys in a longer buffer`, () => {
      for (const shape of attentionShapes) expectSameAttention(open(2), shape, type);
    });
  }
});

const attentionShapes: readonly AttentionShape[] = [
  { Hq: 4, Hkv: 2, D: 64, window: 0, gap: 0, ...causal(150) },
  { Hq: 3, Hkv: 1, D: 17, window: 0, gap: 0, ...causal(70, 61) },
  { Hq: 2, Hkv: 2, D: 32, window: 33, gap: 4, ...causal(140) },
  { Hq: 2, Hkv: 1, D: 40, window: 0, gap: 0, ...packed([3, 77, 1, 66]) },
];

/** A span of queries, with the keys moved up by `shift` rows in a buffer that ends `tail` rows later. */
interface Placement {
  readonly from: number;
  readonly to: number;
  readonly shift: number;
  readonly tail: number;
}

function attention(
  backend: Backend,
  shape: AttentionShape,
  inputs: AttentionInputs,
  type: "f32" | "bf16",
  { from, to, shift, tail }: Placement,
): Uint8Array[] {
  const { Hq, Hkv, D, S, window, gap, keyBase, keyEnd } = shape;
  const { qStride, kvStride, scale } = inputs;
  const longer = (values: Float64Array): Operand => {
    const moved = new Float64Array((S + shift + tail) * kvStride - gap).fill(3);
    moved.set(values, shift * kvStride);
    return input(type, moved);
  };
  const T = to - from;
  const q = input(type, inputs.q.subarray(from * qStride, to * qStride - gap));
  const ranges = [keyBase, keyEnd].map((rows) =>
    input(
      "i32",
      rows.slice(from, to).map((row) => row + shift),
    ),
  );
  const args = [fresh(type, T * Hq * D), fresh("f32", Hq * T), q, longer(inputs.k), longer(inputs.v), ...ranges];
  return call(backend, "attentionForward", [
    ...args,
    T,
    S + shift + tail,
    Hq,
    Hkv,
    D,
    qStride,
    kvStride,
    kvStride,
    window,
    scale,
    { dtypeOf: q },
  ]);
}

function expectSameAttention(backend: Backend, shape: AttentionShape, type: "f32" | "bf16"): void {
  const inputs = attentionInputs(shape, type, shape.S);
  const { Hq, D } = shape;
  const { T } = inputs;
  const [whole = new Uint8Array(), wholeLse = new Uint8Array()] = attention(backend, shape, inputs, type, {
    from: 0,
    to: T,
    shift: 0,
    tail: 0,
  });
  const rowBytes = Hq * D * elementWidth[type];
  const cuts = [0, 1, 2, 9, 40, 41, 65, T].filter((cut) => cut <= T);
  const chunks = cuts.slice(1).map((to, i) => ({ from: cuts[i] ?? 0, to }));
  for (const { from, to } of [...chunks, { from: 0, to: T }]) {
    for (const [shift, tail] of [
      [0, 0],
      [0, 70],
      [37, 5],
      [64, 0],
    ] as const) {
      const [part = new Uint8Array(), lse = new Uint8Array()] = attention(backend, shape, inputs, type, { from, to, shift, tail });
      const what = `queries ${from} to ${to} of ${T}, keys moved by ${shift}, ${tail} behind, D ${D}`;
      expect(Buffer.from(whole.subarray(from * rowBytes, to * rowBytes)).equals(part), what).toBe(true);
      for (let h = 0; h < Hq; h++) {
        const want = Buffer.from(wholeLse.subarray((h * T + from) * 4, (h * T + to) * 4));
        expect(want.equals(lse.subarray(h * (to - from) * 4, (h + 1) * (to - from) * 4)), `lse of ${what}`).toBe(true);
      }
    }
  }
}

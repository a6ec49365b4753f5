import { describe, expect, it } from "vitest";
import { checkGradients, withEngine } from "../../../test/gradcheck.ts";
import { Tape } from "../tape.ts";
import type { Tensor } from "../tensor.ts";
import { scale } from "./elementwise.ts";
import { columns, concatColumns, nothingOf, onBackward, repeatColumns, takeRows } from "./rows.ts";

describe("parts of tensors", () => {
  it("take rows, some of them twice, one never, and rows of zeros: gradients of finite differences", () => {
    checkGradients({
      inputs: { x: { shape: [4, 3] } },
      run: ({ x }, engine) =>
        x ? [takeRows(x, engine.from([2, 0, -1, 2, 3], [5], "i32"), engine.from([1, -1, -1, -1, 0, 3, 4, -1], [4, 2], "i32"))] : [],
    });
  });
  it.each([
    [0, 5],
    [1, 3],
    [4, 5],
    [2, 2],
  ])("columns %d to %d have the gradients of finite differences", (start, end) => {
    checkGradients({ inputs: { x: { shape: [3, 5] } }, run: ({ x }) => (x ? [columns(x, start, end)] : []) });
  });
  it("columns of several tensors, one of them empty, stand side by side and give their gradients back", () => {
    checkGradients({
      inputs: { a: { shape: [3, 2] }, b: { shape: [3, 4] } },
      run: ({ a, b }, engine) => (a && b ? [concatColumns([a, engine.zeros([3, 0], a.dtype), b])] : []),
    });
    withEngine((engine) =>
      engine.scope(() => {
        const [a, b] = [engine.from([1, 2], [2, 1], "f32"), engine.from([3, 4, 5, 6], [2, 2], "f32")];
        expect([...concatColumns([a, b]).toFloat32Array()]).toEqual([1, 3, 4, 2, 5, 6]);
      }),
    );
  });
  it.each([2, 3])("columns repeated %d times add their gradients up", (times) => {
    checkGradients({
      inputs: { x: { shape: [3, 2], bf16: false } },
      bf16Tolerance: null,
      run: ({ x }) => (x ? [repeatColumns(x, times)] : []),
    });
  });
  it("nothing of a tensor is zeros, and its gradient too", () => {
    checkGradients({ inputs: { x: { shape: [3, 2] } }, run: ({ x }) => (x ? [nothingOf([x], [2, 2], x.dtype)] : []) });
  });
  it("tells when the backward pass comes past, after what was computed later and before what was earlier", () => {
    withEngine((engine) =>
      engine.scope(() => {
        const x = engine.from([1, 2], [1, 2], "f32");
        x.requiresGrad = true;
        const seen: string[] = [];
        using tape = new Tape(engine);
        const mark = (value: Tensor, name: string): Tensor => onBackward(value, () => seen.push(name));
        const y = engine.withTape(tape, () => scale(mark(scale(mark(x, "first"), 2), "second"), 3));
        expect(seen).toEqual([]);
        tape.backward([{ value: y, grad: 1 }]);
        expect(seen).toEqual(["second", "first"]);
        using grad = tape.takeGrad(x);
        expect([...(grad?.toFloat32Array() ?? [])]).toEqual([6, 6]);
      }),
    );
  });
  it("refuses columns that are not there", () => {
    withEngine((engine) =>
      engine.scope(() => {
        expect(() => columns(engine.zeros([2, 3], "f32"), 1, 4)).toThrow("columns: start and end must be within 0..3, got 1..4");
      }),
    );
  });
});

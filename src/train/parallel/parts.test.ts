import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, expect, test } from "vitest";
import { createReferenceBackend } from "../../backend/reference/index.ts";
import { createSafetensors } from "../../checkpoint/safetensors-writer.ts";
import { openSafetensors } from "../../checkpoint/safetensors.ts";
import { Engine } from "../../tensor/index.ts";
import { boxRuns, boxSize, wholeBox } from "../../util/box.ts";
import { optimizerNames, readParts, wholeTensors } from "./parts.ts";

const folder = mkdtempSync(join(tmpdir(), "moe-parts-"));
const engine = new Engine(createReferenceBackend());
afterAll(() => {
  expect(engine.backend.liveBytes).toBe(0);
  engine[Symbol.dispose]();
  rmSync(folder, { recursive: true, force: true });
});

/** A file with one tensor whose elements are their places. */
function places(shape: readonly number[]): string {
  const path = join(folder, `${shape.join("x")}.safetensors`);
  const values = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => i);
  using writer = createSafetensors(path, [{ name: "tensor", dtype: "F32", shape: [...shape] }]);
  writer.write("tensor", new Uint8Array(values.buffer));
  writer.commit();
  return path;
}
function read(path: string, shape: readonly number[], box = wholeBox(shape), elements = { start: 0, end: boxSize(box) }): Float32Array {
  using file = openSafetensors(path);
  using tensor = engine.detached([elements.end - elements.start], "f32");
  readParts(file, [{ name: "tensor", shape, box, elements, tensor }]);
  return tensor.toFloat32Array();
}

test("a rank reads its box, or its interval of it, of a tensor that is whole in the file", () => {
  const shape = [3, 7, 5];
  const path = places(shape);
  const interval = (size: number): fc.Arbitrary<{ start: number; end: number }> =>
    fc.tuple(fc.nat(size), fc.nat(size)).map(([a, b]) => ({ start: Math.min(a, b), end: Math.max(a, b) }));
  fc.assert(
    fc.property(fc.tuple(interval(3), interval(7), interval(5)), fc.nat(), fc.nat(), (box, a, b) => {
      const size = boxSize(box) + 1;
      const elements = { start: Math.min(a % size, b % size), end: Math.max(a % size, b % size) };
      const expected = [...boxRuns(shape, box, elements)].flatMap(({ whole, length }) => Array.from({ length }, (_, i) => whole + i));
      expect([...read(path, shape, box, elements)]).toEqual(expected);
    }),
  );
});

test("columns that lie further apart than what is read at once are found", () => {
  // 6 MB, and a part of two columns: windows of 4 MB.
  const shape = [3, 500_000];
  const path = places(shape);
  const box = [
    { start: 0, end: 3 },
    { start: 499_998, end: 500_000 },
  ];
  expect([...read(path, shape, box)]).toEqual([499_998, 499_999, 999_998, 999_999, 1_499_998, 1_499_999]);
});

test("another shape, or none, is an error of the file", () => {
  const path = places([4, 2]);
  expect(() => read(path, [2, 4])).toThrow(/tensor as F32 \[2, 4\], got F32 \[4, 2\]/);
  expect(() => read(path, [4, 3])).toThrow(/4x2\.safetensors/);
});

test("what is written for one rank must be whole", () => {
  using tensor = engine.detached([4], "f32");
  const part = { name: "half", shape: [8], box: [{ start: 0, end: 4 }], elements: { start: 0, end: 4 }, tensor };
  expect(() => wholeTensors([part])).toThrow(/half: 4 elements of \[8\]/);
});

test("a checkpoint names moments for all that trains, and masters for what is not f32", () => {
  const spec = { shape: [2], init: "zeros", decays: false } as const;
  const names = optimizerNames([
    { ...spec, name: "a", dtype: "bf16", trains: true },
    { ...spec, name: "b", dtype: "f32", trains: true },
    { ...spec, name: "bias", dtype: "f32", trains: false },
  ]);
  expect(names).toEqual(["a.exp_avg", "a.exp_avg_sq", "a.master", "b.exp_avg", "b.exp_avg_sq"]);
});

import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import * as fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { fromFloat32 } from "./dtypes.ts";
import { createGguf } from "./gguf-writer.ts";
import type { GgufTensorDeclaration } from "./gguf-writer.ts";
import type { GgufValue } from "./gguf-types.ts";
import { openGguf } from "./gguf.ts";

const GOLDEN = path.join(import.meta.dirname, "../../test/golden/gguf");
let directory = "";
beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), "moe-gguf-writer-"));
});
afterEach(() => {
  fs.rmSync(directory, { recursive: true, force: true });
});

function write(
  target: string,
  metadata: ReadonlyMap<string, GgufValue>,
  tensors: readonly (GgufTensorDeclaration & { bytes: Uint8Array })[],
): void {
  using writer = createGguf(target, metadata, tensors);
  for (const { name, bytes } of tensors) {
    writer.write(name, bytes.subarray(0, 3));
    writer.write(name, bytes.subarray(3));
  }
  writer.commit();
}

describe("a written GGUF file", () => {
  it("is byte for byte what the gguf package writes", () => {
    const original = path.join(GOLDEN, "blocks.f32.gguf");
    const target = path.join(directory, "same.gguf");
    using file = openGguf(original);
    const tensors = [...file.tensors.values()].map(({ name, shape, byteLength }) => {
      const bytes = new Uint8Array(byteLength);
      file.read(name, bytes);
      return { name, shape, type: "F32" as const, bytes };
    });
    write(target, file.metadata, tensors);
    expect(Buffer.compare(fs.readFileSync(target), fs.readFileSync(original))).toBe(0);
  });

  it("gives back metadata of every type and the alignment", () => {
    using original = openGguf(path.join(GOLDEN, "values.gguf"));
    const target = path.join(directory, "values.gguf");
    write(target, original.metadata, [
      { name: "a", type: "F32", shape: [1], bytes: new Uint8Array(4).fill(1) },
      { name: "b", type: "BF16", shape: [3, 1], bytes: new Uint8Array(6).fill(2) },
    ]);
    using copy = openGguf(target);
    expect([...copy.metadata]).toEqual([...original.metadata]);
    expect(copy.alignment).toBe(64);
    expect(copy.entry("b").offset - copy.entry("a").offset).toBe(64);
    expect(fs.statSync(target).size % 64).toBe(0);
  });

  it("holds any values and shapes that were put in", () => {
    const type = fc.constantFrom("F32" as const, "F16" as const, "BF16" as const);
    const shape = fc.array(fc.integer({ min: 0, max: 5 }), { maxLength: 4 });
    const strings = fc.array(fc.string({ unit: "grapheme" }));
    fc.assert(
      fc.property(
        fc.array(fc.tuple(type, shape), { maxLength: 5 }),
        strings,
        fc.array(fc.integer({ min: -128, max: 127 })),
        (list, texts, bytes) => {
          const target = path.join(directory, "any.gguf");
          const tensors = list.map(([t, s], i) => {
            const values = Float32Array.from({ length: s.reduce((a, b) => a * b, 1) }, (_, j) => (i + j) % 200); // whole numbers under 256 are exact in bf16
            const out = new Uint8Array(values.length * (t === "F32" ? 4 : 2));
            fromFloat32(t, values, out);
            return { name: `t${i}`, type: t, shape: s, bytes: out, values };
          });
          const metadata = new Map<string, GgufValue>([
            ["texts", { type: "array", elementType: "string", values: texts }],
            ["bytes", { type: "array", elementType: "int8", values: bytes }],
          ]);
          write(target, metadata, tensors);
          using file = openGguf(target);
          const back = [...file.metadata.values()].map((v) => (v.type === "array" ? Array.from<unknown>(v.values) : v));
          expect(back).toEqual([texts, bytes]);
          for (const { name, shape: s, values } of tensors) {
            expect(file.entry(name).shape).toEqual(s);
            const read = new Float32Array(values.length);
            file.readFloat32(name, read);
            expect(read).toEqual(values);
          }
        },
      ),
      { numRuns: 50 },
    );
  });
});

describe("what cannot be written is refused before a file exists", () => {
  const none = new Map<string, GgufValue>();
  it.each<[string, Map<string, GgufValue>, GgufTensorDeclaration[], string]>([
    ["a number out of range", new Map([["k", { type: "uint8", value: 256 }]]), [], 'metadata "k": expected a value of type uint8, got 256'],
    ["a fraction as an integer", new Map([["k", { type: "int32", value: 0.5 }]]), [], "expected a value of type int32, got 0.5"],
    ["a 64-bit overflow", new Map([["k", { type: "uint64", value: -1n }]]), [], "expected a value of type uint64, got -1"],
    ["an ill-formed string", new Map([["k", { type: "string", value: "\ud800" }]]), [], "expected a value of type string"],
    [
      "a bad array element",
      new Map([["k", { type: "array", elementType: "int8", values: [1, 128] }]]),
      [],
      "expected a value of type int8, got 128",
    ],
    ["an empty key", new Map([["", { type: "bool", value: true }]]), [], "expected a well-formed key"],
    ["a bad alignment", new Map([["general.alignment", { type: "uint32", value: 48 }]]), [], "power of two"],
    ["a name that is too long for ggml", none, [{ name: "n".repeat(64), type: "F32", shape: [1] }], "at most 63 bytes"],
    ["a name that comes twice", none, Array.from({ length: 2 }, () => ({ name: "n", type: "F32" as const, shape: [1] })), '"n" twice'],
    ["five dimensions", none, [{ name: "n", type: "F32", shape: [1, 1, 1, 1, 1] }], "at most 4 non-negative dimensions"],
  ])("%s", (_, metadata, tensors, message) => {
    expect(() => createGguf(path.join(directory, "x.gguf"), metadata, tensors)).toThrow(message);
    expect(fs.readdirSync(directory)).toEqual([]);
  });
});

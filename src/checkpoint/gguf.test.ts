import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { MoeError } from "../util/errors.ts";
import type { ErrorKind } from "../util/errors.ts";
import { dequantize } from "./gguf-dequantize.ts";
import { openGguf } from "./gguf.ts";

// Written by the `gguf` package of PyPI (test/golden/gguf/make.py).
const GOLDEN = path.join(import.meta.dirname, "../../test/golden/gguf");
const BLOCKS = path.join(GOLDEN, "blocks.gguf");
const VALUES = path.join(GOLDEN, "values.gguf");

let directory = "";
beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), "moe-gguf-"));
});
afterEach(() => {
  fs.rmSync(directory, { recursive: true, force: true });
});

describe("dequantization", () => {
  it.each(["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"])("of %s gives the bits of gguf.quants.dequantize", (type) => {
    using blocks = openGguf(BLOCKS);
    using floats = openGguf(path.join(GOLDEN, "blocks.f32.gguf"));
    const name = `${type}.weight`;
    expect(blocks.entry(name)).toMatchObject({ type, shape: [3, 512], numElements: 1536 });
    const ours = new Float32Array(1536);
    const theirs = new Float32Array(1536);
    blocks.readFloat32(name, ours);
    floats.readFloat32(name, theirs);
    expect(new Uint32Array(ours.buffer)).toEqual(new Uint32Array(theirs.buffer));
    expect(new Set(theirs).size).toBeGreaterThan(200);
  });

  it.each(["F16", "Q8_0", "Q4_1", "Q6_K"])("of any rows of %s gives the same as of the whole", (type) => {
    using blocks = openGguf(BLOCKS);
    const whole = new Float32Array(1536);
    const rows = new Float32Array(1024);
    blocks.readFloat32(`${type}.weight`, whole);
    blocks.readFloat32(`${type}.weight`, rows, 512);
    expect(rows).toEqual(whole.subarray(512));
  });

  it("works at any address", () => {
    using blocks = openGguf(BLOCKS);
    const bytes = new Uint8Array(1 + 3 * 2 * 210);
    blocks.read("Q6_K.weight", bytes.subarray(1));
    const expected = new Float32Array(1536);
    const out = new Float32Array(1536);
    blocks.readFloat32("Q6_K.weight", expected);
    dequantize("Q6_K", bytes.subarray(1), out);
    expect(out).toEqual(expected);
  });

  it("of part of a block, or past the end, is an error of kind shape", () => {
    using blocks = openGguf(BLOCKS);
    expect(() => blocks.readFloat32("Q4_K.weight", new Float32Array(128))).toThrow(
      'whole blocks of 256 elements of tensor "Q4_K.weight" (Q4_K), got 0 to 128',
    );
    expect(() => blocks.readFloat32("Q4_K.weight", new Float32Array(512), 1280)).toThrow("within the 864 bytes");
    expect(() => blocks.readFloat32("F32.weight", new Float32Array(1), 1536)).toThrow("within the 6144 bytes");
    expect(() => dequantize("Q8_0", new Uint8Array(33), new Float32Array(32))).toThrow("got 33 bytes");
  });

  it("of a type that we do not have is an error of kind unsupported that names type and tensor", () => {
    using file = openGguf(VALUES);
    expect(file.entry("q5").type).toBe("Q5_K");
    try {
      file.readFloat32("q5", new Float32Array(1536));
      expect.unreachable();
    } catch (error) {
      expect(error).toMatchObject({
        kind: "unsupported",
        message: `${VALUES}: expected tensor "q5" to have one of the types F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K, got Q5_K`,
      });
    }
  });
});

describe("metadata", () => {
  it("of every type is read with its type", () => {
    using file = openGguf(VALUES);
    const plain = Object.fromEntries(
      [...file.metadata].map(([k, v]) => [k, v.type === "array" ? { ...v, values: Array.from<unknown>(v.values) } : v]),
    );
    expect(plain).toMatchObject({
      "general.architecture": { type: "string", value: "test" },
      "v.uint8": { type: "uint8", value: 200 },
      "v.int8": { type: "int8", value: -100 },
      "v.uint16": { type: "uint16", value: 60000 },
      "v.int16": { type: "int16", value: -30000 },
      "v.uint32": { type: "uint32", value: 4000000000 },
      "v.int32": { type: "int32", value: -2000000000 },
      "v.float32": { type: "float32", value: Math.fround(0.1) },
      "v.bool": { type: "bool", value: true },
      "v.string": { type: "string", value: "混合 専門家 🦙" },
      "v.uint64": { type: "uint64", value: 2n ** 64n - 1n },
      "v.int64": { type: "int64", value: -(2n ** 63n) },
      "v.float64": { type: "float64", value: 0.1 },
      "v.array.string": { type: "array", elementType: "string", values: ["a", "", "é"] },
      "v.array.bool": { elementType: "bool", values: [true, false] },
      "v.array.float": { elementType: "float32", values: [0.5, -2] },
      "v.array.int": { elementType: "int32", values: [1, -2, 3] },
      "v.array.uint64": { elementType: "uint64", values: [2n ** 63n, 1n] },
    });
    const nested = file.metadata.get("v.array.nested");
    expect(nested).toMatchObject({ type: "array", elementType: "array" });
    expect(
      nested?.type === "array" && nested.elementType === "array" ? nested.values.map((v) => Array.from<unknown>(v.values)) : [],
    ).toEqual([[1, 2], [3]]);
  });

  it("sets the alignment, and shapes are row-major", () => {
    using file = openGguf(VALUES);
    expect(file.alignment).toBe(64);
    const deep = file.entry("deep");
    expect(deep).toMatchObject({ shape: [2, 3, 4], numElements: 24, byteLength: 96 });
    expect(deep.offset % 64).toBe(0);
    const values = new Float32Array(4);
    file.readFloat32("deep", values, 20);
    expect([...values]).toEqual([20, 21, 22, 23]);
    expect(() => file.entry("dep")).toThrow('did you mean "deep"?');
  });
});

/** A GGUF file put together by hand: numbers are bytes of the given width, strings have their length in front. */
type Part = readonly ["u8" | "u32" | "u64" | "f32", number | bigint] | string;
function bytesOf(parts: readonly Part[]): Uint8Array {
  const chunks = parts.map((part) => {
    if (typeof part === "string") {
      const text = new TextEncoder().encode(part);
      return new Uint8Array([...bytesOf([["u64", text.length]]), ...text]);
    }
    const out = new DataView(new ArrayBuffer(8));
    out.setBigUint64(0, BigInt.asUintN(64, BigInt(part[1])), true);
    return new Uint8Array(out.buffer, 0, { u8: 1, u32: 4, u64: 8, f32: 4 }[part[0]]);
  });
  return new Uint8Array(chunks.flatMap((chunk) => [...chunk]));
}

interface Recipe {
  magic?: number;
  version?: number;
  numTensors?: number | bigint;
  numEntries?: number | bigint;
  metadata?: readonly Part[];
  tensors?: readonly Part[];
  dataBytes?: number;
}

function fileOf({
  magic = 0x46554747,
  version = 3,
  numTensors = 0,
  numEntries = 0,
  metadata = [],
  tensors = [],
  dataBytes = 0,
}: Recipe): string {
  const head = bytesOf([["u32", magic], ["u32", version], ["u64", numTensors], ["u64", numEntries], ...metadata, ...tensors]);
  const bytes = new Uint8Array(Math.ceil(head.length / 32) * 32 + dataBytes);
  bytes.set(head);
  const target = path.join(directory, "bad.gguf");
  fs.writeFileSync(target, bytes);
  return target;
}

function refusal(target: string, kind: ErrorKind = "file"): string {
  try {
    openGguf(target).close();
  } catch (error) {
    if (!(error instanceof MoeError)) throw error;
    expect(error.kind).toBe(kind);
    expect(error.message.startsWith(`${target}: expected `)).toBe(true);
    return error.message.slice(target.length + 2);
  }
  throw new Error("the file was accepted");
}

const tensor = (name: string, dims: readonly (number | bigint)[], type: number, offset: number | bigint): Part[] => [
  name,
  ["u32", dims.length],
  ...dims.map((d): Part => ["u64", d]),
  ["u32", type],
  ["u64", offset],
];

/** Where the tensors of BLOCKS end (padding follows). */
function lastByte(): number {
  using file = openGguf(BLOCKS);
  return Math.max(...[...file.tensors.values()].map((t) => t.offset + t.byteLength));
}

describe("a corrupt GGUF file", () => {
  it("that is missing, empty or something else", () => {
    expect(refusal(path.join(directory, "none.gguf"))).toContain("got nothing of that name");
    fs.writeFileSync(path.join(directory, "empty.gguf"), "");
    expect(refusal(path.join(directory, "empty.gguf"))).toContain(
      "the magic number (4 bytes) at byte 0, got the end of the file after 0 bytes",
    );
    expect(refusal(fileOf({ magic: 0x04034b50 }))).toBe('expected a GGUF file, which starts with "GGUF", got 0x04034b50');
  });

  it("of version 1, of another byte order or of the future", () => {
    expect(refusal(fileOf({ version: 1 }), "unsupported")).toContain("got version 1");
    expect(refusal(fileOf({ version: 0x03000000 }), "unsupported")).toContain("big-endian");
    expect(refusal(fileOf({ version: 4 }))).toBe("expected GGUF version 2 or 3, got version 4");
  });

  it("that is cut anywhere before the end of the last tensor", () => {
    const whole = fs.readFileSync(BLOCKS).subarray(0, lastByte());
    const target = path.join(directory, "cut.gguf");
    for (let length = 0; length < whole.length; length += 61) {
      fs.writeFileSync(target, whole.subarray(0, length));
      expect(refusal(target)).toMatch(/got the end of the file|that follow, got|truncated/);
    }
  });

  it("with counts that the file is too small for costs no memory", () => {
    const before = process.memoryUsage().arrayBuffers;
    expect(refusal(fileOf({ numTensors: 2n ** 40n }))).toContain(
      "the number of tensors at byte 8 to fit into the 16 bytes that follow, got 1099511627776",
    );
    expect(refusal(fileOf({ numEntries: 2n ** 63n }))).toContain(
      "the number of metadata entries at byte 16 to be at most 9007199254740991, got 9223372036854775808",
    );
    expect(refusal(fileOf({ numEntries: 1, metadata: ["k", ["u32", 9], ["u32", 6], ["u64", 2n ** 34n]] }))).toContain(
      'the length of metadata "k"',
    );
    expect(refusal(fileOf({ numEntries: 1, metadata: ["k", ["u32", 8], ["u64", 2n ** 34n]] }))).toContain('the length of metadata "k"');
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(2e6);
  });

  it("with an unknown value type, a bool of two, a key twice or arrays without end", () => {
    expect(refusal(fileOf({ numEntries: 1, metadata: ["k", ["u32", 13]] }))).toContain(
      'a value type from 0 to 12 for metadata "k" at byte 33, got 13',
    );
    expect(refusal(fileOf({ numEntries: 1, metadata: ["k", ["u32", 7], ["u8", 2]] }))).toContain("a bool of 0 or 1");
    expect(refusal(fileOf({ numEntries: 2, metadata: ["k", ["u32", 7], ["u8", 1], "k", ["u32", 7], ["u8", 1]] }))).toContain(
      'each metadata key once, got "k" twice',
    );
    const nested = Array.from({ length: 100 }, (): Part[] => [
      ["u32", 9],
      ["u64", 1],
    ]).flat();
    expect(refusal(fileOf({ numEntries: 1, metadata: ["k", ["u32", 9], ...nested] }))).toContain("at most 4 levels of arrays");
  });

  it("with an alignment that is none", () => {
    for (const alignment of [0, 3, 2 ** 31]) {
      expect(refusal(fileOf({ numEntries: 1, metadata: ["general.alignment", ["u32", 4], ["u32", alignment]] }))).toContain(
        `a power of two, got uint32 ${alignment}`,
      );
    }
    expect(refusal(fileOf({ numEntries: 1, metadata: ["general.alignment", ["u32", 10], ["u64", 32]] }))).toContain("to be a uint32");
  });

  it("with tensors of a bad shape or type", () => {
    expect(refusal(fileOf({ numTensors: 1, tensors: tensor("t", [1, 1, 1, 1, 1], 0, 0) }))).toContain(
      'at most 4 dimensions for tensor "t", got 5',
    );
    expect(refusal(fileOf({ numTensors: 1, tensors: tensor("t", [2n ** 63n], 0, 0) }))).toContain("to be at most 9007199254740991");
    expect(refusal(fileOf({ numTensors: 1, tensors: tensor("t", [2n ** 40n, 2n ** 40n], 0, 0) }))).toContain("whose size overflows");
    expect(refusal(fileOf({ numTensors: 1, tensors: tensor("t", [48], 8, 0), dataBytes: 64 }))).toContain(
      "rows of whole Q8_0 blocks of 32 elements",
    );
    expect(refusal(fileOf({ numTensors: 1, tensors: tensor("t", [32], 4, 0), dataBytes: 64 }), "unsupported")).toContain(
      'a known GGUF type for tensor "t", got type code 4',
    );
  });

  it("with tensors outside the file, unaligned, overlapping or twice", () => {
    expect(refusal(fileOf({ numTensors: 1, tensors: tensor("t", [9], 0, 0), dataBytes: 32 }))).toContain("a file of 96 bytes (truncated?)");
    expect(refusal(fileOf({ numTensors: 1, tensors: tensor("t", [1], 0, 2 ** 52), dataBytes: 32 }))).toContain("truncated?");
    expect(refusal(fileOf({ numTensors: 1, tensors: tensor("t", [1], 0, 4), dataBytes: 32 }))).toContain(
      'a multiple of 32 for tensor "t", got 4',
    );
    const two = (name: string, offset: number): Part[] => [...tensor("t", [9], 0, 0), ...tensor(name, [1], 0, offset)];
    expect(refusal(fileOf({ numTensors: 2, tensors: two("u", 32), dataBytes: 64 }))).toContain('tensors "t" and "u" overlapping');
    expect(refusal(fileOf({ numTensors: 2, tensors: two("t", 64), dataBytes: 96 }))).toContain('each tensor name once, got "t" twice');
    openGguf(fileOf({ numTensors: 2, tensors: two("u", 64), dataBytes: 96 })).close();
  });

  it("with text that is not UTF-8", () => {
    const target = fileOf({ numEntries: 1, metadata: ["kk", ["u32", 7], ["u8", 1]] });
    const bytes = fs.readFileSync(target);
    bytes[32] = 0xff;
    fs.writeFileSync(target, bytes);
    expect(refusal(target)).toBe("expected metadata key 0 to be UTF-8, got bytes that are not");
  });
});

import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { MoeError } from "../util/errors.ts";
import { openSafetensors } from "./safetensors.ts";

let directory = "";
beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), "moe-safetensors-"));
});
afterEach(() => {
  fs.rmSync(directory, { recursive: true, force: true });
});

/** A file of the given header (text, bytes, or an object) and number of data bytes 0, 1, 2, ... */
function fileOf(header: unknown, dataBytes: number, headerLength?: bigint): string {
  const text =
    header instanceof Uint8Array ? header : new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const bytes = new Uint8Array(8 + text.length + dataBytes);
  new DataView(bytes.buffer).setBigUint64(0, headerLength ?? BigInt(text.length), true);
  bytes.set(text, 8);
  for (let i = 0; i < dataBytes; i++) bytes[8 + text.length + i] = i;
  const target = path.join(directory, "bad.safetensors");
  fs.writeFileSync(target, bytes);
  return target;
}

function refusal(target: string): string {
  try {
    openSafetensors(target).close();
  } catch (error) {
    if (!(error instanceof MoeError)) throw error;
    expect(error.kind).toBe("file");
    expect(error.message.startsWith(`${target}: expected `)).toBe(true);
    return error.message.slice(target.length + 2);
  }
  throw new Error("the file was accepted");
}

const F32_6 = { dtype: "F32", shape: [2, 3], data_offsets: [0, 24] };

describe("a good safetensors file", () => {
  it("gives names, shapes, places and metadata, in the order of the bytes", () => {
    const header = {
      b: { dtype: "U8", shape: [], data_offsets: [24, 25] },
      __metadata__: { format: "pt" },
      a: F32_6,
      z: { dtype: "F16", shape: [0, 4], data_offsets: [25, 25] },
    };
    using file = openSafetensors(fileOf(header, 25));
    expect([...file.tensors.keys()]).toEqual(["a", "b", "z"]);
    const start = 8 + JSON.stringify(header).length;
    expect(file.entry("a")).toEqual({ name: "a", dtype: "F32", shape: [2, 3], offset: start, byteLength: 24 });
    expect(file.entry("b")).toEqual({ name: "b", dtype: "U8", shape: [], offset: start + 24, byteLength: 1 });
    expect([...file.metadata]).toEqual([["format", "pt"]]);
  });

  it("gives any range of a tensor's bytes", () => {
    using file = openSafetensors(fileOf({ a: F32_6 }, 24));
    const bytes = new Uint8Array(5);
    file.read("a", bytes, 19);
    expect([...bytes]).toEqual([19, 20, 21, 22, 23]);
    expect(() => file.read("a", bytes, 20)).toThrow('within the 24 bytes of tensor "a", got 20 to 25');
    expect(() => file.read("a", bytes, -1)).toThrow("got -1 to 4");
  });

  it("may be empty, escaped and padded with spaces", () => {
    openSafetensors(fileOf("{}", 0)).close();
    using file = openSafetensors(fileOf('{ "\\u00e9\\n" : {"shape":[],"dtype":"I8","data_offsets":[ 0, 1 ]} }   ', 1));
    expect([...file.tensors.keys()]).toEqual(["é\n"]);
  });

  it("names the nearest tensor when there is none of that name, and fails clearly after closing", () => {
    const file = openSafetensors(fileOf({ "model.norm.weight": F32_6 }, 24));
    expect(() => file.entry("model.norm.weigth")).toThrow('did you mean "model.norm.weight"?');
    file.close();
    file.close();
    expect(() => file.read("model.norm.weight", new Uint8Array(1))).toThrow("read after the file was closed");
  });

  it("that shrinks while it is open is an error, not zeros", () => {
    const target = fileOf({ a: F32_6 }, 24);
    using file = openSafetensors(target);
    fs.truncateSync(target, fs.statSync(target).size - 4);
    expect(() => file.readFloat32("a", new Float32Array(6))).toThrow("the end of the file after 20 of them");
  });
});

describe("a bad safetensors file", () => {
  it("that is missing", () => {
    expect(refusal(path.join(directory, "none.safetensors"))).toContain("got nothing of that name");
  });

  it("that is empty or cut within the header's length", () => {
    const target = path.join(directory, "cut");
    fs.writeFileSync(target, new Uint8Array(7));
    expect(refusal(target)).toBe("expected a safetensors file, which has at least 8 bytes, got 7 bytes");
  });

  it("truncated in the header", () => {
    const target = fileOf({ a: F32_6 }, 0);
    fs.truncateSync(target, 30);
    expect(refusal(target)).toMatch(/expected a header of \d+ bytes, got a file that ends after 30 bytes \(truncated\?\)/);
  });

  it("truncated in the data", () => {
    expect(refusal(fileOf({ a: F32_6 }, 23))).toBe(
      'expected tensor "a" to end within the file\'s 23 bytes of data, got an end at 24 (truncated?)',
    );
  });

  it("with bytes after the last tensor", () => {
    expect(refusal(fileOf({ a: F32_6 }, 25))).toBe("expected 24 bytes of data, where the last tensor ends, got 25");
  });

  it("with an oversized header", () => {
    expect(refusal(fileOf("{}", 0, 100_000_001n))).toContain("a safetensors header of at most 100000000 bytes, got 100000001 bytes");
    expect(refusal(fileOf("{}", 0, 2n ** 64n - 1n))).toContain("got 18446744073709551615 bytes");
  });

  it("with a header that the file is too small for costs no memory", () => {
    const before = process.memoryUsage().arrayBuffers;
    expect(refusal(fileOf("{}", 0, 99_999_999n))).toContain("a header of 99999999 bytes");
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(1e6);
  });

  it("with overlapping offsets", () => {
    const header = { a: F32_6, b: { dtype: "U8", shape: [4], data_offsets: [20, 24] } };
    expect(refusal(fileOf(header, 24))).toBe('expected tensor "b" to begin at offset 24, got 20, which overlaps tensor "a"');
  });

  it("with a gap between tensors", () => {
    const header = { a: F32_6, b: { dtype: "U8", shape: [4], data_offsets: [25, 29] } };
    expect(refusal(fileOf(header, 29))).toBe('expected tensor "b" to begin at offset 24, got 25, which leaves a gap after tensor "a"');
  });

  it("with offsets that run backwards", () => {
    expect(refusal(fileOf({ a: { ...F32_6, data_offsets: [24, 0] } }, 24))).toContain(
      'data_offsets [begin, end] with begin <= end for tensor "a", got [24,0]',
    );
  });

  it("with an unknown dtype", () => {
    expect(refusal(fileOf({ a: { ...F32_6, dtype: "F33" } }, 24))).toMatch(
      /one of the dtypes F64, F32, .* for tensor "a", got "F33" \(did you mean "F32"\?\)/,
    );
    expect(refusal(fileOf({ a: { ...F32_6, dtype: "constructor" } }, 24))).toContain('got "constructor"');
  });

  it("with a dtype that does not fit the bytes", () => {
    expect(refusal(fileOf({ a: { ...F32_6, dtype: "F16" } }, 24))).toBe(
      'expected 12 bytes for tensor "a" (F16 [2, 3]), got data_offsets [0, 24], which are 24',
    );
  });

  it("with huge dimensions", () => {
    expect(refusal(fileOf({ a: { ...F32_6, shape: [2 ** 40, 2 ** 40] } }, 24))).toContain("whose size overflows");
    expect(refusal(fileOf({ a: { ...F32_6, shape: [2 ** 52] } }, 24))).toContain("whose size overflows");
    expect(refusal(fileOf('{"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]}}', 4))).toContain(
      "as an integer from 0 to 9007199254740991",
    );
    expect(refusal(fileOf({ a: { ...F32_6, shape: Array.from({ length: 65 }, () => 1) } }, 24))).toContain("at most 64 numbers in shape");
  });

  it.each(["-1", "1.5", "1e2", "01", '"2"', "null", "[2]"])("with the dimension %s", (dim) => {
    expect(refusal(fileOf(`{"a":{"dtype":"F32","shape":[${dim}],"data_offsets":[0,4]}}`, 4))).toMatch(
      /shape of tensor "a" as an integer|"\]" at|"," at/,
    );
  });

  it("with bytes that are not UTF-8", () => {
    const header = new TextEncoder().encode(JSON.stringify({ a: F32_6 }));
    header[2] = 0xff;
    expect(refusal(fileOf(header, 24))).toBe("expected the header to be UTF-8, got bytes that are not");
    expect(refusal(fileOf('{"\\ud800":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}', 4))).toContain("well-formed Unicode");
  });

  it("with a name that comes twice, also when it is escaped", () => {
    const entry = JSON.stringify(F32_6);
    expect(refusal(fileOf(`{"a":${entry},"\\u0061":${entry}}`, 24))).toContain('each name in the header once, but "a" comes twice');
    expect(refusal(fileOf('{"a":{"dtype":"F32","dtype":"I32","shape":[],"data_offsets":[0,4]}}', 4))).toContain('"dtype" comes twice');
  });

  it.each([
    ["[]", 'a header that starts with "{", got byte 91'],
    ["", 'a header that starts with "{", got an empty one'],
    ['{"a":', 'tensor "a" as an object at character 5'],
    ['{"a":1}', 'tensor "a" as an object'],
    ['{"a":{}}', 'dtype, shape and data_offsets for tensor "a", got no dtype'],
    ['{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4],"x":1}}', 'but there is "x"'],
    ['{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4,4]}}', "data_offsets [begin, end]"],
    ['{"__metadata__":{"a":1}}', "a string at character"],
    ["{} x", "the end at character"],
    ['{"a', "a string that ends"],
    ['{"a\\x":1}', "valid escapes"],
    ["{,}", "a string at character 1"],
  ])("with the header %s", (header, message) => {
    expect(refusal(fileOf(header, 4))).toContain(message);
  });

  it("nested a million levels deep neither crashes nor takes memory", () => {
    expect(refusal(fileOf(`{"a":${"[".repeat(1e6)}`, 0))).toContain('tensor "a" as an object');
    expect(refusal(fileOf(`{"a":{"shape":${"[".repeat(1e6)}`, 0))).toContain("as an integer");
  });
});

/**
 * Mutated files against both parsers. Whatever happens to a file, opening it and reading all its tensors ends in a value or
 * in a MoeError of kind `file` or `unsupported`: no other exception, no hang, no memory beyond the size of the file.
 * A few hundred files each in `npm test`, 20,000 with MOE_LONG=1.
 */
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import * as fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { MoeError } from "../util/errors.ts";
import { isDequantizable } from "./gguf-dequantize.ts";
import { openGguf } from "./gguf.ts";
import { openModelWeights } from "./model-weights.ts";

const GOLDEN = path.join(import.meta.dirname, "../../test/golden");
const NUM_RUNS = process.env["MOE_LONG"] === "1" ? 20_000 : 400;
const MAX_MILLISECONDS = 2000;

let directory = "";
beforeAll(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), "moe-fuzz-"));
});
afterAll(() => {
  fs.rmSync(directory, { recursive: true, force: true });
});

type Mutation =
  | { readonly kind: "flip"; readonly at: number; readonly bit: number }
  | { readonly kind: "truncate"; readonly at: number }
  | { readonly kind: "extreme"; readonly at: number; readonly bytes: 4 | 8; readonly value: bigint }
  | { readonly kind: "splice"; readonly from: number; readonly length: number; readonly at: number; readonly replace: number }
  | { readonly kind: "number"; readonly index: number; readonly text: string };

const EXTREMES = [
  0n,
  1n,
  2n,
  31n,
  32n,
  255n,
  65_536n,
  2n ** 31n - 1n,
  2n ** 31n,
  2n ** 32n - 1n,
  2n ** 40n,
  2n ** 53n - 1n,
  2n ** 53n,
  2n ** 63n - 1n,
  2n ** 63n,
  2n ** 64n - 1n,
];
const NUMBERS = [
  "0",
  "-1",
  "1e9",
  "9007199254740991",
  "9007199254740992",
  "18446744073709551615",
  "4294967296",
  "1.5",
  "[]",
  "{}",
  '"x"',
  "null",
  "",
  "[[",
  "7,7",
];

/** Positions are drawn from the first `numBytes`, denser near the start, where the lengths are. */
function mutations(numBytes: number): fc.Arbitrary<Mutation[]> {
  const at = fc.oneof(
    fc.integer({ min: 0, max: 64 }),
    fc.integer({ min: 0, max: Math.min(2000, numBytes) }),
    fc.integer({ min: 0, max: numBytes }),
  );
  const mutation: fc.Arbitrary<Mutation> = fc.oneof(
    fc.record({ kind: fc.constant("flip" as const), at, bit: fc.integer({ min: 0, max: 7 }) }),
    fc.record({ kind: fc.constant("truncate" as const), at }),
    fc.record({
      kind: fc.constant("extreme" as const),
      at,
      bytes: fc.constantFrom(4 as const, 8 as const),
      value: fc.constantFrom(...EXTREMES),
    }),
    fc.record({
      kind: fc.constant("splice" as const),
      from: at,
      length: fc.integer({ min: 0, max: 200 }),
      at,
      replace: fc.integer({ min: 0, max: 200 }),
    }),
    fc.record({ kind: fc.constant("number" as const), index: fc.nat(400), text: fc.constantFrom(...NUMBERS) }),
  );
  return fc.array(mutation, { minLength: 1, maxLength: 4 });
}

function mutate(original: Uint8Array, list: readonly Mutation[]): Uint8Array {
  let bytes = Buffer.from(original);
  for (const m of list) {
    if (m.kind === "flip") bytes[m.at] = (bytes[m.at] ?? 0) ^ (1 << m.bit);
    else if (m.kind === "truncate") bytes = bytes.subarray(0, m.at);
    else if (m.kind === "splice")
      bytes = Buffer.concat([bytes.subarray(0, m.at), bytes.subarray(m.from, m.from + m.length), bytes.subarray(m.at + m.replace)]);
    else if (m.kind === "extreme") {
      const value = Buffer.alloc(8);
      value.writeBigUInt64LE(m.value);
      value.copy(bytes, m.at, 0, m.bytes);
    } else bytes = replaceNumber(bytes, m.index, m.text);
  }
  return bytes;
}

/** Replaces the `index`-th number of a JSON header by `text` and corrects the header's length, so that the parser gets further. */
function replaceNumber(bytes: Buffer, index: number, text: string): Buffer<ArrayBuffer> {
  const end = bytes.length < 8 ? 8 : 8 + Number(bytes.readBigUInt64LE() % 100_000n);
  const header = bytes.toString("latin1", 8, end);
  const numbers = [...header.matchAll(/\d+/g)];
  const number = numbers[index % Math.max(1, numbers.length)];
  if (number === undefined) return Buffer.from(bytes);
  const changed = header.slice(0, number.index) + text + header.slice(number.index + number[0].length);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(changed.length));
  return Buffer.concat([length, Buffer.from(changed, "latin1"), bytes.subarray(end)]);
}

function readAllSafetensors(target: string): void {
  using weights = openModelWeights(target);
  const piece = new Float32Array(4096);
  for (const { name, shape } of weights.tensors.values()) {
    const count = shape.reduce((a, b) => a * b, 1);
    for (let at = 0; at < count; at += piece.length) weights.readFloat32(name, piece.subarray(0, Math.min(piece.length, count - at)), at);
  }
}

function readAllGguf(target: string): void {
  using file = openGguf(target);
  const piece = new Float32Array(4096);
  for (const { name, type, numElements, byteLength } of file.tensors.values()) {
    if (!isDequantizable(type)) {
      // Its bytes can be had, its values not.
      file.read(name, new Uint8Array(Math.min(byteLength, 4096)));
      continue;
    }
    for (let at = 0; at < numElements; at += piece.length)
      file.readFloat32(name, piece.subarray(0, Math.min(piece.length, numElements - at)), at);
  }
}

/** Runs `read` on mutations of the file; gives how many were read, and how many refused. */
function fuzz(original: string, read: (target: string) => void): { values: number; refusals: number } {
  const bytes = fs.readFileSync(original);
  const target = path.join(directory, path.basename(original));
  const outcomes = { values: 0, refusals: 0 };
  const memoryBefore = process.memoryUsage.rss();
  fc.assert(
    fc.property(mutations(bytes.length), (list) => {
      fs.writeFileSync(target, mutate(bytes, list));
      const start = performance.now();
      try {
        read(target);
        outcomes.values++;
      } catch (error) {
        if (!(error instanceof MoeError) || (error.kind !== "file" && error.kind !== "unsupported")) throw error;
        if (!error.message.startsWith(`${target}: expected `))
          throw new Error(`a message without the file: ${error.message}`, { cause: error });
        outcomes.refusals++;
      }
      const elapsed = performance.now() - start;
      if (elapsed > MAX_MILLISECONDS) throw new Error(`took ${elapsed} ms`);
    }),
    { numRuns: NUM_RUNS },
  );
  // Files of 2 to 20 kB: what stays is the garbage of the mutations, not what a header promised.
  expect((process.memoryUsage.rss() - memoryBefore) / 1e6).toBeLessThan(500);
  return outcomes;
}

describe("a mutated file is read or refused, never anything else", () => {
  it.each<[string, (target: string) => void]>([
    ["safetensors/dtypes.safetensors", readAllSafetensors],
    ["gguf/values.gguf", readAllGguf],
    ["gguf/blocks.gguf", readAllGguf],
  ])(
    "%s",
    (name, read) => {
      const { values, refusals } = fuzz(path.join(GOLDEN, name), read);
      expect(refusals).toBeGreaterThan(NUM_RUNS / 10);
      expect(values).toBeGreaterThan(NUM_RUNS / 50);
      expect(values + refusals).toBeGreaterThanOrEqual(NUM_RUNS);
    },
    600_000,
  );

  it("an index of shards", () => {
    const folder = path.join(directory, "model");
    fs.mkdirSync(folder);
    fs.copyFileSync(path.join(GOLDEN, "safetensors/dtypes.safetensors"), path.join(folder, "one.safetensors"));
    const index = JSON.stringify({ metadata: { total_size: 1 }, weight_map: { F32: "one.safetensors", "F16.f32": "one.safetensors" } });
    const target = path.join(folder, "model.safetensors.index.json");
    fc.assert(
      fc.property(mutations(index.length), (list) => {
        fs.writeFileSync(target, mutate(Buffer.from(index), list));
        try {
          readAllSafetensors(folder);
        } catch (error) {
          if (!(error instanceof MoeError) || error.kind !== "file") throw error;
        }
      }),
      { numRuns: NUM_RUNS },
    );
  }, 600_000);
});

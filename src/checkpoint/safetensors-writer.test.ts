import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import * as fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { MoeError } from "../util/errors.ts";
import { countElements, dtypeBytes, FILE_DTYPES } from "./dtypes.ts";
import { openModelWeights } from "./model-weights.ts";
import { createModelWeights, createSafetensors } from "./safetensors-writer.ts";
import type { TensorDeclaration } from "./safetensors-writer.ts";
import { openSafetensors } from "./safetensors.ts";

let directory = "";
beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), "moe-writer-"));
});
afterEach(() => {
  fs.rmSync(directory, { recursive: true, force: true });
});

/** Bytes that differ from tensor to tensor and from place to place. */
function bytesFor({ dtype, shape }: TensorDeclaration, seed: number): Uint8Array {
  return Uint8Array.from({ length: (countElements(shape) ?? 0) * dtypeBytes(dtype) }, (_, i) => (seed * 31 + i * 7) % 251);
}

function writeModel(tensors: readonly TensorDeclaration[], maxShardBytes: number, seed = 0): void {
  using writer = createModelWeights(directory, tensors, { maxShardBytes });
  tensors.forEach((tensor, i) => writer.write(tensor.name, bytesFor(tensor, seed + i)));
  writer.commit();
}

const u8 = (name: string, n: number): TensorDeclaration => ({ name, dtype: "U8", shape: [n] });
const THREE = [u8("a", 10), u8("b", 10), u8("c", 10)];

describe("a written safetensors file", () => {
  it("holds any tensors in any pieces, aligned", () => {
    const tensor = fc.tuple(
      fc.constantFrom(...FILE_DTYPES),
      fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 4 }),
      fc.string({ unit: "grapheme" }),
    );
    fc.assert(
      fc.property(fc.array(tensor, { maxLength: 8 }), fc.integer({ min: 1, max: 9 }), (list, piece) => {
        const tensors = list.map(([dtype, shape, name], i) => ({ name: `${i}${name}`, dtype, shape }));
        const target = path.join(directory, "any.safetensors");
        {
          using writer = createSafetensors(target, tensors, { metadata: { note: "é" } });
          tensors.forEach((t, i) => {
            const bytes = bytesFor(t, i);
            for (let at = 0; at < bytes.length || at === 0; at += piece) writer.write(t.name, bytes.subarray(at, at + piece));
          });
          writer.commit();
        }
        using file = openSafetensors(target);
        expect(file.metadata.get("note")).toBe("é");
        expect(file.tensors.size).toBe(tensors.length);
        tensors.forEach((t, i) => {
          const entry = file.entry(t.name);
          expect([entry.dtype, entry.shape]).toEqual([t.dtype, t.shape]);
          expect(entry.offset % dtypeBytes(t.dtype)).toBe(0);
          const bytes = new Uint8Array(entry.byteLength);
          file.read(t.name, bytes);
          expect(bytes).toEqual(bytesFor(t, i));
        });
      }),
      { numRuns: 60 },
    );
  });

  it("does not appear when a tensor is missing, too long or out of order", () => {
    const target = path.join(directory, "x.safetensors");
    const attempt = (deliver: (write: (name: string, n: number) => void) => void): string => {
      try {
        using writer = createSafetensors(target, THREE);
        deliver((name, n) => writer.write(name, new Uint8Array(n)));
        writer.commit();
      } catch (error) {
        if (error instanceof MoeError) return error.message;
        throw error;
      }
      return "";
    };
    expect(attempt((write) => write("b", 10))).toContain('expected bytes of tensor "a", got "b"');
    expect(attempt((write) => write("a", 11))).toContain('expected 10 bytes for tensor "a", got 11 or more');
    expect(attempt((write) => write("a", 9))).toContain('expected 10 bytes for tensor "a" before the file is finished, got 9');
    expect(fs.readdirSync(directory)).toEqual([]);
    expect(attempt((write) => ["a", "b", "c"].forEach((n) => write(n, 10)))).toBe("");
    expect(fs.readdirSync(directory)).toEqual(["x.safetensors"]);
  });

  it("refuses names that come twice and shapes that are none", () => {
    expect(() => createSafetensors(path.join(directory, "x"), [u8("a", 1), u8("a", 1)])).toThrow('got "a" again');
    expect(() => createSafetensors(path.join(directory, "x"), [u8("__metadata__", 1)])).toThrow("__metadata__");
    expect(() => createSafetensors(path.join(directory, "x"), [u8("a", 1.5)])).toThrow("a shape of non-negative integers, got [1.5]");
    expect(fs.readdirSync(directory)).toEqual([]);
  });
});

describe("a written model", () => {
  it("is one file when it fits and shards with an index when it does not", () => {
    writeModel(THREE, 30);
    expect(fs.readdirSync(directory)).toEqual(["model.safetensors"]);
    writeModel(THREE, 29);
    expect(fs.readdirSync(directory).sort()).toEqual([
      "model-00001-of-00002.safetensors",
      "model-00002-of-00002.safetensors",
      "model.safetensors.index.json",
    ]);
    const index: unknown = JSON.parse(fs.readFileSync(path.join(directory, "model.safetensors.index.json"), "utf8"));
    const [first, second] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    expect(index).toEqual({ metadata: { total_size: 30 }, weight_map: { a: first, b: first, c: second } });
    using weights = openModelWeights(directory);
    expect(weights.numBytes).toBe(30);
    expect(weights.files).toHaveLength(2);
    THREE.forEach((t, i) => {
      const bytes = new Uint8Array(10);
      weights.read(t.name, bytes);
      expect(bytes).toEqual(bytesFor(t, i));
    });
  });

  it("replaces an earlier one of any number of shards and leaves none of its files", () => {
    for (const [round, maxShardBytes] of [10, 29, 1, 30, 10, 30].entries()) {
      writeModel(THREE, maxShardBytes, round);
      using weights = openModelWeights(directory);
      const bytes = new Uint8Array(10);
      weights.read("c", bytes);
      expect(bytes).toEqual(bytesFor(u8("c", 10), round + 2));
      const shards = Math.ceil(3 / Math.max(1, Math.floor(maxShardBytes / 10)));
      expect(fs.readdirSync(directory)).toHaveLength(shards === 1 ? 1 : shards + 1);
    }
  });

  it("gives a tensor that is larger than a shard a shard of its own, and copes with empty ones and with none", () => {
    writeModel([u8("a", 3), u8("none", 0), u8("big", 100), u8("z", 3), u8("last", 0)], 10);
    using weights = openModelWeights(directory);
    expect(weights.files).toHaveLength(3);
    expect([...weights.tensors.keys()].sort()).toEqual(["a", "big", "last", "none", "z"]);
    writeModel([], 10);
    using empty = openModelWeights(directory);
    expect(empty.tensors.size).toBe(0);
  });

  it("that was not committed leaves the earlier one and nothing else", () => {
    writeModel(THREE, 10);
    const before = fs.readdirSync(directory);
    {
      using writer = createModelWeights(directory, THREE, { maxShardBytes: 10 });
      writer.write("a", new Uint8Array(10));
      writer.write("b", new Uint8Array(10));
    }
    expect(fs.readdirSync(directory)).toEqual(before);
    using weights = openModelWeights(directory);
    const bytes = new Uint8Array(10);
    weights.read("a", bytes);
    expect(bytes).toEqual(bytesFor(u8("a", 10), 0));
  });

  it("that was killed after any step loads as the old, as the new, or not at all", () => {
    // The child dies just before its k-th change of a name (rename or removal), for every k until it survives.
    const script = `
      import fs from "node:fs"; import { syncBuiltinESMExports } from "node:module";
      let left = Number(process.argv[1]);
      for (const name of ["renameSync", "rmSync"]) {
        const real = fs[name];
        fs[name] = (...args) => { if (left-- === 0) process.kill(process.pid, "SIGKILL"); return real(...args); };
      }
      syncBuiltinESMExports();
      const { createModelWeights } = await import(${JSON.stringify(path.join(import.meta.dirname, "safetensors-writer.ts"))});
      const tensors = ["a", "b", "c"].map((name) => ({ name, dtype: "U8", shape: [10] }));
      const writer = createModelWeights(${JSON.stringify(directory)}, tensors, { maxShardBytes: Number(process.argv[2]) });
      for (const { name } of tensors) writer.write(name, new Uint8Array(10).fill(255));
      writer.commit();`;
    for (const [oldShard, newShard] of [
      [10, 10],
      [30, 10],
      [10, 30],
    ] as const) {
      const outcomes = new Set<string>();
      for (let k = 0, survived = false; !survived; k++) {
        for (const name of fs.readdirSync(directory)) fs.rmSync(path.join(directory, name));
        writeModel(THREE, oldShard);
        const child = spawnSync(process.execPath, ["--input-type=module", "-e", script, String(k), String(newShard)]);
        expect(child.stderr.toString()).toBe("");
        survived = child.signal === null;
        outcomes.add(outcome());
      }
      expect([...outcomes].filter((o) => !["old old old", "new new new", "file"].includes(o))).toEqual([]);
      expect(outcomes).toContain("old old old");
      expect(outcomes).toContain("new new new");
    }
    // Some twenty processes, which a busy machine starts slowly.
  }, 240_000);
});

/** "old" or "new" for each tensor of the model in the folder, or the kind of the error. */
function outcome(): string {
  try {
    using weights = openModelWeights(directory);
    return THREE.map(({ name }) => {
      const bytes = new Uint8Array(10);
      weights.read(name, bytes);
      return bytes.every((b) => b === 255) ? "new" : "old";
    }).join(" ");
  } catch (error) {
    return error instanceof MoeError ? error.kind : String(error);
  }
}

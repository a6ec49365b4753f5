import * as fs from "node:fs";
import * as os from "node:os";
import * as path from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { MoeError } from "../util/errors.ts";
import { openModelWeights } from "./model-weights.ts";
import { createSafetensors } from "./safetensors-writer.ts";

let directory = "";
beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), "moe-weights-"));
});
afterEach(() => {
  fs.rmSync(directory, { recursive: true, force: true });
});

function shard(fileName: string, names: readonly string[]): void {
  const target = path.join(directory, fileName);
  fs.mkdirSync(path.dirname(target), { recursive: true });
  using writer = createSafetensors(
    target,
    names.map((name) => ({ name, dtype: "BF16", shape: [2] })),
  );
  for (const name of names) writer.write(name, new Uint8Array([0x80, 0x3f, 0x00, 0xc0])); // 1, -2
  writer.commit();
}

function index(content: unknown): string {
  const target = path.join(directory, "model.safetensors.index.json");
  fs.writeFileSync(target, typeof content === "string" ? content : JSON.stringify(content));
  return target;
}

function refusal(target: string): string {
  try {
    openModelWeights(target).close();
  } catch (error) {
    if (!(error instanceof MoeError)) throw error;
    expect(error.kind).toBe("file");
    expect(error.message).toMatch(/^\/.*: expected .*, got /s);
    return error.message;
  }
  throw new Error("the model was accepted");
}

describe("the weights of a model", () => {
  it("open from a folder, an index or a file", () => {
    shard("model-1.safetensors", ["a", "b"]);
    shard("sub/model-2.safetensors", ["c", "not listed"]);
    const weightMap = { a: "model-1.safetensors", b: "model-1.safetensors", c: "sub/model-2.safetensors" };
    const indexPath = index({ metadata: { total_size: 16, nested: [1, { x: null, y: -1.5e3 }, true] }, weight_map: weightMap });
    for (const target of [directory, indexPath]) {
      using weights = openModelWeights(target);
      expect([...weights.tensors.keys()]).toEqual(["a", "b", "c", "not listed"]);
      expect(weights.numBytes).toBe(16);
      const values = new Float32Array(2);
      weights.readFloat32("c", values);
      expect([...values]).toEqual([1, -2]);
      weights.readFloat32("c", values.subarray(0, 1), 1);
      expect([...values]).toEqual([-2, -2]);
      expect(() => weights.entry("d")).toThrow(`${indexPath}: expected a tensor "d", got none`);
    }
    using one = openModelWeights(path.join(directory, "model-1.safetensors"));
    expect([...one.tensors.keys()]).toEqual(["a", "b"]);
  });

  it("may lie behind symbolic links, as in the Hub's cache", () => {
    shard("blobs/1234", ["a"]);
    fs.mkdirSync(path.join(directory, "snapshot"));
    fs.symlinkSync("../blobs/1234", path.join(directory, "snapshot/model.safetensors"));
    using weights = openModelWeights(path.join(directory, "snapshot"));
    expect(weights.tensors.size).toBe(1);
  });
});

describe("a bad model", () => {
  it("without weights, or that is missing, says what was looked for", () => {
    expect(refusal(directory)).toContain("a folder with model.safetensors or model.safetensors.index.json, got a folder with neither");
    expect(refusal(path.join(directory, "none"))).toContain("nothing of that name (ENOENT)");
    index({ weight_map: { a: "gone.safetensors" } });
    expect(refusal(directory)).toContain("gone.safetensors: expected a file that can be read");
  });

  it.each([
    "../x.safetensors",
    "sub/../../x.safetensors",
    "/etc/x.safetensors",
    "C:\\x.safetensors",
    "c:x.safetensors",
    "..\\x.safetensors",
    "\\\\host\\x.safetensors",
    "a\0.safetensors",
    "",
  ])("whose index leads out of the folder with %j", (name) => {
    const target = index({ weight_map: { a: name } });
    expect(refusal(directory)).toBe(`${target}: expected file names that stay in the folder of the index, got ${JSON.stringify(name)}`);
  });

  it("whose index names another kind of file", () => {
    index({ weight_map: { a: "pytorch_model.bin" } });
    expect(refusal(directory)).toContain('names of .safetensors files, got "pytorch_model.bin"');
  });

  it("whose index promises a tensor that is not there", () => {
    shard("model-1.safetensors", ["a"]);
    index({ weight_map: { a: "model-1.safetensors", b: "model-1.safetensors" } });
    expect(refusal(directory)).toContain('the tensor "b" that model.safetensors.index.json promises, got no such tensor');
  });

  it("with a tensor in two files", () => {
    shard("model-1.safetensors", ["a", "b"]);
    shard("model-2.safetensors", ["b"]);
    index({ weight_map: { a: "model-1.safetensors", b: "model-2.safetensors" } });
    expect(refusal(directory)).toContain('tensor "b" in one file, got it in model-1.safetensors and in model-2.safetensors');
  });

  it.each([
    ["{}", "a weight_map"],
    ["", "the index as an object"],
    ['{"weight_map":{"a":1}}', "a string"],
    ['{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}', '"a" comes twice'],
    [`{"x":${"[".repeat(1e5)}`, "fewer levels of nesting"],
    ['{"x":nul}', "a value"],
    ['{"weight_map":{}} {}', "the end"],
    ["\u{feff}{}", "the index as an object"],
  ])("with the index %.30s", (text, message) => {
    index(text);
    expect(refusal(directory)).toContain(message);
  });
});

/** Models written as GGUF and read again, with tokenizers; llama.cpp reads them in test/golden/llama-cpp. */
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { openGguf } from "../checkpoint/gguf.ts";
import { openModelWeights } from "../checkpoint/model-weights.ts";
import { createModelWeights } from "../checkpoint/safetensors-writer.ts";
import { loadTokenizer, writeTokenizerFiles } from "../checkpoint/tokenizer.ts";
import { MoeError } from "../util/errors.ts";
import { goldenFolder } from "../../test/golden/models/golden.ts";
import { exportModel, inspectModel, openModelSource } from "./index.ts";

let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-export-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

function thrown(fn: () => unknown): MoeError {
  try {
    fn();
  } catch (error) {
    if (error instanceof MoeError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
}
/** The golden SmolLM2 with another number of embedding rows, every weight `value`. */
function writeModel(directory: string, { vocabSize, value = 0.5 }: { vocabSize: number; value?: number }): void {
  mkdirSync(directory, { recursive: true });
  const json = JSON.parse(readFileSync(join(goldenFolder("smollm2"), "config.json"), "utf8")) as Record<string, unknown>;
  writeFileSync(join(directory, "config.json"), JSON.stringify({ ...json, vocab_size: vocabSize }));
  using golden = openModelWeights(goldenFolder("smollm2"));
  const declarations = [...golden.tensors].map(([name, { shape }]) => ({
    name,
    dtype: "F32" as const,
    shape: /embed_tokens|lm_head/.test(name) ? [vocabSize, shape[1] ?? 0] : shape,
  }));
  using writer = createModelWeights(directory, declarations);
  for (const { name, shape } of declarations) {
    writer.write(name, new Uint8Array(new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(value).buffer));
  }
  writer.commit();
}
function putTokenizer(directory: string, name: string): void {
  const json = JSON.parse(readFileSync(new URL(`../../test/golden/tokenizer/${name}.tokenizer.json`, import.meta.url), "utf8")) as unknown;
  writeTokenizerFiles({ tokenizerJson: json, tokenizerConfig: {} }, directory);
}

test.each(["hf-llama", "hf-smollm"])("a GGUF file has the tokenizer %s in it, padded to the rows of the embedding", async (name) => {
  const directory = join(folder, "model");
  writeModel(directory, { vocabSize: 1300 });
  putTokenizer(directory, name);
  const tokenizer = await loadTokenizer(directory);
  const path = join(folder, "out.gguf");
  const report = exportModel(directory, path, { tokenizer });
  expect(report).toMatchObject({ path, format: "gguf", architecture: "llama", type: "F32", numBytes: statSync(path).size });
  using file = openGguf(path);
  expect(report.numTensors).toBe(file.tensors.size);
  expect(file.metadata.get("general.name")).toEqual({ type: "string", value: "model" });
  const tokens = file.metadata.get("tokenizer.ggml.tokens");
  expect(tokens?.type === "array" ? tokens.values.length : 0).toBe(1300);
  const again = await loadTokenizer(path);
  const text = "Some text, 12 numbers, 你好 and code(x);";
  expect([...again.encode(text)]).toEqual([...tokenizer.encode(text)]);
  expect(again.pieceToId("[PAD1299]")).toBe(1299);
  expect(inspectModel(path).config.vocabSize).toBe(1300);
});

test("a tokenizer with more tokens than the embedding has rows is refused, and no file appears", async () => {
  const directory = join(folder, "model");
  writeModel(directory, { vocabSize: 900 });
  putTokenizer(directory, "hf-llama");
  const tokenizer = await loadTokenizer(directory);
  const error = thrown(() => exportModel(directory, join(folder, "out.gguf"), { tokenizer }));
  expect(error).toMatchObject({ kind: "configuration", message: expect.stringMatching(/at most 900 tokens.*got 1000/) as unknown });
  expect(existsSync(join(folder, "out.gguf"))).toBe(false);
});

test("Mixtral's fused experts are exported as the per-expert ones are", () => {
  const fused = join(folder, "fused");
  mkdirSync(fused);
  cpSync(join(goldenFolder("mixtral"), "config.json"), join(fused, "config.json"));
  cpSync(join(goldenFolder("mixtral"), "fused.safetensors"), join(fused, "model.safetensors"));
  exportModel(fused, join(folder, "a.gguf"), { name: "m" });
  exportModel(goldenFolder("mixtral"), join(folder, "b.gguf"), { name: "m" });
  expect(readFileSync(join(folder, "a.gguf")).equals(readFileSync(join(folder, "b.gguf")))).toBe(true);
});

test("matrices take the type asked for, and that of the source otherwise; a GGUF file exported again is the same file", () => {
  const types = ["F32", "F16", "BF16"] as const;
  for (const type of types) {
    const [first, second] = [join(folder, `${type}.gguf`), join(folder, `${type}-again.gguf`)];
    expect(exportModel(goldenFolder("llama3"), first, { type, name: "m" }).type).toBe(type);
    expect(exportModel(first, second, { name: "m" }).type).toBe(type);
    expect(readFileSync(first).equals(readFileSync(second))).toBe(true);
    using file = openGguf(first);
    expect([file.entry("blk.0.attn_q.weight").type, file.entry("blk.0.attn_norm.weight").type]).toEqual([type, "F32"]);
  }
});

test("a weight that F16 cannot hold is refused, and F16 is what it names", () => {
  const directory = join(folder, "model");
  writeModel(directory, { vocabSize: 8, value: 70_000 });
  const error = thrown(() => exportModel(directory, join(folder, "out.gguf"), { type: "F16" }));
  expect(error.message).toMatch(/below 65520 in model\.\S+ for F16, got 70000; BF16 and F32 hold it/);
  expect(existsSync(join(folder, "out.gguf"))).toBe(false);
  expect(exportModel(directory, join(folder, "out.gguf"), { type: "BF16" }).type).toBe("BF16");
});

test("Skywork-MoE, which llama.cpp does not have, is refused with the list of what it has", () => {
  expect(thrown(() => exportModel(goldenFolder("skywork-moe"), join(folder, "out.gguf")))).toMatchObject({
    kind: "unsupported",
    message: expect.stringMatching(/expected model_type to be one of .*mixtral.*got "skywork_moe"/) as unknown,
  });
});

test("a folder with one GGUF file and no safetensors is that model; with two it is an error that says to name one", () => {
  const one = join(folder, "one");
  mkdirSync(one);
  exportModel(goldenFolder("llama2"), join(one, "a.gguf"));
  writeFileSync(join(one, "config.json"), "{}");
  using source = openModelSource(one);
  expect(source.path).toBe(join(one, "a.gguf"));
  expect(inspectModel(one).architecture).toBe("llama");
  cpSync(join(one, "a.gguf"), join(one, "b.gguf"));
  expect(thrown(() => openModelSource(one)).message).toMatch(/a folder with 2 GGUF files; name one of them, such as .*a\.gguf/);
  expect(thrown(() => openModelSource(join(folder, "nowhere"))).message).toMatch(/nowhere: expected a folder .* got nothing of that name/);
});

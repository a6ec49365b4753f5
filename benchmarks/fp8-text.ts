/**
 * Rows `decode.fp8` and `prefill.fp8`: one sequence of the model of `fp8-model.ts`, ours in FP8 beside llama.cpp in Q8_0, in the manner of
 * `decode.bf16` and `prefill.bf16` (text.ts). The two sides round the weights differently, so their texts may part; where is told.
 *
 * The roof of decoding is the memory's speed over the bytes that a token reads: all of a layer but the experts that it does not visit.
 */
import { loadBackend } from "../src/backend/load.ts";
import { loadModel, type Decoder } from "../src/model/index.ts";
import { Engine } from "../src/tensor/index.ts";
import { messageOf, wanted, type Context } from "./context.ts";
import { fp8Model, q8Model } from "./fp8-model.ts";
import { fastest, interleave, median, type Row } from "./measure.ts";
import { PythonRival } from "./process.ts";
import { decodeOnce, decodePrompt, decodeTokens, LlamaCpp, llamaSides, prefillPrompt } from "./text.ts";

const decodeBar = 1.3;
const decodeRoofBar = 0.85;
const prefillBar = 4;

/** Bytes of the parameters that one token reads: of the experts, the chosen part. */
export function bytesPerToken(model: Pick<Decoder, "config" | "parameters">): number {
  const { moe } = model.config;
  const chosen = moe === null ? 1 : moe.topK / moe.numExperts;
  let bytes = 0;
  for (const [name, tensor] of model.parameters) {
    const all = tensor.byteLength + (tensor.scales?.values.byteLength ?? 0);
    // A row of the table of words is nothing beside the head, which is the same matrix here.
    bytes += name.includes(".experts.") ? all * chosen : all;
  }
  return bytes;
}

async function decodeRow({ effort, roof }: Context, model: Decoder, llama: LlamaCpp): Promise<Row> {
  const theirs = await llamaSides(async (threads) => (await llama.decode(threads)).rate);
  const ours = (): number => decodeTokens / decodeOnce(model, decodePrompt, decodeTokens).decode;
  const bytes = bytesPerToken(model);
  const atRoof = async (): Promise<number> => ((await roof.bandwidth()) * 1e9) / bytes;
  const [taken = [], ...rest] = await interleave([{ sample: ours }, ...theirs.map(({ side }) => side), { sample: atRoof }], effort);
  const limits = rest.at(-1) ?? [];
  const rival = fastest(rest.slice(0, -1));
  const { ids } = decodeOnce(model, decodePrompt, decodeTokens);
  const rivalIds = (await llama.decode(1)).ids;
  const different = ids.findIndex((id, i) => id !== rivalIds[i]);
  return {
    name: "decode.fp8",
    ours: taken,
    rival,
    unit: "tokens/s",
    bar: Math.min(decodeBar, (decodeRoofBar * median(limits)) / median(rival)),
    roof: limits,
    others: Object.fromEntries(theirs.map(({ threads }, i) => [`llama.cpp, ${threads} threads`, rest[i] ?? []])),
    note: `${different < 0 ? "all" : `the first ${different}`} of ${ids.length} tokens are equal on both sides; a token reads ${(bytes / 1e6).toFixed(0)} MB of ours`,
  };
}

/** Without a roof: the loops of `native/roof.c` know no tile registers, which this goes through where there are some. */
async function prefillRow({ effort }: Context, model: Decoder, llama: LlamaCpp): Promise<Row> {
  const theirs = await llamaSides((threads) => llama.prefill(threads));
  const ours = (): number => prefillPrompt / decodeOnce(model, prefillPrompt, 0).prefill;
  const [taken = [], ...rest] = await interleave([{ sample: ours }, ...theirs.map(({ side }) => side)], effort);
  return {
    name: "prefill.fp8",
    ours: taken,
    rival: fastest(rest),
    unit: "tokens/s",
    bar: prefillBar,
    others: Object.fromEntries(theirs.map(({ threads }, i) => [`llama.cpp, ${threads} threads`, rest[i] ?? []])),
  };
}

export const fp8TextNames = ["decode.fp8", "prefill.fp8"] as const;

/** Rows `decode.fp8` and `prefill.fp8`; empty, with the reason, where llama.cpp is not there. */
export async function* fp8TextRows(context: Context): AsyncGenerator<Row> {
  const names = wanted(context, fp8TextNames);
  if (names.length === 0) return;
  using rival = new PythonRival();
  try {
    await rival.call("llama.setup", { path: await q8Model() });
  } catch (error) {
    for (const name of names)
      yield { name, ours: [], rival: [], unit: "tokens/s", bar: null, note: `the rival does not run: ${messageOf(error)}` };
    return;
  }
  using engine = new Engine(await loadBackend());
  using model = loadModel(engine, (await fp8Model()).path, { dtype: "bf16" });
  const llama = new LlamaCpp(rival);
  if (names.includes("decode.fp8")) yield await decodeRow(context, model, llama);
  if (names.includes("prefill.fp8")) yield await prefillRow(context, model, llama);
}

/**
 * What quantizing did to a model's output: hidden states layer by layer on a probe text, perplexity before and after, and what to keep in
 * bf16 because of it. Both models are loaded, one after the other.
 *
 * Legend: T tokens, H hidden.
 */
import type { Engine, Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { batchOfDocuments } from "./batch.ts";
import type { Decoder } from "./decoder.ts";
import { loadModel } from "./load.ts";
import type { QuantizedTensor, QuantizeReport } from "./quantize.ts";

/** Error of the hidden states after a layer: |after - before| / |before| over all tokens, so layers below add to it. */
export interface LayerError {
  readonly layer: number;
  readonly relativeError: number;
}

export interface OutputErrors {
  readonly numTokens: number;
  /** exp of the mean cross-entropy of the text's tokens, in windows of at most 512. */
  readonly perplexityBefore: number;
  readonly perplexityAfter: number;
  /** On the first window's first tokens. */
  readonly layers: readonly LayerError[];
}

const windowTokens = 512;
/** Tokens whose hidden states are compared, and the values kept for it at most. */
const comparedTokens = 256;
const comparedValues = 1 << 25;

/**
 * Compares the model at `before` with the one at `after` on a text. Throws `usage` for fewer than two tokens, and what `loadModel` throws.
 */
export function compareOutputs(engine: Engine, before: string, after: string, ids: ArrayLike<number>): OutputErrors {
  if (ids.length < 2) throw new MoeError("usage", `probe text: expected at least two tokens, got ${ids.length}`);
  const first = runModel(engine, before, ids);
  const second = runModel(engine, after, ids);
  const layers = first.hidden.map((x, layer) => ({ layer, relativeError: relativeError(second.hidden[layer] ?? x, x) }));
  return { numTokens: ids.length, perplexityBefore: first.perplexity, perplexityAfter: second.perplexity, layers };
}

function relativeError(got: Float32Array, want: Float32Array): number {
  let [difference, size] = [0, 0];
  for (const [i, value] of want.entries()) {
    difference += ((got[i] ?? 0) - value) ** 2;
    size += value ** 2;
  }
  return size === 0 ? 0 : Math.sqrt(difference / size);
}

interface ModelRun {
  readonly perplexity: number;
  readonly hidden: readonly Float32Array[];
}

function runModel(engine: Engine, path: string, ids: ArrayLike<number>): ModelRun {
  using model = loadModel(engine, path);
  const { hiddenSize: H, numLayers, maxPositions } = model.config;
  const T = Math.max(1, Math.min(comparedTokens, Math.floor(comparedValues / (H * numLayers))));
  const hidden: Float32Array[] = [];
  const all = Int32Array.from(ids);
  let [loss, count] = [0, 0];
  const size = Math.min(windowTokens, maxPositions);
  for (let from = 0; from + 1 < all.length; from += size) {
    const window = all.subarray(from, Math.min(all.length, from + size));
    if (window.length < 2) break;
    const keep = from === 0 ? (x: Tensor): void => void hidden.push(x.toFloat32Array().slice(0, T * H)) : undefined;
    loss += windowLoss(model, window, keep);
    count += window.length - 1;
  }
  return { perplexity: Math.exp(loss / count), hidden };
}

/** Sum of the cross-entropies of a window's tokens but the first. */
function windowLoss(model: Decoder, ids: Int32Array, onLayer: ((x_TH: Tensor) => void) | undefined): number {
  const { engine } = model;
  return engine.scope(() => {
    const batch = batchOfDocuments(engine, [ids], { vocabSize: model.config.vocabSize });
    const targets = engine.from([...ids.subarray(1), -1], [ids.length], "i32");
    const options = onLayer === undefined ? {} : { onLayer };
    return model.loss(batch, targets, { scale: 1, ...options }).loss.item();
  });
}

/** Decibels below the median that make a matrix worth a suggestion, and how many are made. */
const noticeableDb = 4;
const maxSuggestions = 8;

/** What a reader of the report may do, most useful first. Empty where nothing stands out. */
export function suggestions({ scales, tensors }: Pick<QuantizeReport, "scales" | "tensors">, outputs: OutputErrors | null): string[] {
  const lines: string[] = [];
  const worst = outliers(tensors);
  if (outputs !== null && outputs.perplexityAfter > 1.01 * outputs.perplexityBefore) {
    const percent = (100 * (outputs.perplexityAfter / outputs.perplexityBefore - 1)).toFixed(2);
    const finer = scales === "tensor" ? "--scales channel has one scale an output" : "keep the matrices below, or whole layers, in bf16";
    lines.push(`perplexity rose by ${percent}%: ${finer}`);
  }
  for (const { name, sqnrDb } of worst.slice(0, maxSuggestions))
    lines.push(`--ignore ${name.replace(/\.weight$/, "")}: its SQNR of ${(sqnrDb ?? 0).toFixed(1)} dB is far below the others'`);
  const jump = largestJump(outputs?.layers ?? []);
  if (jump !== null)
    lines.push(`--ignore "model.layers.${jump.layer}.*": half of the output's error or more enters in layer ${jump.layer}`);
  return lines;
}

/** Matrices well below the median SQNR, the worst first. */
function outliers(tensors: readonly QuantizedTensor[]): QuantizedTensor[] {
  const known = tensors.filter(({ sqnrDb }) => sqnrDb !== null).toSorted((a, b) => (a.sqnrDb ?? 0) - (b.sqnrDb ?? 0));
  const median = known[Math.floor(known.length / 2)]?.sqnrDb ?? 0;
  return known.filter(({ sqnrDb }) => (sqnrDb ?? 0) < median - noticeableDb);
}

/** A layer (not the first) after which the error is at least twice what it was before and as much as half of the last, or null. */
function largestJump(layers: readonly LayerError[]): LayerError | null {
  const last = layers.at(-1)?.relativeError ?? 0;
  const steps = layers.slice(1).map((entry, i) => ({ entry, step: entry.relativeError - (layers[i]?.relativeError ?? 0) }));
  const [most] = steps.toSorted((a, b) => b.step - a.step);
  return most !== undefined && steps.length > 2 && last > 0 && most.step >= last / 2 ? most.entry : null;
}

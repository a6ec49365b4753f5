/**
 * What quantizing did to a model's output: hidden states layer by layer on a probe text, perplexity before and after, and what to keep in
 * bf16 because of it. How much a layer matters is measured, not guessed: the model runs with that layer alone in FP8.
 *
 * Legend: T tokens, H hidden, V vocabulary.
 */
import type { Engine, Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { batchOfDocuments } from "./batch.ts";
import { Decoder } from "./decoder.ts";
import { loadModel } from "./load.ts";
import type { ModelDType } from "./parameters.ts";
import type { QuantizedTensor, QuantizeReport } from "./quantize.ts";

/** What quantizing did around one layer. */
export interface LayerError {
  readonly layer: number;
  /** |after - before| / |before| of the hidden states after the layer, over all tokens: layers below add to it. */
  readonly relativeError: number;
  /** Kullback-Leibler divergence of the next token's distribution, nats a token, where this layer alone is FP8. */
  readonly divergence: number;
}

export interface OutputErrors {
  readonly numTokens: number;
  /** exp of the mean cross-entropy of the text's tokens, in windows of at most 512. */
  readonly perplexityBefore: number;
  readonly perplexityAfter: number;
  /** With activations rounded as the files say, which engines with FP8 matrix units do; null where they say nothing. */
  readonly perplexityRounded: number | null;
  /** On the first tokens of the text. */
  readonly layers: readonly LayerError[];
}

const windowTokens = 512;
/** Tokens on which layers are compared, and the logits or hidden states kept for it at most. */
const comparedTokens = 128;
const comparedValues = 1 << 25;

/**
 * Compares the model at `before` with the one at `after` on a text. Both are in memory meanwhile (mapped where they can be). Throws `usage` for
 * fewer than two tokens, and what `loadModel` throws.
 */
export function compareOutputs(engine: Engine, before: string, after: string, ids: ArrayLike<number>): OutputErrors {
  if (ids.length < 2) throw new MoeError("usage", `probe text: expected at least two tokens, got ${ids.length}`);
  using plain = loadModel(engine, before);
  using quantized = loadModel(engine, after, { dtype: plain.dtype });
  const all = Int32Array.from(ids);
  return {
    numTokens: all.length,
    perplexityBefore: perplexityOf(plain, all),
    perplexityAfter: perplexityOf(quantized, all),
    perplexityRounded: perplexityRounded(engine, after, plain.dtype, all),
    layers: layerErrors(plain, quantized, all),
  };
}

function perplexityRounded(engine: Engine, path: string, dtype: ModelDType, ids: Int32Array): number | null {
  using rounded = loadModel(engine, path, { dtype, activations: "scheme" });
  const isRounded = [...rounded.parameters.values()].some(({ scales }) => scales?.activations !== undefined);
  return isRounded ? perplexityOf(rounded, ids) : null;
}

/** exp of the mean cross-entropy of a text's tokens, in windows of at most 512 that know nothing of each other. */
export function perplexityOf(model: Decoder, ids: Int32Array): number {
  const { engine } = model;
  let [loss, count] = [0, 0];
  const size = Math.min(windowTokens, model.config.maxPositions);
  for (let from = 0; from + 1 < ids.length; from += size) {
    const window = ids.subarray(from, from + size);
    if (window.length < 2) break;
    loss += engine.scope(() => {
      const batch = batchOfDocuments(engine, [window], { vocabSize: model.config.vocabSize });
      const targets = engine.from([...window.subarray(1), -1], [window.length], "i32");
      return model.loss(batch, targets, { scale: 1 }).loss.item();
    });
    count += window.length - 1;
  }
  return Math.exp(loss / count);
}

/** Hidden states after each layer, and log-probabilities [T, V], of some tokens. */
interface Outputs {
  readonly hidden: readonly Float32Array[];
  readonly logProbs: Float32Array;
}

function outputsOf(model: Decoder, ids: Int32Array, keepHidden: boolean): Outputs {
  const { engine } = model;
  const hidden: Float32Array[] = [];
  return engine.scope(() => {
    const batch = batchOfDocuments(engine, [ids], { vocabSize: model.config.vocabSize });
    const onLayer = (x_TH: Tensor): void => void hidden.push(x_TH.toFloat32Array());
    const { hidden_TH } = model.forwardHidden(batch, keepHidden ? { onLayer } : {});
    return { hidden, logProbs: logSoftmax(model.logits(hidden_TH).toFloat32Array(), ids.length) };
  });
}

/** Rows of logits to log-probabilities, in place. */
function logSoftmax(values: Float32Array, rows: number): Float32Array {
  const width = values.length / rows;
  for (let r = 0; r < rows; r++) {
    const row = values.subarray(r * width, (r + 1) * width);
    let most = Number.NEGATIVE_INFINITY;
    for (const value of row) most = Math.max(most, value);
    let sum = 0;
    for (const value of row) sum += Math.exp(value - most);
    const shift = most + Math.log(sum);
    for (let i = 0; i < width; i++) row[i] = (row[i] ?? 0) - shift;
  }
  return values;
}

function layerErrors(plain: Decoder, quantized: Decoder, ids: Int32Array): LayerError[] {
  const { numLayers, hiddenSize, vocabSize, maxPositions } = plain.config;
  const most = Math.floor(comparedValues / Math.max(vocabSize, hiddenSize * numLayers));
  const some = ids.subarray(0, Math.max(1, Math.min(comparedTokens, most, maxPositions)));
  const want = outputsOf(plain, some, true);
  const got = outputsOf(quantized, some, true);
  return want.hidden.map((x, layer) => {
    using mixed = withLayer(plain, quantized, layer);
    const { logProbs } = outputsOf(mixed, some, false);
    const relative = relativeError(got.hidden[layer] ?? x, x);
    return { layer, relativeError: relative, divergence: divergence(want.logProbs, logProbs) / some.length };
  });
}

/** `plain` with one layer of `quantized`; shares their memory. */
function withLayer(plain: Decoder, quantized: Decoder, layer: number): Decoder {
  const parameters = new Map<string, Tensor>();
  for (const [name, tensor] of plain.parameters) {
    const other = name.startsWith(`layers.${layer}.`) ? quantized.parameters.get(name) : undefined;
    parameters.set(name, (other ?? tensor).retain());
  }
  return new Decoder(plain.engine, plain.config, plain.dtype, parameters);
}

function relativeError(got: Float32Array, want: Float32Array): number {
  let [difference, size] = [0, 0];
  for (let i = 0; i < want.length; i++) {
    const value = want[i] ?? 0;
    difference += ((got[i] ?? 0) - value) ** 2;
    size += value ** 2;
  }
  return size === 0 ? 0 : Math.sqrt(difference / size);
}

/** sum of p log(p / q). */
function divergence(logP: Float32Array, logQ: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < logP.length; i++) {
    const p = logP[i] ?? 0;
    sum += Math.exp(p) * (p - (logQ[i] ?? 0));
  }
  return sum;
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
    const finer =
      scales === "tensor"
        ? "--scales channel has one scale an output"
        : "keep what is named below, or all attention (*.self_attn.*), in bf16";
    lines.push(`perplexity rose by ${percent}%: ${finer}`);
  }
  for (const { name, sqnrDb } of worst.slice(0, maxSuggestions))
    lines.push(`--ignore ${name.replace(/\.weight$/, "")}: its SQNR of ${(sqnrDb ?? 0).toFixed(1)} dB is far below the others'`);
  for (const { layer, divergence: own } of sensitive(outputs?.layers ?? []))
    lines.push(
      `--ignore "model.layers.${layer}.*": alone in FP8 it moves the output by ${own.toExponential(1)} nats a token, far more than most layers`,
    );
  // Matrices of one stack have one name.
  return [...new Set(lines)];
}

/** Matrices well below the median SQNR, the worst first. */
function outliers(tensors: readonly QuantizedTensor[]): QuantizedTensor[] {
  const known = tensors.filter(({ sqnrDb }) => sqnrDb !== null).toSorted((a, b) => (a.sqnrDb ?? 0) - (b.sqnrDb ?? 0));
  const median = known[Math.floor(known.length / 2)]?.sqnrDb ?? 0;
  return known.filter(({ sqnrDb }) => (sqnrDb ?? 0) < median - noticeableDb);
}

/** Layers whose own divergence is several times the median's, the worst first; at most three. */
function sensitive(layers: readonly LayerError[]): LayerError[] {
  const sorted = layers.toSorted((x, y) => y.divergence - x.divergence);
  const median = sorted[Math.floor(sorted.length / 2)]?.divergence ?? 0;
  return sorted.filter(({ divergence: own }) => own > 4 * median).slice(0, 3);
}

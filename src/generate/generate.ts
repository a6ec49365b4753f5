/**
 * Text from one model for one prompt: prefill, then a token at a time through a KV cache. Not a server: batches of requests
 * are scheduled elsewhere. Logits of a token do not depend on how the prompt was cut into chunks.
 */
import { KvCache, type CacheDType, type Decoder } from "../model/index.ts";
import type { Tensor } from "../tensor/index.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { MoeError } from "../util/errors.ts";
import { Random } from "../util/random.ts";
import { StoppedText } from "./stopped-text.ts";
import { adjustsLogits, checkLargestLogit, checkSamplingOptions, sampleToken, samplingOptions, type SamplingOptions } from "./sampler.ts";

export interface GenerateOptions extends Partial<SamplingOptions> {
  readonly maxTokens: number;
  readonly seed?: number;
  /** Element type of the cache. Default: the model's. fp8: E4M3 without scales. */
  readonly cacheDtype?: CacheDType;
  /** Generation ends when the text contains one of these; it is cut before it. */
  readonly stop?: readonly string[];
  /** Ids that end a generation. Default: those of the tokenizer and of the model's configuration. */
  readonly endIds?: ReadonlySet<number>;
  readonly signal?: AbortSignal;
}

export type FinishReason = "stop" | "length" | "aborted";

export interface Generation {
  readonly text: string;
  readonly ids: readonly number[];
  readonly promptTokens: number;
  readonly finishReason: FinishReason;
  readonly prefillSeconds: number;
  readonly decodeSeconds: number;
}

/** Tokens of one prefill pass: bounds the memory of activations. */
const prefillChunk = 512;

/**
 * Ids after a prompt, one at a time. `promptIds` has at least one id. Throws `configuration` for an id outside the
 * vocabulary, `usage` for an empty prompt or sampling options out of range.
 */
export function* generateIds(model: Decoder, promptIds: ArrayLike<number>, options: GenerateOptions): Generator<number> {
  const sampling = samplingOptions(options);
  checkSamplingOptions(sampling);
  if (promptIds.length === 0) throw new MoeError("usage", "generate: expected a prompt of at least one token, got none");
  const { maxTokens, seed = 0, cacheDtype = model.dtype, signal } = options;
  const random = new Random(seed);
  const seen = Array.from(promptIds);
  using cache = new KvCache(model.engine, model.cacheConfig, {
    numSequences: 1,
    capacity: promptIds.length + maxTokens,
    dtype: cacheDtype,
  });
  // All chunks but the last only fill the cache.
  let at = 0;
  for (; at + prefillChunk < seen.length; at += prefillChunk) fillCache(model, cache, seen.slice(at, at + prefillChunk));
  let ids = seen.slice(at);
  for (let n = 0; n < maxTokens && signal?.aborted !== true; n++) {
    const id = nextToken(model, cache, ids, (logits_V) => chooseToken(logits_V, sampling, random, seen, promptIds.length));
    seen.push(id);
    yield id;
    ids = [id];
  }
}

function fillCache(model: Decoder, cache: KvCache, ids: readonly number[]): void {
  model.engine.scope(() => {
    model.forwardHidden(cache.extend([{ slot: 0, ids }]), { cache });
  });
}

/** What `choose` makes of the logits f32 [1, V] after these tokens. */
function nextToken(model: Decoder, cache: KvCache, ids: readonly number[], choose: (logits_V: Tensor) => number): number {
  return model.engine.scope(() => {
    const { hidden_TH } = model.forwardHidden(cache.extend([{ slot: 0, ids }]), { cache });
    return choose(model.logits(hidden_TH.rows(ids.length - 1, ids.length)));
  });
}

/** `sampleToken` of a row of logits in the backend; greedy choice is made there, so that the row need not come over. */
function chooseToken(logits_V: Tensor, sampling: SamplingOptions, random: Random, seen: readonly number[], promptTokens: number): number {
  if (sampling.temperature !== 0 || adjustsLogits(sampling))
    return sampleToken(logits_V.toFloat32Array(), sampling, random, seen.slice(0, promptTokens), seen.slice(promptTokens));
  const { engine } = logits_V;
  const index = engine.empty([1], "i32");
  engine.backend.kernels.argmaxRows(index.ptr, logits_V.ptr, 1, logits_V.size);
  const best = index.item();
  checkLargestLogit(
    logits_V
      .view(-1, 1)
      .rows(best, best + 1)
      .item(),
  );
  return best;
}

/**
 * Text after a prompt. `onText` gets each piece as it becomes certain (one that may begin a stop string is held back).
 * Throws as `generateIds` does.
 *
 * ```ts
 * const { text } = generateText(model, tokenizer, "Once upon a time", { maxTokens: 50, temperature: 0.8, seed: 1 });
 * ```
 */
export function generateText(
  model: Decoder,
  tokenizer: Tokenizer,
  prompt: string | ArrayLike<number>,
  options: GenerateOptions,
  onText?: (text: string) => void,
): Generation {
  const promptIds = typeof prompt === "string" ? tokenizer.encode(prompt) : prompt;
  const endIds = options.endIds ?? new Set([...tokenizer.endIds, ...model.config.eosTokenIds]);
  const output = new StoppedText(options.stop ?? [], onText);
  const stream = tokenizer.createDecodeStream();
  const ids: number[] = [];
  let finishReason: FinishReason = "length";
  const started = performance.now();
  let firstToken = started;
  for (const id of generateIds(model, promptIds, options)) {
    if (ids.length === 0) firstToken = performance.now();
    if (endIds.has(id)) {
      finishReason = "stop";
      break;
    }
    ids.push(id);
    if (output.push(stream.push(id))) {
      finishReason = "stop";
      break;
    }
  }
  if (finishReason === "length" && options.signal?.aborted === true) finishReason = "aborted";
  if (!output.stopped) output.push(stream.end());
  output.end();
  return {
    text: output.text,
    ids,
    promptTokens: promptIds.length,
    finishReason,
    prefillSeconds: (firstToken - started) / 1000,
    decodeSeconds: (performance.now() - firstToken) / 1000,
  };
}

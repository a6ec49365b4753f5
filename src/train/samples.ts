/**
 * Texts that a run writes now and then (`samples` of its configuration), and which experts took each of their tokens: the lines of
 * `samples.jsonl` (docs/metrics.md). A text is generated from a prompt, then passed through the model once more as a whole, which gives
 * the routing of every token, the prompt's too. Nothing is dropped and no noise is added, as in every use of a model but training; a row's
 * bits depend on nothing but the row, so this is the routing that generation had.
 *
 * Generation takes its own random numbers, by prompt: a run trains the same whether it writes samples or not.
 *
 * Legend: T tokens, K experts of a token.
 */
import type { RunConfig } from "../config/run.ts";
import { generateIds } from "../generate/index.ts";
import { KvCache, type Decoder } from "../model/index.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";

/** One text at one step. */
export interface SampleRecord {
  readonly type: "sample";
  readonly step: number;
  /** Index of the prompt in `samples.prompts`. */
  readonly prompt: number;
  /** Tokens of the prompt, the first of `tokens`. */
  readonly promptTokens: number;
  /** What each token adds to the text; empty where a character is not whole yet. Together they are the text. */
  readonly tokens: readonly string[];
  readonly ids: readonly number[];
  /** Layers with experts, ascending. */
  readonly layers: readonly number[];
  /** For each of `layers` T rows of K experts, the one with the largest weight first. */
  readonly experts: readonly (readonly (readonly number[])[])[];
  /** Weights of those experts in the sum, four digits. */
  readonly weights: readonly (readonly (readonly number[])[])[];
}

/** Ids of a prompt, cut so that the text fits into the model's positions. At least one: the bos, or id 0 where there is none. */
function promptIds(tokenizer: Tokenizer, prompt: string, room: number): number[] {
  const ids = Array.from(tokenizer.encode(prompt)).slice(0, Math.max(1, room));
  return ids.length > 0 ? ids : [tokenizer.bosId ?? 0];
}

/** A text for every prompt of the configuration, in its order. Off any tape; leaves nothing in memory. */
export function writeSamples(model: Decoder, tokenizer: Tokenizer, config: RunConfig, step: number): SampleRecord[] {
  const { prompts, maxTokens, temperature, topP } = config.samples;
  const endIds = new Set([...tokenizer.endIds, ...model.config.eosTokenIds]);
  return model.engine.withTape(null, () =>
    prompts.map((prompt, index) => {
      const begin = promptIds(tokenizer, prompt, model.config.maxPositions - maxTokens);
      const ids = [...begin];
      const seed = config.seed + index;
      for (const id of generateIds(model, begin, { maxTokens, temperature, topP, seed })) {
        if (endIds.has(id)) break;
        ids.push(id);
      }
      const routing = routingOf(model, ids);
      const tokens = pieces(tokenizer, ids);
      return { type: "sample", step, prompt: index, promptTokens: begin.length, tokens, ids, ...routing };
    }),
  );
}

/** What each id adds to the text. */
function pieces(tokenizer: Tokenizer, ids: readonly number[]): string[] {
  const stream = tokenizer.createDecodeStream({ skipSpecialTokens: false });
  const texts = ids.map((id) => stream.push(id));
  const rest = stream.end();
  return texts.map((text, i) => (i === texts.length - 1 ? text + rest : text));
}

/** Choices of every layer with experts for one sequence. */
function routingOf(model: Decoder, ids: readonly number[]): Pick<SampleRecord, "layers" | "experts" | "weights"> {
  return model.engine.scope(() => {
    using cache = new KvCache(model.engine, model.cacheConfig, { numSequences: 1, capacity: ids.length, dtype: model.dtype });
    const { routing } = model.forwardHidden(cache.extend([{ slot: 0, ids }]), { cache });
    const choices = routing.map(({ indices_TK, weights_TK }) => {
      const [experts, weights, K] = [indices_TK.toInt32Array(), weights_TK.toFloat32Array(), indices_TK.dim(1)];
      return ids.map((_, t) =>
        Array.from({ length: K }, (__, k) => ({ expert: experts[t * K + k] ?? -1, weight: weights[t * K + k] ?? 0 })).sort(
          (a, b) => b.weight - a.weight,
        ),
      );
    });
    return {
      layers: routing.map(({ layer }) => layer),
      experts: choices.map((tokens) => tokens.map((chosen) => chosen.map(({ expert }) => expert))),
      weights: choices.map((tokens) => tokens.map((chosen) => chosen.map(({ weight }) => Math.round(weight * 1e4) / 1e4))),
    };
  });
}

/** What the engine's thread and its ranks make of the settings, alike. */
import { numParams } from "../config/model-counts.ts";
import type { ModelConfig } from "../config/model.ts";
import { planModel, type CutModel } from "../generate/parallel.ts";
import { blockTokens, loadModel, openModelSource, PagedCache, type CacheDType, type Decoder, type LoadOptions } from "../model/index.ts";
import { ModelDrafter, NgramDrafter, type Drafter, type ServingEngine, type ServingOptions } from "../serve/index.ts";
import type { Engine } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import type { EngineSettings, ModelInfo, RankHolding, TensorParallelSettings } from "./protocol.ts";

/** Positions that a context may have by default where the model allows more: a slot of a million would take all memory. */
const defaultMaxContext = 32_768;

/** Options without a drafter: see `openDraftModel` and `drafterOf`. */
export function servingOptions(config: ModelConfig, settings: EngineSettings, modelDtype: CacheDType): ServingOptions {
  const cacheDtype = settings.cacheDtype ?? modelDtype;
  const maxContext = settings.maxContext ?? Math.min(config.maxPositions, defaultMaxContext);
  if (maxContext > config.maxPositions)
    throw new MoeError("usage", `--max-context: the model was made for ${config.maxPositions} positions, got ${maxContext}`);
  const blockBytes = PagedCache.blockBytes(config, cacheDtype);
  const blocksPerSequence = Math.ceil(maxContext / blockTokens) + 1;
  const wanted = settings.maxBatch * blocksPerSequence * blockBytes;
  const room = Math.max(process.availableMemory() / 2, blocksPerSequence * blockBytes);
  return {
    maxRunning: settings.maxBatch,
    maxContext,
    cacheDtype,
    cacheBytes: settings.cacheBytes ?? Math.min(wanted, Math.floor(room)),
  };
}

/** How the served model is loaded. */
export function loadOptions({ dtype, activations = "keep" }: EngineSettings): LoadOptions {
  return { activations, ...(dtype === null ? {} : { dtype }) };
}

/** The model that guesses, if the settings name one; the caller disposes it. Throws `usage` where its vocabulary is another. */
export function openDraftModel(engine: Engine, settings: EngineSettings, config: ModelConfig): Decoder | null {
  const { draftModel = null } = settings;
  if (draftModel === null) return null;
  const draft = loadModel(engine, draftModel, loadOptions(settings));
  if (draft.config.vocabSize === config.vocabSize) return draft;
  draft[Symbol.dispose]();
  throw new MoeError(
    "usage",
    `--draft-model ${draftModel}: expected a model with the served one's vocabulary of ${config.vocabSize} tokens, got ${draft.config.vocabSize}`,
  );
}

/** What guesses tokens, as an option of the serving engine, which disposes it. A draft model's cache holds as many tokens as the model's. */
export function drafterOf(
  { speculate }: EngineSettings,
  draft: Decoder | null,
  { cacheBytes, cacheDtype }: ServingOptions,
  config: ModelConfig,
): { drafter?: Drafter } {
  if (draft === null) return speculate === "ngram" ? { drafter: new NgramDrafter() } : {};
  const tokens = cacheBytes / PagedCache.blockBytes(config, cacheDtype ?? draft.dtype);
  return { drafter: new ModelDrafter(draft, { cacheBytes: Math.floor(tokens) * PagedCache.blockBytes(draft.config, draft.dtype) }) };
}

/** A model cut over ranks for serving, and its cache. */
export interface ServingPlan extends CutModel {
  /** Of all ranks together. */
  readonly cacheBytes: number;
}

/** Who has what of the model and of the cache: known before anything is loaded. Throws as `planModel` does. */
export function planServing(settings: EngineSettings, { ranks, weights, memoryBytes }: TensorParallelSettings): ServingPlan {
  const { modelPath, cacheDtype } = settings;
  using source = openModelSource(modelPath);
  const dtype = settings.dtype ?? source.dtype;
  const { cacheBytes } = servingOptions(source.config, settings, dtype);
  const blocks = Math.floor(cacheBytes / PagedCache.blockBytes(source.config, cacheDtype ?? dtype));
  const cut = planModel(modelPath, {
    ranks,
    dtype,
    cacheTokens: blocks * blockTokens,
    ...(cacheDtype !== null && { cacheDtype }),
    ...(weights !== null && { weights }),
    ...(memoryBytes !== null && { memoryBytes }),
  });
  return { ...cut, cacheBytes };
}

/** What the main thread is told when the model is loaded. */
export function modelInfo(serving: ServingEngine, cacheBytes: number, ranks: readonly RankHolding[] = []): ModelInfo {
  const { model, tokenizer } = serving;
  const { name, isa, numThreads } = model.engine.backend;
  const threads = `${numThreads} ${numThreads === 1 ? "thread" : "threads"}`;
  return {
    maxContext: serving.maxContext,
    vocabSize: model.config.vocabSize,
    hiddenSize: model.config.hiddenSize,
    hasChatTemplate: tokenizer.chatTemplate !== undefined,
    engine: `${name} (${isa}, ${ranks.length < 2 ? threads : `${ranks.length} ranks of ${threads}`})`,
    numParams: numParams(model.config),
    cacheBytes,
    ranks,
  };
}

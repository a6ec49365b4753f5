/** What the engine's thread and its ranks make of the settings, alike. */
import { numParams } from "../config/model-counts.ts";
import type { ModelConfig } from "../config/model.ts";
import { PagedCache, type KvCacheOptions } from "../model/index.ts";
import { NgramDrafter, type ServingEngine, type ServingOptions } from "../serve/index.ts";
import { MoeError } from "../util/errors.ts";
import type { EngineSettings, ModelInfo } from "./protocol.ts";

/** Positions that a context may have by default where the model allows more: a slot of a million would take all memory. */
const defaultMaxContext = 32_768;

export function servingOptions(config: ModelConfig, settings: EngineSettings, modelDtype: KvCacheOptions["dtype"]): ServingOptions {
  const cacheDtype = (settings.cacheDtype ?? modelDtype) as KvCacheOptions["dtype"];
  const maxContext = settings.maxContext ?? Math.min(config.maxPositions, defaultMaxContext);
  if (maxContext > config.maxPositions)
    throw new MoeError("usage", `--max-context: the model was made for ${config.maxPositions} positions, got ${maxContext}`);
  const blockBytes = PagedCache.blockBytes(config, cacheDtype);
  const blocksPerSequence = Math.ceil(maxContext / 64) + 1;
  const wanted = settings.maxBatch * blocksPerSequence * blockBytes;
  const room = Math.max(process.availableMemory() / 2, blocksPerSequence * blockBytes);
  return {
    maxRunning: settings.maxBatch,
    maxContext,
    cacheDtype,
    ...(settings.speculate === "ngram" ? { drafter: new NgramDrafter() } : {}),
    cacheBytes: settings.cacheBytes ?? Math.min(wanted, Math.floor(room)),
  };
}

/** What the main thread is told when the model is loaded. */
export function modelInfo(serving: ServingEngine, cacheBytes: number, ranks = 1): ModelInfo {
  const { model, tokenizer } = serving;
  const { name, isa, numThreads } = model.engine.backend;
  const threads = `${numThreads} ${numThreads === 1 ? "thread" : "threads"}`;
  return {
    maxContext: serving.maxContext,
    vocabSize: model.config.vocabSize,
    hiddenSize: model.config.hiddenSize,
    hasChatTemplate: tokenizer.chatTemplate !== undefined,
    engine: `${name} (${isa}, ${ranks === 1 ? threads : `${ranks} ranks of ${threads}`})`,
    numParams: numParams(model.config),
    cacheBytes,
  };
}

/**
 * The thread that computes: opens the model, runs an `EngineHost` until it is told to stop, and frees everything. Kernels are called
 * synchronously here, for milliseconds to seconds; the event loop that answers HTTP is another thread's.
 */
import { parentPort, workerData } from "node:worker_threads";
import { loadBackend } from "../backend/load.ts";
import { loadTokenizer } from "../checkpoint/tokenizer.ts";
import { numParams } from "../config/model-counts.ts";
import type { ModelConfig } from "../config/model.ts";
import { loadModel, PagedCache, type KvCacheOptions } from "../model/index.ts";
import { NgramDrafter, ServingEngine, type ServingOptions } from "../serve/index.ts";
import { Engine } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { EngineHost } from "./engine-host.ts";
import type { EngineSettings, FromEngine, ToEngine } from "./protocol.ts";

function post(message: FromEngine): void {
  parentPort?.postMessage(message, []);
}

async function serve(settings: EngineSettings): Promise<void> {
  const tokenizer = await loadTokenizer(settings.modelPath);
  using engine = new Engine(await loadBackend());
  using model = loadModel(engine, settings.modelPath, settings.dtype === null ? {} : { dtype: settings.dtype });
  const options = servingOptions(model.config, settings, model.dtype);
  using serving = new ServingEngine(model, tokenizer, options);
  const host = new EngineHost(serving, post);
  parentPort?.on("message", (message: ToEngine) => {
    host.receive(message);
  });
  const { name, isa, numThreads } = engine.backend;
  post({
    type: "ready",
    info: {
      maxContext: serving.maxContext,
      vocabSize: model.config.vocabSize,
      hiddenSize: model.config.hiddenSize,
      hasChatTemplate: tokenizer.chatTemplate !== undefined,
      engine: `${name} (${isa}, ${numThreads} ${numThreads === 1 ? "thread" : "threads"})`,
      numParams: numParams(model.config),
      cacheBytes: options.cacheBytes,
    },
  });
  await host.run();
}

/** Positions that a context may have by default where the model allows more: a slot of a million would take all memory. */
const defaultMaxContext = 32_768;

function servingOptions(config: ModelConfig, settings: EngineSettings, modelDtype: KvCacheOptions["dtype"]): ServingOptions {
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

async function main(): Promise<void> {
  try {
    await serve(workerData as EngineSettings);
  } catch (error) {
    const isExpected = error instanceof MoeError && error.kind !== "internal";
    const message = error instanceof Error ? (isExpected ? error.message : (error.stack ?? error.message)) : String(error);
    post({ type: "fatal", message, exitCode: error instanceof MoeError ? error.exitCode : 1 });
  }
  parentPort?.close();
}

await main();

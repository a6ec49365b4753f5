/**
 * A rank of a model that is served by several: all run the same engine host over their part of the model, and get what comes to rank 0 between the
 * same two steps. Rank 0 alone says what happened.
 */
import { parentPort } from "node:worker_threads";
import { loadTokenizer } from "../checkpoint/tokenizer.ts";
import { loadModel } from "../model/index.ts";
import { Lockstep, runRank, TensorGroup, type RankShare } from "../parallel/index.ts";
import { ServingEngine } from "../serve/index.ts";
import { EngineHost } from "./engine-host.ts";
import { modelInfo, servingOptions } from "./engine-open.ts";
import type { EngineSettings, FromEngine, ToEngine } from "./protocol.ts";

export interface EngineRankJob {
  readonly settings: EngineSettings;
  readonly dtype: "f32" | "bf16";
  readonly shares: readonly RankShare[];
}

await runRank(async ({ engine, communicator, data, emit }) => {
  const { settings, dtype, shares } = data as EngineRankJob;
  const speaks = communicator.rank === 0;
  const post = (message: FromEngine): void => {
    if (speaks) emit(message);
  };
  const tokenizer = await loadTokenizer(settings.modelPath);
  using model = loadModel(engine, settings.modelPath, { dtype, shard: { group: new TensorGroup(engine, communicator), shares } });
  const options = servingOptions(model.config, settings, model.dtype);
  // How much memory is free is another number for each rank: rank 0's counts. It is that of all ranks' caches together.
  const agreed = communicator.share(speaks ? new TextEncoder().encode(String(options.cacheBytes)) : null, 0);
  const cacheBytes = Number(new TextDecoder().decode(agreed));
  using serving = new ServingEngine(model, tokenizer, { ...options, cacheBytes });
  const host = new EngineHost(serving, post);
  const lockstep = new Lockstep(communicator);
  if (speaks) parentPort?.on("message", (message: ToEngine) => lockstep.push(message));
  post({ type: "ready", info: modelInfo(serving, cacheBytes, communicator.size) });
  for (let idle = true; !host.isEnding;) {
    for (const message of await lockstep.next(idle)) host.receive(message as ToEngine);
    idle = host.turn();
  }
  host.end();
});

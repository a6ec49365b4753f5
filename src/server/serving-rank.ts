/**
 * What a rank of a served model does, whatever its group is made of: loads its part, says what it holds, and steps the same engine host as all
 * others over the messages that come to rank 0.
 */
import { hostname } from "node:os";
import { deserialize, serialize } from "node:v8";
import { loadTokenizer } from "../checkpoint/tokenizer.ts";
import { loadModel } from "../model/index.ts";
import { Lockstep, TensorGroup, type Communicator, type RankContext, type RankShare } from "../parallel/index.ts";
import { ServingEngine } from "../serve/index.ts";
import type { Engine } from "../tensor/index.ts";
import { EngineHost } from "./engine-host.ts";
import { drafterOf, loadOptions, modelInfo, openDraftModel, servingOptions, type ServingPlan } from "./engine-open.ts";
import type { EngineSettings, FromEngine, RankHolding, ToEngine } from "./protocol.ts";

/** The same for all ranks. Plain data. */
export interface ServingJob {
  /** With the bytes of the cache decided: how much memory is free is another number for each rank. */
  readonly settings: EngineSettings;
  readonly dtype: "f32" | "bf16";
  readonly shares: readonly RankShare[];
  /** Bytes of weights and cache that the plan gives each rank. */
  readonly plannedBytes: readonly number[];
}

export function servingJob(settings: EngineSettings, { plan, dtype, cacheBytes }: ServingPlan): ServingJob {
  const { ranks } = plan;
  return {
    settings: { ...settings, cacheBytes },
    dtype,
    shares: ranks.map(({ share }) => share),
    plannedBytes: ranks.map(({ totalBytes }) => totalBytes),
  };
}

/** How rank 0 hears of requests and tells what becomes of them; others are given neither. */
export interface RankVoice {
  post(message: FromEngine): void;
  /** Called once, when the model is loaded. */
  listen(receive: (message: ToEngine) => void): void;
}

/** Returns at `shutdown`. Throws what loading throws, and `communication` where the group is lost. */
export async function runServingRank(engine: Engine, communicator: Communicator, job: ServingJob, voice: RankVoice | null): Promise<void> {
  const { settings, dtype, shares } = job;
  const { backend } = engine;
  const tokenizer = await loadTokenizer(settings.modelPath);
  using model = loadModel(engine, settings.modelPath, {
    ...loadOptions(settings),
    dtype,
    shard: { group: new TensorGroup(engine, communicator), shares },
  });
  const options = servingOptions(model.config, settings, model.dtype);
  using draft = openDraftModel(engine, settings, model.config);
  const drafter = drafterOf(settings, draft, options, model.config);
  const before = backend.liveBytes;
  using serving = new ServingEngine(model, tokenizer, { ...options, ...drafter });
  const holdings = gatherHoldings(communicator, job, model.numBytes + backend.liveBytes - before);
  const host = new EngineHost(serving, (message) => voice?.post(message));
  const lockstep = new Lockstep(communicator);
  voice?.listen((message) => lockstep.push(message));
  voice?.post({ type: "ready", info: modelInfo(serving, options.cacheBytes, holdings) });
  for (let idle = true; !host.isEnding;) {
    for (const message of await lockstep.next(idle)) host.receive(message as ToEngine);
    idle = host.turn();
  }
  host.end();
}

/** `runServingRank` of a process that is not the first: the job comes from the first. */
export async function serveBehindFirst({ engine, communicator }: Pick<RankContext, "engine" | "communicator">): Promise<void> {
  await runServingRank(engine, communicator, deserialize(communicator.share(null, 0)) as ServingJob, null);
}

/** What every rank holds, on every rank. */
function gatherHoldings(communicator: Communicator, { plannedBytes }: ServingJob, ownBytes: number): RankHolding[] {
  return plannedBytes.map((planned, rank) => {
    const own = { heldBytes: ownBytes, host: hostname(), pid: process.pid };
    const told = communicator.share(rank === communicator.rank ? serialize(own) : null, rank);
    return { plannedBytes: planned, ...(deserialize(told) as typeof own) };
  });
}

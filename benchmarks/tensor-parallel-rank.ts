/** A rank of the row `tp.memory`: what its part of a model and of a cache take in the backend. */
import { KvCache, loadModel } from "../src/model/index.ts";
import { runRank, TensorGroup, type RankShare } from "../src/parallel/index.ts";

export interface MemoryJob {
  readonly path: string;
  readonly shares: readonly RankShare[];
  readonly cacheTokens: number;
}

await runRank(({ engine, communicator, data }) => {
  const { path, shares, cacheTokens } = data as MemoryJob;
  const before = engine.backend.liveBytes;
  // Copied, so that the backend counts it.
  using model = loadModel(engine, path, { dtype: "bf16", mapped: false, shard: { group: new TensorGroup(engine, communicator), shares } });
  using cache = new KvCache(engine, model.cacheConfig, { numSequences: 1, capacity: cacheTokens, dtype: "bf16" });
  const held = engine.backend.liveBytes - before;
  cache.truncate(0);
  return held;
});

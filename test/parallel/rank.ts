/** Entry of a rank: `startRanks` runs it in a worker. */
import { loadModel } from "../../src/model/index.ts";
import { runRank, TensorGroup } from "../../src/parallel/index.ts";
import { runJob, weightBytes, type Job, type JobResult } from "./rank-logits.ts";

await runRank(({ engine, communicator, data }) => {
  const group = new TensorGroup(engine, communicator);
  const results = (data as readonly Job[]).map(({ path, dtype, mapped, shares, sequences, quantized }): JobResult => {
    const before = engine.backend.liveBytes;
    using model = loadModel(engine, path, { dtype, mapped, shard: { group, shares }, ...(quantized && { quantized }) });
    const liveBytes = engine.backend.liveBytes - before;
    return { ...runJob(model, sequences), weightBytes: weightBytes(model), liveBytes };
  });
  return { results, leaked: engine.backend.liveBytes };
});

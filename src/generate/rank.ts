/** A rank of `generateParallel`: started by it in a thread of its own. */
import { loadTokenizer } from "../checkpoint/tokenizer.ts";
import { loadModel } from "../model/index.ts";
import { runRank, TensorGroup } from "../parallel/index.ts";
import { generateText } from "./generate.ts";
import type { GenerateJob, GenerateReport } from "./parallel.ts";

await runRank(async ({ engine, communicator, data, emit }): Promise<GenerateReport> => {
  const { path, dtype, activations, shares, promptIds, options } = data as GenerateJob;
  const tokenizer = await loadTokenizer(path);
  using model = loadModel(engine, path, { dtype, activations, shard: { group: new TensorGroup(engine, communicator), shares } });
  let weightBytes = 0;
  for (const { byteLength, scales } of model.parameters.values()) weightBytes += byteLength + (scales?.values.byteLength ?? 0);
  const generation = generateText(model, tokenizer, promptIds, options, communicator.rank === 0 ? emit : undefined);
  return { generation, weightBytes };
});

/** What a rank of a generation does, be it a thread or a process: loads its part, and generates the same text as all others. */
import { loadTokenizer } from "../checkpoint/tokenizer.ts";
import { loadModel } from "../model/index.ts";
import { TensorGroup, type RankContext } from "../parallel/index.ts";
import { generateText } from "./generate.ts";
import type { GenerateJob, GenerateReport } from "./parallel.ts";

/** `onText` gets each piece as it becomes certain, on rank 0. Throws what loading and generating throw, `communication` where the group is lost. */
export async function generateAsRank(
  { engine, communicator }: Pick<RankContext, "engine" | "communicator">,
  { path, dtype, activations, shares, promptIds, options }: GenerateJob,
  onText: (text: string) => void,
): Promise<GenerateReport> {
  const tokenizer = await loadTokenizer(path);
  using model = loadModel(engine, path, { dtype, activations, shard: { group: new TensorGroup(engine, communicator), shares } });
  const generation = generateText(model, tokenizer, promptIds, options, communicator.rank === 0 ? onText : undefined);
  return { generation, weightBytes: model.numBytes };
}

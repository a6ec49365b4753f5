/** Entry of a rank of the pipeline tests: one step's forward and backward passes over its stages. */
import { completeLayout, parseLayout, stagesOf } from "../../src/config/layout.ts";
import { fromHuggingFaceConfig } from "../../src/config/model-huggingface.ts";
import { parseRunConfig } from "../../src/config/run.ts";
import { Dataset, TokenFile } from "../../src/data/index.ts";
import { Decoder } from "../../src/model/index.ts";
import { runRank } from "../../src/parallel/index.ts";
import { noHooks } from "../../src/train/executor.ts";
import { openRankStages, PipelineExecutor } from "../../src/train/parallel/pipeline.ts";
import { microInputs, type PipelineJob, type PipelineOutcome } from "./pipeline-job.ts";

await runRank(({ engine, communicator, data }) => {
  const job = data as PipelineJob;
  const config = parseRunConfig(job.run);
  const model = fromHuggingFaceConfig(job.model, "test");
  using file = new TokenFile(job.tokens);
  const dataset = new Dataset(file, { sequenceLength: config.data.sequenceLength, seed: 1 });
  const layout = completeLayout(parseLayout(job.layout), "test");
  const stages = openRankStages(stagesOf(layout, model.numLayers, config.recomputeLayers), communicator, (layers) =>
    Decoder.initialize(engine, model, { dtype: job.dtype, seed: 1, layers }),
  );
  const operations: string[] = [];
  const executor = new PipelineExecutor({
    config,
    communicator,
    schedule: layout.schedule,
    stages,
    observe: ({ kind, stage, microBatch }, run) => {
      operations.push(`${kind} ${stage} ${microBatch}`);
      if (kind === "forward" && stage === job.failing && microBatch === 1) throw new Error(`stage ${stage} breaks`);
      return run();
    },
  });
  const before = engine.backend.liveBytes;
  const results = executor.run(microInputs(dataset, config, model.numLayers), noHooks);
  const gradients = stages.flatMap(({ stage, model: { parameters } }) =>
    [...parameters].flatMap(([name, { parameter }]) =>
      parameter?.grad && parameter.gradIsSet ? [[stage, name, parameter.grad.toFloat32Array()] as const] : [],
    ),
  );
  // Gradients are left, and tables of rotations.
  const gradientBytes = gradients.reduce((sum, [, , values]) => sum + values.byteLength, 0);
  const liveAfterStep = engine.backend.liveBytes - before - gradientBytes;
  for (const stage of stages) stage.model[Symbol.dispose]();
  const outcome: PipelineOutcome = { results, gradients, operations, liveAfterStep, leaked: engine.backend.liveBytes };
  return outcome;
});

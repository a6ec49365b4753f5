/**
 * Rows of pipelines, on the model of the pipeline lab (eight layers, and a loss that takes about as long as two of them):
 *   ranks.pp         two ranks of one thread, 32 micro-batches, against one rank of two threads with the same global batch
 *   pipeline.uneven  two ranks, 16 micro-batches: the split that the planner's search finds over times of the parts, measured here just
 *                    before, against the even one
 * A pipeline's bubble of (P - 1) / (M + P - 1) is in both: 3% and 6% of the step.
 */
import { sequenceLength } from "../recipes/lab/pipeline/model.ts";
import { LabSession } from "../recipes/lab/pipeline/session.ts";
import { measureParts, plannedLayers } from "../recipes/lab/pipeline/times.ts";
import { wanted, type Context } from "./context.ts";
import { interleave, type Row, type Side } from "./measure.ts";

const ranksBar = 0.9;
const unevenBar = 1.08;

export async function* pipelineRows(context: Context): AsyncGenerator<Row> {
  const names = wanted(context, ["ranks.pp", "pipeline.uneven"]);
  if (names.length === 0) return;
  const parts = await measureParts(context.effort.samples * 2 + 1);
  const layers = { 16: plannedLayers(parts, 2, 16), 32: plannedLayers(parts, 2, 32) };
  const [even, uneven, long] = [
    { layout: { pp: 2 }, numMicroBatches: 16 },
    { layout: { pp: 2, layers: [...layers[16]] }, numMicroBatches: 16 },
    { layout: { pp: 2, layers: [...layers[32]] }, numMicroBatches: 32 },
  ];
  const two = await LabSession.start(2, 1, [even, uneven, long]);
  try {
    if (names.includes("pipeline.uneven")) {
      const [rival = [], ours = []] = await interleave([sideOf(two, 0, 16), sideOf(two, 1, 16)], {
        ...context.effort,
        samples: 2 * context.effort.samples,
      });
      const note = `layers [${layers[16].join(", ")}] against [4, 4]`;
      yield { name: "pipeline.uneven", ours, rival, unit: "tokens/s", bar: unevenBar, note };
    }
    if (!names.includes("ranks.pp")) return;
    const one = await LabSession.start(1, 2, [{ layout: {}, numMicroBatches: 32 }]);
    const [ours = [], rival = []] = await interleave([sideOf(two, 2, 32), sideOf(one, 0, 32)], context.effort);
    await one.end();
    const note = `layers [${layers[32].join(", ")}], 2 ranks of 1 thread; rival: 1 rank of 2 threads`;
    yield { name: "ranks.pp", ours, rival, unit: "tokens/s", bar: ranksBar, note };
  } finally {
    await two.end();
  }
}

function sideOf(session: LabSession, variant: number, numMicroBatches: number): Side {
  return {
    sample: async () => {
      const steps = await session.step(variant);
      return (numMicroBatches * sequenceLength) / Math.max(...steps.map(({ seconds }) => seconds));
    },
  };
}

/**
 * What the parts of the lab's model take on one rank with one thread: passes of one micro-batch through the embedding, a layer, and the final norm with the loss.
 * First, middle and last layer are timed as stages of their own; embedding and loss are what the ends take more than the middle.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadBackend } from "../../../src/backend/load.ts";
import { Dataset, TokenFile } from "../../../src/data/index.ts";
import { Decoder } from "../../../src/model/index.ts";
import { partitionLayers, type PartitionProblem, type StageCandidate } from "../../../src/plan/partition.ts";
import { Engine } from "../../../src/tensor/index.ts";
import { microForward, type MicroStepInput } from "../../../src/train/micro-step.ts";
import { labModel, labRun, numLayers, sequenceLength, writeTokens } from "./model.ts";

/** Seconds of one micro-batch. */
export interface PassTimes {
  readonly forward: number;
  readonly backward: number;
}
export interface PartTimes {
  readonly embedding: PassTimes;
  readonly layer: PassTimes;
  /** Final norm and head. */
  readonly loss: PassTimes;
}

export async function measureParts(samples: number): Promise<PartTimes> {
  const folder = mkdtempSync(join(tmpdir(), "moe-pipeline-times-"));
  const path = join(folder, "tokens");
  writeTokens(path);
  using engine = new Engine(await loadBackend({ numThreads: 1 }));
  try {
    using file = new TokenFile(path);
    const tokens = new Dataset(file, { sequenceLength, seed: 1 }).batch(0, 1);
    const input: MicroStepInput = { tokens, firstSequence: 0, step: 0, scale: 1 / sequenceLength, coefficients: [] };
    const spans = [0, 3, numLayers - 1].map((start) => ({ start, end: start + 1 }));
    const [first, middle, last] = spans.map((layers) => timeStage(engine, layers, input, samples));
    if (first === undefined || middle === undefined || last === undefined) throw new Error("no stages");
    const more = (end: PassTimes): PassTimes => ({
      forward: Math.max(0, end.forward - middle.forward),
      backward: Math.max(0, end.backward - middle.backward),
    });
    return { embedding: more(first), layer: middle, loss: more(last) };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function timeStage(engine: Engine, layers: { start: number; end: number }, input: MicroStepInput, samples: number): PassTimes {
  const run = labRun(1, {});
  using model = Decoder.initialize(engine, labModel(), { dtype: run.precision, seed: 1, layers });
  const shape = [sequenceLength, model.config.hiddenSize];
  const times: { forward: number[]; backward: number[] } = { forward: [], backward: [] };
  for (let sample = -2; sample < samples; sample++) {
    engine.scope(() => {
      const hidden = engine.zeros(shape, run.precision);
      const gradient = engine.zeros(shape, run.precision);
      const started = performance.now();
      using forward = microForward(model, run, layers.start === 0 ? input : { ...input, hidden });
      const between = performance.now();
      forward.backward(layers.end === numLayers ? null : gradient)?.dispose();
      if (sample < 0) return;
      times.forward.push((between - started) / 1000);
      times.backward.push((performance.now() - between) / 1000);
    });
  }
  return { forward: middleOf(times.forward), backward: middleOf(times.backward) };
}
function middleOf(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}

/** What a stage with these layers takes. */
export function stageTimes({ embedding, layer, loss }: PartTimes, firstLayer: number, count: number): PassTimes {
  const sum = (of: keyof PassTimes): number =>
    count * layer[of] + (firstLayer === 0 ? embedding[of] : 0) + (firstLayer + count === numLayers ? loss[of] : 0);
  return { forward: sum("forward"), backward: sum("backward") };
}

/** The split with the shortest step of 1F1B, by the planner's exact search over these times. */
export function plannedLayers(parts: PartTimes, numStages: number, numMicroBatches: number): readonly number[] {
  const problem: PartitionProblem = {
    numStages,
    numLayers,
    numMicroBatches,
    candidate: (_, firstLayer, count): StageCandidate => ({ ...stageTimes(parts, firstLayer, count), gradients: 0, optimizer: 0 }),
  };
  const found = partitionLayers(problem);
  if (found === null) throw new Error("no split");
  return found.layers;
}

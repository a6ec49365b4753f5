/** A case on the ranks that it needs: the others wait. */
import { join } from "node:path";
import { numRanks, type Layout } from "../../src/config/layout.ts";
import type { ModelConfig } from "../../src/config/model.ts";
import { layoutOf, parseRunConfig, type RunConfig } from "../../src/config/run.ts";
import { fromHuggingFaceConfig } from "../../src/config/model-huggingface.ts";
import { Dataset, TokenFile } from "../../src/data/index.ts";
import { Decoder, type WholeTensor } from "../../src/model/index.ts";
import type { Communicator } from "../../src/parallel/index.ts";
import type { Engine } from "../../src/tensor/index.ts";
import { stateBytes } from "../../src/train/parallel/memory.ts";
import { MeshRanks } from "../../src/train/parallel/mesh-ranks.ts";
import { Trainer, type TrainerOptions } from "../../src/train/trainer.ts";
import { models, runOf, type Choices, type LayoutCase, type Outcome } from "./job.ts";

export interface CaseContext {
  readonly engine: Engine;
  readonly communicator: Communicator;
  readonly folder: string;
  readonly numSteps: number;
}

/** Null on ranks other than the first. */
export function runCase({ engine, communicator, folder, numSteps }: CaseContext, one: LayoutCase): Outcome | null {
  const config = parseRunConfig(runOf(one, numSteps));
  const layout = layoutOf(config);
  const size = numRanks(layout);
  const world = communicator.split([Array.from({ length: size }, (_, rank) => rank)], "world");
  if (world === null) return null;
  const model = fromHuggingFaceConfig(models[one.model], one.model);
  const before = engine.backend.liveBytes;
  const outcome = withMesh({ engine, world, folder, config, layout, model }, numSteps);
  const leaked = world.rank === 0 ? [engine.backend.liveBytes - before] : [];
  return outcome === null ? null : { ...outcome, leaked };
}

interface MeshRun {
  readonly engine: Engine;
  readonly world: Communicator;
  readonly folder: string;
  readonly config: RunConfig;
  readonly layout: Layout;
  readonly model: ModelConfig;
}

function withMesh({ engine, world, folder, config, layout, model }: MeshRun, numSteps: number): Omit<Outcome, "leaked"> | null {
  using file = new TokenFile(join(folder, "uneven.tokens"));
  const data = new Dataset(file, { sequenceLength: config.data.sequenceLength, seed: config.seed });
  using ranks = new MeshRanks({
    engine,
    world,
    config,
    layout,
    model,
    open: (layers, shard) => Decoder.initialize(engine, model, { dtype: config.precision, seed: config.seed, layers, shard }),
  });
  const [first] = ranks.models;
  if (first === undefined) throw new Error("no model");
  const choices: Choices = new Map();
  using trainer = new Trainer(config, first, data, { peakFlops: null, ranks, onRouting: noting(choices) });
  const steps = Array.from({ length: numSteps }, () => recordOf(trainer));
  const held = ranks.models.flatMap(({ parameters }) => [...parameters.values()].flatMap((of) => [of, of.parameter?.grad ?? null]));
  const state = [...held, ...trainer.optimizer.state().tensors.values()].reduce((sum, tensor) => sum + (tensor?.byteLength ?? 0), 0);
  const stateError = ranks.gather(state - stateBytes(model, layout, config.precision, world.rank));
  const all = new Map(ranks.gather(choices).flatMap((of) => [...of]));
  const weights = ranks.checkpoint(trainer.parts(), wholeWeights);
  return world.rank === 0 ? { ...joined(steps), weights, choices: all, stateError } : null;
}

interface StepRecord {
  readonly loss: number;
  readonly drops: number;
  readonly coefficients: readonly number[];
  readonly gradNorm: number;
}
/** One step, and what it says. */
export function recordOf(trainer: Trainer): StepRecord {
  const { loss, gradNorm, layers } = trainer.step();
  return {
    loss,
    gradNorm,
    drops: layers.reduce((sum, { numDropped }) => sum + numDropped, 0),
    coefficients: [...trainer.coefficients.values],
  };
}
/** Keeps each layer's choices, by step, sequence and layer. */
export function noting(choices: Choices): NonNullable<TrainerOptions["onRouting"]> {
  return (layers, { step, firstSequence, tokens: { numSequences } }) => {
    for (const { layer, indices_TK, probs_TE } of layers) {
      const [indices, scores] = [indices_TK.toInt32Array(), probs_TE.toFloat32Array()];
      for (let i = 0; i < numSequences; i++) {
        const part = <T extends Int32Array | Float32Array>(values: T): T =>
          values.slice((i * values.length) / numSequences, ((i + 1) * values.length) / numSequences) as T;
        choices.set(`${step}/${firstSequence + i}/${layer}`, { indices: part(indices), scores: part(scores) });
      }
    }
  };
}
export function joined(steps: readonly StepRecord[]): Omit<Outcome, "weights" | "leaked" | "choices" | "stateError"> {
  return {
    losses: steps.map(({ loss }) => loss),
    drops: steps.map(({ drops }) => drops),
    coefficients: steps.map(({ coefficients }) => coefficients),
    gradNorms: steps.map(({ gradNorm }) => gradNorm),
  };
}
export function wholeWeights(tensors: ReadonlyMap<string, WholeTensor>): Map<string, Float32Array> {
  const weights = [...tensors].filter(([name]) => !/\.(exp_avg|exp_avg_sq|master)$/.test(name));
  return new Map(
    weights.map(([name, tensor]) => {
      const count = tensor.shape.reduce((a, b) => a * b, 1);
      if (tensor.dtype === "bf16") {
        const halves = new Uint16Array(count);
        tensor.read(new Uint8Array(halves.buffer), 0);
        return [name, new Float32Array(Uint32Array.from(halves, (half) => half << 16).buffer)];
      }
      const values = new Float32Array(count);
      tensor.read(new Uint8Array(values.buffer), 0);
      return [name, values];
    }),
  );
}

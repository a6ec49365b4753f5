/** From a run's layout to its ranks: this rank's part of the model, made or loaded, and what it does together with the others. */
import { numRanks } from "../config/layout.ts";
import { fromHuggingFaceConfig } from "../config/model-huggingface.ts";
import type { ModelConfig } from "../config/model.ts";
import { layoutOf, type RunConfig } from "../config/run.ts";
import { Decoder, loadModel, openModelSource, type DecoderParts } from "../model/index.ts";
import type { Communicator } from "../parallel/communicator.ts";
import type { Recorder } from "../parallel/recorder.ts";
import type { Engine } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { MeshRanks } from "./parallel/mesh-ranks.ts";
import { AloneRanks, type TrainingRanks } from "./ranks.ts";

/** Where a run's model comes from: files, or (`path` null) fresh weights. */
export interface RunModel {
  readonly config: ModelConfig;
  readonly path: string | null;
}

/** The model of a checkpoint, or the one that the configuration names or describes. Loads nothing. */
export function modelSource(config: RunConfig, checkpoint: string | null): RunModel {
  const path = checkpoint ?? config.model.from ?? null;
  if (path === null) return { config: fromHuggingFaceConfig(config.model.config, "model.config"), path };
  using source = openModelSource(path);
  return { config: source.config, path };
}

/** Owns its models. */
export interface OpenRanks extends Disposable {
  readonly ranks: TrainingRanks;
}

export interface OpenRanksOptions {
  /** Null: this rank is alone. */
  readonly world: Communicator | null;
  readonly config: RunConfig;
  readonly source: RunModel;
  /** Notes the passes. */
  readonly recorder: Recorder;
}

/** Throws `configuration` where the layout is of another number of ranks than there are. */
export function openRanks(engine: Engine, { world, config, source, recorder }: OpenRanksOptions): OpenRanks {
  const { config: model, path } = source;
  const layout = layoutOf(config);
  const [expected, got] = [numRanks(layout), world?.size ?? 1];
  if (expected !== got) {
    const { pp, dp, tp } = layout;
    const advice = expected === 1 ? "give it one (--set layout.pp=...)" : `start as many (--ranks ${expected}, or mpirun -n ${expected})`;
    throw new MoeError(
      "configuration",
      `layout: pp ${pp} * dp ${dp} * tp ${tp} = ${expected} ranks, and ${got} ${got === 1 ? "is" : "are"} here: ${advice}`,
    );
  }
  const open = (part: DecoderParts = {}): Decoder => {
    if (path !== null) return loadModel(engine, path, { dtype: config.precision, mapped: false, ...part });
    return Decoder.initialize(engine, model, { dtype: config.precision, seed: config.seed, ...part });
  };
  if (world === null) {
    const decoder = open();
    return { ranks: new AloneRanks(decoder, config, recorder), [Symbol.dispose]: () => decoder[Symbol.dispose]() };
  }
  const ranks = new MeshRanks({ engine, world, config, layout, model, open: (layers, shard) => open({ layers, shard }), recorder });
  return { ranks, [Symbol.dispose]: () => ranks[Symbol.dispose]() };
}

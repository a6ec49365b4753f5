/**
 * A pipeline as the ranks of a run: each has one or more stages of the model, and all of every batch goes through all of them.
 *
 * Rank r has the stages s with s mod P = r. Results of stages are joined to those of the whole model; a tied embedding's gradients, of the
 * lookup on the first rank and of the product on the last, are added up, and the norm counts them once.
 */
import { numRanks, stagesOf, type Layout } from "../../config/layout.ts";
import type { ModelConfig } from "../../config/model.ts";
import type { RunConfig } from "../../config/run.ts";
import type { TokenBatch } from "../../data/dataset.ts";
import type { Batch, Decoder, WholeTensor } from "../../model/index.ts";
import type { Communicator } from "../../parallel/communicator.ts";
import { gatherValues } from "../../parallel/gather-values.ts";
import { runPipeline, type PipelineRun, type PipelineStage } from "../../parallel/pipeline.ts";
import type { Recorder } from "../../parallel/recorder.ts";
import type { Engine, Tensor } from "../../tensor/index.ts";
import { MoeError } from "../../util/errors.ts";
import type { Interval } from "../../util/partition.ts";
import type { PipelineOperation } from "../../util/pipeline-schedule.ts";
import { toModelBatch } from "../batch.ts";
import { noHooks, type StepExecutor } from "../executor.ts";
import type { MicroResult } from "../micro-step.ts";
import type { TrainingRanks } from "../ranks.ts";
import { stageSimilarity, type LayerSimilarity } from "../similarity.ts";
import { collectParts } from "./collect.ts";
import type { TensorPart } from "./parts.ts";
import { joinResults, openRankStages, PipelineExecutor, type RankStage } from "./pipeline.ts";

export interface PipelineRanksOptions {
  readonly engine: Engine;
  /** Of all ranks. All make this object alike. */
  readonly world: Communicator;
  readonly config: RunConfig;
  readonly layout: Layout;
  readonly model: ModelConfig;
  /** Layers of the model, as a decoder that trains. */
  readonly open: (layers: Interval) => Decoder;
  readonly recorder?: Recorder;
}

export class PipelineRanks implements TrainingRanks, Disposable {
  readonly rank: number;
  readonly size: number;
  readonly share = { index: 0, count: 1 };
  readonly hooks = noHooks;
  readonly models: readonly Decoder[];
  readonly executor: StepExecutor;
  readonly #engine: Engine;
  readonly #world: Communicator;
  readonly #stages: readonly RankStage[];
  /** The ranks of the first and the last stage, where both hold a tied embedding. */
  readonly #ends: Communicator | null;

  /** Throws `configuration` where the layout is no pipeline of these ranks. Owns the models. */
  constructor({ engine, world, config, layout, model, open, recorder }: PipelineRanksOptions) {
    if (layout.pp !== world.size || numRanks(layout) !== world.size)
      throw new MoeError("configuration", `layout: pp ${layout.pp}, dp ${layout.dp}, tp ${layout.tp} for ${world.size} ranks`);
    this.rank = world.rank;
    this.size = world.size;
    this.#engine = engine;
    this.#world = world;
    this.#stages = openRankStages(stagesOf(layout, model.numLayers, config.recomputeLayers), world, open);
    this.models = this.#stages.map((stage) => stage.model);
    this.executor = new PipelineExecutor({
      config,
      communicator: world,
      schedule: layout.schedule,
      stages: this.#stages,
      ...(recorder === undefined ? {} : { observe: observer(recorder) }),
    });
    this.#ends = model.tiedEmbeddings && world.size > 1 ? world.split([[0, world.size - 1]], "tied") : null;
  }

  gather<T>(value: T): T[] {
    return gatherValues(this.#engine, this.#world, value);
  }
  gatherResults(results: readonly MicroResult[]): readonly MicroResult[] {
    const all = this.gather(results);
    return results.map((_, microBatch) => joinResults(all.flatMap((of) => of[microBatch] ?? [])));
  }
  reduceGradients(): void {
    if (this.#ends === null) return;
    const table = this.models.map(({ parameters }) => parameters.get("embedding.weight")).find((tensor) => tensor !== undefined);
    const state = table?.parameter;
    if (table === undefined || state === null || state === undefined) throw new MoeError("internal", "pipeline: no tied embedding");
    state.grad ??= this.#engine.detached(table.shape, "f32");
    if (!state.gradIsSet) this.#engine.fillZero(state.grad);
    state.gradIsSet = true;
    this.#ends.allReduce(state.grad.ptr, state.grad.size, "f32");
  }
  counts(parameter: string): boolean {
    return this.#ends === null || this.rank === 0 || parameter !== "embedding.weight";
  }
  sum(value: number): number {
    return this.gather(value).reduce((a, b) => a + b, 0);
  }

  tokenLosses(batches: readonly TokenBatch[]): Float32Array[] {
    const losses: Float32Array[] = [];
    this.#forwardOnly(batches, (model, { batch, targets }, hidden) => {
      const options = hidden === null ? {} : { hidden };
      if (model.layers.end < model.config.numLayers) return model.forwardHidden(batch, options).hidden_TH;
      losses.push(model.loss(batch, targets, { scale: 1, ...options }).perToken.toFloat32Array());
      return null;
    });
    return this.gather(losses).at(-1) ?? [];
  }
  expertSimilarity(probe: TokenBatch): LayerSimilarity[] {
    const own: LayerSimilarity[] = [];
    this.#forwardOnly([probe], (model, { batch }, hidden) => {
      const { layers, hidden_TH } = stageSimilarity(model, batch, hidden ?? undefined);
      own.push(...layers);
      return model.layers.end < model.config.numLayers ? hidden_TH : null;
    });
    return this.gather(own)
      .flat()
      .toSorted((a, b) => a.layer - b.layer);
  }
  /** Passes batches through the stages, one after another, off any tape. */
  #forwardOnly(
    batches: readonly TokenBatch[],
    forward: (model: Decoder, batch: { readonly batch: Batch; readonly targets: Tensor }, hidden: Tensor | null) => Tensor | null,
  ): void {
    const engine = this.#engine;
    const [first] = this.models;
    if (first === undefined) return;
    const operations = batches.flatMap((_, microBatch) =>
      this.#stages.map(({ stage }): PipelineOperation => ({ kind: "forward", stage, microBatch })),
    );
    const stageOf = ({ model }: RankStage): PipelineStage => ({
      forward: (microBatch, hidden) => {
        const tokens = batches[microBatch];
        if (tokens === undefined) return null;
        return engine.withTape(null, () => engine.scope(() => forward(model, toModelBatch(engine, tokens), hidden)));
      },
      backward: () => null,
    });
    runPipeline({
      engine,
      communicator: this.#world,
      numStages: this.#stages.length * this.size,
      operations,
      stages: new Map(this.#stages.map((stage) => [stage.stage, stageOf(stage)])),
      hidden: (microBatch) => ({
        shape: [(batches[microBatch]?.numSequences ?? 0) * (batches[microBatch]?.sequenceLength ?? 0), first.config.hiddenSize],
        dtype: first.dtype,
      }),
    });
  }

  checkpoint<T>(parts: readonly TensorPart[], write: (tensors: ReadonlyMap<string, WholeTensor>) => T): T {
    const [written] = this.gather(collectParts(this.#engine, this.#world, parts, write));
    // Rank 0's, which is what `write` returned.
    return written as T;
  }
  [Symbol.dispose](): void {
    for (const model of this.models) model[Symbol.dispose]();
  }
}

/** Notes passes. Messages are the communicator's. */
function observer(recorder: Recorder): NonNullable<PipelineRun["observe"]> {
  return ({ kind, stage, microBatch }, run) =>
    kind === "send" || kind === "recv"
      ? run()
      : recorder.span({ name: `${kind} ${stage}.${microBatch}`, track: "compute", args: { stage, microBatch } }, run);
}

/**
 * All axes of a layout as the ranks of a run: pipeline stages, data-parallel replicas, tensor and expert parallelism. What each axis does is in files of its own
 * (`place.ts`, `rank-optimizer.ts`, `pipeline.ts`, `../../parallel/group.ts`); here they meet.
 *
 * A data-parallel replica runs its share of the micro-batches. What they measured is gathered from all ranks and put in the order of one rank's, so that
 * metrics, coefficients and selection biases are computed by the same code, on every rank alike.
 */
import { stagesOf, type Layout } from "../../config/layout.ts";
import type { ModelConfig } from "../../config/model.ts";
import type { RunConfig } from "../../config/run.ts";
import type { TokenBatch } from "../../data/dataset.ts";
import type { Batch, Decoder, ModelShard, WholeTensor } from "../../model/index.ts";
import type { AdamWOptions } from "../../optim/index.ts";
import type { Communicator, TrafficTable } from "../../parallel/communicator.ts";
import { gatherValues } from "../../parallel/gather-values.ts";
import { coordinatesOf } from "../../parallel/mesh.ts";
import { runPipeline, type PipelineRun, type PipelineStage } from "../../parallel/pipeline.ts";
import { copyTraffic, emptyTraffic, trafficSince } from "../../parallel/traffic.ts";
import type { Recorder } from "../../parallel/recorder.ts";
import type { Engine, Tensor } from "../../tensor/index.ts";
import { MoeError } from "../../util/errors.ts";
import { intervalLength, type Interval } from "../../util/partition.ts";
import type { PipelineOperation } from "../../util/pipeline-schedule.ts";
import { toModelBatch } from "../batch.ts";
import { SequentialExecutor, type StepExecutor } from "../executor.ts";
import type { MicroResult } from "../micro-step.ts";
import type { AxisTraffic, RanksReport, StepOptimizer, TrainingRanks } from "../ranks.ts";
import { stageSimilarity, type LayerSimilarity } from "../similarity.ts";
import { collectParts } from "./collect.ts";
import type { TensorPart } from "./parts.ts";
import { joinResults, openRankStages, PipelineExecutor, type RankStage } from "./pipeline.ts";
import { placeRank, type RankPlace } from "./place.ts";
import { RankOptimizer } from "./rank-optimizer.ts";

/** Layers of the model, in a rank's parts, as a decoder that trains. */
export type OpenPart = (layers: Interval, shard: ModelShard | null) => Decoder;

export interface MeshRanksOptions {
  readonly engine: Engine;
  /** Of all ranks. All make this object alike. */
  readonly world: Communicator;
  readonly config: RunConfig;
  readonly layout: Layout;
  readonly model: ModelConfig;
  readonly open: OpenPart;
  readonly recorder?: Recorder | undefined;
}

export class MeshRanks implements TrainingRanks, Disposable {
  readonly rank: number;
  readonly size: number;
  readonly share: { readonly index: number; readonly count: number };
  readonly models: readonly Decoder[];
  readonly executor: StepExecutor;
  readonly place: RankPlace;
  readonly #engine: Engine;
  readonly #world: Communicator;
  readonly #stages: readonly RankStage[];
  /** Traffic by axis at the last report. */
  readonly #reported = new Map<string, TrafficTable>();
  #optimizer: RankOptimizer | null = null;

  /** Owns the models. Throws `configuration` where the layout is for another number of ranks. */
  constructor({ engine, world, config, layout, model, open, recorder }: MeshRanksOptions) {
    this.rank = world.rank;
    this.size = world.size;
    this.#engine = engine;
    this.#world = world;
    this.place = placeRank(engine, world, layout, model);
    const { at, axes, shard } = this.place;
    this.share = { index: at.dp, count: layout.dp };
    this.#stages = openRankStages(stagesOf(layout, model.numLayers, config.recomputeLayers), axes.pp, (layers) => open(layers, shard));
    this.models = this.#stages.map((stage) => stage.model);
    const [first] = this.#stages;
    if (first === undefined) throw new MoeError("internal", `rank ${world.rank} has no stage`);
    this.executor =
      layout.pp === 1
        ? new SequentialExecutor(first.model, { ...config, recomputeLayers: first.recompute }, recorder)
        : new PipelineExecutor({
            config,
            communicator: axes.pp,
            schedule: layout.schedule,
            stages: this.#stages,
            hiddenRows: ({ tokens }) => this.#hiddenRows(tokens),
            ...(recorder === undefined ? {} : { observe: observer(recorder) }),
          });
  }
  /** Of hidden states between layers: all tokens, or this rank's under sequence parallelism. */
  #hiddenRows({ numSequences, sequenceLength }: Pick<TokenBatch, "numSequences" | "sequenceLength">): number {
    const numTokens = numSequences * sequenceLength;
    const { shard } = this.place;
    return shard?.group.sequenceParallel === true ? intervalLength(shard.group.ownRows(numTokens)) : numTokens;
  }

  makeOptimizer(options: AdamWOptions): StepOptimizer {
    this.#optimizer = new RankOptimizer(this.models, this.place, options);
    return this.#optimizer;
  }
  get hooks(): RankOptimizer {
    if (this.#optimizer === null) throw new MoeError("internal", "a step over ranks before there is an optimizer");
    return this.#optimizer;
  }
  elementsOf(parameter: string): Interval | undefined {
    return this.#optimizer?.elementsOf(parameter);
  }
  settle(): void {
    this.#optimizer?.finishGathers();
  }

  report(): RanksReport {
    const own = Object.entries(this.place.axes).flatMap(([axis, communicator]) => {
      const { traffic } = communicator;
      const since = trafficSince(traffic, this.#reported.get(axis) ?? emptyTraffic());
      this.#reported.set(axis, copyTraffic(traffic));
      const sum = (key: "sentBytes" | "seconds" | "flightSeconds"): number =>
        Object.values(since).reduce((total, operation) => total + operation[key], 0);
      return communicator.size === 1
        ? []
        : [{ axis, bytes: sum("sentBytes"), seconds: sum("seconds"), flightSeconds: sum("flightSeconds") }];
    });
    const all = this.gather({ own, peakBytes: this.#engine.backend.peakBytes });
    const traffic = Object.fromEntries(
      own.map(({ axis }): [string, AxisTraffic] => {
        const ranks = all.flatMap((of) => of.own.filter((one) => one.axis === axis));
        const most = (key: "seconds" | "flightSeconds"): number => Math.max(...ranks.map((one) => one[key]));
        return [
          axis,
          { bytes: ranks.reduce((sum, { bytes }) => sum + bytes, 0), seconds: most("seconds"), flightSeconds: most("flightSeconds") },
        ];
      }),
    );
    return { traffic, peakBytes: Math.max(...all.map((of) => of.peakBytes)) };
  }
  gather<T>(value: T): T[] {
    return gatherValues(this.#engine, this.#world, value);
  }
  gatherResults(results: readonly MicroResult[]): readonly MicroResult[] {
    return this.#ofReplicas(this.gather(results)).flatMap((stages) =>
      results.map((_, microBatch) => joinResults(stages.flatMap((of) => of[microBatch] ?? []))),
    );
  }
  /** What each rank gave, as what the stages of each data-parallel replica gave: tensor-parallel ranks give the same. */
  #ofReplicas<T>(perRank: readonly T[]): T[][] {
    const { layout } = this.place;
    return Array.from({ length: layout.dp }, (_, d) =>
      perRank.filter((__, rank) => {
        const at = coordinatesOf(rank, layout);
        return at.dp === d && at.tp === 0;
      }),
    );
  }

  tokenLosses(batches: readonly TokenBatch[]): Float32Array[] {
    const { index, count } = this.share;
    if (batches.length === 0) return [];
    // In turn; whoever has one less computes the last again, because exchanges of tokens need all.
    const rounds = Math.ceil(batches.length / count);
    const placeOf = (round: number, replica: number): number => Math.min(round * count + replica, batches.length - 1);
    const own = Array.from({ length: rounds }, (_, round) => placeOf(round, index)).flatMap((place) => batches[place] ?? []);
    const losses: Float32Array[] = [];
    this.#forwardOnly(own, (model, { batch, targets }, hidden) => {
      const options = hidden === null ? {} : { hidden };
      if (model.layers.end < model.config.numLayers) return model.forwardHidden(batch, options).hidden_TH;
      losses.push(model.loss(batch, targets, { scale: 1, ...options }).perToken.toFloat32Array());
      return null;
    });
    const replicas = this.#ofReplicas(this.gather(losses)).map((stages) => stages.at(-1) ?? []);
    return batches.map((_, place) => replicas[place % count]?.[Math.floor(place / count)] ?? new Float32Array());
  }
  expertSimilarity(probe: TokenBatch): LayerSimilarity[] {
    const { layout } = this.place;
    if (this.models.some(({ config }) => config.moe !== null) && layout.ep * layout.etp > 1)
      throw new MoeError(
        "unsupported",
        `moe.similarityInterval with experts over ep ${layout.ep} * etp ${layout.etp} ranks: no rank has all of them; set it to 0 and measure a checkpoint on one rank`,
      );
    const own: LayerSimilarity[] = [];
    this.#forwardOnly([probe], (model, { batch }, hidden) => {
      const { layers, hidden_TH } = stageSimilarity(model, batch, hidden ?? undefined);
      own.push(...layers);
      return model.layers.end < model.config.numLayers ? hidden_TH : null;
    });
    const [first = []] = this.#ofReplicas(this.gather(own));
    return first.flat().toSorted((a, b) => a.layer - b.layer);
  }
  /** Passes batches through the stages, one after another, off any tape. */
  #forwardOnly(
    batches: readonly TokenBatch[],
    forward: (model: Decoder, batch: { readonly batch: Batch; readonly targets: Tensor }, hidden: Tensor | null) => Tensor | null,
  ): void {
    this.settle();
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
    const { pp } = this.place.axes;
    runPipeline({
      engine,
      communicator: pp,
      numStages: this.#stages.length * pp.size,
      operations,
      stages: new Map(this.#stages.map((stage) => [stage.stage, stageOf(stage)])),
      hidden: (microBatch) => ({
        shape: [this.#hiddenRows(batches[microBatch] ?? { numSequences: 0, sequenceLength: 0 }), first.config.hiddenSize],
        dtype: first.dtype,
      }),
    });
  }

  checkpoint<T>(parts: readonly TensorPart[], write: (tensors: ReadonlyMap<string, WholeTensor>) => T): T {
    this.settle();
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

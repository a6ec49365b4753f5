/**
 * The stages of a pipeline rank as an executor of steps: micro-batches go through them in the order of the schedule, hidden states and their gradients
 * to and from other ranks. A micro-batch's activations are held from its forward to its backward pass in each stage, and no longer.
 *
 * Which layers a stage has, and how many of them it recomputes, are lists of the layout (`stagesOf`): embedding and head weigh as much as they
 * do, and stages that hold more micro-batches can recompute more.
 */
import type { Stage } from "../../config/layout.ts";
import type { RunConfig } from "../../config/run.ts";
import type { Decoder } from "../../model/index.ts";
import { runPipeline, type HiddenForm, type PipelineRun, type PipelineStage } from "../../parallel/pipeline.ts";
import type { Communicator } from "../../parallel/communicator.ts";
import type { Tensor } from "../../tensor/index.ts";
import { MoeError } from "../../util/errors.ts";
import { pipelineSchedule, rankOfStage, type PipelineScheduleName } from "../../util/pipeline-schedule.ts";
import { afterPasses, toldBy, type StepExecutor, type StepHooks } from "../executor.ts";
import { microForward, type MicroForward, type MicroResult, type MicroStepInput } from "../micro-step.ts";

/** A stage on its rank. */
export interface RankStage {
  /** 0 to pp * interleave - 1. */
  readonly stage: number;
  readonly model: Decoder;
  /** Layers, from its first, that are recomputed. */
  readonly recompute: number;
}

export interface PipelineExecutorOptions {
  readonly config: RunConfig;
  /** Of the pipeline's ranks. */
  readonly communicator: Communicator;
  readonly schedule: PipelineScheduleName;
  /** This rank's, ascending. */
  readonly stages: readonly RankStage[];
  /** Rows of hidden states of a micro-batch on this rank. Default: all its tokens. */
  readonly hiddenRows?: (input: MicroStepInput) => number;
  readonly observe?: PipelineRun["observe"];
}

export class PipelineExecutor implements StepExecutor {
  readonly #options: PipelineExecutorOptions;
  readonly #stagesPerRank: number;

  /** Throws `internal` for stages that are not this rank's. */
  constructor(options: PipelineExecutorOptions) {
    const { stages, communicator } = options;
    this.#options = options;
    this.#stagesPerRank = stages.length;
    const wrong = stages.find(({ stage }, i) => stage !== i * communicator.size + communicator.rank);
    if (wrong !== undefined || stages.length === 0)
      throw new MoeError(
        "internal",
        `pipeline: rank ${communicator.rank} of ${communicator.size} has the stages [${stages.map(({ stage }) => stage).join(", ")}]`,
      );
  }

  run(micro: readonly MicroStepInput[], hooks: StepHooks): MicroResult[] {
    const { config, communicator, schedule: name, stages, observe } = this.#options;
    const { size: numRanks, rank } = communicator;
    const [first] = stages;
    if (first === undefined || micro.length === 0) return [];
    const schedule = { name, numRanks, numMicroBatches: micro.length, stagesPerRank: this.#stagesPerRank };
    const running = stages.map((stage) => new RunningStage(stage, config, micro, hooks));
    try {
      runPipeline({
        engine: first.model.engine,
        communicator,
        numStages: numRanks * this.#stagesPerRank,
        operations: pipelineSchedule(schedule)[rank] ?? [],
        stages: new Map(running.map((stage) => [stage.number, stage])),
        hidden: (microBatch) => this.#hidden(inputOf(micro, microBatch), first.model),
        ...(observe === undefined ? {} : { observe }),
      });
      return micro.map((_, microBatch) => joinResults(running.map((stage) => stage.result(microBatch))));
    } finally {
      for (const stage of running) stage[Symbol.dispose]();
    }
  }
  #hidden(input: MicroStepInput, { config, dtype }: Decoder): HiddenForm {
    const { hiddenRows = ({ tokens }) => tokens.numSequences * tokens.sequenceLength } = this.#options;
    return { shape: [hiddenRows(input), config.hiddenSize], dtype };
  }
}

function inputOf(micro: readonly MicroStepInput[], microBatch: number): MicroStepInput {
  const input = micro[microBatch];
  if (input === undefined) throw new MoeError("internal", `pipeline: micro-batch ${microBatch} of ${micro.length}`);
  return input;
}

/** What stages, on one rank or on several, measured of one micro-batch: losses are 0 but for the last stage's, layers go in their order. */
export function joinResults(results: readonly MicroResult[]): MicroResult {
  const routing = results.flatMap((result) => result.routing).toSorted((a, b) => a.layer - b.layer);
  return { loss: results.reduce((sum, { loss }) => sum + loss, 0), routing };
}

/** A stage during a step. */
class RunningStage implements PipelineStage, Disposable {
  readonly #stage: RankStage;
  readonly #config: RunConfig;
  readonly #micro: readonly MicroStepInput[];
  readonly #hooks: StepHooks;
  readonly #held = new Map<number, MicroForward>();
  readonly #results: MicroResult[] = [];
  #numBackward = 0;

  constructor(stage: RankStage, config: RunConfig, micro: readonly MicroStepInput[], hooks: StepHooks) {
    this.#stage = stage;
    this.#config = config;
    this.#micro = micro;
    this.#hooks = hooks;
  }
  get number(): number {
    return this.#stage.stage;
  }

  forward(microBatch: number, hidden: Tensor | null): Tensor | null {
    const { model, recompute } = this.#stage;
    const last = this.#micro.length - 1;
    const told = toldBy(this.#hooks, { isFirst: this.#results.length === 0, isLast: () => this.#numBackward === last });
    const input = { ...inputOf(this.#micro, microBatch), recomputeLayers: recompute, ...told };
    const forward = microForward(model, this.#config, hidden === null ? input : { ...input, hidden });
    this.#held.set(microBatch, forward);
    this.#results[microBatch] = forward.result;
    return forward.hidden;
  }

  backward(microBatch: number, hiddenGrad: Tensor | null): Tensor | null {
    const forward = this.#held.get(microBatch);
    if (forward === undefined) throw new MoeError("internal", `pipeline: backward of micro-batch ${microBatch} before its forward pass`);
    this.#held.delete(microBatch);
    using _ = forward;
    const grad = forward.backward(hiddenGrad);
    if (++this.#numBackward === this.#micro.length) afterPasses(this.#stage.model, this.#hooks);
    return grad;
  }

  result(microBatch: number): MicroResult {
    const result = this.#results[microBatch];
    if (result === undefined) throw new MoeError("internal", `pipeline: no result of micro-batch ${microBatch}`);
    return result;
  }
  [Symbol.dispose](): void {
    for (const forward of this.#held.values()) forward[Symbol.dispose]();
    this.#held.clear();
  }
}

/** The stages of one pipeline rank, made by `open` from their layers. An error disposes those already made. */
export function openRankStages(
  stages: readonly Stage[],
  { rank, size }: Pick<Communicator, "rank" | "size">,
  open: (layers: { readonly start: number; readonly end: number }) => Decoder,
): RankStage[] {
  const opened: RankStage[] = [];
  try {
    for (const [stage, { firstLayer, numLayers, recompute }] of stages.entries()) {
      if (rankOfStage(stage, size) !== rank) continue;
      opened.push({ stage, recompute, model: open({ start: firstLayer, end: firstLayer + numLayers }) });
    }
    return opened;
  } catch (error) {
    for (const { model } of opened) model[Symbol.dispose]();
    throw error;
  }
}

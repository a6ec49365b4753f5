/**
 * The ranks of a run as its trainer sees them: which models this one has, who runs the passes of a step, and what is put together from all ranks. Every rank
 * runs the same trainer; what comes back from here is the same on each, so they take the same decisions without asking.
 *
 * `AloneRanks`: one rank with the whole model. Others: `parallel/`.
 */
import type { RunConfig } from "../config/run.ts";
import type { TokenBatch } from "../data/dataset.ts";
import type { Decoder, WholeTensor } from "../model/index.ts";
import { AdamW, type AdamWOptions, type AdamWState, type StepResult } from "../optim/index.ts";
import type { Recorder } from "../parallel/recorder.ts";
import { noHooks, SequentialExecutor, type StepExecutor, type StepHooks } from "./executor.ts";
import { tokenLosses } from "./evaluate.ts";
import type { MicroResult } from "./micro-step.ts";
import { wholeTensors, type TensorPart } from "./parallel/parts.ts";
import type { Interval } from "../util/partition.ts";
import { expertSimilarity, type LayerSimilarity } from "./similarity.ts";

/** An optimizer as the trainer uses it: what ranks do together is inside. */
export interface StepOptimizer extends Disposable {
  /** Updates made so far. */
  readonly numSteps: number;
  /** One update from the gradients that the passes left; the norm is the whole model's. One that is not finite changes nothing. */
  step(options: { readonly learningRate: number; readonly maxGradNorm: number | null }): StepResult;
  zeroGrad(): void;
  firstNonFinite(): string | null;
  state(): AdamWState;
  loadState(state: AdamWState): void;
}

/** Of one axis of the layout (docs/design/parallel.md). */
export interface AxisTraffic {
  /** That left their rank, of all ranks together. */
  readonly bytes: number;
  /** Inside calls, of the rank that was there longest: what communication cost. */
  readonly seconds: number;
  /** From start to end of operations, of the same kind: more than `seconds` where they overlap computation. */
  readonly flightSeconds: number;
}
export interface RanksReport {
  readonly traffic: Readonly<Record<string, AxisTraffic>>;
  readonly peakBytes: number;
}

export interface TrainingRanks {
  readonly rank: number;
  readonly size: number;
  /** What this rank has of the model: all of it, its stages, its parts. */
  readonly models: readonly Decoder[];
  /** Of the micro-batches of a step, this rank runs the `index`-th of `count` equal runs. */
  readonly share: { readonly index: number; readonly count: number };
  readonly executor: StepExecutor;
  readonly hooks: StepHooks;
  /** What every rank gave, in rank order. */
  gather<T>(value: T): T[];
  /** From this rank's results of its micro-batches to those of the global batch in its order, with all layers. */
  gatherResults(results: readonly MicroResult[]): readonly MicroResult[];
  /** AdamW over what this rank has. To be made once, before the first step; the caller disposes it. */
  makeOptimizer(options: AdamWOptions): StepOptimizer;
  /** Elements of this rank's part of a parameter that its optimizer has a state of; undefined: all. */
  elementsOf(parameter: string): Interval | undefined;
  /** Waits for whatever of the last step is still under way: before weights are read. */
  settle(): void;
  /** What ranks sent each other since the last call, of all ranks, and the most bytes that any had handed out; null: there is one rank. */
  report(): RanksReport | null;
  /** Cross-entropy of each token of each batch, 0 where it bears no loss; dropless, off any tape. */
  tokenLosses(batches: readonly TokenBatch[]): Float32Array[];
  /** Of all layers with experts. */
  expertSimilarity(probe: TokenBatch): LayerSimilarity[];
  /** On rank 0, calls `write` with all tensors of the checkpoint; returns what it returned, on every rank. `parts`: this rank's. */
  checkpoint<T>(parts: readonly TensorPart[], write: (tensors: ReadonlyMap<string, WholeTensor>) => T): T;
}

/** One rank that has everything. */
export class AloneRanks implements TrainingRanks {
  readonly rank = 0;
  readonly size = 1;
  readonly share = { index: 0, count: 1 };
  readonly hooks = noHooks;
  readonly models: readonly Decoder[];
  readonly executor: StepExecutor;
  readonly #model: Decoder;

  constructor(model: Decoder, config: RunConfig, recorder?: Recorder) {
    this.#model = model;
    this.models = [model];
    this.executor = new SequentialExecutor(model, config, recorder);
  }
  gather<T>(value: T): T[] {
    return [value];
  }
  gatherResults(results: readonly MicroResult[]): readonly MicroResult[] {
    return results;
  }
  makeOptimizer(options: AdamWOptions): StepOptimizer {
    return new AdamW(this.#model.engine, this.#model.parameters.values(), options);
  }
  elementsOf(): undefined {
    return undefined;
  }
  settle(): void {}
  report(): null {
    return null;
  }
  tokenLosses(batches: readonly TokenBatch[]): Float32Array[] {
    return batches.map((batch) => tokenLosses(this.#model, batch));
  }
  expertSimilarity(probe: TokenBatch): LayerSimilarity[] {
    return expertSimilarity(this.#model, probe);
  }
  checkpoint<T>(parts: readonly TensorPart[], write: (tensors: ReadonlyMap<string, WholeTensor>) => T): T {
    return write(wholeTensors(parts));
  }
}

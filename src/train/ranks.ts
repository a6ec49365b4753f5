/**
 * The ranks of a run as its trainer sees them: which models this one has, who runs the passes of a step, and what is put together from all ranks. Every rank
 * runs the same trainer; what comes back from here is the same on each, so they take the same decisions without asking.
 *
 * `AloneRanks`: one rank with the whole model. Others: `parallel/`.
 */
import type { RunConfig } from "../config/run.ts";
import type { TokenBatch } from "../data/dataset.ts";
import type { Decoder, WholeTensor } from "../model/index.ts";
import type { Recorder } from "../parallel/recorder.ts";
import { noHooks, SequentialExecutor, type StepExecutor, type StepHooks } from "./executor.ts";
import { tokenLosses } from "./evaluate.ts";
import type { MicroResult } from "./micro-step.ts";
import { wholeTensors, type TensorPart } from "./parallel/parts.ts";
import { expertSimilarity, type LayerSimilarity } from "./similarity.ts";

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
  /** After the passes: every holder of a parameter gets the gradient of the global batch. */
  reduceGradients(): void;
  /** Whether this rank counts a parameter's gradient in the norm: of every element, one rank does. */
  counts(parameter: string): boolean;
  /** Sum over ranks, in rank order. */
  sum(value: number): number;
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
  reduceGradients(): void {}
  counts(): boolean {
    return true;
  }
  sum(value: number): number {
    return value;
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

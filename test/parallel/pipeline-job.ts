/** What the pipeline tests run, on one rank and on many. */
import type { LayoutInput } from "../../src/config/layout.ts";
import type { RunConfig, RunConfigInput } from "../../src/config/run.ts";
import type { Dataset } from "../../src/data/index.ts";
import type { ModelDType } from "../../src/model/index.ts";
import type { MicroResult, MicroStepInput } from "../../src/train/micro-step.ts";

export interface PipelineJob {
  readonly model: Record<string, unknown>;
  readonly run: RunConfigInput;
  readonly layout: LayoutInput;
  readonly dtype: ModelDType;
  readonly tokens: string;
  /** Stage whose forward pass of micro-batch 1 throws. */
  readonly failing?: number;
}
export interface PipelineOutcome {
  readonly results: readonly MicroResult[];
  readonly gradients: readonly (readonly [stage: number, name: string, values: Float32Array])[];
  readonly operations: readonly string[];
  readonly liveAfterStep: number;
  readonly leaked: number;
}

/** Micro-batches of one step. */
export function microInputs(data: Dataset, run: RunConfig, numCoefficients: number): MicroStepInput[] {
  const { batchSequences, microBatchSequences } = run;
  const micro = Array.from({ length: batchSequences / microBatchSequences }, (_, i) => {
    const firstSequence = i * microBatchSequences;
    return { firstSequence, tokens: data.batch(firstSequence, microBatchSequences) };
  });
  const numTargets = micro.reduce((n, { tokens }) => n + tokens.numTargets, 0);
  const coefficients = Array.from({ length: numCoefficients }, (_, i) => 0.01 * (i + 1));
  return micro.map((part) => ({ ...part, step: 5, scale: 1 / numTargets, coefficients }));
}

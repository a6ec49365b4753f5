/** What the lab of expert strategies runs. */
import { plainRouting, type ModelConfig } from "../../../src/config/model.ts";
import { modelPresets } from "../../../src/config/model-presets.ts";
import { parseRunConfig, type RunConfig } from "../../../src/config/run.ts";
import type { LayoutInput } from "../../../src/config/layout.ts";
import type { LinkEmulation } from "../../../src/parallel/index.ts";

/** Everything divides by four ranks, so that closed forms are short. `tiny` is for tests, which look at bytes only. */
function modelOf(hiddenSize: number, numLayers: number): ModelConfig {
  return {
    ...modelPresets["mixtral-8x7b"],
    vocabSize: 512,
    hiddenSize,
    ffnSize: 2 * hiddenSize,
    numLayers,
    numHeads: 8,
    numKvHeads: 4,
    headDim: hiddenSize / 8,
    maxPositions: 128,
    initStd: 0.05,
    moe: { ...plainRouting, numExperts: 8, topK: 2, expertFfnSize: 2 * hiddenSize },
  };
}
export const sizes = {
  tiny: { model: modelOf(32, 2), sequenceLength: 16 },
  small: { model: modelOf(256, 4), sequenceLength: 128 },
} as const;
export type LabSize = keyof typeof sizes;

export interface LabRun {
  readonly name: string;
  readonly size: LabSize;
  readonly layout: LayoutInput;
  readonly numSteps: number;
  /** Of the axis over which tokens are exchanged. */
  readonly link: LinkEmulation | null;
  /** A Chrome trace of the last step goes here. */
  readonly traceFile?: string;
}
export interface LabResult {
  readonly name: string;
  /** Of the last step: operands of all ranks, by axis. */
  readonly bytes: Readonly<Record<string, number>>;
  /** Of the last step: seconds inside calls, of the rank that was there longest. */
  readonly seconds: Readonly<Record<string, number>>;
  /** Median of the steps after the first. */
  readonly stepSeconds: number;
  readonly losses: readonly number[];
}

/** 16 sequences a step, micro-batches of 4, balance groups of 2. */
export function runOf({ layout, numSteps, size }: Pick<LabRun, "layout" | "numSteps" | "size">): RunConfig {
  const { sequenceLength } = sizes[size];
  return parseRunConfig({
    model: { config: {} },
    data: { train: [{ path: "made up" }], sequenceLength },
    batchSequences: 16,
    microBatchSequences: 4,
    numSteps,
    optimizer: { learningRate: 1e-3 },
    moe: { balanceGroupSequences: 2 },
    layout,
  });
}

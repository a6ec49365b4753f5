/**
 * The lab's runs as data: what the Skywork-MoE report (arXiv 2406.06563) tried, in small. One text (State of the Union addresses), one
 * tokenizer, models of one to three million active parameters, every run with three seeds.
 *
 * A run may start from another run's checkpoint: `from` says from whose and at which step, and whether it is upcycled on the way.
 *
 * Not here: how runs are executed (`run.ts`) and what is concluded (`claims.ts`).
 */
import { toHuggingFaceConfig } from "../../src/config/model-huggingface.ts";
import { modelPresets } from "../../src/config/model-presets.ts";
import { plainRouting, type ModelConfig } from "../../src/config/model.ts";
import type { RunConfigInput } from "../../src/config/run.ts";

export const seeds = [1, 2, 3] as const;
export const numSteps = 512;
/** A third of the dense run: the report's "100B" beside its "300B". */
export const earlyStep = 170;
export const batchSequences = 16;
export const sequenceLength = 128;
export const evaluationInterval = 32;
const topK = 2;
const peak = 4e-3;
const finalFraction = 0.1;

const dense: ModelConfig = {
  ...modelPresets.quickstart,
  hiddenSize: 96,
  ffnSize: 256,
  numHeads: 3,
  numKvHeads: 3,
  maxPositions: 256,
};

/** Every token uses two experts of the dense network's width. */
function withExperts(numExperts: number, lambda: number | null): ModelConfig {
  return {
    ...dense,
    architecture: "skywork_moe",
    moe: {
      ...plainRouting,
      numExperts,
      topK,
      expertFfnSize: dense.ffnSize,
      gateNormalization: lambda === null ? null : { lambda, eps: 1e-6, unbiased: true },
    },
  };
}
/** As many active parameters as the models with experts. */
const denseEqual: ModelConfig = { ...dense, ffnSize: topK * dense.ffnSize };
/**
 * Three times as many, embedding aside: 2.36 against 0.74 million. Wider in its feed-forward network only, so that the learning rate and the initial
 * weights fit as well as those of the others: one of hidden size 160 stayed above the small models (4.19) at every rate from 1e-3 to 8e-3.
 */
const denseThreefold: ModelConfig = { ...dense, ffnSize: 1920 };

export interface Origin {
  readonly run: string;
  /** Checkpoint of that run; null: its last. */
  readonly step: number | null;
  /** Experts that the dense checkpoint gets. */
  readonly numExperts: number;
}
export interface Experiment {
  readonly name: string;
  /** As the report shows it. */
  readonly label: string;
  readonly model: ModelConfig | Origin;
  readonly learningRate: number;
  readonly schedule: NonNullable<RunConfigInput["schedule"]>;
  readonly moe?: NonNullable<RunConfigInput["moe"]>;
  /** Steps between checkpoints that others start from; 0: only the last. */
  readonly checkpointInterval?: number;
}

const cosine = { name: "cosine", warmupSteps: 20, finalFraction } as const;
/** The rate that the dense run has at a step, and thus the one its checkpoint of that step was trained at. */
export function cosineRateAt(step: number): number {
  const progress = (step - cosine.warmupSteps) / (numSteps - cosine.warmupSteps);
  return peak * (finalFraction + (1 - finalFraction) * 0.5 * (1 + Math.cos(Math.PI * progress)));
}
/** A quarter more than its fair share, as is usual; the report does not say. */
const dropping = { capacityFactor: 1.25, similarityInterval: evaluationInterval } as const;
const fixed = (value: number): Experiment["moe"] => ({ ...dropping, auxiliaryLossCoefficient: value });
/**
 * The paper's coefficients (at most 0.01) hardly balance models of this size: tried for 128 steps, 0.01 leaves drop rates of 0.2 to 0.4, 1 gets
 * 0.01 to 0.08, 10 costs loss. So runs that are not about the coefficient take 1, and the coefficient is tried in the paper's scale and in ours.
 */
const balancing = 1;
const adaptive: Experiment["moe"] = { ...dropping, auxiliaryLossCoefficient: { type: "adaptive" } };
/** xi and alphaMax a hundred times the paper's: the cap is reached at the same drop rate of 5%. */
const adaptiveScaled: Experiment["moe"] = {
  ...dropping,
  auxiliaryLossCoefficient: { type: "adaptive", xi: 20 * balancing, alphaMax: balancing },
};

function fromScratch(name: string, label: string, model: ModelConfig, moe: Experiment["moe"]): Experiment {
  return { name, label, model, learningRate: peak, schedule: cosine, ...(moe && { moe }) };
}
function upcycled(name: string, label: string, step: number | null, learningRate: number, schedule: Experiment["schedule"]): Experiment {
  return { name, label, model: { run: "dense", step, numExperts: 8 }, learningRate, schedule, moe: { ...fixed(balancing) } };
}

/** In an order in which what a run starts from comes before it. */
export const experiments: readonly Experiment[] = [
  { ...fromScratch("dense", "dense (what is upcycled)", dense, undefined), checkpointInterval: earlyStep },
  fromScratch("lambda-none", "no normalization", withExperts(16, null), fixed(balancing)),
  fromScratch("lambda-0.5", "lambda 0.5", withExperts(16, 0.5), fixed(balancing)),
  fromScratch("lambda-1", "lambda 1", withExperts(16, 1), fixed(balancing)),
  fromScratch("lambda-2", "lambda 2", withExperts(16, 2), fixed(balancing)),
  fromScratch("fixed-1e-2", "fixed 1e-2", withExperts(16, 1), fixed(1e-2)),
  fromScratch("fixed-1e-3", "fixed 1e-3", withExperts(16, 1), fixed(1e-3)),
  fromScratch("adaptive", "adaptive, at most 0.01", withExperts(16, 1), adaptive),
  fromScratch("fixed-0.1", "fixed 0.1", withExperts(16, 1), fixed(balancing / 10)),
  fromScratch("adaptive-scaled", "adaptive, at most 1", withExperts(16, 1), adaptiveScaled),
  fromScratch("scratch", "from scratch", withExperts(8, 1), fixed(balancing)),
  upcycled("early", "from the early checkpoint", earlyStep, cosineRateAt(earlyStep), {
    name: "cosine",
    warmupSteps: 0,
    finalFraction: (peak * finalFraction) / cosineRateAt(earlyStep),
  }),
  upcycled("late-constant", "from the last checkpoint, constant low rate", null, peak * finalFraction, {
    name: "constant",
    warmupSteps: 0,
  }),
  upcycled("late-rewarmed", "from the last checkpoint, re-warmed", null, peak, cosine),
  fromScratch("dense-equal", "dense, equal active parameters", denseEqual, undefined),
  fromScratch("dense-threefold", "dense, three times as many", denseThreefold, undefined),
];

/** The run's complete configuration. `model.from` of an upcycled run is the folder that `run.ts` upcycled into. */
export function runConfigOf(
  experiment: Experiment,
  { seed, from, dataFolder, tokenizer }: { seed: number; from: string | null; dataFolder: string; tokenizer: string },
): RunConfigInput {
  const { model, learningRate, schedule, moe, checkpointInterval = 0 } = experiment;
  return {
    model: "run" in model ? { from: from ?? "" } : { config: toHuggingFaceConfig(model, "float32") },
    tokenizer,
    data: {
      train: [{ path: `${dataFolder}/train.jsonl` }],
      validation: { validation: [{ path: `${dataFolder}/validation.jsonl` }] },
      sequenceLength,
      cacheDir: dataFolder,
    },
    batchSequences,
    numSteps,
    seed,
    optimizer: { learningRate },
    schedule,
    ...(moe && { moe }),
    evaluation: { intervalSteps: evaluationInterval, maxSequences: 96 },
    checkpoint: { intervalSteps: checkpointInterval, keep: 4 },
  };
}

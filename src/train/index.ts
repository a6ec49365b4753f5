/** Training runs. */
export { listCheckpoints, readCheckpointState, type CheckpointState, type TrainingState } from "./checkpoint.ts";
export { evaluate, type Evaluation } from "./evaluate.ts";
export { describeMfu, measurePeakFlops } from "./peak.ts";
export { readRunConfig } from "./run-folder.ts";
export { rankTimeoutMs, trainOnRanks, type TrainRanksOptions } from "./train-ranks.ts";
export { train, type TrainEvent, type TrainOptions, type TrainResult } from "./run.ts";
export type { LayerMetrics } from "./routing.ts";
export type { SampleRecord } from "./samples.ts";
export { expertSimilarity, type LayerSimilarity, type Similarity } from "./similarity.ts";
export { Trainer, type StepMetrics, type TrainerOptions } from "./trainer.ts";

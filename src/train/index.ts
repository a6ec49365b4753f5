/** Training runs. */
export { listCheckpoints, readCheckpointState, type CheckpointState, type TrainingState } from "./checkpoint.ts";
export { evaluate, type Evaluation } from "./evaluate.ts";
export { describeMfu, measurePeakFlops } from "./peak.ts";
export { readRunConfig } from "./run-folder.ts";
export { train, type TrainEvent, type TrainOptions, type TrainResult } from "./run.ts";
export { Trainer, type LayerMetrics, type StepMetrics } from "./trainer.ts";

/** Training runs. */
export { listCheckpoints, readCheckpointState, type TrainingState } from "./checkpoint.ts";
export { evaluate, type Evaluation } from "./evaluate.ts";
export { measurePeakFlops } from "./peak.ts";
export { readRunConfig, train, type TrainEvent, type TrainOptions, type TrainResult } from "./run.ts";
export { Trainer, type LayerMetrics, type StepMetrics } from "./trainer.ts";

/** The planner: what a layout costs, which is best, how a step goes, and what to tell the programs that run it. */
export { calibrateCluster, type CalibrateClusterOptions, type CalibrationReport } from "./calibrate.ts";
export { createCostModel } from "./cost.ts";
export { isFeasible, LayoutEvaluation, type EvaluatedLayout, type InfeasibleLayout } from "./evaluate.ts";
export { gibibytes } from "./excess.ts";
export { flagScaleConfig, megatronArguments, trainingLayout, type ExportContext, type ExportedPlan } from "./export.ts";
export { layoutsOf, type FixedLayout } from "./layouts.ts";
export { parseMeasurements, type Measurement } from "./measurements.ts";
export { megatronLayout, parseMegatronLayout, type MegatronStage } from "./megatron.ts";
export { planPage, type PlanPage } from "./page.ts";
export { partitionLayers, type LayerPartition, type PartitionProblem, type StageCandidate } from "./partition.ts";
export {
  describeDevices,
  objectives,
  planTraining,
  type DeviceCount,
  type LayoutSummary,
  type Objective,
  type PlanReport,
  type PlanRequest,
  type PlanResult,
  type PlanSummary,
  type RunEstimate,
  type RunnerUp,
} from "./plan.ts";
export { describeLayout, lossesOf, searchLayouts, type SearchOptions, type SearchResult } from "./search.ts";
export { gptShape, shapeOf } from "./shape.ts";
export { planServing, type BatchEstimate, type ServingReport, type ServingRequest } from "./serving.ts";
export { softwarePresets, type SoftwareName } from "./software.ts";
export { simulateStep, type SimulatedStep, type SimulationOptions, type StageSeconds, type TimelineEntry } from "./simulate.ts";
export type { StepTerms } from "./step-terms.ts";
export { chromeTrace } from "./trace.ts";
export type { CostModel, LayerCost, ModelShape, PlanLayout, Recompute, Software, StageMemory, StagePlan, Workload } from "./types.ts";

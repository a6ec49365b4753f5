/**
 * The public interface of the package: what the command does, a program can do.
 *
 * ```ts
 * import { Engine, loadBackend, loadModel, loadTokenizer, generateText } from "moe.ts";
 *
 * using engine = new Engine(await loadBackend());
 * using model = loadModel(engine, "models/SmolLM2");
 * const tokenizer = await loadTokenizer("models/SmolLM2");
 * console.log(generateText(model, tokenizer, "Hello", { maxTokens: 20 }).text);
 * ```
 *
 * Errors that a caller can act on are `MoeError`, with a `kind`.
 */
export type { Backend, BackendName } from "../backend/backend.ts";
export { diagnose, type DoctorReport } from "../backend/doctor.ts";
export { chooseEngine, describeEngine, loadBackend, type BackendOptions } from "../backend/load.ts";
export { pullModel } from "../checkpoint/hub.ts";
export { copyTokenizer, loadTokenizer, writeTokenizerFiles } from "../checkpoint/tokenizer.ts";
export { findClusterPreset, parseClusterConfig, withNumDevices, type ClusterConfig } from "../config/cluster.ts";
export { flopsPerToken, kvBytesPerToken, numActiveParams, numParams } from "../config/model-counts.ts";
export { fromHuggingFaceConfig, toHuggingFaceConfig } from "../config/model-huggingface.ts";
export { modelPresets, type ModelPresetName } from "../config/model-presets.ts";
export { parseModelConfig, type ModelConfig, type MoeConfig } from "../config/model.ts";
export { applySettings, parseRunConfig, type RunConfig, type RunConfigInput } from "../config/run.ts";
export { Dataset, prepareTokens, readDocuments, TokenFile, type DocumentSource, type TokenBatch } from "../data/index.ts";
export { evaluateTasks, writeEvaluation, type EvalResults, type EvaluateOptions, type Evaluation } from "../eval/index.ts";
export { generateIds, generateText, sampleToken, type GenerateOptions, type Generation, type SamplingOptions } from "../generate/index.ts";
export {
  batchOfDocuments,
  Decoder,
  exportModel,
  inspectModel,
  KvCache,
  loadModel,
  openModelSource,
  saveModel,
  type Batch,
  type LoadOptions,
  type ModelDType,
  type ModelReport,
} from "../model/index.ts";
export {
  compareRouting,
  selectionScores,
  type ChosenExperts,
  type Routing,
  type RoutingComparison,
  type RoutingContext,
  type RoutingFlip,
} from "../nn/index.ts";
export { AdamW, learningRateAt, parseSchedule, type Schedule } from "../optim/index.ts";
export {
  planServing,
  planTraining,
  type PlanReport,
  type PlanRequest,
  type PlanResult,
  type PlanSummary,
  type ServingReport,
  type ServingRequest,
} from "../plan/index.ts";
export { quickstart, type QuickstartSummary } from "../quickstart/index.ts";
export { ServingEngine, type GenerationEvent, type GenerationRequest, type ServingOptions, type ServingStats } from "../serve/index.ts";
export { makeLog, startServer, type RunningServer, type ServeOptions } from "../server/index.ts";
export { Engine, Tape, Tensor } from "../tensor/index.ts";
export { encodeChat, renderChat, type ChatMessage } from "../tokenizer/chat.ts";
export type { Tokenizer } from "../tokenizer/tokenizer.ts";
export { trainByteBpe } from "../tokenizer/train.ts";
export {
  evaluate,
  expertSimilarity,
  readRunConfig,
  train,
  Trainer,
  type LayerMetrics,
  type LayerSimilarity,
  type StepMetrics,
  type TrainEvent,
  type TrainResult,
} from "../train/index.ts";
export {
  costRule,
  expectedMemory,
  parseUpcycleOptions,
  probeUpcycled,
  promptRouterRows,
  upcycle,
  upcycledConfig,
  upcycleGap,
  upcyclePairs,
  type Pair,
  type Probe,
  type UpcycleExtras,
  type UpcycleOptions,
  type UpcycleReceipt,
} from "../upcycle/index.ts";
export { MoeError, type ErrorKind } from "../util/errors.ts";

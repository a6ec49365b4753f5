/** The decoder, its parameters, its caches, and models in and out of folders. */
export { batchOfDocuments, type Batch } from "./batch.ts";
export {
  Decoder,
  decoderSpecs,
  type DecoderCache,
  type DecoderParts,
  type ForwardOptions,
  type HiddenOutput,
  type InitializeOptions,
  type LayerRouting,
  type LossOptions,
  type LossOutput,
} from "./decoder.ts";
export { inspectModel, type ModelReport, type TensorInfo } from "./inspect.ts";
export { cacheDtypes, KvCache, type CacheDType, type CacheEntry, type KvCacheOptions } from "./kv-cache.ts";
export { blockTokens, PagedCache, type PagedCacheOptions, type PagedEntry, type PagedSequence } from "./paged-cache.ts";
export { exportModel, type ExportOptions, type ExportReport, type GgufExportType } from "./export.ts";
export { activationChoices, loadModel, loadParameters, type ActivationChoice, type LoadOptions } from "./load.ts";
export { huggingFacePieces, type ExpertLayout, type Piece } from "./names.ts";
export {
  asParameter,
  initialParameters,
  parameterSpecs,
  totalElements,
  writeElements,
  type ModelDType,
  type ParameterSpec,
} from "./parameters.ts";
export { quantizeModel, type QuantizedTensor, type QuantizeOptions, type QuantizeReport } from "./quantize.ts";
export { compareOutputs, perplexityOf, suggestions, type LayerError, type OutputErrors } from "./quantize-report.ts";
export { generationConfig, saveModel, saveWholeModel, wholeTensor, type SaveOptions, type WholeModel, type WholeTensor } from "./save.ts";
export { isFirstSpan, isLastSpan, spanSpecs, wholeSpan } from "./span.ts";
export { shardSpecs, type ModelShard } from "./shard.ts";
export { openModelSource, readConfigJson, type ModelSource, type RawTensor } from "./source.ts";

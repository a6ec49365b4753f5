/** Tensors, the autograd tape and the ops: everything that layers are written with. */
export { Engine, type OpenScope } from "./engine.ts";
export { Tape, recompute, recomputeMany, type GradTarget } from "./tape.ts";
export { numElements, Storage, Tensor, type ParameterState, type Shape, type WeightScales } from "./tensor.ts";
export { attention, type AttentionOptions } from "./ops/attention.ts";
export { attentionSegments, type AttentionSegment } from "./ops/attention-segments.ts";
export {
  balanceLoss,
  routerStatistics,
  sequenceLoss,
  switchLoss,
  zLoss,
  type BalanceOptions,
  type RouterStatistics,
} from "./ops/balance.ts";
export { defaultChunkRows, linearCrossEntropy, type LinearCrossEntropyOptions, type LossChunk } from "./ops/cross-entropy.ts";
export { combine, dispatch, planDispatch, type Dispatched, type DispatchOptions } from "./ops/dispatch.ts";
export { add, castTo, scale } from "./ops/elementwise.ts";
export { embedding } from "./ops/embedding.ts";
export { jitter, sigmoidGate, tanh, type JitterOptions } from "./ops/gate.ts";
export { groupedLinear, linear, linearMany, type LinearOperand } from "./ops/linear.ts";
export { rmsNorm } from "./ops/norm.ts";
export { makeRopeTable, ropeInPlace } from "./ops/rope.ts";
export {
  router,
  type ExpertGroups,
  type LogitNormalization,
  type RouterOptions,
  type RouterOutput,
  type RouterScoring,
} from "./ops/router.ts";
export { columns, concatColumns, nothingOf, onBackward, repeatColumns, takeRows } from "./ops/rows.ts";
export { swiglu } from "./ops/swiglu.ts";

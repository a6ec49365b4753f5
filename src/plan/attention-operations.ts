/**
 * What a device runs for the attention half of a layer: norm, projections, attention itself, output projection, residual.
 *
 * Letters: T tokens, H hidden size, Q and C columns of the rank's queries and keys, B the rank's heads times sequences, S sequence
 * length, D head size, e bytes of an element. Counts of bytes are reads plus writes of each operation as PyTorch programs of Megatron's
 * kind run them; launches beyond one an operation stand for what Python and autograd do there.
 */
import { peakFlops } from "./device-time.ts";
import type { Pass } from "./pass.ts";
import type { OperationContext } from "./operations.ts";

/** Products of fused attention's backward pass, forwards being 2: scores again, dV, dP, dQ, dK. */
const flashBackwardProducts = 5;
/** Megatron's fused softmax takes sequences times heads in fours; otherwise scale, mask, conversions and softmax are kernels of their own. */
const fusedSoftmaxBatch = 4;

/** Mean keys that a query sees under the causal mask and a window, and whether kernels can leave the others out. */
function visibleKeys({ workload: { model, sequenceLength: S, software }, layer }: OperationContext): number {
  if (software.attention === "materialized") return S;
  const window = model.slidingWindow !== null && layer >= model.slidingWindow.firstLayer ? model.slidingWindow.size : 0;
  if (window === 0 || window >= S) return (S + 1) / 2;
  return ((window * (window + 1)) / 2 + (S - window) * window) / S;
}

export function attentionForward(pass: Pass, context: OperationContext): void {
  const { workload, sizes, layout, groups } = context;
  const { hiddenSize: H } = workload.model;
  const { tokens: T, rowTokens, queryColumns: Q, keyColumns: C, elementBytes: e } = sizes;
  const { computeType, dropout } = workload.software;
  pass.memory(2 * e * rowTokens * H);
  if (layout.sequenceParallel) pass.collective("allGather", e * T * H, groups.tp, "tp");
  pass.product({ rows: T, columns: Q + 2 * C, depth: H }, computeType);
  if (workload.model.style === "llama") pass.memory(2 * e * T * (Q + C), 2);
  attendForward(pass, context);
  pass.product({ rows: T, columns: H, depth: Q }, computeType);
  pass.collective(layout.sequenceParallel ? "reduceScatter" : "allReduce", e * T * H, groups.tp, "tp");
  pass.memory((3 * e + (dropout ? 1 : 0)) * rowTokens * H).host(18);
}

/** Attention itself: what selective recomputation runs again. */
export function attendForward(pass: Pass, context: OperationContext): void {
  const { workload, sizes, layout } = context;
  const { sequenceLength: S, software } = workload;
  const { headDim: D } = workload.model;
  const { tokens: T, heads, queryColumns: Q, elementBytes: e } = sizes;
  const B = heads * layout.microBatch;
  if (software.attention === "flash") {
    flash(pass, context, 2, "forward");
    return;
  }
  const scores = B * S * S;
  pass.product({ rows: S, columns: S, depth: D, batch: B }, software.computeType);
  if (B % fusedSoftmaxBatch === 0) pass.memory(2 * e * scores);
  else pass.memory((6 * e + 8) * scores, 5).host(12);
  if (software.dropout) pass.memory((2 * e + 1) * scores);
  pass.product({ rows: S, columns: D, depth: S, batch: B }, software.computeType).memory(2 * e * T * Q);
}

export function attentionBackward(pass: Pass, context: OperationContext): void {
  const { workload, sizes, layout, groups } = context;
  const { hiddenSize: H, style, headDim: D } = workload.model;
  const { sequenceLength: S, software } = workload;
  const { tokens: T, rowTokens, heads, queryColumns: Q, keyColumns: C, elementBytes: e } = sizes;
  const type = software.computeType;
  // Dropout's and the bias's gradient, the residual's sum.
  if (software.dropout) pass.memory((2 * e + 1) * rowTokens * H);
  if (style === "gpt2") pass.memory(e * rowTokens * H);
  pass.memory(3 * e * rowTokens * H);
  if (layout.sequenceParallel) pass.collective("allGather", e * T * H, groups.tp, "tp");
  pass.product({ rows: T, columns: Q, depth: H }, type).product({ rows: H, columns: Q, depth: T }, type);
  if (software.attention === "flash") flash(pass, context, flashBackwardProducts, "backward");
  else {
    const B = heads * layout.microBatch;
    const scores = B * S * S;
    pass.memory(2 * e * T * Q);
    pass.product({ rows: S, columns: S, depth: D, batch: B }, type).product({ rows: S, columns: D, depth: S, batch: B }, type);
    if (software.dropout) pass.memory((2 * e + 1) * scores);
    if (B % fusedSoftmaxBatch === 0) pass.memory(3 * e * scores);
    else pass.memory((8 * e + 8) * scores, 5).host(2);
    pass.product({ rows: S, columns: D, depth: S, batch: B }, type).product({ rows: S, columns: D, depth: S, batch: B }, type);
    pass.memory(2 * e * T * (Q + 2 * C));
  }
  if (style === "llama") pass.memory(2 * e * T * (Q + C), 2);
  else pass.memory(e * T * (Q + 2 * C));
  pass.product({ rows: T, columns: H, depth: Q + 2 * C }, type).product({ rows: Q + 2 * C, columns: H, depth: T }, type);
  pass.collective(layout.sequenceParallel ? "reduceScatter" : "allReduce", e * T * H, groups.tp, "tp");
  // The norm: input and gradient read, gradient written; its weight's gradient from both again.
  pass.memory(3 * e * rowTokens * H).memory(2 * e * rowTokens * H);
}

/** Fused attention: `products` matrix products of D columns a head over the visible keys, in whole blocks of them, at a fraction of a product's speed. */
function flash(pass: Pass, context: OperationContext, products: number, direction: "forward" | "backward"): void {
  const { workload, sizes, timing } = context;
  const { device, efficiency } = timing;
  const { attentionBlock = 1, attentionBackward = 5 / 6, computeType } = workload.software;
  const flopsOfKeys = (keys: number): number => 2 * products * sizes.tokens * keys * sizes.queryColumns;
  const speed = direction === "forward" ? efficiency.attention : attentionBackward * efficiency.attention;
  const visible = visibleKeys(context);
  // Half of a query's last block is beyond what it sees.
  const computed = Math.min(workload.sequenceLength, visible + (attentionBlock - 1) / 2);
  pass.kernel(flopsOfKeys(computed) / (peakFlops(device, computeType) * efficiency.gemm * speed), flopsOfKeys(visible));
}

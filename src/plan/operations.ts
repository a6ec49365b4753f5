/**
 * Passes over a layer, the embedding and the head, from the operations of their parts.
 *
 * Recomputation runs the forward pass again (`full`) or attention's inner part only (`selective`, arXiv 2205.05198). A backward pass
 * ends with adding the weights' gradients to those of earlier micro-batches.
 *
 * Our own trainer differs in two things: products add to the weights' gradients themselves, and the head's whole backward pass runs with the loss
 * (`logits: "chunked"`), so that a pipeline's last stage has long forward passes.
 */
import { attendForward, attentionBackward, attentionForward } from "./attention-operations.ts";
import type { GroupPlacement, Links } from "./collectives.ts";
import type { DeviceTiming } from "./device-time.ts";
import { ffnBackward, ffnForward } from "./ffn-operations.ts";
import { noPass, Pass } from "./pass.ts";
import { embeddingParameters, headParameters, layerParameters, type RankSizes } from "./sizes.ts";
import type { PassCost, PlanLayout, Recompute, Workload } from "./types.ts";

export interface OperationContext {
  readonly workload: Workload;
  readonly layout: PlanLayout;
  readonly sizes: RankSizes;
  readonly timing: DeviceTiming;
  readonly links: Links;
  readonly groups: Readonly<Record<"tp" | "ep" | "etp" | "dp", GroupPlacement>>;
  /** Of the model, for what differs between layers. */
  readonly layer: number;
}

export interface Passes {
  readonly forward: PassCost;
  readonly backward: PassCost;
  readonly recompute: PassCost;
}

/**
 * Bytes a logit passes through in Megatron's vocabulary-parallel cross-entropy in f32: forward conversion 6, maximum 4, subtraction 8,
 * exponential 8, sum 4, division 8; backward scaling 8 and conversion 6.
 */
const lossBytes = { forward: 38, backward: 14 } as const;
/**
 * Of our kernel: read for maximum and sum, read and gradient written over it. With the vocabulary over ranks the logsumexp of the own part is
 * taken first, and the logits copied into rows that are one longer, and back (`src/parallel/vocabulary-loss.ts`).
 */
const chunkedLossBytes = { alone: 12, overRanks: 32 } as const;

function start({ timing, links }: OperationContext): Pass {
  return new Pass(timing, links);
}
/**
 * Adds gradients of `parameters` weights to those of earlier micro-batches: one read, the sum read and written. Where products do that, it is in what
 * they write.
 */
function accumulate(pass: Pass, { workload, sizes }: OperationContext, parameters: number, launches: number): void {
  const { fusedAccumulation = false, gradientBytes } = workload.software;
  if (!fusedAccumulation) pass.memory((sizes.elementBytes + 2 * gradientBytes) * parameters, launches);
}

export function layerPasses(context: OperationContext, recompute: Recompute): Passes {
  const forward = start(context);
  attentionForward(forward, context);
  ffnForward(forward, context);
  const backward = start(context);
  ffnBackward(backward, context);
  attentionBackward(backward, context);
  const { shared, experts } = layerParameters(context.workload.model, context.layer, context.sizes, context.layout);
  accumulate(backward, context, shared + experts, 6);
  const forwardCost = forward.cost();
  const again = start(context);
  if (recompute === "selective") attendForward(again, context);
  return {
    forward: forwardCost,
    backward: backward.cost(),
    recompute: recompute === "full" ? forwardCost : recompute === "none" ? noPass : again.cost(),
  };
}

export function embeddingPasses(context: OperationContext): Passes {
  const { workload, sizes, groups, layout } = context;
  const { tokens: T, elementBytes: e } = sizes;
  const { hiddenSize: H, style } = workload.model;
  const forward = start(context).memory(2 * e * T * H, 3);
  forward.collective(layout.sequenceParallel ? "reduceScatter" : "allReduce", e * T * H, groups.tp, "tp");
  if (style === "gpt2") forward.memory(2 * 3 * e * T * H, 2);
  const backward = start(context).memory(3 * e * T * H, 2);
  // Rows are added to the gradient where it lies.
  if (workload.software.fusedAccumulation === true) return { forward: forward.cost(), backward: backward.cost(), recompute: noPass };
  const parameters = embeddingParameters(workload.model, sizes, workload.sequenceLength);
  // The table's gradient is written as zeros, then rows are added.
  backward.memory(e * parameters);
  accumulate(backward, context, parameters, 2);
  return { forward: forward.cost(), backward: backward.cost(), recompute: noPass };
}

/** Final norm, logits, loss. */
export function headPasses(context: OperationContext): Passes {
  if (context.workload.software.logits === "chunked") return chunkedHeadPasses(context);
  const { workload, sizes, groups, layout } = context;
  const { tokens: T, rowTokens, vocabRows: V, elementBytes: e } = sizes;
  const { hiddenSize: H } = workload.model;
  const type = workload.software.headType;
  const forward = start(context).memory(2 * e * rowTokens * H);
  if (layout.sequenceParallel) forward.collective("allGather", e * T * H, groups.tp, "tp");
  forward.product({ rows: T, columns: V, depth: H }, type).memory(lossBytes.forward * T * V, 6);
  // Maximum, sum and the target's logit of every token over the vocabulary's ranks.
  for (let i = 0; i < 3; i++) forward.collective("allReduce", 4 * T, groups.tp, "tp");
  const backward = start(context).memory(lossBytes.backward * T * V, 3);
  backward.product({ rows: T, columns: H, depth: V }, type).product({ rows: V, columns: H, depth: T }, type);
  backward.collective(layout.sequenceParallel ? "reduceScatter" : "allReduce", e * T * H, groups.tp, "tp");
  backward.memory(5 * e * rowTokens * H, 2);
  accumulate(backward, context, headParameters(workload.model, sizes), 1);
  return { forward: forward.cost(), backward: backward.cost(), recompute: noPass };
}

/** Chunk by chunk logits, loss, gradients of input and matrix: nothing is left for the backward pass but the norm. */
function chunkedHeadPasses(context: OperationContext): Passes {
  const { workload, sizes, groups, layout } = context;
  const { tokens: T, rowTokens, vocabRows: V, elementBytes: e } = sizes;
  const { hiddenSize: H } = workload.model;
  const type = workload.software.headType;
  const forward = start(context).memory(2 * e * rowTokens * H);
  if (layout.sequenceParallel) forward.collective("allGather", e * T * H, groups.tp, "tp");
  forward.product({ rows: T, columns: V, depth: H }, type);
  forward.memory((groups.tp.size > 1 ? chunkedLossBytes.overRanks : chunkedLossBytes.alone) * T * V, groups.tp.size > 1 ? 6 : 1);
  // Two numbers of every token.
  forward.collective("allGather", 8 * T * groups.tp.size, groups.tp, "tp");
  forward.product({ rows: T, columns: H, depth: V }, type).product({ rows: V, columns: H, depth: T }, type);
  accumulate(forward, context, headParameters(workload.model, sizes), 1);
  const backward = start(context);
  backward.collective(layout.sequenceParallel ? "reduceScatter" : "allReduce", e * T * H, groups.tp, "tp");
  backward.memory(5 * e * rowTokens * H, 2);
  return { forward: forward.cost(), backward: backward.cost(), recompute: noPass };
}

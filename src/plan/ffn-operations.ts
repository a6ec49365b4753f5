/**
 * What a device runs for the second half of a layer: norm, a dense feed-forward network or experts, residual. Letters as in
 * `attention-operations.ts`; F columns of the rank's network, K experts a token, E experts of the rank.
 *
 * Experts over just the tensor-parallel ranks (ep * etp = tp; Skywork-MoE's expert data parallelism has ep = tp) need no exchange of tokens where activations
 * are whole on every rank: each computes its experts on all tokens, and the sum that the layer needs anyway adds them up. Under sequence parallelism that
 * is so where every rank has columns of all experts (etp = tp): tokens are gathered and the sum scattered, as in a dense network.
 * Otherwise each rank has tokens of its own (its part of the sequence, or of what the tensor-parallel ranks hold alike) and exchanges them: all-to-all over
 * the ep ranks, and over etp a gather before and a scattered sum behind the experts; nothing, where every rank has all experts. Our trainer decides the
 * same way (`src/train/parallel/place.ts`, `src/nn/moe/sharded.ts`); Megatron is told (`megatron-arguments.ts`).
 */
import type { ComputeType } from "../config/cluster.ts";
import { expertsOf } from "./shape.ts";
import { expertSizes, largestShare, type ExpertSizes } from "./sizes.ts";
import type { Pass } from "./pass.ts";
import type { OperationContext } from "./operations.ts";
import type { PlanLayout } from "./types.ts";

/** Products with a width of `columns`: gate and up in one (3 matrices), or up (2). */
function wide({ workload: { model } }: OperationContext, columns: number): number {
  return (model.ffnMatrices - 1) * columns;
}

export function ffnForward(pass: Pass, context: OperationContext): void {
  const { workload, sizes, layout, groups } = context;
  const { hiddenSize: H } = workload.model;
  const { tokens: T, rowTokens, elementBytes: e } = sizes;
  pass.memory(2 * e * rowTokens * H);
  const experts = expertSizes(workload.model, context.layer, sizes, layout, workload.software.capacityFactor);
  if (experts === null) {
    if (layout.sequenceParallel) pass.collective("allGather", e * T * H, groups.tp, "tp");
    networkForward(pass, context, { experts: 1, columns: sizes.ffnColumns, rowsPerExpert: T });
    pass.collective(layout.sequenceParallel ? "reduceScatter" : "allReduce", e * T * H, groups.tp, "tp");
  } else expertsForward(pass, context, experts);
  pass.memory((3 * e + (workload.software.dropout ? 1 : 0)) * rowTokens * H).host(14);
}

/** A network, or several of the same shape with their own rows: up, activation, down. */
function networkForward(
  pass: Pass,
  context: OperationContext,
  { experts, columns, rowsPerExpert: rows }: Omit<ExpertSizes, "sentRows">,
): void {
  const { hiddenSize: H } = context.workload.model;
  const { computeType } = context.workload.software;
  const width = wide(context, columns);
  pass.product({ rows, columns: width, depth: H, batch: experts }, computeType);
  pass.memory(context.sizes.elementBytes * experts * rows * (width + columns));
  pass.product({ rows, columns: H, depth: columns, batch: experts }, computeType);
}

export function ffnBackward(pass: Pass, context: OperationContext): void {
  const { workload, sizes, layout, groups } = context;
  const { hiddenSize: H, style } = workload.model;
  const { tokens: T, rowTokens, elementBytes: e } = sizes;
  if (workload.software.dropout) pass.memory((2 * e + 1) * rowTokens * H);
  if (style === "gpt2") pass.memory(e * rowTokens * H);
  pass.memory(3 * e * rowTokens * H);
  const experts = expertSizes(workload.model, context.layer, sizes, layout, workload.software.capacityFactor);
  if (experts === null) {
    if (layout.sequenceParallel) pass.collective("allGather", e * T * H, groups.tp, "tp");
    networkBackward(pass, context, { experts: 1, columns: sizes.ffnColumns, rowsPerExpert: T });
    pass.collective(layout.sequenceParallel ? "reduceScatter" : "allReduce", e * T * H, groups.tp, "tp");
  } else expertsBackward(pass, context, experts);
  pass
    .memory(3 * e * rowTokens * H)
    .memory(2 * e * rowTokens * H)
    .host(8);
}

function networkBackward(
  pass: Pass,
  context: OperationContext,
  { experts, columns, rowsPerExpert: rows }: Omit<ExpertSizes, "sentRows">,
): void {
  const { hiddenSize: H, style } = context.workload.model;
  const type = context.workload.software.computeType;
  const e = context.sizes.elementBytes;
  const width = wide(context, columns);
  pass.product({ rows, columns, depth: H, batch: experts }, type).product({ rows: H, columns, depth: rows, batch: experts }, type);
  pass.memory(e * experts * rows * (2 * width + columns));
  if (style === "gpt2") pass.memory(e * experts * rows * columns);
  pass
    .product({ rows, columns: H, depth: width, batch: experts }, type)
    .product({ rows: width, columns: H, depth: rows, batch: experts }, type);
}

/** Whether ranks have tokens of their own for the experts, which travel where experts are cut; otherwise each rank takes all tokens of its group. */
export function exchangesTokens({ tp, ep, etp, sequenceParallel }: PlanLayout): boolean {
  return ep * etp !== tp || (sequenceParallel && ep > 1);
}

/** Makes what is between layers of the ranks' results (backward: of their gradients): a sum of parts, or every rank's tokens side by side. */
function joinResults(pass: Pass, { workload, sizes, layout, groups }: OperationContext): void {
  const bytes = sizes.elementBytes * sizes.tokens * workload.model.hiddenSize;
  if (!exchangesTokens(layout)) pass.collective(layout.sequenceParallel ? "reduceScatter" : "allReduce", bytes, groups.tp, "tp");
  else if (!layout.sequenceParallel) pass.collective("allGather", bytes, groups.tp, "tp");
}
/** What a network that is cut over the tensor-parallel ranks takes (backward: its gradients) under sequence parallelism. */
function gatherTokens(pass: Pass, { workload, sizes, layout, groups }: OperationContext): void {
  if (layout.sequenceParallel) pass.collective("allGather", sizes.elementBytes * sizes.tokens * workload.model.hiddenSize, groups.tp, "tp");
}

function expertsForward(pass: Pass, context: OperationContext, experts: ExpertSizes): void {
  const { workload, sizes, layout } = context;
  const { hiddenSize: H } = workload.model;
  const { rowTokens, elementBytes: e } = sizes;
  route(pass, context, 1);
  if (!exchangesTokens(layout)) gatherTokens(pass, context);
  sharedExpert(pass, context, networkForward);
  planExchange(pass, context, experts);
  exchange(pass, context, experts);
  // Rows are gathered by expert and summed by weight.
  const rows = experts.experts * experts.rowsPerExpert;
  pass.memory(2 * e * rows * H);
  networkForward(pass, context, experts);
  pass.memory(2 * e * rows * H);
  exchange(pass, context, experts);
  joinResults(pass, context);
  pass.memory(2 * e * rowTokens * H);
}

function expertsBackward(pass: Pass, context: OperationContext, experts: ExpertSizes): void {
  const { workload, sizes, layout, groups } = context;
  const { hiddenSize: H, moe } = workload.model;
  const { tokens: T, elementBytes: e } = sizes;
  const rows = experts.experts * experts.rowsPerExpert;
  if (!exchangesTokens(layout)) gatherTokens(pass, context);
  exchange(pass, context, experts);
  pass.memory(4 * e * rows * H);
  networkBackward(pass, context, experts);
  pass.memory(2 * e * rows * H);
  exchange(pass, context, experts);
  sharedExpert(pass, context, networkBackward);
  // Each rank's experts know a part of the gradient of every combine weight, in f32.
  if (!exchangesTokens(layout)) pass.collective("allReduce", 4 * T * (moe?.topK ?? 0), groups.tp, "tp");
  route(pass, context, 2);
  joinResults(pass, context);
}

/** The router: one product in f32, softmax and top-k, the lists of rows. `products` 1 forward, 2 backward. */
function route(pass: Pass, { workload, sizes, layer }: OperationContext, products: number): void {
  const moe = expertsOf(workload.model, layer);
  if (moe === null) return;
  const T = sizes.rowTokens;
  const type: ComputeType = "f32";
  for (let i = 0; i < products; i++) pass.product({ rows: T, columns: moe.numExperts, depth: workload.model.hiddenSize }, type);
  pass.memory(T * (16 * moe.numExperts + 24 * moe.topK), 6);
}

/**
 * A shared expert is cut over tp and takes all tokens, as a dense network does. Where the routed experts take them too, it shares their gather and their sum;
 * where tokens are exchanged it needs its own.
 */
function sharedExpert(pass: Pass, context: OperationContext, network: typeof networkForward): void {
  const { workload, sizes, layout, groups } = context;
  const shared = expertsOf(workload.model, context.layer)?.sharedExpert ?? null;
  if (shared === null) return;
  const isAlone = exchangesTokens(layout);
  if (isAlone) gatherTokens(pass, context);
  network(pass, context, { experts: 1, columns: largestShare(shared.ffnSize, layout.tp), rowsPerExpert: sizes.tokens });
  const bytes = sizes.elementBytes * sizes.tokens * workload.model.hiddenSize;
  if (isAlone) pass.collective(layout.sequenceParallel ? "reduceScatter" : "allReduce", bytes, groups.tp, "tp");
}

/** Which rows go where, and how many: ranks of a tensor-parallel group know each other's choices. */
function planExchange(pass: Pass, { workload, layout, groups }: OperationContext, { sentRows }: ExpertSizes): void {
  const { sortsArrived = false, hostSecondsPerRow = 0 } = workload.software;
  if (!exchangesTokens(layout)) return;
  if (hostSecondsPerRow > 0) pass.kernel(hostSecondsPerRow * sentRows, 0);
  if (sortsArrived && layout.ep > layout.tp)
    pass.collective("allGather", 4 * (workload.model.moe?.numExperts ?? 0) * layout.ep, groups.ep, "ep");
}

/** Tokens to their experts, or results back. */
function exchange(
  pass: Pass,
  { workload, sizes, layout, groups }: OperationContext,
  { sentRows, experts, rowsPerExpert }: ExpertSizes,
): void {
  if (!exchangesTokens(layout)) return;
  const rowBytes = sizes.elementBytes * workload.model.hiddenSize;
  // Rows of one rank come in the order of their experts.
  if (workload.software.sortsArrived === true && layout.ep * layout.etp > 1) pass.memory(2 * experts * rowsPerExpert * rowBytes);
  pass.collective("allToAll", sentRows * rowBytes * layout.ep, groups.ep, "ep");
  // Over etp every rank needs all rows of the group's experts.
  if (layout.etp > 1) pass.collective("allGather", experts * rowsPerExpert * rowBytes, groups.etp, "ep");
}

/**
 * A mixture-of-experts layer on a rank that has some of the experts, or some columns of each.
 *
 * The router is whole on every rank, and all ranks of a group know the logits of all the group's tokens (gathered under sequence parallelism, T x E
 * numbers): choice, capacity, drops and balance losses are those of one rank, whatever the layout.
 *
 * - *local*: all ranks of the group see the same tokens. Each runs its experts on those that chose them, and the sum that ends the layer adds up. Nothing is exchanged.
 * - *exchange*: each rank has tokens of its own, and rows travel to the ranks of a block that hold their experts, and back (`exchange.ts`). Between the two, and before the second
 *   ends, the layer yields.
 *
 * Strategies: EDP and TP are local, EDP under sequence parallelism, EP and ETP exchange (Skywork-MoE, arXiv 2406.06563, appendix B).
 *
 * Legend: T tokens of the group, L tokens of this rank, H hidden, E experts, K choices, G balance groups.
 */
import { activationDtype, type TensorGroup } from "../../parallel/group.ts";
import { startExchange } from "../../parallel/exchange.ts";
import {
  add,
  castTo,
  combine,
  dispatch,
  nothingOf,
  planDispatch,
  repeatColumns,
  scale,
  takeRows,
  type Tensor,
} from "../../tensor/index.ts";
import { MoeError } from "../../util/errors.ts";
import type { Interval } from "../../util/partition.ts";
import type { MoeBlock, MoeOutput, Routing } from "./block.ts";
import { capacitiesOf, contextOfRows, type RoutingContext } from "./context.ts";
import { assignmentsOf, gatherCounts, receivePlan, sendPlan, type ExpertBlock } from "./exchange.ts";

/** The experts of a rank: some of them, or some columns of each. */
export interface ExpertShard {
  /** The ranks that share the tokens. */
  readonly group: TensorGroup;
  /** Which experts the rank's matrices are, possibly none. */
  readonly experts: Interval;
  /** Experts of all ranks. */
  readonly numExperts: number;
  /** The ranks that tokens are exchanged with; null: none are, all ranks of the group see the same. */
  readonly block: ExpertBlock | null;
}

export interface ShardedInput {
  /** [T, H]; [L, H] under sequence parallelism. */
  readonly x_TH: Tensor;
  readonly context: RoutingContext;
  readonly layer: number;
  /** T. */
  readonly numTokens: number;
}

/** A layer's forward pass; yields while rows are under way. */
export function* sharded(layer: MoeBlock, shard: ExpertShard, input: ShardedInput): Generator<undefined, MoeOutput> {
  if (input.context.observe !== undefined) throw new MoeError("unsupported", "experts of several ranks cannot be observed by one");
  const routing = route(layer, shard, input);
  const y_TH = shard.block === null ? local(layer, shard, input, routing) : yield* exchanged(layer, shard, shard.block, input, routing);
  return { y_TH, routing };
}

function route({ router }: MoeBlock, { group, numExperts }: ShardedPlace, { x_TH, context, layer, numTokens }: ShardedInput): Routing {
  const own = group.sequenceParallel ? contextOfRows(context, numTokens, group.ownRows(numTokens)) : context;
  const part_LE = router.logits(x_TH, own, layer);
  const logits_TE = group.sequenceParallel ? group.gatherRows(part_LE, numTokens, "same") : part_LE;
  const { probs: probs_TE, weights: weights_TK, indices: indices_TK } = router.choose(logits_TE, context);
  const counts_GE = countAssignments(indices_TK, context.groupOffsets ?? [0, numTokens], numExperts);
  return { probs_TE, logits_TE, indices_TK, weights_TK, counts_GE };
}
type ShardedPlace = Pick<ExpertShard, "group" | "numExperts">;

/** All tokens on every rank of the group. */
function local(layer: MoeBlock, shard: ExpertShard, { x_TH, context, numTokens }: ShardedInput, routing: Routing): Tensor {
  const { group } = shard;
  const all_TH = group.enter(x_TH, numTokens);
  // What a rank's experts say of the weights is a part of their gradient.
  const weights_TK = group.spread(routing.weights_TK);
  const part_TH = routedPart(layer, shard, all_TH, context, { ...routing, weights_TK });
  const { sharedExpert } = layer;
  const sum_TH = sharedExpert === null ? part_TH : add(part_TH, sharedExpert.forward(all_TH, castTo(all_TH, "f32"), "f32"));
  return group.leave(sum_TH, activationDtype(x_TH));
}

/** f32 [T, H]: what the experts of this rank add. Assignments to the others are nobody's here. */
function routedPart(
  { experts, inputScale, router }: MoeBlock,
  { experts: held, numExperts }: ExpertShard,
  all_TH: Tensor,
  context: RoutingContext,
  { indices_TK, weights_TK }: Routing,
): Tensor {
  const { engine } = all_TH;
  const [numLocal, numColumns] = [experts.gate_EFH.dim(0), experts.gate_EFH.dim(1)];
  if (numLocal === 0 || numColumns === 0) return nothingOf([all_TH, weights_TK], all_TH.shape, "f32");
  const groupOffsets = context.groupOffsets ?? [0, all_TH.dim(0)];
  const local_TK =
    numLocal === numExperts ? indices_TK : engine.from(localIndices(indices_TK.toInt32Array(), held), indices_TK.shape, "i32");
  const scaled_TH = inputScale === 1 ? all_TH : scale(all_TH, inputScale);
  const { rows, offsets, slotRow, numRows, padded } = dispatch(scaled_TH, local_TK, weights_TK, {
    numExperts: numLocal,
    groupOffsets,
    capacities: capacitiesOf(groupOffsets, context, router.settings.topK, numExperts),
    dropBy: context.capacity?.dropBy ?? "probability",
    pad: context.capacity?.pad ?? false,
  });
  if (numRows === 0 && engine.tape === null) return engine.zeros(all_TH.shape, "f32");
  return combine(castTo(experts.forward(rows, offsets), "f32"), slotRow, weights_TK, { padded });
}

/** Tokens of its own on every rank: its part of the sequence, or of what the group's ranks hold alike. */
function* exchanged(
  layer: MoeBlock,
  { group, numExperts, experts: held }: ExpertShard,
  block: ExpertBlock,
  { x_TH, context, numTokens }: ShardedInput,
  routing: Routing,
): Generator<undefined, Tensor> {
  const { engine } = x_TH;
  const K = routing.indices_TK.dim(1);
  const own_LH = group.sequenceParallel ? x_TH : group.takeOwnRows(x_TH);
  const weights_LK = group.takeOwnRows(routing.weights_TK);
  const kept = keptIndices(layer, context, routing, numTokens, numExperts);
  const keptOf = ({ start, end }: Interval): Int32Array => kept.subarray(start * K, end * K);
  const own = keptOf(group.ownRows(numTokens));
  const counts = assignmentsOf(own, numExperts);
  const sending = sendPlan(engine, own, K, counts, block.held);
  // Ranks of the group know each other's choices.
  const known = block.communicator.members.join() === group.communicator.members.join();
  const all = known
    ? group.rows(numTokens).map((rows) => assignmentsOf(keptOf(rows), numExperts))
    : gatherCounts(block.communicator, engine, counts);
  const receiving = receivePlan(engine, all, held);
  const scaled_LH = layer.inputScale === 1 ? own_LH : scale(own_LH, layer.inputScale);
  const sent = takeRows(scaled_LH, sending.index, sending.slotRow);
  const going = startExchange(block.communicator, sent, { send: sending.counts, receive: receiving.counts });
  yield;
  const { order, offsets } = receiving;
  const came = going.finish();
  const rows = order === null ? came : takeRows(came, order.sorted, order.came.view(-1, 1));
  const computed = layer.experts.forward(rows, offsets);
  const back = order === null ? computed : takeRows(computed, order.came, order.sorted.view(-1, 1));
  const returning = startExchange(block.communicator, back, { send: receiving.counts, receive: sending.counts });
  yield;
  const routed_LH = combine(returning.finish(), sending.slotRow, repeatColumns(weights_LK, sending.copies));
  const routed_TH = group.sequenceParallel ? routed_LH : group.gatherRows(routed_LH, numTokens, "same");
  const { sharedExpert } = layer;
  if (sharedExpert === null) return routed_TH;
  const all_TH = group.enter(x_TH, numTokens);
  return add(routed_TH, group.leave(sharedExpert.forward(all_TH, castTo(all_TH, "f32"), "f32"), activationDtype(x_TH)));
}

/** The chosen experts of all tokens [T * K], -1 where capacity drops an assignment. */
function keptIndices(
  { router }: MoeBlock,
  context: RoutingContext,
  { indices_TK, weights_TK }: Routing,
  numTokens: number,
  numExperts: number,
): Int32Array {
  const indices = indices_TK.toInt32Array();
  const groupOffsets = context.groupOffsets ?? [0, numTokens];
  const capacities = capacitiesOf(groupOffsets, context, router.settings.topK, numExperts);
  if (capacities === null) return indices;
  const dropBy = context.capacity?.dropBy ?? "probability";
  const { slotRow } = planDispatch(indices_TK, weights_TK, { numExperts, groupOffsets, capacities, dropBy });
  const rows = slotRow.toInt32Array();
  return indices.map((e, slot) => ((rows[slot] ?? -1) < 0 ? -1 : e));
}

/** Numbers of experts counted from the first of `experts`, -1 for those outside. */
function localIndices(indices: Int32Array, { start, end }: Interval): Int32Array {
  return indices.map((e) => (e >= start && e < end ? e - start : -1));
}
/** i32 [G, E]: assignments of each group. */
function countAssignments(indices_TK: Tensor, groupOffsets: readonly number[], numExperts: number): Tensor {
  const [indices, K, G] = [indices_TK.toInt32Array(), indices_TK.dim(1), groupOffsets.length - 1];
  const counts = new Int32Array(G * numExperts);
  for (let g = 0; g < G; g++) {
    const group = indices.subarray((groupOffsets[g] ?? 0) * K, (groupOffsets[g + 1] ?? 0) * K);
    counts.set(assignmentsOf(group, numExperts), g * numExperts);
  }
  return indices_TK.engine.from(counts, [G, numExperts], "i32");
}

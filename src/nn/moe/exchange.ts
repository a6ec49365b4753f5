/**
 * Which rows go where when the ranks of a block exchange tokens: each has tokens of its own, and some of the experts (or some columns of them). A
 * row goes to every rank that holds its expert, and what they computed comes back; combining adds it up.
 *
 * Index arithmetic only; the rows are moved by `takeRows` and `startExchange`. Rows are sorted by rank, expert and token when they are sent, and by expert, rank and token
 * where they are computed: with consecutive tokens on consecutive ranks, in the order of one rank.
 *
 * Legend: L tokens of this rank, K choices, E experts, P ranks of the block, C ranks that hold an expert.
 */
import type { Communicator } from "../../parallel/communicator.ts";
import type { Engine, Tensor } from "../../tensor/index.ts";
import { MoeError } from "../../util/errors.ts";
import { intervalLength, type Interval } from "../../util/partition.ts";

/** The ranks that hold one replica of the experts together. */
export interface ExpertBlock {
  readonly communicator: Communicator;
  /** Experts of each rank of the block; several have the same where an expert's columns are cut. */
  readonly held: readonly Interval[];
}

/** What this rank sends. */
export interface SendPlan {
  /** i32: token of each row sent. */
  readonly index: Tensor;
  /** i32 [L, K * C]: rows of each choice's copies. */
  readonly slotRow: Tensor;
  /** By rank of the block. */
  readonly counts: readonly number[];
  /** C. */
  readonly copies: number;
}
/** What this rank computes. */
export interface ReceivePlan {
  /** By rank of the block. */
  readonly counts: readonly number[];
  /** i32 [held experts + 1]: rows of each, sorted. */
  readonly offsets: Tensor;
  /** i32 [R]: the row that came for each sorted one, and the other way round. Null: they came sorted. */
  readonly order: { readonly sorted: Tensor; readonly came: Tensor } | null;
}

/** Assignments of each expert among `indices` (below 0: none). */
export function assignmentsOf(indices: Int32Array, numExperts: number): Int32Array {
  const counts = new Int32Array(numExperts);
  for (const e of indices) if (e >= 0) counts[e] = (counts[e] ?? 0) + 1;
  return counts;
}

/** `indices` [L, K]: chosen experts, -1 where dropped. */
export function sendPlan(engine: Engine, indices: Int32Array, topK: number, counts: Int32Array, held: readonly Interval[]): SendPlan {
  // Where each expert's assignments begin, sorted by expert.
  const first = prefixSums(counts);
  const at = first.slice(0, -1);
  const place = new Int32Array(indices.length);
  for (const [slot, e] of indices.entries()) {
    if (e < 0) continue;
    place[slot] = at[e] ?? 0;
    at[e] = (at[e] ?? 0) + 1;
  }
  const tokenAt = new Int32Array(first.at(-1) ?? 0);
  for (const [slot, e] of indices.entries()) if (e >= 0) tokenAt[place[slot] ?? 0] = Math.floor(slot / topK);
  const rowsOf = ({ start, end }: Interval): [number, number] => [first[start] ?? 0, first[end] ?? 0];
  const perRank = held.map((experts) => rowsOf(experts)[1] - rowsOf(experts)[0]);
  const starts = prefixSums(perRank);
  const holders =
    counts.length === 0 ? [] : Array.from(counts, (_, e) => held.flatMap(({ start, end }, r) => (e >= start && e < end ? [r] : [])));
  const copies = Math.max(1, ...holders.map((ranks) => ranks.length));
  const index = new Int32Array(starts.at(-1) ?? 0);
  for (const [r, experts] of held.entries()) index.set(tokenAt.subarray(...rowsOf(experts)), starts[r] ?? 0);
  const slots = new Int32Array(indices.length * copies).fill(-1);
  for (const [slot, e] of indices.entries()) {
    if (e < 0) continue;
    for (const [copy, r] of (holders[e] ?? []).entries()) {
      const [from] = rowsOf(held[r] ?? { start: 0, end: 0 });
      slots[slot * copies + copy] = (starts[r] ?? 0) + (place[slot] ?? 0) - from;
    }
  }
  const numTokens = indices.length / topK;
  return {
    index: engine.from(index, [index.length], "i32"),
    slotRow: engine.from(slots, [numTokens, topK * copies], "i32"),
    counts: perRank,
    copies,
  };
}

/** `counts`: for each rank of the block, the assignments to each of the E experts of what it sends. `experts`: this rank's. */
export function receivePlan(engine: Engine, counts: readonly Int32Array[], experts: Interval): ReceivePlan {
  const numHeld = intervalLength(experts);
  const of = (source: number, e: number): number => counts[source]?.[experts.start + e] ?? 0;
  const perRank = counts.map((_, source) => Array.from({ length: numHeld }, (__, e) => of(source, e)).reduce((a, b) => a + b, 0));
  const perExpert = Array.from({ length: numHeld }, (_, e) => counts.reduce((sum, __, source) => sum + of(source, e), 0));
  const offsets = engine.from(prefixSums(perExpert), [numHeld + 1], "i32");
  const isSorted = numHeld <= 1 || perRank.filter((n) => n > 0).length <= 1;
  if (isSorted) return { counts: perRank, offsets, order: null };
  const numRows = perRank.reduce((a, b) => a + b, 0);
  const [sorted, came] = [new Int32Array(numRows), new Int32Array(numRows)];
  const starts = prefixSums(perRank);
  let row = 0;
  for (let e = 0; e < numHeld; e++) {
    for (const source of counts.keys()) {
      const from = starts[source] ?? 0;
      for (let i = 0; i < of(source, e); i++, row++) {
        sorted[row] = from + i;
        came[from + i] = row;
      }
      starts[source] = from + of(source, e);
    }
  }
  const index = (data: Int32Array): Tensor => engine.from(data, [numRows], "i32");
  return { counts: perRank, offsets, order: { sorted: index(sorted), came: index(came) } };
}

/** The assignments that each rank of the block sends, from those of this one: they tell each other. */
export function gatherCounts(communicator: Communicator, engine: Engine, own: Int32Array): Int32Array[] {
  const { size } = communicator;
  const E = own.length;
  if (E === 0) throw new MoeError("internal", "exchange of tokens without experts");
  using mine = engine.detached([E], "i32");
  using all = engine.detached([size, E], "i32");
  engine.backend.write(mine.ptr, own);
  communicator.allGather(
    all.ptr,
    mine.ptr,
    Array.from({ length: size }, () => 4 * E),
  );
  const flat = all.toInt32Array();
  return Array.from({ length: size }, (_, r) => flat.slice(r * E, (r + 1) * E));
}

/** n + 1 sums: of none, of the first, of the first two, ... */
function prefixSums(counts: ArrayLike<number>): Int32Array {
  const sums = new Int32Array(counts.length + 1);
  for (let i = 0; i < counts.length; i++) sums[i + 1] = (sums[i] ?? 0) + (counts[i] ?? 0);
  return sums;
}

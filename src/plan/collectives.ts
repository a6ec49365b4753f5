/**
 * Where the ranks of a group lie, and how long their collectives take.
 *
 * Ranks are numbered tensor-parallel first, then data-parallel, then by pipeline stage, and fill one node after the other (Megatron's
 * order). A ring of n ranks moves (n - 1) / n of the bytes for a reduce-scatter or an all-gather, twice that for an all-reduce, at
 * the bandwidth of its slowest link, and every step costs a latency. Inside a node that link is the node's own. Where a group spans nodes
 * with g members on each, the library runs one ring per network port that the group has there: the group has g devices' share of the
 * node's network, because the node's other devices are in groups that exchange at the same time.
 */
import type { EfficiencyConfig, LinkConfig, NodeGroup } from "../config/cluster.ts";

/** A group of ranks by where they lie. */
export interface GroupPlacement {
  readonly size: number;
  /** Members that share a node. */
  readonly perNode: number;
}

/** Placement of a group of `size` ranks whose neighbours are `stride` ranks apart. */
export function placeGroup(size: number, stride: number, devicesPerNode: number): GroupPlacement {
  return { size, perNode: Math.max(1, Math.min(size, Math.floor(devicesPerNode / stride))) };
}

export interface Links {
  readonly intra: LinkConfig;
  readonly inter: LinkConfig;
  readonly efficiency: EfficiencyConfig;
}

export function linksOf({ intra }: NodeGroup, inter: LinkConfig, efficiency: EfficiencyConfig): Links {
  return { intra, inter, efficiency };
}

/** Bytes/s of a group's ring. */
function ringBandwidth({ intra, inter, efficiency }: Links, { size, perNode }: GroupPlacement): number {
  const inside = intra.bandwidth * efficiency.intraLink;
  if (size <= perNode) return inside;
  const between = inter.bandwidth * efficiency.interLink * perNode;
  return perNode === 1 ? between : Math.min(inside, between);
}

/** Seconds of latency of one pass around the ring. Inside a node the steps of a ring are cheap; between nodes there is one a node. */
function ringLatency({ intra, inter, efficiency }: Links, { size, perNode }: GroupPlacement): number {
  const inside = (Math.min(size, perNode) - 1) * (intra.latency + efficiency.intraStepSeconds);
  const numNodes = Math.ceil(size / perNode);
  return inside + (numNodes - 1) * (inter.latency + efficiency.interStepSeconds);
}

/** Collectives whose times we know. `bytes` is always that of the whole vector (of all ranks' parts together). */
export type Collective = "allReduce" | "reduceScatter" | "allGather" | "allToAll";

/** Seconds of a collective over `bytes`; none in a group of one. */
export function collectiveSeconds(kind: Collective, bytes: number, group: GroupPlacement, links: Links): number {
  if (group.size <= 1 || bytes === 0) return 0;
  if (kind === "allToAll") return allToAllSeconds(bytes, group, links);
  const passes = kind === "allReduce" ? 2 : 1;
  return passes * (ringLatency(links, group) + ((group.size - 1) / group.size) * (bytes / ringBandwidth(links, group)));
}

/** Bytes that one rank sends in it. */
export function collectiveSentBytes(kind: Collective, bytes: number, size: number): number {
  if (size <= 1) return 0;
  // All-to-all: each rank keeps 1 / size of its own 1 / size.
  if (kind === "allToAll") return (bytes * (size - 1)) / (size * size);
  return ((kind === "allReduce" ? 2 : 1) * bytes * (size - 1)) / size;
}

/** Every rank sends 1 / size of its part to each other one: what leaves the node goes through one device's share of the network. */
function allToAllSeconds(bytes: number, { size, perNode }: GroupPlacement, { intra, inter, efficiency }: Links): number {
  const part = bytes / size;
  const inside = (part * (Math.min(size, perNode) - 1)) / size / (intra.bandwidth * efficiency.intraLink);
  const latencyInside = intra.latency + efficiency.intraStepSeconds;
  if (size <= perNode) return latencyInside + inside;
  const outside = (part * (size - perNode)) / size / (inter.bandwidth * efficiency.interLink);
  return latencyInside + inter.latency + efficiency.interStepSeconds + Math.max(inside, outside);
}

/**
 * Seconds of one message of `bytes` between neighbouring stages of a pipeline that takes `numRanks` ranks, one node after the other. Where it fills more than
 * one node, some of its boundaries lie between nodes, and a pipeline keeps the pace of its slowest boundary: all are taken as such.
 */
export function messageSeconds(bytes: number, numRanks: number, devicesPerNode: number, links: Links): number {
  const { intra, inter, efficiency } = links;
  if (numRanks <= devicesPerNode) return intra.latency + efficiency.intraStepSeconds + bytes / (intra.bandwidth * efficiency.intraLink);
  return inter.latency + efficiency.interStepSeconds + bytes / (inter.bandwidth * efficiency.interLink);
}

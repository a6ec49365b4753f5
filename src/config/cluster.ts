/**
 * What a cluster is, as data: devices with their peaks, how many share a node, the links inside and between nodes, and how
 * much of those peaks a training program has been seen to reach (`efficiency`). A cluster file is this as JSON; where it
 * names a device or a link of the presets (`cluster-presets.ts`), the name stands for its numbers.
 *
 * The numbers of a device and a link are the vendor's: dense (not sparse) FLOP/s with a multiply-add counted as 2, bytes per
 * second in one direction. What cannot be reached of them is the efficiency's matter, and `moe plan calibrate` fits that to
 * measured iteration times. Not here: what a model costs on a cluster (`src/plan`).
 */
import { z } from "zod";
import { MoeError } from "../util/errors.ts";
import { didYouMean } from "../util/nearest.ts";
import { clusterPresets, devicePresets, linkPresets } from "./cluster-presets.ts";
import { parseStrict } from "./strict.ts";

const positive = z.number().positive();
const nonnegative = z.number().nonnegative();
const fraction = z.number().gt(0).max(1);
const count = z.int().positive();

/** Element types in which devices have peaks of their own. */
export const computeTypes = ["f32", "bf16", "f16", "fp8"] as const;
export type ComputeType = (typeof computeTypes)[number];

export const deviceSchema = z.strictObject({
  name: z.string().min(1),
  /** Dense peak in FLOP/s. A type that is missing is not computed in (`f32` with tensor cores off). */
  peakFlops: z.strictObject({ f32: positive, bf16: positive.optional(), f16: positive.optional(), fp8: positive.optional() }),
  memoryBytes: positive,
  /** Bytes/s of the device's memory. */
  memoryBandwidth: positive,
  /** Units over which the tiles of a matrix product are spread (streaming multiprocessors; cores of a CPU). */
  numUnits: count,
  /** Outputs that a unit computes at a time in a matrix product, where they are not those of a card (256 x 128 to 64 x 64). */
  productTile: z.strictObject({ rows: count, columns: count }).optional(),
  /** The device is a core of the host: it launches, moves bytes and multiplies in turn, so that these times add up. Default: they run beside each other. */
  isHost: z.boolean().optional(),
  /** Price of one device for an hour, in any currency. */
  pricePerHour: positive.optional(),
});

export const linkSchema = z.strictObject({
  name: z.string().min(1),
  /** Bytes/s of one device in one direction. */
  bandwidth: positive,
  /** Seconds that a message takes besides its bytes. */
  latency: nonnegative,
});

/**
 * How near to the peaks a program comes: about a dozen numbers, each with a physical meaning. Those of a preset are a start;
 * `moe plan calibrate` fits them to measurements.
 */
export const efficiencySchema = z.strictObject({
  /** Fraction of the peak that an endless matrix product reaches, besides tiles that do not fill all units. */
  gemm: fraction,
  /** Fraction of the memory bandwidth that element-wise operations, norms, softmax and the optimizer reach. */
  memory: fraction,
  /** Seconds of a kernel on the device besides its work: start, ramp, drain. */
  kernelSeconds: nonnegative,
  /** Seconds of the host to launch one operation: where a layer is small, the host is what it waits for. */
  hostSeconds: nonnegative,
  /** Seconds of a micro-batch on a stage besides its layers: schedule, messages' set-up. */
  microBatchSeconds: nonnegative,
  /** Seconds of a step besides all else: clipping, checks, logging, data. */
  stepSeconds: nonnegative,
  /** Fraction of the link inside a node that collectives of large messages reach. */
  intraLink: fraction,
  /** Seconds of a collective inside a node besides its bytes, for each step of its ring. */
  intraStepSeconds: nonnegative,
  /** Fraction of the link between nodes that collectives of large messages reach. */
  interLink: fraction,
  /** Seconds of a message or a ring's step between nodes besides its bytes. */
  interStepSeconds: nonnegative,
  /** Fraction of the data-parallel exchange of gradients that is hidden behind the last micro-batch's backward pass. */
  overlap: z.number().min(0).max(1),
  /** Fraction of a matrix product's speed that fused attention's forward pass reaches (FlashAttention-2, arXiv 2307.08691, figure 5). */
  attention: fraction.default(0.72),
  /** Fraction of its speed that a device keeps while all others of its node compute, too (cores that share memory and caches). */
  together: fraction.default(1),
});

const nodeGroupSchema = z.strictObject({
  device: z.union([z.string(), deviceSchema]),
  devicesPerNode: count,
  numNodes: count,
  /** The link between devices of a node. */
  intra: z.union([z.string(), linkSchema]),
});

const clusterSchema = z.strictObject({
  name: z.string().min(1),
  /** Nodes of one kind; several entries make a cluster of unequal devices, used in this order. */
  nodes: z.array(nodeGroupSchema).min(1),
  /** The link between nodes: one device's share of its node's network. */
  inter: z.union([z.string(), linkSchema]),
  efficiency: efficiencySchema,
});

export type DeviceConfig = Readonly<z.infer<typeof deviceSchema>>;
export type LinkConfig = Readonly<z.infer<typeof linkSchema>>;
export type EfficiencyConfig = Readonly<z.infer<typeof efficiencySchema>>;
/** Nodes of one kind. */
export interface NodeGroup {
  readonly device: DeviceConfig;
  readonly devicesPerNode: number;
  readonly numNodes: number;
  readonly intra: LinkConfig;
}
export interface ClusterConfig {
  readonly name: string;
  readonly nodes: readonly NodeGroup[];
  readonly inter: LinkConfig;
  readonly efficiency: EfficiencyConfig;
}

/**
 * Checks a cluster in our own form (what a cluster file holds) and completes it: names of presets become their numbers.
 * Throws `configuration` for unknown keys, devices and links (the nearest known one is named) and for values out of range.
 */
export function parseClusterConfig(value: unknown, what = "cluster"): ClusterConfig {
  const { nodes, inter, ...rest } = parseStrict(clusterSchema, value, what);
  return {
    ...rest,
    nodes: nodes.map(({ device, intra, ...counts }) => ({
      device: typeof device === "string" ? preset(devicePresets, device, `${what}: unknown device`) : device,
      intra: typeof intra === "string" ? preset(linkPresets, intra, `${what}: unknown link`) : intra,
      ...counts,
    })),
    inter: typeof inter === "string" ? preset(linkPresets, inter, `${what}: unknown link`) : inter,
  };
}

/** The preset of that name. Throws `configuration` that names the nearest and lists all. */
export function findClusterPreset(name: string): ClusterConfig {
  return parseClusterConfig(preset<unknown>(clusterPresets, name, "unknown cluster"), `cluster ${name}`);
}

function preset<T>(presets: Readonly<Record<string, T>>, name: string, problem: string): T {
  const key = Object.keys(presets).find((candidate) => candidate.toLowerCase() === name.toLowerCase());
  const found = key === undefined ? undefined : presets[key];
  if (found !== undefined) return found;
  const known = Object.keys(presets);
  throw new MoeError("configuration", `${problem} "${name}"${didYouMean(name, known)}; known: ${known.join(", ")}`);
}

/** Devices of the whole cluster. */
export function numDevices({ nodes }: ClusterConfig): number {
  return nodes.reduce((sum, { devicesPerNode, numNodes }) => sum + devicesPerNode * numNodes, 0);
}

/**
 * `cluster` with exactly `count` devices: whole nodes are added to the last kind or taken away from the end; fewer than one
 * node are a smaller node. Throws `configuration` where a whole number of nodes does not give `count`.
 */
export function withNumDevices(cluster: ClusterConfig, count: number): ClusterConfig {
  const kept: NodeGroup[] = [];
  let left = count;
  for (const [i, group] of cluster.nodes.entries()) {
    const last = i === cluster.nodes.length - 1;
    const perNode = kept.length === 0 ? Math.min(group.devicesPerNode, left) : group.devicesPerNode;
    const numNodes = last ? Math.floor(left / perNode) : Math.min(group.numNodes, Math.floor(left / perNode));
    if (numNodes > 0) kept.push({ ...group, devicesPerNode: perNode, numNodes });
    left -= numNodes * perNode;
    if (left === 0) return { ...cluster, nodes: kept };
  }
  const sizes = cluster.nodes.map(({ devicesPerNode }) => devicesPerNode).join(", ");
  throw new MoeError("configuration", `cluster ${cluster.name}: ${count} devices are not a whole number of nodes (of ${sizes} devices)`);
}

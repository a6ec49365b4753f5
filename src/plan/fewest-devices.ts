/**
 * The smallest number of devices on which some layout fits, for whoever asked for too few.
 *
 * Numbers are those that `withNumDevices` takes: a part of the first node, then whole nodes of the cluster, then more of its last kind. What
 * fits on a number need not fit on a larger one (its factors decide which layouts there are), so they are tried one by one, from the first
 * that holds weights, gradients and optimizer however they are spread; far above it only every fifth part, and those left out before
 * the first that fits. Layouts have one stage a rank, which holds least, unless that is excluded.
 */
import { withNumDevices, type ClusterConfig } from "../config/cluster.ts";
import { MoeError } from "../util/errors.ts";
import { bytesOfType, usableBytes } from "./device-time.ts";
import { LayoutEvaluation } from "./evaluate.ts";
import { EvaluationCache } from "./evaluation-cache.ts";
import { layoutsOf } from "./layouts.ts";
import type { SearchOptions } from "./search.ts";

/** Nodes up to which a cluster that fits is looked for. */
export const mostNodes = 4096;

/** Numbers that are tried one by one. */
const numClose = 64;

/** Null: none up to `mostNodes` nodes. `parameters`: of the whole model. `options.cluster` is not looked at, `cluster` is. */
export function fewestDevices(options: SearchOptions, cluster: ClusterConfig, parameters: number): number | null {
  const counts = possibleCounts(cluster).filter((count) => holdsParameters(options, withNumDevices(cluster, count), parameters));
  const fits = (count: number | undefined): boolean =>
    count !== undefined && fitsSomehow({ ...options, cluster: withNumDevices(cluster, count) }, count);
  let failed = -1;
  for (let i = 0; i < counts.length; i += i < numClose ? 1 : Math.ceil(i / 5)) {
    if (!fits(counts[i])) {
      failed = i;
      continue;
    }
    const first = counts.slice(failed + 1, i).find(fits);
    return first ?? counts[i] ?? null;
  }
  return null;
}

/** In ascending order. */
function possibleCounts({ nodes }: ClusterConfig): number[] {
  const counts = Array.from({ length: (nodes[0]?.devicesPerNode ?? 1) - 1 }, (_, i) => i + 1);
  let [numNodes, total] = [0, 0];
  for (const [i, group] of nodes.entries()) {
    const more = i === nodes.length - 1 ? mostNodes - numNodes : group.numNodes;
    for (let n = 0; n < more; n++) counts.push((total += group.devicesPerNode));
    numNodes += more;
  }
  return counts;
}

/** Whether weights, gradients, and two moments in f32 go into all devices together. */
function holdsParameters({ workload, memoryReserve }: SearchOptions, { nodes }: ClusterConfig, parameters: number): boolean {
  const { computeType, gradientBytes } = workload.software;
  const room = nodes.reduce(
    (sum, { device, devicesPerNode, numNodes }) => sum + devicesPerNode * numNodes * usableBytes(device, memoryReserve),
    0,
  );
  return parameters * (bytesOfType(computeType) + gradientBytes + 8) <= room;
}

function fitsSomehow(options: SearchOptions, numDevices: number): boolean {
  const { workload, cluster, fixed = {}, schedule, memoryReserve } = options;
  const devicesPerNode = Math.min(...cluster.nodes.map((group) => group.devicesPerNode));
  const cache = new EvaluationCache();
  const limit = Math.max(...cluster.nodes.map(({ device }) => usableBytes(device, memoryReserve)));
  try {
    const layouts = layoutsOf({ workload, numDevices, devicesPerNode, fixed, ...(schedule === undefined ? {} : { schedule }) });
    const plain = layouts.filter(({ interleave }) => interleave === 1);
    return (plain.length > 0 ? plain : layouts).some((layout) => {
      const evaluation = new LayoutEvaluation(layout, options, cache);
      return evaluation.memoryBound() <= limit && evaluation.fits();
    });
  } catch (error) {
    // This number of devices has no layout.
    if (error instanceof MoeError && error.kind === "configuration") return false;
    throw error;
  }
}

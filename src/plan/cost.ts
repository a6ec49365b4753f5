/**
 * The cost model: time, traffic and memory of a workload on a cluster under a layout, from their configurations.
 *
 * A layer is a list of operations (`operations.ts`); each has a time on the device (`device-time.ts`) or on links (`collectives.ts`); the
 * host launches them one after the other (`pass.ts`). What reaches how much of its peak is the cluster's `efficiency`, a dozen numbers
 * that `calibrate.ts` fits to measurements. Not here: how stages take turns (`simulate.ts`, `pipeline-time.ts`), and which layers they get
 * (`partition.ts`).
 *
 * ```ts
 * const cost = createCostModel({ workload, cluster: findClusterPreset("a800"), layout });
 * cost.layer(0, "full").backward.seconds;
 * ```
 */
import type { ClusterConfig, EfficiencyConfig, NodeGroup } from "../config/cluster.ts";
import { MoeError } from "../util/errors.ts";
import { embeddingActivationBytes, headActivationBytes, layerActivationBytes } from "./activations.ts";
import { collectiveSeconds, collectiveSentBytes, linksOf, messageSeconds, placeGroup, type GroupPlacement } from "./collectives.ts";
import { bytesOfType, memorySeconds } from "./device-time.ts";
import { expertReplicas, stageMemory, stageParameters } from "./memory.ts";
import { embeddingPasses, headPasses, layerPasses, type OperationContext } from "./operations.ts";
import { expertsOf } from "./shape.ts";
import { embeddingParameters, headParameters, layerParameters, rankSizes } from "./sizes.ts";
import type { CostModel, LayerCost, PlanLayout, Recompute, StagePlan, StepEndCost, Workload } from "./types.ts";

export interface CostModelOptions {
  readonly workload: Workload;
  readonly cluster: ClusterConfig;
  readonly layout: PlanLayout;
  /** Which of the cluster's kinds of nodes the device is of. Default: the first. */
  readonly nodeGroup?: number;
}

/**
 * Throws `configuration` for a layout whose degrees do not fit each other or the batch, and for a device that does not compute in the
 * workload's type.
 */
export function createCostModel({ workload, cluster, layout, nodeGroup = 0 }: CostModelOptions): CostModel {
  const numMicroBatches = checkLayout(workload, layout);
  const nodes = cluster.nodes[nodeGroup];
  if (nodes === undefined)
    throw new MoeError("configuration", `cluster ${cluster.name}: no nodes ${nodeGroup}, it has ${cluster.nodes.length} kinds`);
  const { efficiency } = cluster;
  const { software } = workload;
  const elementBytes = bytesOfType(software.computeType);
  const sizes = rankSizes(workload, layout, elementBytes);
  const links = linksOf(nodes, cluster.inter, efficiency);
  const timing = { device: nodes.device, efficiency: amongOthers(efficiency, layout, busyShare(layout, numMicroBatches), nodes) };
  // All ranks update at the same time.
  const updateTiming = { device: nodes.device, efficiency: amongOthers(efficiency, layout, 1, nodes) };
  const place = (size: number, stride: number): GroupPlacement => placeGroup(size, stride, nodes.devicesPerNode);
  const { tp, dp, ep, etp } = layout;
  const groups = { tp: place(tp, 1), etp: place(etp, 1), ep: place(ep, etp), dp: place(dp, tp) };
  const replicas = place(expertReplicas(layout), ep * etp);
  const context = (layer: number): OperationContext => ({ workload, layout, sizes, timing, links, groups, layer });
  const messageBytes = elementBytes * Math.ceil(sizes.tokens / tp) * workload.model.hiddenSize;

  function layer(index: number, recompute: Recompute): LayerCost {
    const { shared, experts } = layerParameters(workload.model, index, sizes, layout);
    return {
      ...layerPasses(context(index), recompute),
      activationBytes: layerActivationBytes(workload, index, sizes, layout, recompute),
      parameters: shared,
      expertParameters: experts,
    };
  }
  function stepEnd(stage: StagePlan): StepEndCost {
    const { shared, experts } = stageParameters(workload, stage, sizes, layout);
    const exchange = software.exchangeBytes;
    // Under ZeRO: gradients are reduced and scattered, updated weights gathered; together as many bytes as an all-reduce.
    const seconds = (parameters: number, group: GroupPlacement): number =>
      layout.zero === 0
        ? collectiveSeconds("allReduce", exchange * parameters, group, links)
        : collectiveSeconds("reduceScatter", exchange * parameters, group, links) +
          (layout.zero === 3 ? 0 : collectiveSeconds("allGather", elementBytes * parameters, group, links));
    const sent = (parameters: number, size: number): number =>
      layout.zero === 0
        ? collectiveSentBytes("allReduce", exchange * parameters, size)
        : collectiveSentBytes("reduceScatter", exchange * parameters, size) +
          (layout.zero === 3 ? 0 : collectiveSentBytes("allGather", elementBytes * parameters, size));
    // A tied matrix that two stages have is summed over both.
    const tied = workload.model.tiedEmbeddings && layout.pp > 1 && (stage.embedding || stage.head);
    const tiedBytes = tied ? exchange * sizes.vocabRows * workload.model.hiddenSize : 0;
    const tiedGroup = place(2, (layout.pp - 1) * dp * tp);
    const owned = layout.zero >= 1 ? shared / dp + experts / replicas.size : shared + experts;
    // The update reads and writes master and moments.
    const { gradientPasses = 5 } = software;
    const optimizerBytes = gradientPasses * software.gradientBytes + (software.computeType === "f32" ? 24 : 24 + elementBytes);
    return {
      gradientSeconds:
        (1 - efficiency.overlap) * (seconds(shared, groups.dp) + seconds(experts, replicas)) +
        collectiveSeconds("allReduce", tiedBytes, tiedGroup, links),
      optimizerSeconds: memorySeconds(updateTiming, optimizerBytes * owned),
      sentBytes: sent(shared, dp) + sent(experts, replicas.size),
    };
  }
  const model = workload.model;
  const none = { expertParameters: 0 };
  return {
    workload,
    cluster,
    layout,
    numMicroBatches,
    layer,
    embedding: () => ({
      ...embeddingPasses(context(0)),
      activationBytes: embeddingActivationBytes(workload, sizes),
      parameters: embeddingParameters(model, sizes, workload.sequenceLength),
      ...none,
    }),
    head: () => ({
      ...headPasses(context(0)),
      activationBytes: headActivationBytes(workload, sizes),
      parameters: headParameters(model, sizes),
      ...none,
    }),
    boundary: () => ({
      // Each tensor-parallel rank sends its part of the tokens; the receivers gather them, where activations are whole.
      seconds:
        layout.pp === 1
          ? 0
          : messageSeconds(messageBytes, layout.pp * dp * tp, nodes.devicesPerNode, links) +
            (layout.sequenceParallel ? 0 : collectiveSeconds("allGather", messageBytes * tp, groups.tp, links)),
      bytes: layout.pp === 1 ? 0 : messageBytes,
    }),
    microBatchSeconds: efficiency.microBatchSeconds,
    stageMemory: (stage, inFlight) => stageMemory(workload, stage, inFlight, sizes, layout),
    stepEnd,
    stepSeconds: efficiency.stepSeconds,
  };
}

/** The share of a step's passes in which a rank of the pipeline computes: m / (m + pp - 1) of m micro-batches, or more where stages are interleaved. */
function busyShare({ pp, interleave }: PlanLayout, numMicroBatches: number): number {
  return (numMicroBatches * interleave) / (numMicroBatches * interleave + pp - 1);
}

/**
 * The efficiency of a device that shares its node with as many others as the layout needs. Those of its own stage compute when it does, those of other
 * stages so large a share of the time.
 */
function amongOthers(
  efficiency: EfficiencyConfig,
  { pp, dp, tp }: PlanLayout,
  busy: number,
  { devicesPerNode }: NodeGroup,
): EfficiencyConfig {
  const { together, gemm, memory } = efficiency;
  const others = Math.min(devicesPerNode, pp * dp * tp) - 1;
  if (together === 1 || others === 0) return efficiency;
  const ofStage = Math.min(others, dp * tp - 1);
  const computing = ofStage + (others - ofStage) * busy;
  // Beside all others a second of work takes 1 / together; beside a part of them, that part of the excess.
  const speed = 1 / (1 + ((1 / together - 1) * computing) / (devicesPerNode - 1));
  return { ...efficiency, gemm: gemm * speed, memory: memory * speed };
}

/** Micro-batches of a data-parallel rank. */
function checkLayout({ model, batchSequences }: Workload, { pp, dp, tp, ep, etp, microBatch }: PlanLayout): number {
  const refuse = (problem: string): never => {
    throw new MoeError("configuration", `layout: ${problem}`);
  };
  if (batchSequences % (dp * microBatch) !== 0)
    refuse(`dp ${dp} * micro-batch ${microBatch} does not divide the batch of ${batchSequences} sequences`);
  if (pp > model.numLayers) refuse(`pp ${pp} for ${model.numLayers} layers: some stages would have none`);
  if (tp > model.numHeads) refuse(`tp ${tp} for ${model.numHeads} heads: some ranks would have none`);
  if (model.moe !== null) {
    if ((dp * tp) % (ep * etp) !== 0) refuse(`ep ${ep} * etp ${etp} does not divide dp ${dp} * tp ${tp}`);
    if (ep > model.moe.numExperts) refuse(`ep ${ep} for ${model.moe.numExperts} experts: some ranks would have none`);
  } else if (ep * etp !== 1 && ep * etp !== tp) refuse(`ep ${ep} and etp ${etp} of a model without experts`);
  return batchSequences / (dp * microBatch);
}

/** Kinds of layers that differ in cost, by the first layer of each kind: caches of searches need one answer a kind. */
export function layerKind({ model }: Workload, layer: number): number {
  const experts = expertsOf(model, layer) === null ? 0 : 1;
  const window = model.slidingWindow !== null && layer >= model.slidingWindow.firstLayer ? 2 : 0;
  return experts + window;
}

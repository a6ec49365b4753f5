/**
 * Bytes of one device of a stage.
 *
 * Mixed precision with AdamW: a weight has its compute type's bytes, its gradient `gradientBytes`, and the optimizer 12 (f32 master and both
 * moments; 8 where the compute type is f32, whose weight is its own master): 18 bytes a parameter with f32 gradients, as in Megatron. ZeRO
 * (arXiv 1910.02054) divides optimizer states (1), gradients too (2) and weights too (3) by the data-parallel ranks; experts by their
 * replicas. Activations are kept for every micro-batch in flight; what lives for moments is `workspace`.
 */
import { embeddingActivationBytes, headActivationBytes, layerActivationBytes } from "./activations.ts";
import { bytesOfType } from "./device-time.ts";
import { embeddingParameters, headParameters, layerParameters, type RankSizes } from "./sizes.ts";
import type { PlanLayout, StageMemory, StagePlan, Workload } from "./types.ts";

export interface StageParameters {
  readonly shared: number;
  readonly experts: number;
}

/** Parameters of one device of a stage. The head's matrix is the embedding's own where both are on the stage and tied. */
export function stageParameters(
  { model, sequenceLength }: Workload,
  stage: StagePlan,
  sizes: RankSizes,
  layout: PlanLayout,
): StageParameters {
  let [shared, experts] = [0, 0];
  for (let layer = stage.firstLayer; layer < stage.firstLayer + stage.numLayers; layer++) {
    const own = layerParameters(model, layer, sizes, layout);
    shared += own.shared;
    experts += own.experts;
  }
  if (stage.embedding) shared += embeddingParameters(model, sizes, sequenceLength);
  if (stage.head) shared += headParameters(model, sizes);
  if (stage.embedding && stage.head && model.tiedEmbeddings) shared -= sizes.vocabRows * model.hiddenSize;
  return { shared, experts };
}

/** Replicas of a rank's experts. */
export function expertReplicas({ dp, tp, ep, etp }: PlanLayout): number {
  return Math.max(1, (dp * tp) / (ep * etp));
}

/** Memory of a stage that keeps the activations of `inFlight` micro-batches. */
export function stageMemory(workload: Workload, stage: StagePlan, inFlight: number, sizes: RankSizes, layout: PlanLayout): StageMemory {
  const { computeType, gradientBytes } = workload.software;
  const { shared, experts } = stageParameters(workload, stage, sizes, layout);
  const shard = (level: number): number =>
    layout.zero >= level ? shared / layout.dp + experts / expertReplicas(layout) : shared + experts;
  const weights = bytesOfType(computeType) * shard(3);
  const gradients = gradientBytes * shard(2);
  const optimizer = (computeType === "f32" ? 8 : 12) * shard(1);
  const activations = inFlight * stageActivationBytes(workload, stage, sizes, layout);
  const workspace = workspaceBytes(workload, stage, sizes, layout);
  return { weights, gradients, optimizer, activations, workspace, total: weights + gradients + optimizer + activations + workspace };
}

/** Bytes that a stage keeps for one micro-batch. The first layers recompute everything, the next ones attention's inner part. */
function stageActivationBytes(workload: Workload, stage: StagePlan, sizes: RankSizes, layout: PlanLayout): number {
  let bytes = 0;
  for (let i = 0; i < stage.numLayers; i++)
    bytes += layerActivationBytes(workload, stage.firstLayer + i, sizes, layout, recomputeOf(stage, i));
  if (stage.embedding) bytes += embeddingActivationBytes(workload, sizes);
  if (stage.head) bytes += headActivationBytes(workload, sizes);
  return bytes;
}

/** Recomputation of the stage's layer `i`, counted from its first. */
export function recomputeOf({ fullRecompute, selectiveRecompute }: StagePlan, i: number): "none" | "selective" | "full" {
  if (i < fullRecompute) return "full";
  return i < fullRecompute + selectiveRecompute ? "selective" : "none";
}

/** The largest of: one recomputed layer with all it keeps, the logits' gradient beside them, a message of each direction. */
function workspaceBytes(workload: Workload, stage: StagePlan, sizes: RankSizes, layout: PlanLayout): number {
  const { tokens, rowTokens, vocabRows, elementBytes: e } = sizes;
  const H = workload.model.hiddenSize;
  let recomputed = 0;
  for (let i = 0; i < stage.numLayers; i++) {
    const choice = recomputeOf(stage, i);
    if (choice === "none") continue;
    const whole = layerActivationBytes(workload, stage.firstLayer + i, sizes, layout, "none");
    recomputed = Math.max(recomputed, whole - freedBytes(workload, stage, sizes, layout, choice));
  }
  // Logits in the compute type and in f32 while one becomes the other, forward and backward; a chunk of 1024 rows where they are chunked.
  const logitRows = workload.software.logits === "kept" ? tokens : Math.min(tokens, 1024);
  const head = stage.head ? (e + 4) * logitRows * vocabRows : 0;
  // A layer's backward pass holds gradients of its widest activation and of its input.
  const gradients = e * (2 * rowTokens * H + 2 * tokens * Math.max(sizes.ffnColumns, sizes.queryColumns));
  const messages = layout.pp > 1 ? 2 * e * rowTokens * H : 0;
  return Math.max(recomputed + gradients, head) + messages;
}

/** What a micro-batch's backward pass has let go when it comes to the last layer that is recomputed so. */
function freedBytes(workload: Workload, stage: StagePlan, sizes: RankSizes, layout: PlanLayout, choice: "full" | "selective"): number {
  if (workload.software.freesInBackward !== true) return 0;
  const { fullRecompute, selectiveRecompute } = stage;
  let bytes = stage.head ? headActivationBytes(workload, sizes) : 0;
  for (let i = choice === "full" ? fullRecompute : fullRecompute + selectiveRecompute; i < stage.numLayers; i++)
    bytes += layerActivationBytes(workload, stage.firstLayer + i, sizes, layout, recomputeOf(stage, i));
  return bytes;
}

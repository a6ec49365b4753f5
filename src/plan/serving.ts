/**
 * Serving a model on cards that one may not have: bytes of weights on every rank of a tensor-parallel group, room for keys and values, the
 * largest batch, and the tokens a second that the bytes and FLOPs allow.
 *
 * Ranks share each layer as `tensorParallelPlan` says: unevenly where counts do not divide (36 heads over 8 ranks: 5, 5, 5, 5, 4, 4, 4, 4).
 * One decoding step of B sequences: attention and network of every layer end in an all-reduce, so the slowest rank decides each by
 * itself. A part takes as long as reading its bytes or computing its FLOPs, whichever is longer, and its kernels' starts:
 *
 *   attention   matrices + B * context * 2 * kvHeads * headDim elements of cache
 *   experts     a token goes to k of E: of e experts on a rank, e (1 - (1 - k/E)^B) are read, and B k e / E rows computed, as if routing were even
 *   head        its rows; logits are gathered
 *
 * Prefill is counted in FLOPs and all-reduces of the prompt; a sequence's share of both gives the tokens a second of a server that is always full.
 * Not in it: scheduling, sampling, uneven routing, and the host, which is hidden where steps are captured as graphs.
 */
import type { ClusterConfig, NodeGroup } from "../config/cluster.ts";
import { hasExperts, type ModelConfig } from "../config/model.ts";
import { forwardFlopsPerToken } from "../config/model-counts.ts";
import type { RankShare } from "../config/rank-share.ts";
import type { WeightFormat } from "../config/rank-memory.ts";
import { tensorParallelPlan, type TensorParallelPlan } from "../config/tensor-parallel.ts";
import { MoeError } from "../util/errors.ts";
import { intervalLength } from "../util/partition.ts";
import { collectiveSeconds, linksOf, placeGroup } from "./collectives.ts";
import { usableBytes } from "./device-time.ts";

export interface ServingRequest {
  readonly model: ModelConfig;
  /** One tensor-parallel group over all its devices, which are of one kind. */
  readonly cluster: ClusterConfig;
  readonly weights: WeightFormat;
  /** Bytes of a cached element: 2 (bf16) or 1 (FP8). */
  readonly kvElementBytes: 1 | 2;
  readonly promptTokens: number;
  readonly outputTokens: number;
  /** Share of a card's memory that is left to the driver and libraries: at least 0, below 1. */
  readonly memoryReserve: number;
}

export interface BatchEstimate {
  readonly batch: number;
  /** One step of all sequences, halfway through their output. */
  readonly stepMs: number;
  /** Of that, reading weights, reading the cache, all-reduces. */
  readonly weightsMs: number;
  readonly cacheMs: number;
  readonly communicationMs: number;
  /** While nothing is prefilled. */
  readonly decodeTokensPerSecond: number;
  /** Output tokens a second when every sequence that ends is followed by another prompt. */
  readonly tokensPerSecond: number;
}

export interface ServingReport {
  readonly ranks: number;
  readonly device: string;
  readonly memoryBytes: number;
  readonly mode: TensorParallelPlan["mode"];
  readonly heads: readonly number[];
  readonly weightBytes: readonly number[];
  readonly kvBytesPerToken: readonly number[];
  /** Left for keys and values on each rank. */
  readonly roomBytes: readonly number[];
  readonly workspaceBytes: number;
  readonly cacheTokens: number;
  readonly largestBatch: number;
  readonly prefillMs: number;
  /** Of batches 1, 2, 4, ... and the largest. */
  readonly batches: readonly BatchEstimate[];
  readonly notes: readonly string[];
}

/** Tokens of a prompt that are prefilled in one pass. */
const chunkTokens = 2048;
/** Kernels of a layer: norms, projections, rotation, attention, router, experts, sums. */
const kernelsOfAttention = 6;
const kernelsOfNetwork = 7;

/** Throws `configuration` for several kinds of devices, and where weights and one sequence do not fit (with the smallest number of cards that do). */
export function planServing(request: ServingRequest): ServingReport {
  const { model, cluster, promptTokens, outputTokens, memoryReserve } = request;
  const group = cluster.nodes[0];
  if (group === undefined || cluster.nodes.length > 1)
    throw new MoeError("configuration", `serving is planned on devices of one kind, got ${cluster.nodes.length} kinds`);
  const context = promptTokens + outputTokens;
  if (context > model.maxPositions)
    throw new MoeError("configuration", `${promptTokens} + ${outputTokens} tokens exceed the model's ${model.maxPositions} positions`);
  const ranks = group.devicesPerNode * group.numNodes;
  const memoryBytes = usableBytes(group.device, memoryReserve);
  const workspaceBytes = serveWorkspace(model, ranks);
  const fits = (numRanks: number, cacheTokens: number): TensorParallelPlan | null =>
    sharedPlan(request, numRanks, memoryBytes - serveWorkspace(model, numRanks), cacheTokens);
  if (fits(ranks, context) === null) throw tooFew(request, ranks, group, (numRanks) => fits(numRanks, context) !== null);
  const cacheTokens = largest((tokens) => fits(ranks, tokens) !== null, context);
  const largestBatch = Math.floor(cacheTokens / context);
  const plan = fits(ranks, largestBatch * context);
  if (plan === null) throw new MoeError("internal", "serving plan: what fitted does no more");
  const sizes = [...new Set([...powersBelow(largestBatch), largestBatch])];
  const step = new DecodeStep(request, group, plan);
  const prefillSeconds = step.prefillSeconds();
  return {
    ranks,
    device: group.device.name,
    memoryBytes,
    mode: plan.mode,
    heads: plan.ranks.map(({ share }) => intervalLength(share.heads)),
    weightBytes: plan.ranks.map(({ weightBytes }) => weightBytes),
    kvBytesPerToken: plan.ranks.map(({ kvBytesPerToken }) => kvBytesPerToken),
    roomBytes: plan.ranks.map(({ weightBytes }) => memoryBytes - workspaceBytes - weightBytes),
    workspaceBytes,
    cacheTokens,
    largestBatch,
    prefillMs: 1e3 * prefillSeconds,
    batches: sizes.map((batch) => step.estimate(batch, prefillSeconds)),
    notes: plan.notes,
  };
}

function sharedPlan(
  { model, weights, kvElementBytes }: ServingRequest,
  ranks: number,
  memoryBytes: number,
  cacheTokens: number,
): TensorParallelPlan | null {
  try {
    return tensorParallelPlan(model, { ranks, memoryBytes, cacheTokens, format: { weights, kvElementBytes } });
  } catch (error) {
    if (error instanceof MoeError && error.kind === "configuration") return null;
    throw error;
  }
}

/** Activations of a prefill pass: residuals, queries, keys, values and the widest network part of the rank's share, in bf16. */
function serveWorkspace(model: ModelConfig, ranks: number): number {
  const { hiddenSize: H, headDim, numHeads, numKvHeads, ffnSize, moe } = model;
  const widest = Math.max(ffnSize, (moe?.topK ?? 0) * (moe?.expertFfnSize ?? 0));
  const columns = 4 * H + (Math.ceil(numHeads / ranks) + 2 * Math.ceil(numKvHeads / ranks)) * headDim + 3 * Math.ceil(widest / ranks);
  return 2 * chunkTokens * columns;
}

/** The largest count that `holds`, which holds for `start` and for fewer of every count that it holds for. */
function largest(holds: (count: number) => boolean, start: number): number {
  let high = 2 * start;
  while (holds(high) && high < 2 ** 40) high *= 2;
  let low = high / 2;
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (holds(middle)) low = middle;
    else high = middle;
  }
  return low;
}

function powersBelow(count: number): number[] {
  const powers: number[] = [];
  for (let size = 1; size <= count; size *= 2) powers.push(size);
  return powers;
}

function tooFew({ weights }: ServingRequest, ranks: number, { device }: NodeGroup, fits: (ranks: number) => boolean): MoeError {
  let count = ranks + 1;
  while (count <= 1024 && !fits(count)) count++;
  const advice = count > 1024 ? "no number up to 1024 holds them" : `the smallest number that does is ${count}`;
  return new MoeError("configuration", `${ranks} x ${device.name} cannot hold the weights in ${weights} and one sequence; ${advice}`);
}

class DecodeStep {
  readonly #request: ServingRequest;
  readonly #group: NodeGroup;
  readonly #plan: TensorParallelPlan;

  constructor(request: ServingRequest, group: NodeGroup, plan: TensorParallelPlan) {
    [this.#request, this.#group, this.#plan] = [request, group, plan];
  }

  get #elementBytes(): number {
    const { weights } = this.#request;
    return weights === "fp8" ? 1 : weights === "bf16" ? 2 : 4;
  }
  get #bandwidth(): number {
    return this.#group.device.memoryBandwidth * this.#request.cluster.efficiency.memory;
  }
  /** FP8 weights are multiplied in FP8 where the device can, otherwise in bf16. */
  get #flopsPerSecond(): number {
    const { peakFlops } = this.#group.device;
    const { weights, cluster } = this.#request;
    const peak = weights === "f32" ? peakFlops.f32 : weights === "fp8" ? (peakFlops.fp8 ?? peakFlops.bf16) : peakFlops.bf16;
    return (peak ?? peakFlops.f32) * cluster.efficiency.gemm;
  }
  #allReduceSeconds(tokens: number): number {
    const { model, cluster } = this.#request;
    const { devicesPerNode } = this.#group;
    const ranks = this.#plan.ranks.length;
    if (ranks === 1) return 0;
    const placement = placeGroup(ranks, 1, devicesPerNode);
    return collectiveSeconds(
      "allReduce",
      2 * tokens * model.hiddenSize,
      placement,
      linksOf(this.#group, cluster.inter, cluster.efficiency),
    );
  }

  /** One prompt by itself. */
  prefillSeconds(): number {
    const { model, promptTokens } = this.#request;
    const flops = forwardFlopsPerToken(model, promptTokens) * promptTokens;
    const computing = (flops / this.#plan.ranks.length / this.#flopsPerSecond) * this.#plan.slowdown;
    return computing + 2 * model.numLayers * this.#allReduceSeconds(promptTokens);
  }

  estimate(batch: number, prefillSeconds: number): BatchEstimate {
    const { model, cluster, promptTokens, outputTokens } = this.#request;
    const context = promptTokens + outputTokens / 2;
    const { kernelSeconds } = cluster.efficiency;
    let [weights, cache, kernels] = [0, 0, 0];
    let seconds = 0;
    const add = (part: { readonly weights: number; readonly cache: number; readonly flops: number }[], numKernels: number): void => {
      const times = part.map((rank) => Math.max((rank.weights + rank.cache) / this.#bandwidth, rank.flops / this.#flopsPerSecond));
      const slowest = times.indexOf(Math.max(...times));
      seconds += times[slowest] ?? 0;
      weights += (part[slowest]?.weights ?? 0) / this.#bandwidth;
      cache += (part[slowest]?.cache ?? 0) / this.#bandwidth;
      kernels += numKernels * kernelSeconds;
    };
    for (let layer = 0; layer < model.numLayers; layer++) {
      const shares = this.#plan.ranks.map(({ share }) => share);
      add(
        shares.map((share) => this.#attention(share, batch, context)),
        kernelsOfAttention,
      );
      add(
        shares.map((share) => this.#network(share, layer, batch)),
        kernelsOfNetwork,
      );
    }
    add(
      this.#plan.ranks.map(({ share }) => ({
        weights: 2 * intervalLength(share.vocab) * model.hiddenSize,
        cache: 0,
        flops: 2 * batch * intervalLength(share.vocab) * model.hiddenSize,
      })),
      2,
    );
    const communication = (2 * model.numLayers + 1) * this.#allReduceSeconds(batch);
    const step = seconds + kernels + communication;
    return {
      batch,
      stepMs: 1e3 * step,
      weightsMs: 1e3 * weights,
      cacheMs: 1e3 * cache,
      communicationMs: 1e3 * communication,
      decodeTokensPerSecond: batch / step,
      tokensPerSecond: (batch * outputTokens) / (batch * prefillSeconds + outputTokens * step),
    };
  }

  #attention({ heads, kvHeads }: RankShare, batch: number, context: number): { weights: number; cache: number; flops: number } {
    const { hiddenSize: H, headDim: D } = this.#request.model;
    const [Q, C] = [intervalLength(heads) * D, intervalLength(kvHeads) * D];
    const elements = 2 * H * (Q + C);
    return {
      weights: elements * this.#elementBytes,
      cache: batch * context * 2 * C * this.#request.kvElementBytes,
      flops: 2 * batch * elements + 4 * batch * context * Q,
    };
  }

  #network(share: RankShare, layer: number, batch: number): { weights: number; cache: number; flops: number } {
    const { model } = this.#request;
    const { hiddenSize: H, moe } = model;
    if (moe === null || !hasExperts(model, layer)) {
      const elements = 3 * H * intervalLength(share.ffn);
      return { weights: elements * this.#elementBytes, cache: 0, flops: 2 * batch * elements };
    }
    const { numExperts: E, topK } = moe;
    const count = intervalLength(share.experts);
    const one = 3 * H * intervalLength(share.expertColumns);
    const shared = 3 * H * intervalLength(share.sharedFfn);
    const read = count * (1 - (1 - topK / E) ** batch);
    return {
      weights: (read * one + shared) * this.#elementBytes + 4 * E * H,
      cache: 0,
      flops: 2 * batch * ((topK / E) * count * one + shared + E * H),
    };
  }
}

/** From parameters by name to the modules of a layer. */
import { hasExperts, windowOfLayer, type MoeConfig, type ModelConfig } from "../config/model.ts";
import { Attention, Block, Experts, FeedForward, GatheredNorm, Linear, MoeBlock, RmsNorm, Router, SharedExpert } from "../nn/index.ts";
import type { TensorGroup } from "../parallel/group.ts";
import { headSegments, ownedKvHeads } from "../config/rank-share.ts";
import type { Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { intervalLength, type Interval } from "../util/partition.ts";
import { mayBeFp8, type ParameterSpec } from "./parameters.ts";
import { ownShare, type ModelShard } from "./shard.ts";

/** Parameters by name, with errors that say which one is wrong. */
export class ParameterMap {
  readonly #tensors: ReadonlyMap<string, Tensor>;

  constructor(tensors: ReadonlyMap<string, Tensor>) {
    this.#tensors = tensors;
  }
  get(name: string): Tensor {
    const tensor = this.#tensors.get(name);
    if (tensor === undefined) throw new MoeError("shape", `model parameters: expected ${name}, it is missing`);
    return tensor;
  }
  /** The parameters must be exactly these, matrices of layers possibly in FP8 with scales. Throws `shape`. */
  check(specs: readonly ParameterSpec[]): void {
    for (const { name, shape, dtype } of specs) {
      const { shape: got, dtype: gotDtype, scales } = this.get(name);
      const fits = gotDtype === dtype || (gotDtype === "fp8" && scales !== null && mayBeFp8({ name }));
      if (got.join() === shape.join() && fits) continue;
      throw new MoeError("shape", `model parameters: expected ${name} [${shape.join(", ")}] ${dtype}, got [${got.join(", ")}] ${gotDtype}`);
    }
    const known = new Set(specs.map(({ name }) => name));
    const extra = [...this.#tensors.keys()].filter((name) => !known.has(name));
    if (extra.length > 0) throw new MoeError("shape", `model parameters: unexpected ${extra.join(", ")}`);
  }
}

/** Layer `layer` (from 0) of a model, or of what a rank has of it. */
export function buildLayer(parameters: ParameterMap, config: ModelConfig, layer: number, shard: ModelShard | null = null): Block {
  const get = (name: string): Tensor => parameters.get(`layers.${layer}.${name}`);
  const norm = (name: string): RmsNorm => new RmsNorm(get(`${name}.weight`), config.normEps);
  return new Block({
    attentionNorm: norm("attentionNorm"),
    attention: buildAttention(get, config, layer, shard),
    feedForwardNorm: norm("feedForwardNorm"),
    feedForward: buildFeedForward(get, config, layer, shard),
  });
}

function buildAttention(get: GetParameter, config: ModelConfig, layer: number, shard: ModelShard | null): Attention {
  const projection = (name: string): Linear =>
    new Linear(get(`attention.${name}.weight`), config.qkvBias ? get(`attention.${name}.bias`) : null);
  const modules = {
    query: projection("query"),
    key: projection("key"),
    value: projection("value"),
    output: new Linear(get("attention.output.weight")),
    queryNorm: buildHeadNorm(get, config, "query", shard),
    keyNorm: buildHeadNorm(get, config, "key", shard),
  };
  const { headDim, numHeads, numKvHeads } = config;
  const window = windowOfLayer(config, layer);
  if (shard === null) return new Attention(modules, { numHeads, numKvHeads, headDim, window });
  const { heads, kvHeads } = ownShare(shard);
  const sizes = { numHeads: intervalLength(heads), numKvHeads: intervalLength(kvHeads), headDim, window };
  return new Attention(modules, sizes, { group: shard.group, segments: headSegments(heads, config) });
}

/** A norm of all heads together needs those of all ranks; one of each head by itself does not, and a rank without heads needs none. */
function buildHeadNorm(
  get: GetParameter,
  config: ModelConfig,
  of: "query" | "key",
  shard: ModelShard | null,
): RmsNorm | GatheredNorm | null {
  const { qkNorm, normEps, headDim } = config;
  if (qkNorm === "none") return null;
  const norm = new RmsNorm(get(`attention.${of}Norm.weight`), normEps);
  if (shard === null) return norm;
  const { heads, kvHeads } = ownShare(shard);
  if (qkNorm === "head") return intervalLength(heads) === 0 ? null : norm;
  const columns = ({ start, end }: Interval): Interval => ({ start: start * headDim, end: end * headDim });
  const owned = shard.shares.map((share) => columns(of === "query" ? share.heads : ownedKvHeads(share.heads, config)));
  return new GatheredNorm(norm, shard.group, columns(of === "query" ? heads : kvHeads), owned);
}

type GetParameter = (name: string) => Tensor;

function buildFeedForward(get: GetParameter, config: ModelConfig, layer: number, shard: ModelShard | null): FeedForward | MoeBlock {
  const { moe } = config;
  if (moe === null || !hasExperts(config, layer)) return denseNetwork(get, "feedForward", shard?.group ?? null);
  const experts = new Experts(get("moe.experts.gate"), get("moe.experts.up"), get("moe.experts.down"));
  const options = { inputScale: moe.inputScale, sharedExpert: buildSharedExpert(get, moe) };
  if (shard === null) return new MoeBlock(buildRouter(get, moe), experts, options);
  const own = { group: shard.group, experts: ownShare(shard).experts, numExperts: moe.numExperts, block: shard.block ?? null };
  return new MoeBlock(buildRouter(get, moe), experts, { ...options, shard: own });
}
function denseNetwork(get: GetParameter, name: string, group: TensorGroup | null = null): FeedForward {
  const matrix = (part: string): Linear => new Linear(get(`${name}.${part}.weight`));
  return new FeedForward(matrix("gate"), matrix("up"), matrix("down"), group);
}

function buildRouter(get: GetParameter, moe: MoeConfig): Router {
  const { topK, gateNormalization: normalization, scoring, renormalize, routedScale, groups } = moe;
  const modules = {
    gate: new Linear(get("moe.router.weight")),
    hidden: moe.gateLayers === 2 ? new Linear(get("moe.router.hidden.weight")) : null,
    selectionBias: moe.selectionBias ? get("moe.router.bias") : null,
  };
  return new Router(modules, { topK, normalization, scoring, renormalize, routedScale, groups });
}

function buildSharedExpert(get: GetParameter, { sharedExpert }: MoeConfig): SharedExpert | null {
  if (sharedExpert === null) return null;
  const gate = sharedExpert.gate ? new Linear(get("moe.shared.router.weight")) : null;
  return new SharedExpert(denseNetwork(get, "moe.shared"), gate, sharedExpert.scale);
}

/** From parameters by name to the modules of a layer. */
import { hasExperts, windowOfLayer, type MoeConfig, type ModelConfig } from "../config/model.ts";
import { Attention, Block, Experts, FeedForward, Linear, MoeBlock, RmsNorm, Router, SharedExpert } from "../nn/index.ts";
import type { Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { mayBeFp8, type ParameterSpec } from "./parameters.ts";

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

/** Layer `layer` (from 0) of a model. */
export function buildLayer(parameters: ParameterMap, config: ModelConfig, layer: number): Block {
  const get = (name: string): Tensor => parameters.get(`layers.${layer}.${name}`);
  const norm = (name: string): RmsNorm => new RmsNorm(get(`${name}.weight`), config.normEps);
  const projection = (name: string): Linear =>
    new Linear(get(`attention.${name}.weight`), config.qkvBias ? get(`attention.${name}.bias`) : null);
  const attention = new Attention(
    {
      query: projection("query"),
      key: projection("key"),
      value: projection("value"),
      output: new Linear(get("attention.output.weight")),
      queryNorm: config.qkNorm !== "none" ? norm("attention.queryNorm") : null,
      keyNorm: config.qkNorm !== "none" ? norm("attention.keyNorm") : null,
    },
    { numHeads: config.numHeads, numKvHeads: config.numKvHeads, headDim: config.headDim, window: windowOfLayer(config, layer) },
  );
  return new Block({
    attentionNorm: norm("attentionNorm"),
    attention,
    feedForwardNorm: norm("feedForwardNorm"),
    feedForward: buildFeedForward(get, config, layer),
  });
}

type GetParameter = (name: string) => Tensor;

function buildFeedForward(get: GetParameter, config: ModelConfig, layer: number): FeedForward | MoeBlock {
  const { moe } = config;
  if (moe === null || !hasExperts(config, layer)) return denseNetwork(get, "feedForward");
  const experts = new Experts(get("moe.experts.gate"), get("moe.experts.up"), get("moe.experts.down"));
  return new MoeBlock(buildRouter(get, moe), experts, { inputScale: moe.inputScale, sharedExpert: buildSharedExpert(get, moe) });
}
function denseNetwork(get: GetParameter, name: string): FeedForward {
  const matrix = (part: string): Linear => new Linear(get(`${name}.${part}.weight`));
  return new FeedForward(matrix("gate"), matrix("up"), matrix("down"));
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

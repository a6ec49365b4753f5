/**
 * The decoder: embedding, layers, final norm, output head. Every supported family, dense or with experts, is this one class;
 * the configuration says which parts a layer has.
 *
 * A forward pass takes a flat batch of tokens (`batch.ts`), with or without a KV cache. Under a tape it records, with any
 * number of layers recomputed in the backward pass instead of kept. What the routers decided is returned, layer by layer, and
 * whoever trains adds balance losses with coefficients of its own.
 *
 * Legend: T tokens, H hidden, V vocabulary, E experts, K choices, R chosen rows.
 */
import { hasExperts, type ModelConfig } from "../config/model.ts";
import {
  RmsNorm,
  RotaryEmbedding,
  type AttentionInput,
  type Block,
  type LayerCache,
  type Routing,
  type RoutingContext,
} from "../nn/index.ts";
import { embedding, linear, linearCrossEntropy, onBackward, recomputeMany, type Engine, type Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { intervalLength, type Interval } from "../util/partition.ts";
import type { Batch } from "./batch.ts";
import { buildLayer, ParameterMap } from "./build.ts";
import { initialParameters, parameterSpecs, type ModelDType, type ParameterSpec } from "./parameters.ts";
import { cacheConfigOf, embedShard, ownShare, shardLogits, shardLoss, shardSpecs, type ModelShard } from "./shard.ts";
import { takeTurns, type LayerSteps } from "./turns.ts";
import { isFirstSpan, isLastSpan, spanSpecs, wholeSpan } from "./span.ts";

/** Keys and values of earlier tokens, layer by layer. */
export interface DecoderCache {
  layer(index: number): LayerCache;
}

/** What a decoder has of its model. Default: all of it. */
export interface DecoderParts {
  /** Its parts of each parameter, as a rank of a group. */
  readonly shard?: ModelShard | null;
  /** Its layers, as a stage of a pipeline (`span.ts`). */
  readonly layers?: Interval;
}

export interface InitializeOptions {
  readonly dtype: ModelDType;
  readonly seed: number;
  /** Of these layers only, and of a rank's parts (`DecoderParts`). */
  readonly layers?: Interval;
  readonly shard?: ModelShard | null;
}

export interface ForwardOptions {
  /** [T, H]: hidden states of the layer before the decoder's first. Needed exactly where that is not the model's first. */
  readonly hidden?: Tensor;
  /** The cache (`KvCache`, `PagedCache`) whose `extend` made the batch. No gradient flows through it. */
  readonly cache?: DecoderCache;
  /** Balance groups, capacity, padding and noise for the routers. Training only; absent: dropless, all tokens, no noise. */
  readonly routing?: RoutingContext;
  /** Layers, from the decoder's first, whose activations are recomputed in the backward pass. */
  readonly recomputeLayers?: number;
  /** Called after each layer with the hidden states [T, H], which are valid during the call. */
  readonly onLayer?: (x_TH: Tensor, layer: number) => void;
  /** Called before the first use of a layer's weights (-1: the embedding; the number of layers: final norm and head). */
  readonly beforeLayer?: ((layer: number) => void) | undefined;
  /** Called in the backward pass when a layer's parameters have all their gradients (numbers as above, without -1: that is the end of the pass). */
  readonly afterBackward?: ((layer: number) => void) | undefined;
}

/** One of the batches that take turns. */
export interface TurnPart {
  readonly batch: Batch;
  readonly hidden?: Tensor | undefined;
  readonly routing: RoutingContext;
}
interface TurnHooks {
  readonly recomputeLayers: number;
  readonly begin: (layer: number) => void;
  readonly marked: (x_TH: Tensor, layer: number) => Tensor;
}

/** Routing of one layer with experts. */
export interface LayerRouting extends Routing {
  readonly layer: number;
}
export interface HiddenOutput {
  /** [T, H] after the final norm (without the model's last layer: after the last there is), in the model's dtype. */
  readonly hidden_TH: Tensor;
  /** One entry a layer with experts, ascending. */
  readonly routing: readonly LayerRouting[];
}

export interface LossOptions extends ForwardOptions {
  /** Factor of the summed cross-entropy: 1 / (targets that count in the whole global batch). */
  readonly scale: number;
}
export interface LossOutput extends HiddenOutput {
  /** f32 [1]: scale * sum of the tokens' cross-entropies. A root of `backward`, with gradient 1. */
  readonly loss: Tensor;
  /** f32 [T]: unscaled, 0 where the target is negative. */
  readonly perToken: Tensor;
}

export class Decoder implements Disposable {
  readonly engine: Engine;
  readonly config: ModelConfig;
  readonly dtype: ModelDType;
  /** Its parameters: of the whole model, or its parts of those of its layers. */
  readonly specs: readonly ParameterSpec[];
  /** Them by our names, in this order. Owned by the decoder. */
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** The model's layers that this decoder has: all, but for a pipeline stage. */
  readonly layers: Interval;
  readonly #blocks: readonly Block[];
  /** Null: on another stage. */
  readonly #norm: RmsNorm | null;
  readonly #embedding: Tensor | null;
  readonly #head: Tensor | null;
  readonly #rotary: RotaryEmbedding;
  readonly #shard: ModelShard | null;

  /** Takes over `parameters`, which must be those of `parameterSpecs(config, dtype)` (of a part of the model: `decoderSpecs`); throws `shape` otherwise. */
  constructor(
    engine: Engine,
    config: ModelConfig,
    dtype: ModelDType,
    parameters: ReadonlyMap<string, Tensor>,
    { shard = null, layers = wholeSpan(config) }: DecoderParts = {},
  ) {
    const map = new ParameterMap(parameters);
    this.specs = decoderSpecs(config, dtype, { shard, layers });
    map.check(this.specs);
    this.#shard = shard;
    this.engine = engine;
    this.config = config;
    this.dtype = dtype;
    this.parameters = parameters;
    this.layers = layers;
    const [isFirst, isLast] = [isFirstSpan(layers), isLastSpan(layers, config)];
    this.#embedding = isFirst ? map.get("embedding.weight") : null;
    this.#head = isLast ? map.get(config.tiedEmbeddings ? "embedding.weight" : "head.weight") : null;
    this.#blocks = Array.from({ length: intervalLength(layers) }, (_, i) => buildLayer(map, config, layers.start + i, shard));
    this.#norm = isLast ? new RmsNorm(map.get("norm.weight"), config.normEps) : null;
    const { ropeTheta: theta, headDim, ropeScaling: scaling, maxPositions } = config;
    this.#rotary = new RotaryEmbedding(engine, { theta, headDim, scaling, maxPositions });
  }

  /** A model with fresh weights (see `initialParameters`), or layers or parts of it: the same values as in the whole. */
  static initialize(engine: Engine, config: ModelConfig, options: InitializeOptions): Decoder {
    const { dtype, seed, layers = wholeSpan(config), shard = null } = options;
    const all = parameterSpecs(config, dtype);
    const specs = decoderSpecs(config, dtype, { layers, shard });
    const parameters = initialParameters(engine, specs, { initStd: config.initStd, seed, all });
    return new Decoder(engine, config, dtype, parameters, { layers, shard });
  }

  /** What caches for this model are made by: the configuration, with a rank's own key-value heads. */
  get cacheConfig(): ModelConfig {
    return cacheConfigOf(this.config, this.#shard);
  }

  /** Hidden states after the final norm, and what the routers decided. Tensors belong to the current scope. */
  forwardHidden(batch: Batch, options: ForwardOptions = {}): HiddenOutput {
    const { hidden, cache, routing: context = {}, recomputeLayers = 0, onLayer, beforeLayer, afterBackward } = options;
    if (cache !== undefined && this.engine.tape !== null) {
      throw new MoeError("internal", "decoder: a forward pass with a KV cache under a tape: no gradient flows through cached keys");
    }
    const ropeTable = this.#rotary.forLength(batch.numPositions, { incremental: cache !== undefined });
    const routing: LayerRouting[] = [];
    if (this.#embedding !== null && this.layers.start === 0) beforeLayer?.(-1);
    let x_TH = this.#embed(batch, hidden);
    const marked = (x: Tensor, layer: number): Tensor => (afterBackward === undefined ? x : onBackward(x, () => afterBackward(layer)));
    for (const [index, block] of this.#blocks.entries()) {
      const layer = this.layers.start + index;
      const before_TH = x_TH;
      beforeLayer?.(layer);
      x_TH = marked(x_TH, layer);
      const run = ([x, positions, keyBase, keyEnd, table, valid]: readonly Tensor[]): Tensor[] => {
        const input: AttentionInput = { positions: here(positions), keyBase: here(keyBase), keyEnd: here(keyEnd), ropeTable: here(table) };
        return flatten(block.forward(here(x), input, cache?.layer(layer) ?? null, { ...context, valid }, layer));
      };
      const inputs = [x_TH, batch.positions, batch.keyBase, batch.keyEnd, ropeTable, ...(context.valid ? [context.valid] : [])];
      const outputs = index < recomputeLayers ? recomputeMany(this.engine, inputs, run) : this.engine.scope(() => run(inputs));
      x_TH = here(outputs[0]);
      onLayer?.(x_TH, layer);
      if (hasExperts(this.config, layer)) routing.push({ layer, ...unflatten(outputs) });
      // Without a tape nobody needs the layer's input any more; with one, the tape keeps what it needs.
      if (before_TH !== hidden) before_TH.dispose();
    }
    if (this.#norm === null) return { hidden_TH: x_TH, routing };
    const { numLayers } = this.config;
    beforeLayer?.(numLayers);
    return { hidden_TH: this.#norm.forward(marked(x_TH, numLayers)), routing };
  }

  /**
   * `forwardHidden` of several batches that take turns, so that the exchange of tokens of one runs beside the computation of another. Recomputed layers
   * do not: they are run again as one.
   */
  forwardTurns(parts: readonly TurnPart[], options: Omit<ForwardOptions, "hidden" | "cache" | "routing" | "onLayer">): HiddenOutput[] {
    const { recomputeLayers = 0, beforeLayer, afterBackward } = options;
    const { numLayers } = this.config;
    const [begun, passed] = [new Set<number>(), new Map<number, number>()];
    const begin = (layer: number): void => {
      if (!begun.has(layer)) beforeLayer?.(layer);
      begun.add(layer);
    };
    // A layer's gradients are complete when the backward passes of all parts are through it.
    const marked = (x: Tensor, layer: number): Tensor =>
      onBackward(x, () => {
        const count = (passed.get(layer) ?? 0) + 1;
        passed.set(layer, count);
        if (count === parts.length) afterBackward?.(layer);
      });
    if (this.#embedding !== null && this.layers.start === 0) begin(-1);
    const outputs = parts.map(({ batch, hidden }) => ({ x_TH: this.#embed(batch, hidden), routing: [] as LayerRouting[] }));
    takeTurns(
      this.engine,
      parts.map((part, i) => this.#steps(part, { recomputeLayers, begin, marked }, outputs[i] ?? { x_TH: part.batch.ids, routing: [] })),
    );
    if (this.#norm !== null) begin(numLayers);
    return outputs.map(({ x_TH, routing }) => ({
      hidden_TH: this.#norm === null ? x_TH : this.#norm.forward(marked(x_TH, numLayers)),
      routing,
    }));
  }
  *#steps(
    { batch, hidden, routing: context }: TurnPart,
    { recomputeLayers, begin, marked }: TurnHooks,
    state: { x_TH: Tensor; readonly routing: LayerRouting[] },
  ): LayerSteps {
    const ropeTable = this.#rotary.forLength(batch.numPositions, { incremental: false });
    const { positions, keyBase, keyEnd } = batch;
    for (const [index, block] of this.#blocks.entries()) {
      const layer = this.layers.start + index;
      begin(layer);
      const before_TH = state.x_TH;
      const x_TH = marked(before_TH, layer);
      let outputs: readonly Tensor[];
      if (index < recomputeLayers) {
        const inputs = [x_TH, positions, keyBase, keyEnd, ropeTable];
        outputs = recomputeMany(this.engine, inputs, ([x, p, base, end, table]) =>
          flatten(
            block.forward(
              here(x),
              { positions: here(p), keyBase: here(base), keyEnd: here(end), ropeTable: here(table) },
              null,
              context,
              layer,
            ),
          ),
        );
      } else outputs = flatten(yield* block.steps(x_TH, { positions, keyBase, keyEnd, ropeTable }, context, layer));
      state.x_TH = here(outputs[0]);
      if (hasExperts(this.config, layer)) state.routing.push({ layer, ...unflatten(outputs) });
      yield outputs;
      if (before_TH !== hidden) before_TH.dispose();
    }
  }
  /** [T, H]: what goes into the first layer there is. */
  #embed({ ids }: Batch, hidden: Tensor | undefined): Tensor {
    const table = this.#embedding;
    const { start } = this.layers;
    if (table === null && hidden === undefined)
      throw new MoeError("internal", `decoder: layers from ${start} on without hidden states of layer ${start - 1}`);
    if (table === null) return here(hidden);
    if (hidden !== undefined) throw new MoeError("internal", "decoder: hidden states for the model's first layer");
    return this.#shard === null ? embedding(table, ids) : embedShard(this.#shard, table, ids);
  }

  /**
   * f32 [R, V]: logits of the hidden states [T, H] in these rows, in this order (the last token of each sequence, say), or of
   * all T. Choosing rows is for inference: no gradient flows back through it. Throws `shape` for a row outside 0..T-1.
   */
  logits(hidden_TH: Tensor, rows?: readonly number[]): Tensor {
    const hidden_RH = rows === undefined ? hidden_TH : this.#select(hidden_TH, rows);
    if (this.#shard !== null) return shardLogits(this.#shard, hidden_RH, this.#ownHead());
    return linear(hidden_RH, this.#ownHead(), null, { outDtype: "f32" });
  }
  #ownHead(): Tensor {
    if (this.#head === null) throw new MoeError("internal", `decoder: layers up to ${this.layers.end} have no output head`);
    return this.#head;
  }
  #select(hidden_TH: Tensor, rows: readonly number[]): Tensor {
    const T = hidden_TH.dim(0);
    const wrong = rows.find((row) => !(Number.isInteger(row) && row >= 0 && row < T));
    if (wrong !== undefined) throw new MoeError("shape", `decoder: logits of row ${wrong}, expected 0 to ${T - 1}`);
    const index = this.engine.from(rows, [rows.length], "i32");
    const selected_RH = this.engine.empty([rows.length, hidden_TH.dim(1)], hidden_TH.dtype);
    this.engine.backend.kernels.gatherRows(selected_RH.ptr, hidden_TH.ptr, index.ptr, rows.length, hidden_TH.byteLength / T);
    return selected_RH;
  }

  /**
   * Cross-entropy of `targets` (i32 [T]; a negative one does not count). Logits are never whole in memory. Losses that keep the
   * experts in balance are made by whoever trains, from `routing`. Under a tape, throws `configuration` where no parameter trains.
   */
  loss(batch: Batch, targets: Tensor, { scale, ...options }: LossOptions): LossOutput {
    if (this.engine.tape !== null) this.#checkTrainable();
    const output = this.forwardHidden(batch, options);
    return { ...output, ...this.headLoss(output.hidden_TH, targets, scale) };
  }
  /** `loss` from what `forwardHidden` gave. */
  headLoss(hidden_TH: Tensor, targets: Tensor, scale: number): Pick<LossOutput, "loss" | "perToken"> {
    const head = this.#ownHead();
    if (this.#shard !== null) return shardLoss(this.#shard, hidden_TH, head, targets, scale);
    return linearCrossEntropy(hidden_TH, head, targets, { scale });
  }

  #checkTrainable(): void {
    if ([...this.parameters.values()].some((tensor) => tensor.requiresGrad)) return;
    throw new MoeError("configuration", "training a model whose parameters ask for no gradient: load it with mapped: false");
  }

  /** Bytes of all parameters, scales included. */
  get numBytes(): number {
    let bytes = 0;
    for (const tensor of this.parameters.values()) bytes += tensor.byteLength + (tensor.scales?.values.byteLength ?? 0);
    return bytes;
  }
  /** Frees the parameters, their gradients and the rotary table. */
  [Symbol.dispose](): void {
    this.#rotary[Symbol.dispose]();
    for (const tensor of this.parameters.values()) {
      tensor.parameter?.grad?.dispose();
      tensor.dispose();
    }
  }
}

/** The parameters of a decoder that has these parts of a model. */
export function decoderSpecs(
  config: ModelConfig,
  dtype: ModelDType,
  { shard = null, layers = wholeSpan(config) }: DecoderParts,
): ParameterSpec[] {
  const specs = spanSpecs(parameterSpecs(config, dtype), config, layers);
  return shard === null ? specs : shardSpecs(specs, config, ownShare(shard));
}

/** A layer's outputs as a list of tensors, which recomputation can handle, and back. */
function flatten({ y_TH, routing }: { y_TH: Tensor; routing: Routing | null }): Tensor[] {
  return routing === null ? [y_TH] : [y_TH, routing.probs_TE, routing.logits_TE, routing.indices_TK, routing.weights_TK, routing.counts_GE];
}
function unflatten([, probs, logits, indices, weights, counts]: readonly (Tensor | undefined)[]): Routing {
  return {
    probs_TE: here(probs),
    logits_TE: here(logits),
    indices_TK: here(indices),
    weights_TK: here(weights),
    counts_GE: here(counts),
  };
}
function here(tensor: Tensor | undefined): Tensor {
  if (tensor === undefined) throw new MoeError("internal", "decoder: a layer returned fewer tensors than expected");
  return tensor;
}

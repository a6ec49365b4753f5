/**
 * A forward pass over a model that need not fit into memory: layer by layer, and in each the feed-forward matrices one by one and
 * only the experts that some token reaches, all in f32. Slow and small: it is for probing, and a plain twin of the decoder
 * that tests compare with it. Knows what an upcycled model or its dense source can have (softmax, gating logit normalization, shared expert),
 * nothing more.
 *
 * Legend: T tokens, H hidden, F width, E experts, K choices, V vocabulary.
 */
import { hasExperts, windowOfLayer, type ModelConfig, type MoeConfig } from "../config/model.ts";
import {
  batchOfDocuments,
  huggingFacePieces,
  loadParameters,
  parameterSpecs,
  type Batch,
  type ModelSource,
  type ParameterSpec,
  type Piece,
} from "../model/index.ts";
import { Attention, Linear, RmsNorm, RotaryEmbedding } from "../nn/index.ts";
import { add, linear, numElements, swiglu, type Engine, type Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";

/** Experts and weights of each token in one layer: [T, K], best first. */
export interface TokenRouting {
  readonly indices: Int32Array;
  readonly weights: Float32Array;
}

export interface StreamedHooks {
  /** What enters the feed-forward network (or experts) of a layer, [T, H]. Valid during the call. */
  readonly onFeedForwardInput?: (layer: number, x: Float32Array) => void;
  readonly onRouting?: (layer: number, routing: TokenRouting) => void;
}

/** Rows of the output head in memory at once. */
const headRows = 4096;

/** Throws `unsupported` for routers that upcycling never writes: computed as if they were plain, they would give other numbers. */
function requireUpcycled({ path, config: { moe } }: ModelSource): void {
  if (moe === null) return;
  const beyond = [
    moe.scoring !== "softmax" && `moe.scoring ${moe.scoring}`,
    moe.routedScale !== 1 && `moe.routedScale ${moe.routedScale}`,
    moe.groups !== null && "moe.groups",
    moe.gateLayers !== 1 && `moe.gateLayers ${moe.gateLayers}`,
    moe.selectionBias && "moe.selectionBias",
    moe.inputScale !== 1 && `moe.inputScale ${moe.inputScale}`,
  ].filter((text) => text !== false);
  if (beyond.length > 0) throw new MoeError("unsupported", `${path}: expected a router as upcycling makes it, got ${beyond.join(", ")}`);
}

/**
 * Runs documents through an open model; `visit` gets the logits of vocabulary entries from..from+n-1, [T, n], piece by piece. Throws
 * `unsupported` for routers beyond those that upcycling writes.
 */
export function streamedForward(
  engine: Engine,
  source: ModelSource,
  documents: readonly ArrayLike<number>[],
  hooks: StreamedHooks,
  visit: ((logits: Float32Array, from: number, numEntries: number) => void) | null,
): void {
  requireUpcycled(source);
  engine.scope(() => {
    const { config } = source;
    const weights = new Weights(engine, source);
    const batch = batchOfDocuments(engine, documents, { vocabSize: config.vocabSize });
    const { ropeTheta: theta, headDim, ropeScaling: scaling, maxPositions } = config;
    using rotary = new RotaryEmbedding(engine, { theta, headDim, scaling, maxPositions });
    const ropeTable = rotary.forLength(batch.numPositions, { incremental: false });
    let x_TH = engine.from(embedded(source, documents), [batch.ids.size, config.hiddenSize], "f32");
    for (let layer = 0; layer < config.numLayers; layer++) {
      const before_TH = x_TH;
      x_TH = engine.scope(() => layerForward(weights, layer, x_TH, batch, ropeTable, hooks));
      before_TH.dispose();
    }
    if (visit === null) return;
    const hidden_TH = weights.use(["norm.weight"], ([norm]) => new RmsNorm(present(norm), config.normEps).forward(x_TH));
    const name = config.tiedEmbeddings ? "embedding.weight" : "head.weight";
    for (let from = 0; from < config.vocabSize; from += headRows) {
      const n = Math.min(headRows, config.vocabSize - from);
      engine.scope(() => {
        const head = weights.piece(name, 0, [n, config.hiddenSize], from * config.hiddenSize);
        visit(linear(hidden_TH, head, null, { outDtype: "f32" }).toFloat32Array(), from, n);
      });
    }
  });
}

/** The embeddings of all tokens: only the rows that are needed. */
function embedded(source: ModelSource, documents: readonly ArrayLike<number>[]): Float32Array {
  const H = source.config.hiddenSize;
  const ids = documents.flatMap((document) => Array.from(document));
  const rows = new Float32Array(ids.length * H);
  for (const [t, id] of ids.entries()) source.readFloat32("model.embed_tokens.weight", rows.subarray(t * H, (t + 1) * H), id * H);
  return rows;
}

function present(tensor: Tensor | undefined): Tensor {
  if (tensor === undefined) throw new MoeError("internal", "streamed forward: a parameter is missing");
  return tensor;
}

/** Parameters of an open model, in memory only while they are used. */
class Weights {
  readonly engine: Engine;
  readonly config: ModelConfig;
  readonly #source: ModelSource;
  readonly #specs: ReadonlyMap<string, ParameterSpec>;
  readonly #chunk = new Float32Array(1 << 20);

  constructor(engine: Engine, source: ModelSource) {
    this.engine = engine;
    this.config = source.config;
    this.#source = source;
    this.#specs = new Map(parameterSpecs(source.config, "f32").map((spec) => [spec.name, spec]));
  }
  #spec(name: string): ParameterSpec {
    const spec = this.#specs.get(name);
    if (spec === undefined) throw new MoeError("internal", `streamed forward: no parameter ${name}`);
    return spec;
  }
  has(name: string): boolean {
    return this.#specs.has(name);
  }
  /** Runs `fn` with these parameters in memory. */
  use<T>(names: readonly string[], fn: (tensors: readonly Tensor[]) => T): T {
    const loaded = loadParameters(
      this.engine,
      this.#source,
      names.map((name) => this.#spec(name)),
      { mapped: false },
    );
    try {
      return fn(names.map((name) => present(loaded.get(name))));
    } finally {
      for (const tensor of loaded.values()) tensor.dispose();
    }
  }
  /** Elements of the `index`-th piece of a parameter (an expert) as a tensor of the current scope. */
  piece(name: string, index: number, shape: readonly number[], from = 0): Tensor {
    const piece = huggingFacePieces(this.#spec(name), this.#source.layout, this.config)[index];
    if (piece === undefined) throw new MoeError("internal", `streamed forward: piece ${index} of ${name}`);
    return this.#read(piece, shape, from);
  }
  #read(piece: Piece, shape: readonly number[], from: number): Tensor {
    const tensor = this.engine.empty(shape, "f32");
    const n = numElements(shape);
    for (let at = 0; at < n; at += this.#chunk.length) {
      const values = this.#chunk.subarray(0, Math.min(this.#chunk.length, n - at));
      this.#source.readFloat32(piece.name, values, piece.fileOffset + from + at);
      this.engine.backend.write(tensor.ptr + 4 * at, values);
    }
    return tensor;
  }
}

function layerForward(weights: Weights, layer: number, x_TH: Tensor, batch: Batch, ropeTable: Tensor, hooks: StreamedHooks): Tensor {
  const { engine, config } = weights;
  const attended_TH = engine.scope(() => add(x_TH, attentionForward(weights, layer, x_TH, batch, ropeTable)));
  const normed_TH = weights.use([`layers.${layer}.feedForwardNorm.weight`], ([norm]) =>
    new RmsNorm(present(norm), config.normEps).forward(attended_TH),
  );
  hooks.onFeedForwardInput?.(layer, normed_TH.toFloat32Array());
  if (config.moe !== null && hasExperts(config, layer)) return add(attended_TH, moeForward(weights, config.moe, layer, normed_TH, hooks));
  const names = ["gate", "up", "down"].map((matrix) => `layers.${layer}.feedForward.${matrix}.weight`);
  return add(attended_TH, swigluForward(weights, names, 0, normed_TH, config.ffnSize));
}

function attentionForward(weights: Weights, layer: number, x_TH: Tensor, batch: Batch, ropeTable: Tensor): Tensor {
  const { config } = weights;
  const parts = ["attentionNorm.weight", ...["query", "key", "value", "output"].map((name) => `attention.${name}.weight`)];
  const optional = ["query", "key", "value"].map((name) => `attention.${name}.bias`);
  const norms = ["attention.queryNorm.weight", "attention.keyNorm.weight"];
  const names = [...parts, ...optional, ...norms].map((name) => `layers.${layer}.${name}`).filter((name) => weights.has(name));
  return weights.use(names, (tensors) => {
    const get = (name: string): Tensor | null => tensors[names.indexOf(`layers.${layer}.${name}`)] ?? null;
    const projection = (name: string): Linear =>
      new Linear(present(get(`attention.${name}.weight`) ?? undefined), get(`attention.${name}.bias`));
    const norm = (name: string): RmsNorm | null => {
      const weight = get(`${name}.weight`);
      return weight === null ? null : new RmsNorm(weight, config.normEps);
    };
    const attention = new Attention(
      {
        query: projection("query"),
        key: projection("key"),
        value: projection("value"),
        output: projection("output"),
        queryNorm: norm("attention.queryNorm"),
        keyNorm: norm("attention.keyNorm"),
      },
      { numHeads: config.numHeads, numKvHeads: config.numKvHeads, headDim: config.headDim, window: windowOfLayer(config, layer) },
    );
    const normed_TH = new RmsNorm(present(get("attentionNorm.weight") ?? undefined), config.normEps).forward(x_TH);
    return attention.forward(normed_TH, { positions: batch.positions, keyBase: batch.keyBase, keyEnd: batch.keyEnd, ropeTable });
  });
}

/** down(silu(gate(x)) * up(x)), one matrix in memory at a time; `index` is the expert. */
function swigluForward(
  weights: Weights,
  [gate = "", up = "", down = ""]: readonly string[],
  index: number,
  x_TH: Tensor,
  F: number,
): Tensor {
  const { engine, config } = weights;
  const H = config.hiddenSize;
  const product = (name: string, shape: readonly number[], input: Tensor): Tensor =>
    engine.scope(() => linear(input, weights.piece(name, index, shape)));
  return product(down, [H, F], swiglu(product(gate, [F, H], x_TH), product(up, [F, H], x_TH)));
}

function moeForward(weights: Weights, moe: MoeConfig, layer: number, x_TH: Tensor, hooks: StreamedHooks): Tensor {
  const { engine, config } = weights;
  const [T, H, E, K] = [x_TH.dim(0), config.hiddenSize, moe.numExperts, moe.topK];
  const logits = engine.scope(() =>
    linear(x_TH, weights.piece(`layers.${layer}.moe.router.weight`, 0, [E, H]), null, { outDtype: "f32" }).toFloat32Array(),
  );
  const routing = route(logits, T, moe);
  hooks.onRouting?.(layer, routing);
  const x = x_TH.toFloat32Array();
  const y = new Float32Array(T * H);
  const names = ["gate", "up", "down"].map((matrix) => `layers.${layer}.moe.experts.${matrix}`);
  for (let e = 0; e < E; e++) {
    const slots: number[] = [];
    for (let slot = 0; slot < T * K; slot++) if (routing.indices[slot] === e) slots.push(slot);
    if (slots.length === 0) continue;
    const input = new Float32Array(slots.length * H);
    for (const [i, slot] of slots.entries()) input.set(x.subarray(Math.floor(slot / K) * H, (Math.floor(slot / K) + 1) * H), i * H);
    const out = engine.scope(() =>
      swigluForward(weights, names, e, engine.from(input, [slots.length, H], "f32"), moe.expertFfnSize).toFloat32Array(),
    );
    for (const [i, slot] of slots.entries())
      accumulate(y, Math.floor(slot / K) * H, out.subarray(i * H, (i + 1) * H), routing.weights[slot] ?? 0);
  }
  if (moe.sharedExpert !== null) addShared(weights, moe.sharedExpert, layer, x_TH, y);
  return engine.from(y, [T, H], "f32");
}

/** In f32, as the decoder's kernels do: the gap shall be the one that its users meet. */
function accumulate(y: Float32Array, at: number, row: Float32Array, weight: number): void {
  for (let h = 0; h < row.length; h++) y[at + h] = (y[at + h] ?? 0) + weight * (row[h] ?? 0);
}

function addShared(weights: Weights, shared: NonNullable<MoeConfig["sharedExpert"]>, layer: number, x_TH: Tensor, y: Float32Array): void {
  const { engine, config } = weights;
  const [T, H] = [x_TH.dim(0), config.hiddenSize];
  engine.scope(() => {
    const names = ["gate", "up", "down"].map((matrix) => `layers.${layer}.moe.shared.${matrix}.weight`);
    const out = swigluForward(weights, names, 0, x_TH, shared.ffnSize).toFloat32Array();
    const gates = shared.gate
      ? linear(x_TH, weights.piece(`layers.${layer}.moe.shared.router.weight`, 0, [1, H]), null, { outDtype: "f32" }).toFloat32Array()
      : null;
    for (let t = 0; t < T; t++) {
      const gate = gates === null ? 1 : 1 / (1 + Math.exp(-(gates[t] ?? 0)));
      accumulate(y, t * H, out.subarray(t * H, (t + 1) * H), shared.scale * gate);
    }
  });
}

/** Gating logit normalization, softmax over all experts, the K largest (ties to the lower index), divided by their sum. */
function route(logits_TE: Float32Array, T: number, moe: MoeConfig): TokenRouting {
  const { numExperts: E, topK: K, gateNormalization: norm, renormalize } = moe;
  const indices = new Int32Array(T * K);
  const weights = new Float32Array(T * K);
  for (let t = 0; t < T; t++) {
    const logits = Float64Array.from(logits_TE.subarray(t * E, (t + 1) * E));
    if (norm !== null) {
      const mean = logits.reduce((a, b) => a + b, 0) / E;
      const variance = logits.reduce((a, b) => a + (b - mean) ** 2, 0) / (norm.unbiased ? E - 1 : E);
      for (let e = 0; e < E; e++) logits[e] = (norm.lambda * ((logits[e] ?? 0) - mean)) / Math.sqrt(variance + norm.eps);
    }
    const largest = Math.max(...logits);
    const scores = logits.map((z) => Math.exp(z - largest));
    const order = Array.from(scores.keys())
      .sort((a, b) => (scores[b] ?? 0) - (scores[a] ?? 0) || a - b)
      .slice(0, K);
    const sum = renormalize ? order.reduce((s, e) => s + (scores[e] ?? 0), 0) : scores.reduce((s, x) => s + x, 0);
    for (const [j, e] of order.entries()) {
      indices[t * K + j] = e;
      weights[t * K + j] = (scores[e] ?? 0) / sum;
    }
  }
  return { indices, weights };
}

/**
 * A GGUF model seen as a Hugging Face one: `config.json` from the metadata, and where each Hugging Face tensor lies. Pure
 * functions over what gguf.ts read; the other direction is gguf-export.ts, reading and converting is gguf-weights.ts.
 *
 * Architectures: `llama` (Llama 2 and 3, SmolLM2, Mistral; with experts it is Mixtral), `qwen2`, `qwen3`, and with
 * experts `qwen2moe`, `qwen3moe`, `olmoe`. Whether these divide the weights of the chosen experts by their sum is not in the
 * file: llama.cpp does so for `qwen3moe` and not for the others, and every layer has experts. Two things differ beyond names:
 * - Rows of q and k. For `llama`, llama.cpp rotates neighbouring pairs (2i, 2i + 1) of a head, Hugging Face the pairs
 *   (i, i + d/2), so its converter reorders the rows of `q_proj` and `k_proj` within each head; we undo it. The Qwen
 *   architectures rotate as Hugging Face does.
 * - Experts lie in one tensor `ffn_*_exps` [E, rows, columns], or in old files in one tensor each (`ffn_gate.3`).
 *
 * The scaling of Llama 3 is not in the metadata but in a tensor `rope_freqs.weight` with a divisor for each frequency, from
 * which the parameters are found again (and checked against every divisor).
 */
import { fileError, MoeError } from "../util/errors.ts";
import { didYouMean } from "../util/nearest.ts";
import type { GgufValue } from "./gguf-types.ts";
import type { GgufTensor } from "./gguf.ts";

export const GGUF_ARCHITECTURES = ["llama", "qwen2", "qwen3", "qwen2moe", "qwen3moe", "olmoe"] as const;
export type GgufArchitecture = (typeof GGUF_ARCHITECTURES)[number];

/** The tensor of the divisors of rotary frequencies (Llama 3). */
export const ROPE_FREQS = "rope_freqs.weight";

/** Where a Hugging Face tensor lies in a GGUF file. */
export interface GgufPiece {
  readonly ggufName: string;
  /** Shape of the Hugging Face tensor. */
  readonly shape: readonly number[];
  /** First element in the GGUF tensor (an expert of a stack), otherwise 0. */
  readonly firstElement: number;
  /** Head dimension when rows are reordered within heads (`ggufRowOf`), otherwise null. */
  readonly reorderedHeadDim: number | null;
}

/** What `ggufToHuggingFace` needs of a file; an open `GgufFile` and its `rope_freqs.weight` serve. */
export interface GgufDescription {
  readonly path: string;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, Pick<GgufTensor, "shape">>;
  /** Values of `rope_freqs.weight`, when the file has it. */
  readonly ropeFreqs: Float32Array | null;
}

/** Tensors outside of layers, GGUF to Hugging Face. */
export const TOP_NAMES: Readonly<Record<string, string>> = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
};

const PLAIN_LAYER_NAMES = {
  attn_norm: "input_layernorm",
  attn_q: "self_attn.q_proj",
  attn_k: "self_attn.k_proj",
  attn_v: "self_attn.v_proj",
  attn_output: "self_attn.o_proj",
  attn_q_norm: "self_attn.q_norm",
  attn_k_norm: "self_attn.k_norm",
  ffn_norm: "post_attention_layernorm",
  ffn_gate: "mlp.gate_proj",
  ffn_up: "mlp.up_proj",
  ffn_down: "mlp.down_proj",
} as const;

/** Architectures of which every layer has experts, and what llama.cpp does with the weights of the chosen. */
export const GGUF_MOE: Readonly<Partial<Record<GgufArchitecture, { readonly modelType: string; readonly renormalizes: boolean }>>> = {
  qwen2moe: { modelType: "qwen2_moe", renormalizes: false },
  qwen3moe: { modelType: "qwen3_moe", renormalizes: true },
  olmoe: { modelType: "olmoe", renormalizes: false },
};

export interface GgufNames {
  /** Modules of a layer, GGUF to Hugging Face; `.weight` or `.bias` follows. */
  readonly layer: Readonly<Record<string, string>>;
  /** Block of the experts in Hugging Face names. */
  readonly block: string;
  /** Matrices of an expert, GGUF to Hugging Face. */
  readonly expert: Readonly<Record<string, string>>;
}
/** Names in an architecture: `llama` has Mixtral's. */
export function ggufNames(architecture: GgufArchitecture): GgufNames {
  if (GGUF_MOE[architecture] === undefined) {
    const layer = { ...PLAIN_LAYER_NAMES, ffn_gate_inp: "block_sparse_moe.gate" };
    return { layer, block: "block_sparse_moe", expert: { ffn_gate: "w1", ffn_down: "w2", ffn_up: "w3" } };
  }
  const layer = {
    ...PLAIN_LAYER_NAMES,
    ffn_gate_inp: "mlp.gate",
    ffn_gate_inp_shexp: "mlp.shared_expert_gate",
    ffn_gate_shexp: "mlp.shared_expert.gate_proj",
    ffn_up_shexp: "mlp.shared_expert.up_proj",
    ffn_down_shexp: "mlp.shared_expert.down_proj",
  };
  return { layer, block: "mlp", expert: { ffn_gate: "gate_proj", ffn_down: "down_proj", ffn_up: "up_proj" } };
}

/** Row in GGUF order of row `row` in Hugging Face order, for heads of `headDim` rows: i + j d/2 becomes 2i + j. */
export function ggufRowOf(row: number, headDim: number): number {
  const within = row % headDim;
  const half = headDim / 2;
  return row - within + (within < half ? 2 * within : 2 * (within - half) + 1);
}

/** The inverse of `ggufRowOf`. */
export function huggingFaceRowOf(row: number, headDim: number): number {
  const within = row % headDim;
  return row - within + (within >> 1) + (within & 1 ? headDim / 2 : 0);
}

/** Parameters of Llama 3's RoPE scaling, as in `config.json`. */
export interface Llama3Scaling {
  readonly rope_type: "llama3";
  readonly factor: number;
  readonly low_freq_factor: number;
  readonly high_freq_factor: number;
  readonly original_max_position_embeddings: number;
}

/** Divisor of each of the headDim / 2 rotary frequencies under Llama 3's scaling. */
export function llama3Divisors(headDim: number, theta: number, scaling: Llama3Scaling): Float32Array {
  const { factor, low_freq_factor: low, high_freq_factor: high, original_max_position_embeddings: context } = scaling;
  return Float32Array.from({ length: headDim / 2 }, (_, i) => {
    const wavelength = 2 * Math.PI * theta ** ((2 * i) / headDim);
    if (wavelength < context / high) return 1;
    if (wavelength > context / low) return factor;
    const smooth = (context / wavelength - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
  });
}

/** The parameters whose divisors these are. Released models differ in `factor` and context only. */
function llama3FromDivisors(
  divisors: Float32Array,
  headDim: number,
  theta: number,
  contexts: readonly number[],
  path: string,
): Llama3Scaling {
  const factor = Math.max(...divisors);
  for (const context of contexts) {
    const scaling = {
      rope_type: "llama3",
      factor,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: context,
    } as const;
    const ours = llama3Divisors(headDim, theta, scaling);
    if (ours.length === divisors.length && ours.every((d, i) => Math.abs(d - (divisors[i] ?? 0)) <= 1e-4 * d)) return scaling;
  }
  throw new MoeError(
    "unsupported",
    `${path}: expected ${ROPE_FREQS} to be a scaling of Llama 3 (low 1, high 4, context ${contexts.join(" or ")}), got other divisors (up to ${factor})`,
  );
}

/** Typed access to the metadata of one architecture. */
class Metadata {
  readonly #file: GgufDescription;
  readonly architecture: GgufArchitecture;

  constructor(file: GgufDescription) {
    this.#file = file;
    const value = file.metadata.get("general.architecture");
    if (value?.type !== "string") throw fileError(file.path, "a string general.architecture", value === undefined ? "none" : value.type);
    const found = GGUF_ARCHITECTURES.find((a) => a === value.value);
    if (found === undefined) {
      throw new MoeError(
        "unsupported",
        `${file.path}: expected general.architecture to be one of ${GGUF_ARCHITECTURES.join(", ")}, got ${JSON.stringify(value.value)}${didYouMean(value.value, GGUF_ARCHITECTURES)}`,
      );
    }
    this.architecture = found;
  }

  /** A number under `{arch}.` (or a full key that starts with "tokenizer."), or undefined. */
  optional(name: string): number | undefined {
    const key = name.startsWith("tokenizer.") ? name : `${this.architecture}.${name}`;
    const value = this.#file.metadata.get(key);
    if (value === undefined) return undefined;
    if (value.type === "array")
      throw new MoeError("unsupported", `${this.#file.path}: expected ${key} to be one number, got an array (layers that differ)`);
    const number = typeof value.value === "bigint" ? Number(value.value) : value.value;
    if (typeof number !== "number" || !Number.isFinite(number))
      throw fileError(this.#file.path, `${key} to be a number`, `${value.type} ${String(value.value).slice(0, 40)}`);
    return value.type === "float32" ? shortestDecimal(number) : number;
  }

  count(name: string, absent?: number): number {
    const value = this.optional(name) ?? absent;
    if (value === undefined) throw fileError(this.#file.path, `metadata ${this.architecture}.${name}`, "none");
    if (!Number.isSafeInteger(value) || value < 0)
      throw fileError(this.#file.path, `${this.architecture}.${name} to be a non-negative integer`, `${value}`);
    return value;
  }

  string(name: string): string | undefined {
    const value = this.#file.metadata.get(`${this.architecture}.${name}`);
    return value?.type === "string" ? value.value : undefined;
  }
}

/** The decimal that an f32 was written as: 0.00001 rather than 0.000009999999747378752. */
function shortestDecimal(value: number): number {
  const decimal = Number(value.toPrecision(7));
  return Math.fround(decimal) === value ? decimal : value;
}

function ropeScaling(
  meta: Metadata,
  file: GgufDescription,
  headDim: number,
  theta: number,
  maxPositions: number,
): Record<string, unknown> | null {
  const original = meta.optional("rope.scaling.original_context_length");
  if (file.ropeFreqs !== null)
    return { ...llama3FromDivisors(file.ropeFreqs, headDim, theta, original === undefined ? [8192] : [original, 8192], file.path) };
  const type = meta.string("rope.scaling.type") ?? "none";
  if (type === "none") return null;
  const factor = meta.optional("rope.scaling.factor") ?? 1;
  if (type === "linear") return factor === 1 ? null : { rope_type: "linear", factor };
  if (type !== "yarn")
    throw new MoeError("unsupported", `${file.path}: expected rope.scaling.type to be none, linear or yarn, got ${JSON.stringify(type)}`);
  return { rope_type: "yarn", factor, original_max_position_embeddings: original ?? maxPositions };
}

function tokenIds(meta: Metadata): Record<string, number> {
  const ids: [string, number | undefined][] = [
    ["bos_token_id", meta.optional("tokenizer.ggml.bos_token_id")],
    ["eos_token_id", meta.optional("tokenizer.ggml.eos_token_id")],
    ["pad_token_id", meta.optional("tokenizer.ggml.padding_token_id")],
  ];
  return Object.fromEntries(ids.filter((pair): pair is [string, number] => pair[1] !== undefined));
}

const CLASS_NAMES: Readonly<Record<string, string>> = {
  llama: "Llama",
  mistral: "Mistral",
  mixtral: "Mixtral",
  qwen2: "Qwen2",
  qwen3: "Qwen3",
  qwen2_moe: "Qwen2Moe",
  qwen3_moe: "Qwen3Moe",
  olmoe: "Olmoe",
};

/** The Hugging Face model type: llama.cpp calls Mistral and Mixtral `llama`. */
function modelTypeOf(architecture: GgufArchitecture, numExperts: number, window: number, path: string): string {
  const moe = GGUF_MOE[architecture];
  if (moe === undefined && numExperts > 0 && architecture !== "llama")
    throw new MoeError(
      "unsupported",
      `${path}: expected experts in architecture llama (Mixtral), ${Object.keys(GGUF_MOE).join(", ")} only, got ${numExperts} in ${architecture}`,
    );
  if (moe !== undefined && numExperts === 0) throw fileError(path, `${architecture}.expert_count of at least 1`, "0 or none");
  if (window > 0 && architecture !== "llama")
    throw new MoeError("unsupported", `${path}: expected no sliding window in ${architecture}, got ${window}`);
  if (moe !== undefined) return moe.modelType;
  if (numExperts > 0) return "mixtral";
  return window > 0 ? "mistral" : architecture;
}

function configOf(meta: Metadata, file: GgufDescription): Record<string, unknown> {
  const hidden = meta.count("embedding_length");
  const numHeads = meta.count("attention.head_count");
  const headDim = meta.count("attention.key_length", numHeads === 0 ? 0 : hidden / numHeads);
  const rotated = meta.count("rope.dimension_count", headDim);
  const valueDim = meta.count("attention.value_length", headDim);
  if (headDim === 0 || headDim % 2 !== 0)
    throw fileError(file.path, "an even head dimension", `${headDim} (embedding_length ${hidden}, ${numHeads} heads)`);
  if (rotated !== headDim || valueDim !== headDim) {
    throw new MoeError(
      "unsupported",
      `${file.path}: expected rope.dimension_count and attention.value_length to equal the head dimension ${headDim}, got ${rotated} and ${valueDim}`,
    );
  }
  const epsilon = meta.optional("attention.layer_norm_rms_epsilon");
  if (epsilon === undefined) throw fileError(file.path, `metadata ${meta.architecture}.attention.layer_norm_rms_epsilon`, "none");
  const numExperts = meta.count("expert_count", 0);
  const window = meta.count("attention.sliding_window", 0);
  const modelType = modelTypeOf(meta.architecture, numExperts, window, file.path);
  const maxPositions = meta.count("context_length");
  const theta = meta.optional("rope.freq_base") ?? 10_000;
  const vocabSize = file.tensors.get("token_embd.weight")?.shape[0];
  if (vocabSize === undefined) throw fileError(file.path, "a tensor token_embd.weight", "none");
  return {
    architectures: [`${CLASS_NAMES[modelType]}ForCausalLM`],
    model_type: modelType,
    vocab_size: vocabSize,
    hidden_size: hidden,
    intermediate_size: meta.count("feed_forward_length"),
    num_hidden_layers: meta.count("block_count"),
    num_attention_heads: numHeads,
    num_key_value_heads: meta.count("attention.head_count_kv", numHeads),
    head_dim: headDim,
    hidden_act: "silu",
    rms_norm_eps: epsilon,
    rope_theta: theta,
    rope_scaling: ropeScaling(meta, file, headDim, theta, maxPositions),
    max_position_embeddings: maxPositions,
    tie_word_embeddings: !file.tensors.has("output.weight"),
    ...(modelType === "mistral" ? { sliding_window: window } : modelType === "mixtral" ? { sliding_window: null } : {}),
    ...(numExperts > 0 ? expertsOf(meta, numExperts) : {}),
    ...tokenIds(meta),
  };
}

function expertsOf(meta: Metadata, numExperts: number): Record<string, unknown> {
  const topK = meta.count("expert_used_count");
  const moe = GGUF_MOE[meta.architecture];
  if (moe === undefined) return { num_local_experts: numExperts, num_experts_per_tok: topK };
  const routing = { num_experts: numExperts, num_experts_per_tok: topK, norm_topk_prob: moe.renormalizes };
  const ffnSize = meta.count("feed_forward_length");
  // An OLMoE without a special token says so; transformers would put its own.
  if (meta.architecture === "olmoe")
    return { ...routing, clip_qkv: meta.optional("attention.clamp_kqv") ?? null, eos_token_id: null, pad_token_id: null };
  return {
    ...routing,
    moe_intermediate_size: meta.count("expert_feed_forward_length", ffnSize / topK),
    ...(meta.architecture === "qwen2moe"
      ? { shared_expert_intermediate_size: meta.count("expert_shared_feed_forward_length", ffnSize) }
      : {}),
  };
}

/** Hugging Face names and pieces of one GGUF tensor; undefined for a name that the architectures do not have. */
function piecesOf(
  ggufName: string,
  shape: readonly number[],
  names: GgufNames,
  reorderedHeadDim: number | null,
): [string, GgufPiece][] | undefined {
  const whole = { ggufName, shape, firstElement: 0, reorderedHeadDim: null };
  const top = TOP_NAMES[ggufName];
  if (top !== undefined) return [[top, whole]];
  if (ggufName === ROPE_FREQS) return [];
  const [, layer, module = "", expert, suffix] = /^blk\.(0|[1-9]\d*)\.([a-z_]+?)(_exps|\.\d+)?\.(weight|bias)$/.exec(ggufName) ?? [];
  const prefix = `model.layers.${layer}`;
  if (expert === undefined) {
    const name = Object.hasOwn(names.layer, module) ? names.layer[module] : undefined;
    if (name === undefined) return undefined;
    // A vector here, a matrix of one row there.
    if (module === "ffn_gate_inp_shexp" && shape.length === 1) return [[`${prefix}.${name}.${suffix}`, { ...whole, shape: [1, ...shape] }]];
    return [
      [`${prefix}.${name}.${suffix}`, { ...whole, reorderedHeadDim: module === "attn_q" || module === "attn_k" ? reorderedHeadDim : null }],
    ];
  }
  const matrix = Object.hasOwn(names.expert, module) ? names.expert[module] : undefined;
  if (matrix === undefined || suffix !== "weight") return undefined;
  const nameOf = (e: number): string => `${prefix}.${names.block}.experts.${e}.${matrix}.weight`;
  if (expert !== "_exps") return [[nameOf(Number(expert.slice(1))), whole]];
  const [numExperts = 0, ...matrixShape] = shape;
  const size = matrixShape.reduce((a, b) => a * b, 1);
  return Array.from({ length: numExperts }, (_, e) => [nameOf(e), { ...whole, shape: matrixShape, firstElement: e * size }]);
}

/**
 * The Hugging Face form of a GGUF model: the object of `config.json`, and for each tensor of a Hugging Face checkpoint where
 * its values lie. Errors: `unsupported` for another architecture, unknown tensors or settings that are not built; `file` for
 * missing or senseless metadata. Shapes are the file's; whether they fit the configuration is for the loader to check.
 */
export function ggufToHuggingFace(file: GgufDescription): { config: Record<string, unknown>; pieces: Map<string, GgufPiece> } {
  const meta = new Metadata(file);
  const config = configOf(meta, file);
  const headDim = meta.architecture === "llama" ? Number(config["head_dim"]) : null;
  const names = ggufNames(meta.architecture);
  const pieces = new Map<string, GgufPiece>();
  for (const [ggufName, { shape }] of file.tensors) {
    const found = piecesOf(ggufName, shape, names, headDim);
    if (found === undefined)
      throw new MoeError(
        "unsupported",
        `${file.path}: expected tensors of a ${meta.architecture} model, got also ${JSON.stringify(ggufName)}`,
      );
    for (const [name, piece] of found) {
      if (pieces.has(name)) throw fileError(file.path, `one tensor for ${name}`, `${ggufName} and ${pieces.get(name)?.ggufName}`);
      if (piece.reorderedHeadDim !== null && (shape[0] ?? 0) % piece.reorderedHeadDim !== 0) {
        throw fileError(file.path, `rows of ${ggufName} to be whole heads of ${piece.reorderedHeadDim}`, `shape [${shape.join(", ")}]`);
      }
      pieces.set(name, piece);
    }
  }
  return { config, pieces };
}

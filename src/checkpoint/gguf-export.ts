/**
 * A Hugging Face model written as GGUF for llama.cpp: the reverse of gguf-model.ts and gguf-weights.ts.
 *
 * `huggingFaceToGguf` is a pure function from `config.json` and the tensors' shapes to metadata and a plan; `exportGguf`
 * streams the tensors through it. As llama.cpp's converter has it, vectors and router matrices stay F32 and matrices get the
 * requested type; rows of q and k are reordered for architecture llama; experts are stacked; the scaling of Llama 3 becomes
 * the tensor `rope_freqs.weight`. What llama.cpp would compute differently is refused (kind `unsupported`) instead of written.
 * llama.cpp ignores the window of Mistral: beyond it, its results differ from ours. Metadata of the tokenizer comes from
 * src/tokenizer and is handed in.
 */
import { MoeError } from "../util/errors.ts";
import { didYouMean } from "../util/nearest.ts";
import { fromFloat32 } from "./dtypes.ts";
import { GGUF_MOE, ggufNames, huggingFaceRowOf, llama3Divisors, ROPE_FREQS, TOP_NAMES } from "./gguf-model.ts";
import type { GgufArchitecture, GgufNames } from "./gguf-model.ts";
import type { GgufValue } from "./gguf-types.ts";
import { createGguf } from "./gguf-writer.ts";

export type GgufExportType = "F32" | "F16" | "BF16";

/** A tensor of the GGUF file and the Hugging Face tensors whose values, one after the other, it holds. */
export interface GgufExportTensor {
  readonly ggufName: string;
  readonly type: GgufExportType;
  readonly shape: readonly number[];
  readonly parts: readonly string[];
  /** Head dimension when rows are reordered within heads, otherwise null. */
  readonly reorderedHeadDim: number | null;
}

export interface GgufExportPlan {
  readonly metadata: Map<string, GgufValue>;
  readonly tensors: readonly GgufExportTensor[];
  /** Values of `rope_freqs.weight`, which has no Hugging Face counterpart, or null. */
  readonly ropeFreqs: Float32Array | null;
}

/** What is exported: any source of Hugging Face tensors (`ModelWeights` and `GgufWeights` are such). */
export interface HuggingFaceSource {
  readonly tensors: ReadonlyMap<string, { readonly shape: readonly number[] }>;
  readFloat32(name: string, into: Float32Array, from?: number): void;
}

const ARCHITECTURE_OF: Readonly<Record<string, GgufArchitecture>> = {
  llama: "llama",
  mistral: "llama",
  mixtral: "llama",
  skywork: "llama",
  qwen2: "qwen2",
  qwen3: "qwen3",
  qwen2_moe: "qwen2moe",
  qwen3_moe: "qwen3moe",
  olmoe: "olmoe",
};

/** llama.cpp's `general.file_type`. */
const FILE_TYPES: Readonly<Record<GgufExportType, number>> = { F32: 0, F16: 1, BF16: 32 };

function invert(names: Readonly<Record<string, string>>): ReadonlyMap<string, string> {
  return new Map(Object.entries(names).map(([gguf, huggingFace]) => [huggingFace, gguf]));
}

/** A `config.json` with checked access; errors are of kind `configuration` or `unsupported`. */
class Config {
  readonly #json: Readonly<Record<string, unknown>>;

  constructor(json: Readonly<Record<string, unknown>>) {
    this.#json = json;
  }

  number(key: string, absent?: number): number {
    const value = this.#json[key] ?? absent;
    if (typeof value !== "number" || !Number.isFinite(value))
      throw new MoeError("configuration", `GGUF export: expected ${key} in config.json to be a number, got ${JSON.stringify(value)}`);
    return value;
  }

  object(key: string): Config | null {
    const value = this.#json[key] ?? null;
    return typeof value === "object" && value !== null && !Array.isArray(value) ? new Config({ ...value }) : null;
  }

  get(key: string): unknown {
    return this.#json[key];
  }
}

function architectureOf(config: Config): GgufArchitecture {
  const type = config.get("model_type");
  const found = typeof type === "string" && Object.hasOwn(ARCHITECTURE_OF, type) ? ARCHITECTURE_OF[type] : undefined;
  if (found === undefined) {
    const known = Object.keys(ARCHITECTURE_OF);
    throw new MoeError(
      "unsupported",
      `GGUF export: expected model_type to be one of ${known.join(", ")}, got ${JSON.stringify(type)}${didYouMean(String(type), known)}`,
    );
  }
  if (found !== "llama" && config.get("use_sliding_window") === true) {
    throw new MoeError(
      "unsupported",
      `GGUF export: expected ${found} without a sliding window (llama.cpp has none for it), got use_sliding_window true`,
    );
  }
  requireItsExperts(config, found);
  return found;
}

/** What llama.cpp takes for granted of an architecture whose layers have experts. */
function requireItsExperts(config: Config, architecture: GgufArchitecture): void {
  const moe = GGUF_MOE[architecture];
  if (moe === undefined) return;
  const refuse = (expected: string, got: string): MoeError =>
    new MoeError("unsupported", `GGUF export: expected a ${moe.modelType} model with ${expected}, as llama.cpp computes it, got ${got}`);
  const renormalizes = config.get("norm_topk_prob") === true;
  if (renormalizes !== moe.renormalizes) throw refuse(`norm_topk_prob ${moe.renormalizes}`, String(renormalizes));
  const step = config.number("decoder_sparse_step", 1);
  if (step !== 1) throw refuse("experts in every layer", `decoder_sparse_step ${step}`);
  const heads = config.number("num_attention_heads");
  const kvHeads = config.number("num_key_value_heads", heads);
  if (architecture === "olmoe" && kvHeads !== heads) throw refuse("as many key-value heads as heads", `${kvHeads} of ${heads}`);
}

/** Numbers and sizes of experts; empty for a dense model. */
function expertMetadata(config: Config): [string, GgufValue][] {
  const type = config.get("model_type");
  const moe = Object.values(GGUF_MOE).some(({ modelType }) => modelType === type);
  if (!moe && type !== "mixtral") return [];
  const optional: [string, string][] = [
    ["expert_feed_forward_length", "moe_intermediate_size"],
    ["expert_shared_feed_forward_length", "shared_expert_intermediate_size"],
  ];
  return [
    ["expert_count", u32(moe ? config.number("num_experts") : config.number("num_local_experts", 8))],
    ["expert_used_count", u32(moe ? config.number("num_experts_per_tok") : config.number("num_experts_per_tok", 2))],
    ...optional
      .filter(([, key]) => config.get(key) !== undefined)
      .map(([name, key]): [string, GgufValue] => [name, u32(config.number(key))]),
  ];
}

interface Rope {
  readonly metadata: [string, GgufValue][];
  readonly divisors: Float32Array | null;
}

const f32 = (value: number): GgufValue => ({ type: "float32", value });
const u32 = (value: number): GgufValue => ({ type: "uint32", value });
const text = (value: string): GgufValue => ({ type: "string", value });

function ropeOf(config: Config, headDim: number): Rope {
  const parameters = config.object("rope_parameters") ?? config.object("rope_scaling");
  const theta = parameters?.get("rope_theta") === undefined ? config.number("rope_theta", 10_000) : parameters.number("rope_theta");
  const metadata: [string, GgufValue][] = [
    ["rope.dimension_count", u32(headDim)],
    ["rope.freq_base", f32(theta)],
  ];
  const type = parameters?.get("rope_type") ?? parameters?.get("type") ?? "default";
  if (parameters === null || type === "default") return { metadata, divisors: null };
  const factor = parameters.number("factor");
  const original = (): number => parameters.number("original_max_position_embeddings", config.number("max_position_embeddings"));
  if (type === "llama3") {
    const scaling = {
      rope_type: "llama3",
      factor,
      low_freq_factor: parameters.number("low_freq_factor"),
      high_freq_factor: parameters.number("high_freq_factor"),
      original_max_position_embeddings: original(),
    } as const;
    metadata.push(["rope.scaling.original_context_length", u32(original())]);
    return { metadata, divisors: llama3Divisors(headDim, theta, scaling) };
  }
  metadata.push(["rope.scaling.type", text(type === "linear" ? "linear" : "yarn")], ["rope.scaling.factor", f32(factor)]);
  if (type === "linear") return { metadata, divisors: null };
  const isPlainYarn =
    type === "yarn" &&
    parameters.number("beta_fast", 32) === 32 &&
    parameters.number("beta_slow", 1) === 1 &&
    (parameters.get("attention_factor") ?? null) === null &&
    (parameters.get("truncate") ?? true) === true;
  if (!isPlainYarn)
    throw new MoeError(
      "unsupported",
      `GGUF export: expected RoPE scaling llama3, linear, or yarn with its usual betas, got ${type === "yarn" ? "yarn with others" : JSON.stringify(type)}`,
    );
  metadata.push(["rope.scaling.original_context_length", u32(original())]);
  return { metadata, divisors: null };
}

function metadataOf(
  config: Config,
  architecture: GgufArchitecture,
  headDim: number,
  vocabSize: number,
  rope: Rope,
  type: GgufExportType,
  name: string,
): Map<string, GgufValue> {
  const numHeads = config.number("num_attention_heads");
  const window = architecture === "llama" ? config.number("sliding_window", 0) : 0;
  const own: [string, GgufValue][] = [
    ["block_count", u32(config.number("num_hidden_layers"))],
    ["context_length", u32(config.number("max_position_embeddings"))],
    ["embedding_length", u32(config.number("hidden_size"))],
    ["feed_forward_length", u32(config.number("intermediate_size"))],
    ["attention.head_count", u32(numHeads)],
    ["attention.head_count_kv", u32(config.number("num_key_value_heads", numHeads))],
    ["attention.key_length", u32(headDim)],
    ["attention.value_length", u32(headDim)],
    ["attention.layer_norm_rms_epsilon", f32(config.number("rms_norm_eps"))],
    ["vocab_size", u32(vocabSize)],
    ...(window > 0 ? [["attention.sliding_window", u32(window)] satisfies [string, GgufValue]] : []),
    ...expertMetadata(config),
    ...rope.metadata,
  ];
  return new Map<string, GgufValue>([
    ["general.architecture", text(architecture)],
    ["general.type", text("model")],
    ["general.name", text(name)],
    ["general.file_type", u32(FILE_TYPES[type])],
    ["general.quantization_version", u32(2)],
    ...own.map(([key, value]): [string, GgufValue] => [`${architecture}.${key}`, value]),
  ]);
}

/** The GGUF name of a Hugging Face tensor and, for an expert, its number; undefined for a name that has none. */
function ggufNameOf(name: string, names: GgufNames): { ggufName: string; expert: number | null } | undefined {
  const top = invert(TOP_NAMES).get(name);
  if (top !== undefined) return { ggufName: top, expert: null };
  const [, layer, rest = ""] = /^model\.layers\.(\d+)\.(.+)$/.exec(name) ?? [];
  const [, block, expert, matrix = ""] = /^(\w+)\.experts\.(\d+)\.(\w+)\.weight$/.exec(rest) ?? [];
  if (expert !== undefined) {
    const found = block === names.block ? invert(names.expert).get(matrix) : undefined;
    return found === undefined ? undefined : { ggufName: `blk.${layer}.${found}_exps.weight`, expert: Number(expert) };
  }
  const [, module = "", suffix] = /^(.+)\.(weight|bias)$/.exec(rest) ?? [];
  const found = invert(names.layer).get(module);
  return found === undefined ? undefined : { ggufName: `blk.${layer}.${found}.${suffix}`, expert: null };
}

/** Groups the Hugging Face tensors by the GGUF tensor that holds them, experts in order, and checks that they fit. */
function planTensors(
  shapes: HuggingFaceSource["tensors"],
  architecture: GgufArchitecture,
  reorderedHeadDim: number | null,
  type: GgufExportType,
): GgufExportTensor[] {
  const names = ggufNames(architecture);
  const groups = new Map<string, { parts: string[]; shape: readonly number[]; stacked: boolean }>();
  for (const [name, { shape }] of shapes) {
    const found = ggufNameOf(name, names);
    if (found === undefined) {
      // Old checkpoints carry the rotary frequencies, which are computed anyway.
      if (name.endsWith(".rotary_emb.inv_freq")) continue;
      throw new MoeError("unsupported", `GGUF export: expected tensors of a ${architecture} model, got also ${JSON.stringify(name)}`);
    }
    const group = groups.get(found.ggufName) ?? { parts: [], shape, stacked: found.expert !== null };
    if (group.shape.join() !== shape.join())
      throw new MoeError(
        "shape",
        `GGUF export: expected all experts of ${found.ggufName} to be [${group.shape.join(", ")}], got [${shape.join(", ")}] for ${name}`,
      );
    group.parts[found.expert ?? 0] = name;
    groups.set(found.ggufName, group);
  }
  return [...groups].map(([ggufName, { parts, shape, stacked }]) => {
    const missing = Array.from(parts, (part) => part === undefined).indexOf(true);
    if (missing >= 0)
      throw new MoeError("shape", `GGUF export: expected experts 0 to ${parts.length - 1} for ${ggufName}, got no expert ${missing}`);
    const isRoped = /\.attn_[qk]\.(weight|bias)$/.test(ggufName);
    return {
      ggufName,
      type: shape.length < 2 || ggufName.includes("ffn_gate_inp") ? "F32" : type,
      // The gate of the shared expert is a vector there.
      shape: stacked ? [parts.length, ...shape] : ggufName.includes("ffn_gate_inp_shexp") ? shape.slice(1) : shape,
      parts,
      reorderedHeadDim: isRoped ? reorderedHeadDim : null,
    };
  });
}

/**
 * Metadata and tensors of the GGUF file for a Hugging Face model: `config` is the object of its `config.json`, `tensors` its
 * tensors' shapes by name (experts one by one, as Mixtral is released). Errors: `configuration` for missing keys,
 * `unsupported` for what llama.cpp does not compute as we do, `shape` for experts that do not match.
 */
export function huggingFaceToGguf(
  config: Readonly<Record<string, unknown>>,
  tensors: HuggingFaceSource["tensors"],
  type: GgufExportType,
  name = "model",
): GgufExportPlan {
  const json = new Config(config);
  const architecture = architectureOf(json);
  const headDim = json.number("head_dim", json.number("hidden_size") / json.number("num_attention_heads"));
  const vocabSize = tensors.get("model.embed_tokens.weight")?.shape[0];
  if (vocabSize === undefined) throw new MoeError("shape", "GGUF export: expected a tensor model.embed_tokens.weight, got none");
  const rope = ropeOf(json, headDim);
  const kept = new Map([...tensors].filter(([tensor]) => tensor !== "lm_head.weight" || json.get("tie_word_embeddings") !== true));
  return {
    metadata: metadataOf(json, architecture, headDim, vocabSize, rope, type, name),
    tensors: planTensors(kept, architecture, architecture === "llama" ? headDim : null, type),
    ropeFreqs: rope.divisors,
  };
}

export interface GgufExportOptions {
  readonly type: GgufExportType;
  /** `general.name`. */
  readonly name?: string;
  /** More metadata, above all the tokenizer's; wins over ours. */
  readonly metadata?: ReadonlyMap<string, GgufValue>;
}

/** Elements converted at once. */
const PIECE = 1 << 20;

/** A weight that F16 would turn into infinity is an error, not a broken model. */
function requireFloat16(values: Float32Array, name: string): void {
  const tooLarge = values.find((value) => Math.abs(value) >= 65_520);
  if (tooLarge !== undefined)
    throw new MoeError("unsupported", `GGUF export: expected values below 65520 in ${name} for F16, got ${tooLarge}; BF16 and F32 hold it`);
}

/** Delivers one Hugging Face tensor: rows reordered where asked, converted, in pieces of whole rows. */
function writePart(source: HuggingFaceSource, part: string, tensor: GgufExportTensor, write: (bytes: Uint8Array) => void): void {
  const shape = source.tensors.get(part)?.shape ?? [];
  const size = shape.reduce((a, b) => a * b, 1);
  const headDim = tensor.reorderedHeadDim;
  const columns = headDim === null ? 1 : size / (shape[0] ?? 1);
  // A piece is whole heads where rows move, anything otherwise.
  const unit = headDim === null ? 1 : headDim * columns;
  const length = Math.max(1, Math.floor(PIECE / unit)) * unit;
  const values = new Float32Array(Math.min(length, size));
  const ordered = headDim === null ? values : new Float32Array(values.length);
  const bytes = new Uint8Array(values.length * (tensor.type === "F32" ? 4 : 2));
  for (let at = 0; at < size; at += length) {
    const count = Math.min(length, size - at);
    source.readFloat32(part, values.subarray(0, count), at);
    if (tensor.type === "F16") requireFloat16(values.subarray(0, count), part);
    if (headDim !== null) {
      for (let row = 0; row < count / columns; row++) {
        const from = huggingFaceRowOf(row, headDim) * columns;
        ordered.set(values.subarray(from, from + columns), row * columns);
      }
    }
    const out = bytes.subarray(0, count * (tensor.type === "F32" ? 4 : 2));
    fromFloat32(tensor.type, ordered.subarray(0, count), out);
    write(out);
  }
}

/**
 * Writes a Hugging Face model as a GGUF file, atomically and in constant memory. Returns the number of tensors in it.
 *
 * ```ts
 * using weights = openModelWeights("SmolLM2-135M");
 * exportGguf("smol.gguf", weights, config, { type: "BF16", metadata: tokenizerMetadata });
 * ```
 */
export function exportGguf(
  filePath: string,
  source: HuggingFaceSource,
  config: Readonly<Record<string, unknown>>,
  options: GgufExportOptions,
): number {
  const plan = huggingFaceToGguf(config, source.tensors, options.type, options.name);
  const metadata = new Map([...plan.metadata, ...(options.metadata ?? [])]);
  const extra = plan.ropeFreqs === null ? [] : [{ name: ROPE_FREQS, type: "F32" as const, shape: [plan.ropeFreqs.length] }];
  const declared = plan.tensors.map(({ ggufName, type, shape }) => ({ name: ggufName, type, shape }));
  using writer = createGguf(filePath, metadata, [...extra, ...declared]);
  if (plan.ropeFreqs !== null)
    writer.write(ROPE_FREQS, new Uint8Array(plan.ropeFreqs.buffer, plan.ropeFreqs.byteOffset, plan.ropeFreqs.byteLength));
  for (const tensor of plan.tensors) {
    for (const part of tensor.parts) writePart(source, part, tensor, (bytes) => writer.write(tensor.ggufName, bytes));
  }
  writer.commit();
  return extra.length + declared.length;
}

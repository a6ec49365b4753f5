/**
 * Hugging Face `config.json`, read into a `ModelConfig` and written back. Reads the spelling of transformers before 5
 * (`rope_theta`, `rope_scaling`, `torch_dtype`) and since (`rope_parameters`, `dtype`), with the defaults that each model
 * type has there for absent keys.
 *
 * Unknown keys are tolerated (released files carry many), except those known to change the computation into something that
 * is not built here: these are `unsupported` errors, never ignored.
 */
import { MoeError } from "../util/errors.ts";
import { didYouMean } from "../util/nearest.ts";
import { HuggingFaceReader } from "./model-huggingface-reader.ts";
import { inexpressibleMoe, readMoe, skyworkExperts, writeMoe } from "./model-huggingface-moe.ts";
import { readRope, writeRope } from "./model-huggingface-rope.ts";
import { architectures, parseModelConfig, type Architecture, type ModelConfig } from "./model.ts";

/** Type of the weights as the file states it. */
export type StoredDType = "float32" | "bfloat16" | "float16";

/** What transformers assumes for keys that a file leaves out. */
interface Defaults {
  readonly normEps: number;
  readonly ropeTheta: number;
  readonly maxPositions: number;
  /** Absent `num_key_value_heads`: this many, or null for as many as query heads. */
  readonly numKvHeads: number | null;
  /** Absent `head_dim`: this, or null for hidden / heads. */
  readonly headDim: number | null;
  readonly window: number | null;
  readonly bosTokenId: number | null;
  readonly eosTokenId: number | null;
  readonly padTokenId: number | null;
}
const llamaDefaults: Defaults = {
  normEps: 1e-6,
  ropeTheta: 10_000,
  maxPositions: 2048,
  numKvHeads: null,
  headDim: null,
  window: null,
  bosTokenId: 1,
  eosTokenId: 2,
  padTokenId: null,
};
const qwenDefaults: Defaults = { ...llamaDefaults, maxPositions: 32_768, numKvHeads: 32, window: 4096, bosTokenId: null, eosTokenId: null };
const defaults: Readonly<Record<Architecture, Defaults>> = {
  llama: llamaDefaults,
  mistral: { ...llamaDefaults, maxPositions: 131_072, numKvHeads: 8, window: 4096 },
  qwen2: qwenDefaults,
  qwen3: { ...qwenDefaults, headDim: 128 },
  skywork: { ...llamaDefaults, maxPositions: 4096 },
  mixtral: { ...llamaDefaults, normEps: 1e-5, ropeTheta: 1_000_000, maxPositions: 131_072, numKvHeads: 8 },
  skywork_moe: { ...llamaDefaults, maxPositions: 8192 },
  qwen2_moe: { ...qwenDefaults, numKvHeads: 16 },
  qwen3_moe: { ...qwenDefaults, numKvHeads: 4 },
  olmoe: { ...llamaDefaults, normEps: 1e-5, maxPositions: 4096, bosTokenId: null, eosTokenId: 50_279, padTokenId: 1 },
};

/**
 * The model that a parsed `config.json` describes. `path` names the file in errors. Throws `unsupported` for another model
 * type (with the nearest and the list) or for a setting that is not built here, `configuration` for missing, mistyped or
 * contradictory values.
 */
export function fromHuggingFaceConfig(json: unknown, path = "config.json"): ModelConfig {
  const r = new HuggingFaceReader(json, path);
  const architecture = readArchitecture(r);
  r.requireSupported({ attentionBiasIsImplied: architecture === "qwen2" || architecture === "qwen2_moe" });
  const d = defaults[architecture];
  const hiddenSize = r.integer("hidden_size");
  const numHeads = r.integer("num_attention_heads");
  const headDim = r.integer("head_dim", d.headDim ?? 0) || evenSplit(r, hiddenSize, numHeads);
  const maxPositions = r.integer("max_position_embeddings", d.maxPositions);
  const numLayers = r.integer("num_hidden_layers");
  const ffnSize = r.integer("intermediate_size");
  const config: ModelConfig = {
    architecture,
    vocabSize: r.integer("vocab_size"),
    hiddenSize,
    ffnSize,
    numLayers,
    numHeads,
    numKvHeads: r.integer("num_key_value_heads", d.numKvHeads ?? numHeads),
    headDim,
    normEps: r.number("rms_norm_eps", d.normEps),
    ...readRope(r, d.ropeTheta, maxPositions),
    maxPositions,
    tiedEmbeddings: r.boolean("tie_word_embeddings", false),
    qkvBias: architecture === "qwen2" || (architecture === "qwen2_moe" && r.boolean("qkv_bias", true)),
    qkNorm: qkNormOf(architecture),
    slidingWindow: readWindow(r, architecture, numLayers, d.window),
    moe: readMoe(r, architecture, ffnSize),
    initStd: r.number("initializer_range", 0.02),
    bosTokenId: r.tokenIds("bos_token_id", d.bosTokenId)[0] ?? null,
    eosTokenIds: r.tokenIds("eos_token_id", d.eosTokenId),
    padTokenId: r.tokenIds("pad_token_id", d.padTokenId).find((id) => id >= 0) ?? null,
  };
  return r.located(() => parseModelConfig(config));
}

/** Type of the stored weights (`dtype`, or `torch_dtype` in older files), or null where the file does not say. */
export function storedDType(json: unknown, path = "config.json"): StoredDType | null {
  const r = new HuggingFaceReader(json, path);
  const name = r.optionalString("dtype") ?? r.optionalString("torch_dtype");
  if (name === null || name === "auto") return null;
  if (name === "float32" || name === "bfloat16" || name === "float16") return name;
  throw new MoeError("unsupported", `${path}: weights of dtype ${name} (expected float32, bfloat16 or float16)`);
}

function readArchitecture(r: HuggingFaceReader): Architecture {
  const name = r.optionalString("model_type");
  if (name === null) throw r.error(`expected "model_type", one of ${architectures.join(", ")}; it has none`);
  const found = architectures.find((architecture) => architecture === name);
  if (found === undefined) {
    const list = architectures.join(", ");
    throw new MoeError(
      "unsupported",
      `${r.path}: model_type "${name}" is not supported${didYouMean(name, architectures)}; supported: ${list}`,
    );
  }
  // The first files of the Skywork-MoE release say "skywork" and list experts.
  return found === "skywork" && skyworkExperts(r) > 1 ? "skywork_moe" : found;
}

function qkNormOf(architecture: Architecture): ModelConfig["qkNorm"] {
  if (architecture === "olmoe") return "all";
  return architecture === "qwen3" || architecture === "qwen3_moe" ? "head" : "none";
}

function evenSplit(r: HuggingFaceReader, hiddenSize: number, numHeads: number): number {
  if (hiddenSize % numHeads === 0) return hiddenSize / numHeads;
  throw r.error(`hidden_size ${hiddenSize} is not a multiple of num_attention_heads ${numHeads}, and there is no head_dim`);
}

function readWindow(
  r: HuggingFaceReader,
  architecture: Architecture,
  numLayers: number,
  absent: number | null,
): ModelConfig["slidingWindow"] {
  const isQwen = architecture === "qwen2" || architecture === "qwen3";
  if (architecture.startsWith("qwen") && !r.boolean("use_sliding_window", false)) return null;
  if (architecture === "qwen2_moe") {
    throw new MoeError("unsupported", `${r.path}: use_sliding_window true: which layers of a qwen2_moe it means depends on the version`);
  }
  if (!isQwen && architecture !== "qwen3_moe" && architecture !== "mistral" && architecture !== "mixtral") return null;
  const size = r.has("sliding_window") ? r.integer("sliding_window", 0) : (absent ?? 0);
  if (size === 0) return null;
  const firstLayer = firstWindowedLayer(r, numLayers) ?? (isQwen ? r.integer("max_window_layers", 28) : 0);
  return firstLayer >= numLayers ? null : { size, firstLayer };
}
/** From `layer_types`, where present: full attention first, then windowed. Another pattern is not built. */
function firstWindowedLayer(r: HuggingFaceReader, numLayers: number): number | null {
  const types = r.strings("layer_types");
  if (types === null) return null;
  if (types.length !== numLayers) throw r.error(`layer_types has ${types.length} entries for num_hidden_layers ${numLayers}`);
  const numFull = types.filter((type) => type === "full_attention").length;
  const matches = types.every((type, layer) => type === (layer < numFull ? "full_attention" : "sliding_attention"));
  if (!matches)
    throw new MoeError(
      "unsupported",
      `${r.path}: layer_types other than full attention first and sliding attention after it: ${types.join(", ")}`,
    );
  return numFull;
}

/** Class name that transformers (or the release's own code) registers for each family. */
const classNames: Readonly<Record<Architecture, string>> = {
  llama: "LlamaForCausalLM",
  mistral: "MistralForCausalLM",
  qwen2: "Qwen2ForCausalLM",
  qwen3: "Qwen3ForCausalLM",
  skywork: "SkyworkForCausalLM",
  mixtral: "MixtralForCausalLM",
  skywork_moe: "SkyworkForCausalLM",
  qwen2_moe: "Qwen2MoeForCausalLM",
  qwen3_moe: "Qwen3MoeForCausalLM",
  olmoe: "OlmoeForCausalLM",
};

/**
 * `config.json` of a model, as transformers (4 and 5) reads it. Throws `configuration` where the family's file cannot say
 * what the configuration says (biases in a Llama, a window in a Skywork, ...).
 */
export function toHuggingFaceConfig(config: ModelConfig, dtype: StoredDType): Record<string, unknown> {
  requireExpressible(config);
  const { architecture, eosTokenIds } = config;
  return {
    architectures: [classNames[architecture]],
    model_type: architecture,
    vocab_size: config.vocabSize,
    hidden_size: config.hiddenSize,
    intermediate_size: config.ffnSize,
    num_hidden_layers: config.numLayers,
    num_attention_heads: config.numHeads,
    num_key_value_heads: config.numKvHeads,
    head_dim: config.headDim,
    hidden_act: "silu",
    max_position_embeddings: config.maxPositions,
    rms_norm_eps: config.normEps,
    ...writeRope(config),
    tie_word_embeddings: config.tiedEmbeddings,
    ...(["llama", "qwen3", "qwen3_moe", "olmoe"].includes(architecture) ? { attention_bias: false } : {}),
    ...(architecture === "qwen2_moe" ? { qkv_bias: config.qkvBias } : {}),
    ...(architecture === "llama" ? { mlp_bias: false } : {}),
    attention_dropout: 0,
    ...writeWindow(config),
    ...(config.moe === null ? {} : writeMoe(config.moe, config)),
    initializer_range: config.initStd,
    bos_token_id: config.bosTokenId,
    eos_token_id: eosTokenIds.length === 0 ? null : eosTokenIds.length === 1 ? eosTokenIds[0] : eosTokenIds,
    pad_token_id: config.padTokenId,
    use_cache: true,
    torch_dtype: dtype,
  };
}

function requireExpressible(config: ModelConfig): void {
  const { architecture: a, slidingWindow, hiddenSize, headDim, numHeads } = config;
  const hasFullWindow = a === "mistral" || a === "mixtral" || a === "qwen3_moe";
  const wrong = [
    a !== "qwen2_moe" && config.qkvBias !== (a === "qwen2") && `qkvBias ${config.qkvBias}`,
    config.qkNorm !== qkNormOf(a) && `qkNorm ${config.qkNorm}`,
    a === "olmoe" && numHeads * headDim !== hiddenSize && `headDim ${headDim} of ${numHeads} heads beside hiddenSize ${hiddenSize}`,
    ...inexpressibleMoe(config),
    slidingWindow !== null && !hasFullWindow && a !== "qwen2" && a !== "qwen3" && "slidingWindow",
    slidingWindow !== null && slidingWindow.firstLayer !== 0 && hasFullWindow && `slidingWindow.firstLayer ${slidingWindow.firstLayer}`,
  ].filter((text) => text !== false);
  if (wrong.length > 0) throw new MoeError("configuration", `config.json of a ${a} model cannot say: ${wrong.join(", ")}`);
}

function writeWindow(config: ModelConfig): Record<string, unknown> {
  const { architecture, slidingWindow } = config;
  if (architecture === "mistral" || architecture === "mixtral") return { sliding_window: slidingWindow?.size ?? null };
  if (!architecture.startsWith("qwen")) return {};
  return {
    use_sliding_window: slidingWindow !== null,
    sliding_window: slidingWindow?.size ?? null,
    max_window_layers: slidingWindow?.firstLayer ?? config.numLayers,
  };
}

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
import { readRope, writeRope } from "./model-huggingface-rope.ts";
import { architectures, parseModelConfig, type Architecture, type ModelConfig, type MoeConfig } from "./model.ts";

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
};
const defaults: Readonly<Record<Architecture, Defaults>> = {
  llama: llamaDefaults,
  mistral: { ...llamaDefaults, maxPositions: 131_072, numKvHeads: 8, window: 4096 },
  qwen2: { ...llamaDefaults, maxPositions: 32_768, numKvHeads: 32, window: 4096, bosTokenId: null, eosTokenId: null },
  qwen3: { ...llamaDefaults, maxPositions: 32_768, numKvHeads: 32, headDim: 128, window: 4096, bosTokenId: null, eosTokenId: null },
  skywork: { ...llamaDefaults, maxPositions: 4096 },
  mixtral: { ...llamaDefaults, normEps: 1e-5, ropeTheta: 1_000_000, maxPositions: 131_072, numKvHeads: 8 },
  skywork_moe: { ...llamaDefaults, maxPositions: 8192 },
};

/**
 * The model that a parsed `config.json` describes. `path` names the file in errors. Throws `unsupported` for another model
 * type (with the nearest and the list) or for a setting that is not built here, `configuration` for missing, mistyped or
 * contradictory values.
 */
export function fromHuggingFaceConfig(json: unknown, path = "config.json"): ModelConfig {
  const r = new HuggingFaceReader(json, path);
  const architecture = readArchitecture(r);
  r.requireSupported({ attentionBiasIsImplied: architecture === "qwen2" });
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
    qkvBias: architecture === "qwen2",
    qkNorm: architecture === "qwen3",
    slidingWindow: readWindow(r, architecture, numLayers, d.window),
    moe: readMoe(r, architecture, ffnSize),
    initStd: r.number("initializer_range", 0.02),
    bosTokenId: r.tokenIds("bos_token_id", d.bosTokenId)[0] ?? null,
    eosTokenIds: r.tokenIds("eos_token_id", d.eosTokenId),
    padTokenId: r.tokenIds("pad_token_id", null).find((id) => id >= 0) ?? null,
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
  if (isQwen && !r.boolean("use_sliding_window", false)) return null;
  if (!isQwen && architecture !== "mistral" && architecture !== "mixtral") return null;
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

function readMoe(r: HuggingFaceReader, architecture: Architecture, ffnSize: number): MoeConfig | null {
  if (architecture === "mixtral") {
    return {
      numExperts: r.integer("num_local_experts", 8),
      topK: r.integer("num_experts_per_tok", 2),
      expertFfnSize: ffnSize,
      layerInterval: 1,
      gateNormalization: null,
      scoring: "softmax",
      inputScale: 1,
    };
  }
  if (architecture !== "skywork_moe") return null;
  if (r.boolean("moe_2layer_gate", false)) throw new MoeError("unsupported", `${r.path}: moe_2layer_gate true (a two-layer gate)`);
  const topK = r.integer("num_experts_per_tok", 2);
  return {
    numExperts: skyworkExperts(r),
    topK,
    expertFfnSize: ffnSize,
    layerInterval: r.integer("moe_expert_interval", 1),
    gateNormalization: r.requiredBoolean("moe_use_logits_norm")
      ? {
          lambda: r.number("moe_gate_norm_std", 1),
          // The release knows neither key: it adds nothing and divides by n - 1. We write them where a model differs.
          eps: r.number("moe_gate_norm_eps", 0),
          unbiased: r.boolean("moe_gate_norm_unbiased", true),
        }
      : null,
    scoring: r.boolean("moe_use_skywork_gating", false) ? "softmaxOfTopK" : "softmax",
    inputScale: r.requiredBoolean("moe_feature_no_mul_topk") ? 1 : topK,
  };
}
/** `num_experts`: a number, or a list of one. */
function skyworkExperts(r: HuggingFaceReader): number {
  const value = r.value("num_experts");
  if (Array.isArray(value) && value.length > 1 && new Set<unknown>(value).size > 1) {
    throw new MoeError("unsupported", `${r.path}: num_experts ${JSON.stringify(value)} (layers with different numbers of experts)`);
  }
  return r.integerFrom("num_experts", Array.isArray(value) ? (value as unknown[])[0] : value, 1);
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
    intermediate_size: config.moe?.layerInterval === 1 ? config.moe.expertFfnSize : config.ffnSize,
    num_hidden_layers: config.numLayers,
    num_attention_heads: config.numHeads,
    num_key_value_heads: config.numKvHeads,
    head_dim: config.headDim,
    hidden_act: "silu",
    max_position_embeddings: config.maxPositions,
    rms_norm_eps: config.normEps,
    ...writeRope(config),
    tie_word_embeddings: config.tiedEmbeddings,
    ...(architecture === "llama" || architecture === "qwen3" ? { attention_bias: false } : {}),
    ...(architecture === "llama" ? { mlp_bias: false } : {}),
    attention_dropout: 0,
    ...writeWindow(config),
    ...(config.moe === null ? {} : writeMoe(config.moe, architecture)),
    initializer_range: config.initStd,
    bos_token_id: config.bosTokenId,
    eos_token_id: eosTokenIds.length === 0 ? null : eosTokenIds.length === 1 ? eosTokenIds[0] : eosTokenIds,
    pad_token_id: config.padTokenId,
    use_cache: true,
    torch_dtype: dtype,
  };
}

function requireExpressible(config: ModelConfig): void {
  const { architecture: a, moe, slidingWindow } = config;
  const isMoe = a === "mixtral" || a === "skywork_moe";
  const wrong = [
    config.qkvBias !== (a === "qwen2") && `qkvBias ${config.qkvBias}`,
    config.qkNorm !== (a === "qwen3") && `qkNorm ${config.qkNorm}`,
    isMoe !== (moe !== null) && (moe === null ? "no experts" : "experts"),
    moe !== null && moe.expertFfnSize !== config.ffnSize && `moe.expertFfnSize ${moe.expertFfnSize} beside ffnSize ${config.ffnSize}`,
    a === "mixtral" && moe?.layerInterval !== 1 && `moe.layerInterval ${moe?.layerInterval}`,
    a === "mixtral" && moe?.gateNormalization !== null && "moe.gateNormalization",
    a === "mixtral" && moe?.scoring !== "softmax" && `moe.scoring ${moe?.scoring}`,
    moe !== null && moe.inputScale !== 1 && (a === "mixtral" || moe.inputScale !== moe.topK) && `moe.inputScale ${moe.inputScale}`,
    slidingWindow !== null && (a === "llama" || a.startsWith("skywork")) && "slidingWindow",
    slidingWindow !== null &&
      slidingWindow.firstLayer !== 0 &&
      !a.startsWith("qwen") &&
      `slidingWindow.firstLayer ${slidingWindow.firstLayer}`,
  ].filter((text) => text !== false);
  if (wrong.length > 0) throw new MoeError("configuration", `config.json of a ${a} model cannot say: ${wrong.join(", ")}`);
}

function writeWindow(config: ModelConfig): Record<string, unknown> {
  const { architecture, slidingWindow } = config;
  if (architecture === "mistral" || architecture === "mixtral") return { sliding_window: slidingWindow?.size ?? null };
  if (architecture !== "qwen2" && architecture !== "qwen3") return {};
  return {
    use_sliding_window: slidingWindow !== null,
    sliding_window: slidingWindow?.size ?? null,
    max_window_layers: slidingWindow?.firstLayer ?? config.numLayers,
  };
}
function writeMoe(moe: MoeConfig, architecture: Architecture): Record<string, unknown> {
  if (architecture === "mixtral") {
    return { num_local_experts: moe.numExperts, num_experts_per_tok: moe.topK };
  }
  const norm = moe.gateNormalization;
  return {
    num_experts: [moe.numExperts],
    num_experts_per_tok: moe.topK,
    moe_expert_interval: moe.layerInterval,
    moe_use_skywork_gating: moe.scoring === "softmaxOfTopK",
    moe_2layer_gate: false,
    moe_use_logits_norm: norm !== null,
    moe_gate_norm_std: norm?.lambda ?? 1,
    ...(norm !== null && norm.eps !== 0 ? { moe_gate_norm_eps: norm.eps } : {}),
    ...(norm !== null && !norm.unbiased ? { moe_gate_norm_unbiased: false } : {}),
    moe_feature_no_mul_topk: moe.inputScale === 1,
  };
}

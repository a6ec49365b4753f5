import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { MoeError } from "../util/errors.ts";
import { fromHuggingFaceConfig, storedDType, toHuggingFaceConfig } from "./model-huggingface.ts";
import { modelPresets } from "./model-presets.ts";
import { plainRouting, type ModelConfig } from "./model.ts";

const golden = join(import.meta.dirname, "../../test/golden/models");
function goldenConfig(name: string): Record<string, unknown> {
  return JSON.parse(readFileSync(join(golden, name, "config.json"), "utf8")) as Record<string, unknown>;
}
const llama = {
  model_type: "llama",
  vocab_size: 100,
  hidden_size: 64,
  intermediate_size: 128,
  num_hidden_layers: 2,
  num_attention_heads: 4,
};
const skywork = {
  ...llama,
  model_type: "skywork_moe",
  num_experts: [16],
  num_experts_per_tok: 2,
  moe_use_logits_norm: true,
  moe_gate_norm_std: 1.0,
  moe_feature_no_mul_topk: true,
};

function caught(json: unknown): MoeError {
  try {
    fromHuggingFaceConfig(json, "dir/config.json");
  } catch (error) {
    if (error instanceof MoeError) return error;
    throw error;
  }
  throw new Error("no error");
}

test("every golden configuration and preset survives our own config.json", () => {
  const configs: ModelConfig[] = [
    ...["llama2", "llama3", "mistral", "qwen2", "qwen3", "smollm2", "skywork-13b", "mixtral", "skywork-moe"].map((name) =>
      fromHuggingFaceConfig(goldenConfig(name)),
    ),
    ...Object.values(modelPresets),
  ];
  for (const config of configs) {
    const json: unknown = JSON.parse(JSON.stringify(toHuggingFaceConfig(config, "bfloat16")));
    expect(fromHuggingFaceConfig(json)).toEqual(config);
    expect(storedDType(json)).toBe("bfloat16");
  }
});

test("an old and a new spelling of rope mean the same", () => {
  const scaling = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 };
  const old = fromHuggingFaceConfig({ ...llama, rope_theta: 5e5, rope_scaling: { rope_type: "llama3", ...scaling } });
  expect(fromHuggingFaceConfig({ ...llama, rope_parameters: { rope_theta: 5e5, rope_type: "llama3", ...scaling } })).toEqual(old);
  expect(old.ropeScaling).toEqual({ type: "llama3", factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositions: 8192 });
  expect(fromHuggingFaceConfig({ ...llama, rope_scaling: { type: "linear", factor: 2 } }).ropeScaling).toEqual({
    type: "linear",
    factor: 2,
  });
  expect(fromHuggingFaceConfig({ ...llama, rope_parameters: { rope_type: "default", rope_theta: 7 } })).toMatchObject({
    ropeTheta: 7,
    ropeScaling: null,
  });
});

test("absent keys take the model type's defaults in transformers", () => {
  expect(fromHuggingFaceConfig(llama)).toMatchObject({
    numKvHeads: 4,
    headDim: 16,
    normEps: 1e-6,
    ropeTheta: 10_000,
    tiedEmbeddings: false,
    eosTokenIds: [2],
  });
  expect(fromHuggingFaceConfig({ ...llama, model_type: "mistral", num_attention_heads: 16 })).toMatchObject({
    numKvHeads: 8,
    slidingWindow: { size: 4096, firstLayer: 0 },
  });
  expect(
    fromHuggingFaceConfig({ ...llama, model_type: "mistral", num_attention_heads: 16, sliding_window: null }).slidingWindow,
  ).toBeNull();
  expect(fromHuggingFaceConfig({ ...llama, model_type: "qwen3", num_key_value_heads: 2 })).toMatchObject({
    headDim: 128,
    qkNorm: "head",
    bosTokenId: null,
  });
  expect(fromHuggingFaceConfig({ ...llama, model_type: "mixtral", num_key_value_heads: 2 })).toMatchObject({
    normEps: 1e-5,
    ropeTheta: 1e6,
    moe: { numExperts: 8 },
  });
});

test("Qwen2's window begins at max_window_layers, and only when it is used", () => {
  const qwen = { ...llama, model_type: "qwen2", num_key_value_heads: 2, sliding_window: 9, max_window_layers: 1 };
  expect(fromHuggingFaceConfig(qwen).slidingWindow).toBeNull();
  expect(fromHuggingFaceConfig({ ...qwen, use_sliding_window: true }).slidingWindow).toEqual({ size: 9, firstLayer: 1 });
  expect(fromHuggingFaceConfig({ ...qwen, use_sliding_window: true, max_window_layers: 2 }).slidingWindow).toBeNull();
  const mixed = { ...qwen, use_sliding_window: true, layer_types: ["sliding_attention", "full_attention"] };
  expect(caught(mixed)).toMatchObject({ kind: "unsupported", message: expect.stringContaining("layer_types") as unknown });
});

test("the keys of Skywork-MoE's release are read", () => {
  expect(fromHuggingFaceConfig(skywork).moe).toEqual({
    ...plainRouting,
    numExperts: 16,
    topK: 2,
    expertFfnSize: 128,
    gateNormalization: { lambda: 1, eps: 0, unbiased: true },
  });
  expect(fromHuggingFaceConfig({ ...skywork, model_type: "skywork" }).architecture).toBe("skywork_moe");
  expect(fromHuggingFaceConfig({ ...skywork, moe_use_logits_norm: false }).moe?.gateNormalization).toBeNull();
  expect(fromHuggingFaceConfig({ ...skywork, moe_use_skywork_gating: true }).moe?.scoring).toBe("softmaxOfTopK");
  expect(fromHuggingFaceConfig({ ...skywork, moe_feature_no_mul_topk: false }).moe?.inputScale).toBe(2);
  expect(fromHuggingFaceConfig({ ...skywork, moe_2layer_gate: true }).moe?.gateLayers).toBe(2);
  expect(caught({ ...skywork, moe_use_logits_norm: undefined }).message).toMatch(/moe_use_logits_norm/);
});

test("a normalization that the release cannot say is written in keys of its own", () => {
  const base = modelPresets["skywork-moe"];
  const config: ModelConfig = { ...base, moe: { ...base.moe, gateNormalization: { lambda: 2, eps: 1e-6, unbiased: false } } };
  expect(fromHuggingFaceConfig(toHuggingFaceConfig(config, "float32"))).toEqual(config);
  expect(Object.keys(toHuggingFaceConfig(base, "float32")).filter((key) => /eps|unbiased/.test(key))).toEqual(["rms_norm_eps"]);
});

test("what a family's file cannot say is refused when writing", () => {
  const config: ModelConfig = { ...modelPresets.quickstart, qkvBias: true, slidingWindow: { size: 4, firstLayer: 0 } };
  expect(() => toHuggingFaceConfig(config, "float32")).toThrow(/llama model cannot say: qkvBias true, slidingWindow/);
});

test("an unknown model type names the nearest and lists what there is", () => {
  expect(caught({ ...llama, model_type: "mixtrel" })).toMatchObject({ kind: "unsupported" });
  expect(caught({ ...llama, model_type: "mixtrel" }).message).toMatch(
    /dir\/config.json: model_type "mixtrel".*did you mean "mixtral".*llama, mistral/,
  );
  expect(caught({ ...llama, model_type: undefined }).message).toMatch(/expected "model_type"/);
});

test("keys that change the computation are unsupported, others are tolerated", () => {
  const changes: Record<string, unknown>[] = [
    { hidden_act: "gelu" },
    { attention_bias: true },
    { mlp_bias: true },
    { quantization_config: { quant_method: "gptq" } },
    { partial_rotary_factor: 0.5 },
    { rope_scaling: { rope_type: "longrope" } },
    { rope_parameters: { full_attention: { rope_type: "default", rope_theta: 5 }, sliding_attention: { rope_type: "default" } } },
    { rope_parameters: { rope_type: "default", rope_theta: 1e4, partial_rotary_factor: 0.5 } },
    { dtype: "float8" },
  ];
  for (const change of changes.slice(0, -1))
    expect(caught({ ...llama, ...change }), JSON.stringify(change)).toMatchObject({ kind: "unsupported" });
  expect(() => storedDType({ dtype: "float8" })).toThrow(/float8/);
  expect(
    fromHuggingFaceConfig({ ...llama, some_new_key: 1, quantization_config: null, attention_bias: false, hidden_act: "silu" }),
  ).toEqual(fromHuggingFaceConfig(llama));
});

test("missing, mistyped and contradictory values name the file and the values", () => {
  expect(caught({ ...llama, vocab_size: undefined }).message).toMatch(/dir\/config.json: expected "vocab_size"/);
  expect(caught({ ...llama, vocab_size: "100" }).message).toMatch(/vocab_size: expected a number, got "100"/);
  expect(caught({ ...llama, hidden_size: 66 }).message).toMatch(/hidden_size 66 is not a multiple of num_attention_heads 4/);
  expect(caught({ ...llama, num_key_value_heads: 3 }).message).toMatch(/dir\/config.json.*numHeads 4.*numKvHeads 3/);
  expect(caught({ ...skywork, num_experts_per_tok: 17 }).message).toMatch(/topK 17.*numExperts 16/);
  expect(caught({ ...llama, num_attention_heads: 0 }).kind).toBe("configuration");
  expect(caught({ ...llama, num_hidden_layers: 0 }).message).toMatch(/dir\/config.json.*numLayers/);
  expect(caught([]).message).toMatch(/expected a JSON object/);
});

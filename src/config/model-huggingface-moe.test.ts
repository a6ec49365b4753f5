/** Experts in `config.json`: what transformers writes, what it leaves out, and what the release of Skywork-MoE cannot say. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { expect, test } from "vitest";
import { MoeError } from "../util/errors.ts";
import { fromHuggingFaceConfig, toHuggingFaceConfig } from "./model-huggingface.ts";
import { modelPresets } from "./model-presets.ts";
import { checkModelConfig, plainRouting, type ModelConfig, type MoeConfig } from "./model.ts";

function goldenJson(name: string): Record<string, unknown> {
  const path = join(import.meta.dirname, "../../test/golden/models", name, "config.json");
  return JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;
}
function caught(json: unknown): MoeError {
  try {
    fromHuggingFaceConfig(json, "dir/config.json");
  } catch (error) {
    if (error instanceof MoeError) return error;
    throw error;
  }
  throw new Error("no error");
}
/** What a file must have. */
const bare = { vocab_size: 100, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 4, num_attention_heads: 16 };
const small: ModelConfig = {
  ...modelPresets.quickstart,
  tiedEmbeddings: false,
  hiddenSize: 64,
  numHeads: 4,
  numKvHeads: 2,
  headDim: 16,
  numLayers: 4,
};
const routed: MoeConfig = { ...plainRouting, numExperts: 8, topK: 2, expertFfnSize: small.ffnSize };
const shared = { ffnSize: 40, gate: true, scale: 1 };

test.each(["mixtral", "qwen2-moe", "qwen3-moe", "olmoe", "skywork-moe", "skywork-moe-lambda2", "skywork-moe-gate2", "skywork-moe-sigmoid"])(
  "%s: the golden configuration survives our own config.json",
  (name) => {
    const config = fromHuggingFaceConfig(goldenJson(name));
    expect(fromHuggingFaceConfig(JSON.parse(JSON.stringify(toHuggingFaceConfig(config, "bfloat16"))))).toEqual(config);
  },
);

test("what transformers 5 saves is read: experts beside dense layers, renormalization, the shared expert, the norm over all heads", () => {
  expect(fromHuggingFaceConfig(goldenJson("qwen2-moe"))).toMatchObject({
    qkvBias: true,
    qkNorm: "none",
    ffnSize: 44,
    slidingWindow: null,
    moe: {
      ...plainRouting,
      numExperts: 6,
      topK: 2,
      expertFfnSize: 20,
      renormalize: false,
      sharedExpert: { ffnSize: 28, gate: true, scale: 1 },
    },
  });
  // Transformers 5 writes num_local_experts for this one, older versions num_experts.
  const { num_local_experts, ...qwen3 } = goldenJson("qwen3-moe");
  expect(fromHuggingFaceConfig({ ...qwen3, num_local_experts })).toMatchObject({
    qkNorm: "head",
    headDim: 12,
    ffnSize: 44,
    moe: { ...plainRouting, numExperts: 8, topK: 3, expertFfnSize: 20, layerInterval: 2 },
  });
  expect(fromHuggingFaceConfig({ ...qwen3, num_experts: num_local_experts })).toEqual(
    fromHuggingFaceConfig({ ...qwen3, num_local_experts }),
  );
  expect(fromHuggingFaceConfig(goldenJson("olmoe"))).toMatchObject({
    qkNorm: "all",
    qkvBias: false,
    moe: { ...plainRouting, numExperts: 6, topK: 2, expertFfnSize: 20, renormalize: false },
  });
});

test("absent keys take the defaults that transformers has for the model type", () => {
  // Values of Qwen2MoeConfig, Qwen3MoeConfig and OlmoeConfig in transformers 4.57 and 5.23.
  expect(fromHuggingFaceConfig({ ...bare, model_type: "qwen2_moe" })).toMatchObject({
    numKvHeads: 16,
    headDim: 4,
    normEps: 1e-6,
    ropeTheta: 10_000,
    maxPositions: 32_768,
    qkvBias: true,
    eosTokenIds: [],
    moe: { numExperts: 60, topK: 4, expertFfnSize: 1408, layerInterval: 1, renormalize: false, sharedExpert: { ffnSize: 5632 } },
  });
  expect(fromHuggingFaceConfig({ ...bare, model_type: "qwen3_moe" })).toMatchObject({
    numKvHeads: 4,
    headDim: 4,
    moe: { numExperts: 128, topK: 8, expertFfnSize: 768, renormalize: false, sharedExpert: null },
  });
  expect(fromHuggingFaceConfig({ ...bare, vocab_size: 60_000, model_type: "olmoe" })).toMatchObject({
    numKvHeads: 16,
    normEps: 1e-5,
    maxPositions: 4096,
    bosTokenId: null,
    eosTokenIds: [50_279],
    padTokenId: 1,
    moe: { numExperts: 64, topK: 8, expertFfnSize: 96, renormalize: false },
  });
});

test("settings of these families that are not built are unsupported, never ignored", () => {
  const cases: [Record<string, unknown>, RegExp][] = [
    [{ model_type: "qwen2_moe", mlp_only_layers: [0] }, /mlp_only_layers \[0\] is not supported/],
    [{ model_type: "qwen3_moe", mlp_only_layers: [0] }, /mlp_only_layers/],
    [{ model_type: "qwen2_moe", use_sliding_window: true }, /use_sliding_window/],
    [{ model_type: "olmoe", vocab_size: 60_000, clip_qkv: 8 }, /clip_qkv 8 is not supported/],
    [{ model_type: "olmoe", vocab_size: 60_000, attention_bias: true }, /attention_bias/],
    [{ model_type: "qwen3_moe", attention_bias: true }, /attention_bias/],
  ];
  for (const [change, message] of cases) {
    const error = caught({ ...bare, ...change });
    expect(error.kind).toBe("unsupported");
    expect(error.message).toMatch(message);
  }
  expect(caught({ ...bare, model_type: "qwen2_moe", norm_topk_prob: "yes" }).message).toMatch(/norm_topk_prob: expected true or false/);
  expect(caught({ ...bare, model_type: "qwen3_moe", num_experts: 4 }).message).toMatch(/topK 8 is above moe.numExperts 4/);
});

test("Qwen3-MoE's window is over all layers, and only when it is used", () => {
  const json = { ...bare, model_type: "qwen3_moe", sliding_window: 9 };
  expect(fromHuggingFaceConfig(json).slidingWindow).toBeNull();
  const config = fromHuggingFaceConfig({ ...json, use_sliding_window: true });
  expect(config.slidingWindow).toEqual({ size: 9, firstLayer: 0 });
  expect(fromHuggingFaceConfig(toHuggingFaceConfig(config, "float32"))).toEqual(config);
});

test("what a family's file cannot say of experts is refused when writing, with every value", () => {
  const cases: [ModelConfig, RegExp][] = [
    [{ ...small, architecture: "mixtral", moe: { ...routed, expertFfnSize: 7 } }, /moe.expertFfnSize 7 beside ffnSize 512/],
    [{ ...small, architecture: "mixtral", moe: { ...routed, renormalize: false } }, /mixtral model cannot say: moe.renormalize false/],
    [{ ...small, architecture: "mixtral", moe: { ...routed, sharedExpert: shared } }, /moe.sharedExpert/],
    [{ ...small, architecture: "qwen2_moe", moe: routed }, /qwen2_moe model cannot say: moe.sharedExpert null/],
    [
      { ...small, architecture: "qwen2_moe", moe: { ...routed, sharedExpert: { ...shared, gate: false } } },
      /moe.sharedExpert \{.*"gate":false/,
    ],
    [{ ...small, architecture: "qwen3_moe", moe: routed }, /qwen3_moe model cannot say: qkNorm none/],
    [{ ...small, architecture: "olmoe", qkNorm: "head", moe: routed }, /olmoe model cannot say: qkNorm head/],
    [{ ...small, architecture: "olmoe", qkNorm: "all", moe: { ...routed, layerInterval: 2 } }, /moe.layerInterval 2/],
    [{ ...small, architecture: "olmoe", qkNorm: "all", headDim: 8, moe: routed }, /headDim 8 of 4 heads beside hiddenSize 64/],
    [
      {
        ...small,
        architecture: "qwen2_moe",
        moe: {
          ...routed,
          sharedExpert: shared,
          scoring: "sigmoid",
          routedScale: 2,
          groups: { numGroups: 4, topGroups: 1 },
          gateLayers: 2,
          selectionBias: true,
          inputScale: 2,
          gateNormalization: { lambda: 1, eps: 0, unbiased: true },
        },
      },
      /inputScale 2, moe.gateNormalization, moe.scoring sigmoid, moe.routedScale 2, moe.groups, moe.gateLayers 2, moe.selectionBias/,
    ],
    [{ ...small, architecture: "llama", moe: routed }, /llama model cannot say: experts/],
    [{ ...small, architecture: "mixtral" }, /mixtral model cannot say: no experts/],
    [{ ...small, architecture: "skywork_moe", moe: { ...routed, inputScale: 3 } }, /moe.inputScale 3/],
  ];
  for (const [config, message] of cases) expect(() => toHuggingFaceConfig(checkModelConfig(config), "float32")).toThrow(message);
});

test("the release's keys of Skywork-MoE are all that is written for what the release can say", () => {
  const json = toHuggingFaceConfig(modelPresets["skywork-moe"], "bfloat16");
  expect(
    Object.keys(json)
      .filter((key) => key.startsWith("moe_"))
      .toSorted(),
  ).toEqual([
    "moe_2layer_gate",
    "moe_expert_interval",
    "moe_feature_no_mul_topk",
    "moe_gate_norm_std",
    "moe_use_logits_norm",
    "moe_use_skywork_gating",
  ]);
});

const anyMoe: fc.Arbitrary<MoeConfig> = fc
  .record({
    perGroup: fc.integer({ min: 2, max: 4 }),
    numGroups: fc.integer({ min: 1, max: 3 }),
    topK: fc.integer({ min: 1, max: 2 }),
    expertFfnSize: fc.integer({ min: 1, max: 50 }),
    layerInterval: fc.integer({ min: 1, max: 4 }),
    gateNormalization: fc.option(fc.record({ lambda: fc.constantFrom(0.5, 1, 2), eps: fc.constantFrom(0, 1e-6), unbiased: fc.boolean() })),
    scoring: fc.constantFrom("softmax", "softmaxOfTopK", "sigmoid"),
    renormalize: fc.boolean(),
    routedScale: fc.constantFrom(1, 2.5),
    grouped: fc.boolean(),
    gateLayers: fc.constantFrom(1, 2),
    selectionBias: fc.boolean(),
    multiplied: fc.boolean(),
    sharedExpert: fc.option(fc.record({ ffnSize: fc.integer({ min: 1, max: 9 }), gate: fc.boolean(), scale: fc.constantFrom(1, 0.5) })),
  })
  .map(({ perGroup, numGroups, grouped, multiplied, ...rest }) => ({
    ...rest,
    numExperts: perGroup * numGroups,
    renormalize: rest.renormalize || rest.scoring === "softmaxOfTopK",
    groups: grouped ? { numGroups, topGroups: 1 } : null,
    inputScale: multiplied ? rest.topK : 1,
  }));
test("whatever a Skywork-MoE of ours does, its config.json says it", () => {
  fc.assert(
    fc.property(anyMoe, (moe) => {
      const config = checkModelConfig({ ...small, architecture: "skywork_moe", moe });
      expect(fromHuggingFaceConfig(JSON.parse(JSON.stringify(toHuggingFaceConfig(config, "float32"))))).toEqual(config);
    }),
  );
});

test("keys of ours that contradict the release's are errors", () => {
  const json = toHuggingFaceConfig({ ...small, architecture: "skywork_moe", moe: routed }, "float32");
  expect(caught({ ...json, moe_scoring: "relu" }).message).toMatch(/moe_scoring: expected "sigmoid" or no such key, got "relu"/);
  expect(caught({ ...json, moe_scoring: "sigmoid", moe_use_skywork_gating: true }).message).toMatch(/moe_use_skywork_gating true/);
  expect(caught({ ...json, moe_num_groups: 2 }).message).toMatch(/expected "moe_top_groups"/);
  expect(caught({ ...json, moe_num_groups: 3, moe_top_groups: 1 }).message).toMatch(
    /numExperts 8 is not a multiple of moe.groups.numGroups 3/,
  );
});

/**
 * The experts of a Hugging Face `config.json`: read into a `MoeConfig`, written back, and what each family's file can say.
 *
 * | family      | experts' width          | dense layers                          | combine weights                |
 * | ----------- | ----------------------- | ------------------------------------- | ------------------------------ |
 * | mixtral     | `intermediate_size`     | none                                  | renormalized                   |
 * | qwen2_moe   | `moe_intermediate_size` | `decoder_sparse_step`                 | `norm_topk_prob`, shared expert |
 * | qwen3_moe   | `moe_intermediate_size` | `decoder_sparse_step`                 | `norm_topk_prob`               |
 * | olmoe       | `intermediate_size`     | none                                  | `norm_topk_prob`               |
 * | skywork_moe | `intermediate_size`     | `moe_expert_interval`                 | renormalized                   |
 *
 * The release of Skywork-MoE knows only part of what we build. The rest is written as `moe_*` keys of our own, only where a
 * model differs from the release, and read with the release's behaviour where they are absent.
 */
import { MoeError } from "../util/errors.ts";
import type { HuggingFaceReader } from "./model-huggingface-reader.ts";
import { plainRouting, type Architecture, type MoeConfig, type ModelConfig } from "./model.ts";

/** Families with experts. */
const moeArchitectures: readonly Architecture[] = ["mixtral", "skywork_moe", "qwen2_moe", "qwen3_moe", "olmoe"];

/** What transformers assumes for keys that a file of the Qwen MoE families or OLMoE leaves out. */
const qwenDefaults = {
  qwen2_moe: { numExperts: 60, topK: 4, expertFfnSize: 1408 },
  qwen3_moe: { numExperts: 128, topK: 8, expertFfnSize: 768 },
  olmoe: { numExperts: 64, topK: 8 },
} as const;

/** The experts of a family that has them, null for another. Throws `unsupported` and `configuration`. */
export function readMoe(r: HuggingFaceReader, architecture: Architecture, ffnSize: number): MoeConfig | null {
  switch (architecture) {
    case "mixtral":
      return {
        ...plainRouting,
        numExperts: r.integer("num_local_experts", 8),
        topK: r.integer("num_experts_per_tok", 2),
        expertFfnSize: ffnSize,
      };
    case "skywork_moe":
      return readSkyworkMoe(r, ffnSize);
    case "qwen2_moe":
    case "qwen3_moe":
      return readQwenMoe(r, architecture);
    case "olmoe":
      return {
        ...plainRouting,
        numExperts: r.integer("num_experts", qwenDefaults.olmoe.numExperts),
        topK: r.integer("num_experts_per_tok", qwenDefaults.olmoe.topK),
        expertFfnSize: ffnSize,
        renormalize: r.boolean("norm_topk_prob", false),
      };
    default:
      return null;
  }
}

function readQwenMoe(r: HuggingFaceReader, architecture: "qwen2_moe" | "qwen3_moe"): MoeConfig {
  const dense = r.value("mlp_only_layers") ?? [];
  if (!Array.isArray(dense) || dense.length > 0) {
    throw new MoeError("unsupported", `${r.path}: mlp_only_layers ${JSON.stringify(dense)} is not supported (expected [])`);
  }
  const absent = qwenDefaults[architecture];
  return {
    ...plainRouting,
    // Transformers 5 saves a Qwen3-MoE's number under its other name.
    numExperts: r.integer("num_experts", r.integer("num_local_experts", absent.numExperts)),
    topK: r.integer("num_experts_per_tok", absent.topK),
    expertFfnSize: r.integer("moe_intermediate_size", absent.expertFfnSize),
    layerInterval: r.integer("decoder_sparse_step", 1),
    renormalize: r.boolean("norm_topk_prob", false),
    sharedExpert:
      architecture === "qwen2_moe" ? { ffnSize: r.integer("shared_expert_intermediate_size", 5632), gate: true, scale: 1 } : null,
  };
}

function readSkyworkMoe(r: HuggingFaceReader, ffnSize: number): MoeConfig {
  const topK = r.integer("num_experts_per_tok", 2);
  const ofTopK = r.boolean("moe_use_skywork_gating", false);
  return {
    numExperts: skyworkExperts(r),
    topK,
    expertFfnSize: r.integer("moe_expert_intermediate_size", ffnSize),
    layerInterval: r.integer("moe_expert_interval", 1),
    gateNormalization: r.requiredBoolean("moe_use_logits_norm")
      ? {
          lambda: r.number("moe_gate_norm_std", 1),
          // The release knows neither key: it adds nothing and divides by n - 1. We write them where a model differs.
          eps: r.number("moe_gate_norm_eps", 0),
          unbiased: r.boolean("moe_gate_norm_unbiased", true),
        }
      : null,
    scoring: readScoring(r, ofTopK),
    renormalize: r.boolean("moe_norm_topk_prob", true),
    routedScale: r.number("moe_routed_scaling_factor", 1),
    groups: readGroups(r),
    gateLayers: r.boolean("moe_2layer_gate", false) ? 2 : 1,
    selectionBias: r.boolean("moe_selection_bias", false),
    inputScale: r.requiredBoolean("moe_feature_no_mul_topk") ? 1 : topK,
    sharedExpert: readSharedExpert(r),
  };
}
function readScoring(r: HuggingFaceReader, ofTopK: boolean): MoeConfig["scoring"] {
  const released = ofTopK ? "softmaxOfTopK" : "softmax";
  const scoring = r.optionalString("moe_scoring") ?? released;
  if (scoring === released || (scoring === "sigmoid" && !ofTopK)) return scoring;
  throw r.error(`moe_scoring: expected "sigmoid" or no such key, got ${JSON.stringify(scoring)} with moe_use_skywork_gating ${ofTopK}`);
}
function readGroups(r: HuggingFaceReader): MoeConfig["groups"] {
  const numGroups = r.integer("moe_num_groups", 0);
  return numGroups === 0 ? null : { numGroups, topGroups: r.integer("moe_top_groups") };
}
function readSharedExpert(r: HuggingFaceReader): MoeConfig["sharedExpert"] {
  const ffnSize = r.integer("moe_shared_expert_intermediate_size", 0);
  if (ffnSize === 0) return null;
  return { ffnSize, gate: r.boolean("moe_shared_expert_gate", false), scale: r.number("moe_shared_expert_scaling_factor", 1) };
}

/** `num_experts` of a Skywork file: a number, or a list of one; 1 where absent. */
export function skyworkExperts(r: HuggingFaceReader): number {
  const value = r.value("num_experts");
  if (Array.isArray(value) && value.length > 1 && new Set<unknown>(value).size > 1) {
    throw new MoeError("unsupported", `${r.path}: num_experts ${JSON.stringify(value)} (layers with different numbers of experts)`);
  }
  return r.integerFrom("num_experts", Array.isArray(value) ? (value as unknown[])[0] : value, 1);
}

/** The keys that say what the experts are. */
export function writeMoe(moe: MoeConfig, { architecture, ffnSize }: ModelConfig): Record<string, unknown> {
  if (architecture === "mixtral") return { num_local_experts: moe.numExperts, num_experts_per_tok: moe.topK };
  if (architecture === "skywork_moe") return writeSkyworkMoe(moe, ffnSize);
  const routing = { num_experts: moe.numExperts, num_experts_per_tok: moe.topK, norm_topk_prob: moe.renormalize };
  if (architecture === "olmoe") return { ...routing, clip_qkv: null };
  return {
    ...routing,
    moe_intermediate_size: moe.expertFfnSize,
    ...(moe.sharedExpert === null ? {} : { shared_expert_intermediate_size: moe.sharedExpert.ffnSize }),
    decoder_sparse_step: moe.layerInterval,
    mlp_only_layers: [],
  };
}

function writeSkyworkMoe(moe: MoeConfig, ffnSize: number): Record<string, unknown> {
  const { gateNormalization: norm, groups, sharedExpert: shared } = moe;
  return {
    num_experts: [moe.numExperts],
    num_experts_per_tok: moe.topK,
    moe_expert_interval: moe.layerInterval,
    moe_use_skywork_gating: moe.scoring === "softmaxOfTopK",
    moe_2layer_gate: moe.gateLayers === 2,
    moe_use_logits_norm: norm !== null,
    moe_gate_norm_std: norm?.lambda ?? 1,
    moe_feature_no_mul_topk: moe.inputScale === 1,
    // From here on, keys of ours.
    ...(moe.expertFfnSize === ffnSize ? {} : { moe_expert_intermediate_size: moe.expertFfnSize }),
    ...(norm !== null && norm.eps !== 0 ? { moe_gate_norm_eps: norm.eps } : {}),
    ...(norm !== null && !norm.unbiased ? { moe_gate_norm_unbiased: false } : {}),
    ...(moe.scoring === "sigmoid" ? { moe_scoring: "sigmoid" } : {}),
    ...(moe.renormalize ? {} : { moe_norm_topk_prob: false }),
    ...(moe.routedScale === 1 ? {} : { moe_routed_scaling_factor: moe.routedScale }),
    ...(groups === null ? {} : { moe_num_groups: groups.numGroups, moe_top_groups: groups.topGroups }),
    ...(moe.selectionBias ? { moe_selection_bias: true } : {}),
    ...(shared === null
      ? {}
      : {
          moe_shared_expert_intermediate_size: shared.ffnSize,
          moe_shared_expert_gate: shared.gate,
          moe_shared_expert_scaling_factor: shared.scale,
        }),
  };
}

/** What the family's file cannot say of the experts, in our words; empty where it can say everything. */
export function inexpressibleMoe(config: ModelConfig): string[] {
  const { architecture: a, moe } = config;
  const isMoe = moeArchitectures.includes(a);
  if (moe === null || !isMoe) return isMoe === (moe !== null) ? [] : [moe === null ? "no experts" : "experts"];
  const isSkywork = a === "skywork_moe";
  const isQwen = a === "qwen2_moe" || a === "qwen3_moe";
  const shared = moe.sharedExpert;
  const wrong: (string | false)[] = [
    (a === "mixtral" || a === "olmoe") &&
      moe.expertFfnSize !== config.ffnSize &&
      `moe.expertFfnSize ${moe.expertFfnSize} beside ffnSize ${config.ffnSize}`,
    !isSkywork && !isQwen && moe.layerInterval !== 1 && `moe.layerInterval ${moe.layerInterval}`,
    moe.inputScale !== 1 && (!isSkywork || moe.inputScale !== moe.topK) && `moe.inputScale ${moe.inputScale}`,
    a === "mixtral" && !moe.renormalize && "moe.renormalize false",
    a === "qwen2_moe" && (shared === null || !shared.gate || shared.scale !== 1) && `moe.sharedExpert ${JSON.stringify(shared)}`,
    a !== "qwen2_moe" && !isSkywork && shared !== null && "moe.sharedExpert",
    !isSkywork && moe.gateNormalization !== null && "moe.gateNormalization",
    !isSkywork && moe.scoring !== "softmax" && `moe.scoring ${moe.scoring}`,
    !isSkywork && moe.routedScale !== 1 && `moe.routedScale ${moe.routedScale}`,
    !isSkywork && moe.groups !== null && "moe.groups",
    !isSkywork && moe.gateLayers !== 1 && `moe.gateLayers ${moe.gateLayers}`,
    !isSkywork && moe.selectionBias && "moe.selectionBias",
  ];
  return wrong.filter((text) => text !== false);
}

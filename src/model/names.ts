/**
 * Names of our parameters in Hugging Face checkpoints, as data: each parameter is one tensor of the file, or a stack of
 * pieces (one an expert). A piece is a run of elements of a file's tensor that is a run of elements of ours, so loading and
 * saving copy runs and know nothing else.
 *
 * Families with experts exist twice: per-expert tensors (the released files) and fused ones (transformers 5 in memory, and some
 * files: `mlp.experts.gate_up_proj` [E, 2F, H], gate before up, and `mlp.experts.down_proj`). Both are read; the first is
 * written, because everything reads it. Per expert, Mixtral and Skywork-MoE say `block_sparse_moe.experts.{e}.w1` (gate), `w3`
 * (up), `w2` (down), the Qwen families and OLMoE `mlp.experts.{e}.gate_proj`, `up_proj`, `down_proj`.
 *
 * The two-layer gate of Skywork-MoE is a sequence of three modules, so `gate.0` and `gate.2`. What its release does not have
 * (shared expert, bias for choosing) is named as others name it, under `block_sparse_moe`.
 */
import { hasExperts, type Architecture, type ModelConfig } from "../config/model.ts";
import { numElements, type Shape } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import type { ParameterSpec } from "./parameters.ts";

/** A run of elements shared by a tensor of a file and a parameter. */
export interface Piece {
  /** Name in the file. */
  readonly name: string;
  /** Shape of the whole tensor in the file. */
  readonly shape: Shape;
  /** First element of the run in the file's tensor, and in ours. */
  readonly fileOffset: number;
  readonly offset: number;
  readonly numElements: number;
}

/** How experts are stored. */
export type ExpertLayout = "per-expert" | "fused";

const topLevel: Readonly<Record<string, string>> = {
  "embedding.weight": "model.embed_tokens.weight",
  "norm.weight": "model.norm.weight",
  "head.weight": "lm_head.weight",
};
const inLayer: Readonly<Record<string, string>> = {
  "attentionNorm.weight": "input_layernorm.weight",
  "attention.query.weight": "self_attn.q_proj.weight",
  "attention.query.bias": "self_attn.q_proj.bias",
  "attention.key.weight": "self_attn.k_proj.weight",
  "attention.key.bias": "self_attn.k_proj.bias",
  "attention.value.weight": "self_attn.v_proj.weight",
  "attention.value.bias": "self_attn.v_proj.bias",
  "attention.output.weight": "self_attn.o_proj.weight",
  "attention.queryNorm.weight": "self_attn.q_norm.weight",
  "attention.keyNorm.weight": "self_attn.k_norm.weight",
  "feedForwardNorm.weight": "post_attention_layernorm.weight",
  "feedForward.gate.weight": "mlp.gate_proj.weight",
  "feedForward.up.weight": "mlp.up_proj.weight",
  "feedForward.down.weight": "mlp.down_proj.weight",
};
/** What a family calls the block of experts, and the matrices of one. */
interface BlockNames {
  readonly block: string;
  readonly experts: Readonly<Record<string, string>>;
}
const mixtralNames: BlockNames = {
  block: "block_sparse_moe",
  experts: { "moe.experts.gate": "w1", "moe.experts.up": "w3", "moe.experts.down": "w2" },
};
const qwenNames: BlockNames = {
  block: "mlp",
  experts: { "moe.experts.gate": "gate_proj", "moe.experts.up": "up_proj", "moe.experts.down": "down_proj" },
};
function blockNames(architecture: Architecture): BlockNames {
  return architecture === "mixtral" || architecture === "skywork_moe" ? mixtralNames : qwenNames;
}
/** Parts of a block that are one tensor each, beside the gate of one layer. */
const inBlock: Readonly<Record<string, string>> = {
  "moe.router.hidden.weight": "gate.0.weight",
  "moe.router.bias": "gate.e_score_correction_bias",
  "moe.shared.gate.weight": "shared_expert.gate_proj.weight",
  "moe.shared.up.weight": "shared_expert.up_proj.weight",
  "moe.shared.down.weight": "shared_expert.down_proj.weight",
  "moe.shared.router.weight": "shared_expert_gate.weight",
};

/** Where a parameter of a model with this configuration lies in a checkpoint of Hugging Face names. */
export function huggingFacePieces(
  spec: ParameterSpec,
  layout: ExpertLayout,
  { architecture, moe }: Pick<ModelConfig, "architecture" | "moe">,
): Piece[] {
  const whole = (name: string): Piece[] => [{ name, shape: spec.shape, fileOffset: 0, offset: 0, numElements: numElements(spec.shape) }];
  const top = topLevel[spec.name];
  if (top !== undefined) return whole(top);
  const [, layer, rest = ""] = /^layers\.(\d+)\.(.+)$/.exec(spec.name) ?? [];
  const prefix = `model.layers.${layer}`;
  const plain = inLayer[rest];
  if (plain !== undefined) return whole(`${prefix}.${plain}`);
  const { block, experts } = blockNames(architecture);
  const mlp = `${prefix}.${layout === "fused" ? "mlp" : block}`;
  if (rest === "moe.router.weight") return whole(`${mlp}.${moe?.gateLayers === 2 ? "gate.2.weight" : "gate.weight"}`);
  const part = inBlock[rest];
  if (part !== undefined) return whole(`${mlp}.${part}`);
  const matrix = experts[rest];
  if (matrix === undefined) throw new MoeError("internal", `no Hugging Face name for parameter ${spec.name}`);
  if (layout === "per-expert") return perExpertPieces(spec, (e) => `${mlp}.experts.${e}.${matrix}.weight`);
  if (rest === "moe.experts.down") return whole(`${mlp}.experts.down_proj`);
  return fusedPieces(spec, `${mlp}.experts.gate_up_proj`, rest === "moe.experts.gate" ? 0 : 1);
}

function perExpertPieces({ shape }: ParameterSpec, nameOf: (expert: number) => string): Piece[] {
  const [E = 0, ...matrix] = shape;
  const size = numElements(matrix);
  return Array.from({ length: E }, (_, e) => ({ name: nameOf(e), shape: matrix, fileOffset: 0, offset: e * size, numElements: size }));
}
/** Half `half` (0 gate, 1 up) of every expert of a [E, 2F, H] tensor. */
function fusedPieces({ shape }: ParameterSpec, name: string, half: 0 | 1): Piece[] {
  const [E = 0, F = 0, H = 0] = shape;
  return Array.from({ length: E }, (_, e) => ({
    name,
    shape: [E, 2 * F, H],
    fileOffset: (2 * e + half) * F * H,
    offset: e * F * H,
    numElements: F * H,
  }));
}

/** Which layout a checkpoint has, from the names in it. Dense models have neither (and get the first). */
export function expertLayoutOf(config: ModelConfig, has: (name: string) => boolean): ExpertLayout {
  if (config.moe === null) return "per-expert";
  for (let layer = 0; layer < config.numLayers; layer++) {
    if (hasExperts(config, layer) && has(`model.layers.${layer}.mlp.experts.gate_up_proj`)) return "fused";
  }
  return "per-expert";
}

/** Names that a checkpoint may carry beside the parameters: buffers that older versions saved, and the second copy of a tied embedding. */
export function isIgnorableName(name: string, config: ModelConfig): boolean {
  return /\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$/.test(name) || (config.tiedEmbeddings && name === "lm_head.weight");
}

/**
 * Names of our parameters in Hugging Face checkpoints, as data: each parameter is one tensor of the file, or a stack of
 * pieces (one an expert). A piece is a run of elements of a file's tensor that is a run of elements of ours, so loading and
 * saving copy runs and know nothing else.
 *
 * Mixtral exists twice: per-expert tensors (`block_sparse_moe.experts.{e}.w1`, the released files) and fused ones
 * (`mlp.experts.gate_up_proj` [E, 2F, H], gate before up, and `mlp.experts.down_proj`, transformers 5). Both are read; the
 * first is written, because everything reads it.
 */
import { hasExperts, type ModelConfig } from "../config/model.ts";
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
/** Matrix of one expert in the per-expert layout. */
const expertMatrix: Readonly<Record<string, string>> = { "moe.experts.gate": "w1", "moe.experts.up": "w3", "moe.experts.down": "w2" };

/** Where a parameter lies in a checkpoint of Hugging Face names. */
export function huggingFacePieces(spec: ParameterSpec, layout: ExpertLayout): Piece[] {
  const whole = (name: string): Piece[] => [{ name, shape: spec.shape, fileOffset: 0, offset: 0, numElements: numElements(spec.shape) }];
  const top = topLevel[spec.name];
  if (top !== undefined) return whole(top);
  const [, layer, rest = ""] = /^layers\.(\d+)\.(.+)$/.exec(spec.name) ?? [];
  const prefix = `model.layers.${layer}`;
  const plain = inLayer[rest];
  if (plain !== undefined) return whole(`${prefix}.${plain}`);
  if (rest === "moe.router.weight")
    return whole(layout === "fused" ? `${prefix}.mlp.gate.weight` : `${prefix}.block_sparse_moe.gate.weight`);
  const matrix = expertMatrix[rest];
  if (matrix === undefined) throw new MoeError("internal", `no Hugging Face name for parameter ${spec.name}`);
  if (layout === "per-expert") return perExpertPieces(spec, (e) => `${prefix}.block_sparse_moe.experts.${e}.${matrix}.weight`);
  if (matrix === "w2") return whole(`${prefix}.mlp.experts.down_proj`);
  return fusedPieces(spec, `${prefix}.mlp.experts.gate_up_proj`, matrix === "w1" ? 0 : 1);
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

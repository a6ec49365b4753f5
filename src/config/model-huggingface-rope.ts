/**
 * Rotary embedding settings of `config.json`: `rope_theta` beside `rope_scaling` (transformers 4), or both in
 * `rope_parameters` (transformers 5). Writing uses the older spelling, which both read.
 */
import { MoeError } from "../util/errors.ts";
import type { HuggingFaceReader } from "./model-huggingface-reader.ts";
import type { ModelConfig, RopeScaling } from "./model.ts";

type Rope = Pick<ModelConfig, "ropeTheta" | "ropeScaling">;

export function readRope(r: HuggingFaceReader, defaultTheta: number, maxPositions: number): Rope {
  const parameters = r.object("rope_parameters") ?? r.object("rope_scaling");
  const ropeTheta = parameters?.number("rope_theta", r.number("rope_theta", defaultTheta)) ?? r.number("rope_theta", defaultTheta);
  return { ropeTheta, ropeScaling: parameters === null ? null : readScaling(parameters, r, maxPositions) };
}

function readScaling(p: HuggingFaceReader, r: HuggingFaceReader, maxPositions: number): RopeScaling | null {
  p.requireSupported({ attentionBiasIsImplied: false });
  const nested = p.keys.find((key) => typeof p.value(key) === "object" && p.value(key) !== null && !Array.isArray(p.value(key)));
  if (nested !== undefined)
    throw new MoeError("unsupported", `${p.path}: "${nested}" has settings of its own (rotary embeddings that differ between layers)`);
  const type = p.optionalString("rope_type") ?? p.optionalString("type") ?? "default";
  const original = (): number => p.integer("original_max_position_embeddings", r.integer("original_max_position_embeddings", maxPositions));
  switch (type) {
    case "default":
      return null;
    case "linear":
    case "dynamic":
      return { type, factor: p.number("factor") };
    case "llama3":
      return {
        type,
        factor: p.number("factor"),
        lowFreqFactor: p.number("low_freq_factor"),
        highFreqFactor: p.number("high_freq_factor"),
        originalMaxPositions: original(),
      };
    case "yarn":
      if (p.has("mscale") || p.has("mscale_all_dim")) throw new MoeError("unsupported", `${p.path}: yarn with mscale or mscale_all_dim`);
      return {
        type,
        factor: p.number("factor"),
        originalMaxPositions: original(),
        attentionFactor: p.number("attention_factor", 0) || null,
        betaFast: p.number("beta_fast", 32),
        betaSlow: p.number("beta_slow", 1),
        truncate: p.boolean("truncate", true),
      };
    default:
      throw new MoeError(
        "unsupported",
        `${p.path}: rope_type "${type}" is not supported; supported: default, linear, dynamic, llama3, yarn`,
      );
  }
}

export function writeRope(config: ModelConfig): Record<string, unknown> {
  const scaling = config.ropeScaling;
  return { rope_theta: config.ropeTheta, rope_scaling: scaling === null ? null : writeScaling(scaling) };
}
function writeScaling(scaling: RopeScaling): Record<string, unknown> {
  switch (scaling.type) {
    case "linear":
    case "dynamic":
      return { rope_type: scaling.type, factor: scaling.factor };
    case "llama3":
      return {
        rope_type: scaling.type,
        factor: scaling.factor,
        low_freq_factor: scaling.lowFreqFactor,
        high_freq_factor: scaling.highFreqFactor,
        original_max_position_embeddings: scaling.originalMaxPositions,
      };
    case "yarn":
      return {
        rope_type: scaling.type,
        factor: scaling.factor,
        original_max_position_embeddings: scaling.originalMaxPositions,
        ...(scaling.attentionFactor === null ? {} : { attention_factor: scaling.attentionFactor }),
        beta_fast: scaling.betaFast,
        beta_slow: scaling.betaSlow,
        truncate: scaling.truncate,
      };
    default:
      return scaling satisfies never;
  }
}

/**
 * The `quantization_config` of a `config.json`: what FP8 checkpoints say of themselves, read and written.
 *
 * Three layouts are known. `huggingface`: `quant_method: "fp8"` as transformers writes it, with `weight_scale_inv` beside each matrix (which
 * is the factor itself, whatever its name says), one, or one a block of 128 x 128. `compressed-tensors`: its schemes FP8, FP8_DYNAMIC and
 * FP8_BLOCK, with `weight_scale` [N, 1] where rows have their own. `skywork`: `quant_method: "fp8"` as vLLM first read it and Skywork-MoE was
 * released in, one `weight_scale` a matrix, the same for w1 and w3 of an expert. Which tensors are quantized is read from the tensors; this
 * only refuses what would be read wrongly, and says how activations are to be rounded (docs/quantization.md says when that is done).
 */
import type { ActivationScaling, Fp8Scaling } from "../backend/kernels.ts";
import { MoeError } from "../util/errors.ts";

export const fp8Layouts = ["huggingface", "compressed-tensors", "skywork"] as const;
export type Fp8Layout = (typeof fp8Layouts)[number];

/** The layout that is written for a kind of scales unless one is asked for: the one that most software reads. */
export function defaultLayout(scaling: Fp8Scaling): Fp8Layout {
  return scaling === "channel" ? "compressed-tensors" : "huggingface";
}

/** Throws `unsupported` where a layout has no such scales. */
export function checkLayout(layout: Fp8Layout, scaling: Fp8Scaling): void {
  if (layout === "compressed-tensors" || scaling === "tensor" || (layout === "huggingface" && scaling === "block128")) return;
  const allowed = layout === "skywork" ? "tensor" : "tensor or block128";
  throw new MoeError("unsupported", `layout ${layout} with ${scaling} scales: expected ${allowed}, or layout compressed-tensors`);
}

/** What is added to a matrix's name (`...q_proj.weight`) to name its scales. */
export function scaleName(weight: string, layout: Fp8Layout): string {
  return weight + (layout === "huggingface" ? "_scale_inv" : "_scale");
}

/** Shape of the scales of a matrix [N, K] in a file of this layout. */
export function storedScaleShape(layout: Fp8Layout, scaling: Fp8Scaling, shape: readonly number[]): readonly number[] {
  const [N = 1] = shape;
  if (scaling === "tensor") return layout === "compressed-tensors" ? [1] : [];
  return scaling === "channel" ? [N, 1] : shape;
}

type Json = Readonly<Record<string, unknown>>;
function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * What files say of activations: that they are rounded to E4M3 as the layout has it (a scale a token; a scale a 128 values under block scales; in
 * layout skywork one for all), with one scale for all that a product is given, or not at all. The last two can be said in compressed-tensors only.
 */
export const recordedActivations = ["dynamic", "tensor", "none"] as const;
export type RecordedActivations = (typeof recordedActivations)[number];

/** Throws `unsupported` where a layout cannot say so. */
export function checkActivations(layout: Fp8Layout, activations: RecordedActivations): void {
  if (activations !== "dynamic" && layout !== "compressed-tensors")
    throw new MoeError("unsupported", `activations ${activations} in layout ${layout}: expected dynamic, or layout compressed-tensors`);
}

/** The value for `config.json`. `ignored` are modules (names without `.weight`) that stay as they were. */
export function writeQuantizationConfig(
  layout: Fp8Layout,
  scaling: Fp8Scaling,
  ignored: readonly string[],
  recorded: RecordedActivations = "dynamic",
): Json {
  if (layout === "skywork") return { quant_method: "fp8", activation_scheme: "dynamic" };
  if (layout === "huggingface") {
    const block = scaling === "block128" ? { weight_block_size: [128, 128] } : { weight_block_size: null };
    return { quant_method: "fp8", fmt: "e4m3", activation_scheme: "dynamic", ...block, modules_to_not_convert: ignored };
  }
  const common = { num_bits: 8, type: "float", symmetric: true };
  const block = scaling === "block128" ? { block_structure: [128, 128] } : {};
  const weights = { ...common, dynamic: false, strategy: scaling === "block128" ? "block" : scaling, observer: "minmax", ...block };
  const activations = {
    ...common,
    dynamic: true,
    observer: null,
    ...(recorded === "tensor"
      ? { strategy: "tensor" }
      : scaling === "block128"
        ? { strategy: "group", group_size: 128 }
        : { strategy: "token" }),
  };
  return {
    quant_method: "compressed-tensors",
    format: "float-quantized",
    quantization_status: "compressed",
    config_groups: {
      group_0: { targets: ["Linear"], weights, input_activations: recorded === "none" ? null : activations, output_activations: null },
    },
    kv_cache_scheme: null,
    ignore: ignored,
  };
}

/**
 * How a `quantization_config` (checked before) asks activations to be rounded; null: not at all. Without `fmt`, `quant_method: fp8` is vLLM's first form of
 * it, with one scale for all. Throws `unsupported` for static scales and other kinds, naming the file.
 */
export function activationScheme(value: unknown, path: string): ActivationScaling | null {
  if (!isObject(value)) return null;
  const refuse = (got: unknown): MoeError =>
    new MoeError(
      "unsupported",
      `${path}: quantization_config: expected dynamic activation scales of tokens, groups of 128 or tensors, got ${JSON.stringify(got)}`,
    );
  if (value["quant_method"] === "fp8") {
    const { activation_scheme: scheme = "dynamic", weight_block_size: block = null, fmt } = value;
    if (scheme !== "dynamic") throw refuse(scheme);
    return block !== null ? "group128" : fmt === undefined ? "tensor" : "token";
  }
  const [group] = Object.values(isObject(value["config_groups"]) ? value["config_groups"] : {});
  const activations = isObject(group) ? group["input_activations"] : null;
  if (!isObject(activations)) return null;
  const { dynamic, strategy, group_size: size, num_bits: bits, type } = activations;
  if (dynamic !== true || bits !== 8 || type !== "float") throw refuse(activations);
  if (strategy === "token" || strategy === "tensor") return strategy;
  if (strategy === "group" && size === 128) return "group128";
  throw refuse(activations);
}

/** Throws `unsupported` for quantization that is not FP8 as described above, naming the file and the setting. Absent or null is none. */
export function checkQuantizationConfig(value: unknown, path: string): void {
  if (value === undefined || value === null) return;
  const refuse = (key: string, expected: string, got: unknown): MoeError =>
    new MoeError("unsupported", `${path}: quantization_config.${key}: expected ${expected}, got ${JSON.stringify(got)}`);
  if (!isObject(value)) throw new MoeError("unsupported", `${path}: quantization_config: expected an object, got ${JSON.stringify(value)}`);
  const { quant_method: method } = value;
  if (method === "fp8") {
    const { fmt = "e4m3", weight_block_size: block = null } = value;
    if (fmt !== "e4m3") throw refuse("fmt", '"e4m3"', fmt);
    if (block !== null && JSON.stringify(block) !== "[128,128]") throw refuse("weight_block_size", "null or [128,128]", block);
    return;
  }
  if (method !== "compressed-tensors") throw refuse("quant_method", '"fp8" or "compressed-tensors"', method);
  const groups = value["config_groups"];
  if (!isObject(groups)) throw refuse("config_groups", "an object", groups);
  for (const [name, group] of Object.entries(groups)) {
    const weights = isObject(group) ? group["weights"] : undefined;
    if (!isObject(weights)) throw refuse(`config_groups.${name}.weights`, "an object", weights);
    const { num_bits: bits, type, symmetric = true, block_structure: block = null } = weights;
    if (bits !== 8 || type !== "float" || symmetric !== true)
      throw refuse(`config_groups.${name}.weights`, "8-bit symmetric floats", { num_bits: bits, type, symmetric });
    if (block !== null && JSON.stringify(block) !== "[128,128]")
      throw refuse(`config_groups.${name}.weights.block_structure`, "[128,128]", block);
  }
}

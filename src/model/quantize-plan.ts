/** Which matrices of a model become FP8, how the others are written, and in which order. What does it: quantize.ts. */
import { fp8Block, type Fp8Scaling } from "../backend/kernels.ts";
import { MoeError } from "../util/errors.ts";
import { didYouMean } from "../util/nearest.ts";
import { huggingFacePieces, type ExpertLayout, type Piece } from "./names.ts";
import { mayBeFp8, parameterSpecs, type ParameterSpec } from "./parameters.ts";
import type { ModelSource } from "./source.ts";

/** A tensor of the output, or a matrix of a stacked one, and where its elements come from. */
export interface Planned {
  readonly spec: ParameterSpec;
  readonly piece: Piece;
  /** Rows and columns of one matrix: what scales belong to. */
  readonly matrix: readonly [N: number, K: number];
  /** How its matrix is written, or null for one that is not quantized. */
  readonly quantized: boolean;
  readonly dtype: "F32" | "BF16" | "F8_E4M3";
}

/** Whether a module's name fits a pattern, whole: `*` stands for any text. */
function fits(pattern: string, module: string): boolean {
  const text = pattern.split("*").map((part) => part.replace(/[.+?^${}()|[\]\\]/g, "\\$&"));
  return new RegExp(`^${text.join(".*")}$`).test(module);
}

/** A tensor's module, as patterns name it. */
export function moduleOf(name: string): string {
  return name.replace(/\.weight$/, "");
}

/** The tensors of the output in the order in which they are written. Throws `usage` for a pattern that fits nothing, and where all are kept out. */
export function planTensors(source: ModelSource, experts: ExpertLayout, ignore: readonly string[]): Planned[] {
  const used = new Set<string>();
  const modules: string[] = [];
  const plan = parameterSpecs(source.config, "bf16").flatMap((spec) =>
    huggingFacePieces(spec, experts, source.config)
      .flatMap(matricesOf)
      .map((piece): Planned => {
        const module = moduleOf(piece.name);
        if (mayBeFp8(spec)) modules.push(module);
        const kept = ignore.filter((pattern) => mayBeFp8(spec) && fits(pattern, module));
        for (const pattern of kept) used.add(pattern);
        const quantized = mayBeFp8(spec) && kept.length === 0;
        const [K = 1, N = 1] = piece.shape.toReversed();
        // Gate and up lie in one tensor, one after the other.
        const matrix = [piece.name.endsWith(".gate_up_proj") ? N / 2 : N, K] as const;
        return { spec, piece, matrix, quantized, dtype: quantized ? "F8_E4M3" : plainType(source, spec) };
      }),
  );
  // A tensor is written from its first element to its last, and all of it at a time.
  if (experts === "fused") {
    const firstOf = new Map<string, number>();
    for (const [index, { piece }] of plan.entries()) firstOf.set(piece.name, firstOf.get(piece.name) ?? index);
    plan.sort((a, b) => (firstOf.get(a.piece.name) ?? 0) - (firstOf.get(b.piece.name) ?? 0) || a.piece.fileOffset - b.piece.fileOffset);
  }
  const unused = ignore.find((pattern) => !used.has(pattern));
  if (unused !== undefined)
    throw new MoeError(
      "usage",
      `ignore ${unused}: expected a pattern that fits a matrix of a layer${didYouMean(unused, modules)} (such as ${modules[0] ?? "none"})`,
    );
  if (!plan.some(({ quantized }) => quantized))
    throw new MoeError("usage", "ignore: expected patterns that leave something to quantize, got all");
  return plan;
}

/** The matrices of a stack [E, N, K], one by one; anything else as it is. */
function matricesOf(piece: Piece): Piece[] {
  const [E = 1, N = 1, K = 1] = piece.shape;
  if (piece.shape.length < 3 || piece.numElements < E * N * K) return [piece];
  return Array.from({ length: E }, (_, e) => ({
    ...piece,
    fileOffset: piece.fileOffset + e * N * K,
    offset: piece.offset + e * N * K,
    numElements: N * K,
  }));
}

/** Throws `unsupported` where stacked experts cannot be written so. */
export function checkFused(source: ModelSource, plan: readonly Planned[], scaling: Fp8Scaling): void {
  const expertTensors = plan.filter(({ spec }) => spec.name.includes(".moe.experts."));
  if (expertTensors.length === 0) throw new MoeError("usage", `fused experts: ${source.path} has no experts`);
  const cut = expertTensors.find(({ piece, matrix: [N] }) => piece.name.endsWith(".gate_up_proj") && N % fp8Block !== 0);
  if (scaling === "block128" && cut !== undefined)
    throw new MoeError(
      "unsupported",
      `fused experts with block128 scales: expected a width of whole blocks of ${fp8Block}, got ${cut.matrix[0]}`,
    );
  for (const { piece, quantized } of expertTensors) {
    const prefix = piece.name.replace(/[^.]+$/, "");
    if (expertTensors.some((other) => other.piece.name.startsWith(prefix) && other.quantized !== quantized))
      throw new MoeError(
        "unsupported",
        `ignore ${moduleOf(piece.name)}: stacked experts of a layer are quantized all or not at all (${prefix}*)`,
      );
  }
}

/** bf16 for matrices; small parameters keep f32 where they have it. */
function plainType(source: ModelSource, spec: ParameterSpec): "F32" | "BF16" {
  if (spec.dtype !== "f32") return "BF16";
  const [stored] = huggingFacePieces(spec, source.layout, source.config);
  return stored !== undefined && source.raw(stored.name)?.dtype === "bf16" ? "BF16" : "F32";
}

/** Matrices of linear layers that are not FP8, as `quantization_config` lists them: routers and head too, which programs take for such. */
export function unquantizedModules(plan: readonly Planned[]): string[] {
  const names = plan
    .filter(({ quantized, piece, spec }) => !quantized && piece.shape.length >= 2 && spec.name !== "embedding.weight")
    // Of a stack, the module that holds it.
    .map(({ piece }) => (piece.shape.length === 2 ? moduleOf(piece.name) : piece.name.replace(/\.[^.]+$/, "")));
  return [...new Set(names)];
}

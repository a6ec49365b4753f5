/**
 * Bytes of one rank's weights and keys and values, from the configuration and its share: arithmetic, known before anything is loaded.
 * Tests compare it with what a loaded rank holds.
 *
 * Norm weights, biases and routers are f32 and whole on every rank; matrices of attention and networks are in the format;
 * embedding and head are too, except under FP8, which keeps them in bf16.
 */
import { hasExperts, type ModelConfig } from "./model.ts";
import { intervalLength } from "../util/partition.ts";
import type { RankShare } from "./rank-share.ts";

export type WeightFormat = "f32" | "bf16" | "fp8";
/** FP8 scales, f32: one a matrix, one an output row, or one a block of 128 x 128. */
export type ScaleLayout = "tensor" | "channel" | "block128";

export interface MemoryFormat {
  readonly weights: WeightFormat;
  /** Of FP8 weights. Default: tensor. */
  readonly scales?: ScaleLayout;
  /** Bytes of a cached element. Default: 4 beside f32 weights, else 2. */
  readonly kvElementBytes?: number;
}

export interface RankMemory {
  readonly weightBytes: number;
  /** Of all layers. */
  readonly kvBytesPerToken: number;
}

const elementBytes = { f32: 4, bf16: 2, fp8: 1 } as const satisfies Record<WeightFormat, number>;

function matrixBytes(rows: number, columns: number, { weights, scales = "tensor" }: MemoryFormat): number {
  const bytes = rows * columns * elementBytes[weights];
  if (weights !== "fp8" || bytes === 0) return bytes;
  if (scales === "tensor") return bytes + 4;
  if (scales === "channel") return bytes + 4 * rows;
  scales satisfies "block128";
  return bytes + 4 * Math.ceil(rows / 128) * Math.ceil(columns / 128);
}

/** Gate, up and down of a network with these columns. */
function networkBytes(H: number, columns: number, format: MemoryFormat): number {
  return 2 * matrixBytes(columns, H, format) + matrixBytes(H, columns, format);
}

function attentionBytes(config: ModelConfig, share: RankShare, format: MemoryFormat): number {
  const { hiddenSize: H, headDim: D, qkNorm } = config;
  const [Q, C] = [intervalLength(share.heads) * D, intervalLength(share.kvHeads) * D];
  let bytes = matrixBytes(Q, H, format) + 2 * matrixBytes(C, H, format) + matrixBytes(H, Q, format);
  if (config.qkvBias) bytes += 4 * (Q + 2 * C);
  if (qkNorm === "head") bytes += 4 * 2 * D;
  // A norm of all heads together is computed of all of them on every rank.
  if (qkNorm === "all") bytes += 4 * (config.numHeads + config.numKvHeads) * D;
  return bytes;
}

function expertsBytes(config: ModelConfig, share: RankShare, format: MemoryFormat): number {
  const { hiddenSize: H, moe } = config;
  if (moe === null) return 0;
  const { numExperts: E, sharedExpert } = moe;
  let bytes = intervalLength(share.experts) * networkBytes(H, intervalLength(share.expertColumns), format);
  bytes += 4 * (moe.gateLayers === 1 ? E * H : 8 * E * H + E * 8 * E) + (moe.selectionBias ? 4 * E : 0);
  if (sharedExpert !== null) bytes += networkBytes(H, intervalLength(share.sharedFfn), format) + (sharedExpert.gate ? 4 * H : 0);
  return bytes;
}

/** What a rank with this share needs. */
export function rankMemory(config: ModelConfig, share: RankShare, format: MemoryFormat): RankMemory {
  const { hiddenSize: H, headDim, numLayers } = config;
  const vocabBytes = intervalLength(share.vocab) * H * (format.weights === "f32" ? 4 : 2) * (config.tiedEmbeddings ? 1 : 2);
  let weightBytes = vocabBytes + 4 * H;
  for (let layer = 0; layer < numLayers; layer++) {
    weightBytes += attentionBytes(config, share, format) + 2 * 4 * H;
    weightBytes += hasExperts(config, layer) ? expertsBytes(config, share, format) : networkBytes(H, intervalLength(share.ffn), format);
  }
  const { kvElementBytes = format.weights === "f32" ? 4 : 2 } = format;
  return { weightBytes, kvBytesPerToken: 2 * numLayers * intervalLength(share.kvHeads) * headDim * kvElementBytes };
}

/**
 * Query heads of a rank where heads are padded: key-value heads to a multiple of the ranks, each with all its query heads, because a rank that
 * is like all others has whole groups.
 */
export function paddedHeads({ numHeads, numKvHeads }: Pick<ModelConfig, "numHeads" | "numKvHeads">, ranks: number): number {
  return (numHeads / numKvHeads) * Math.ceil(numKvHeads / ranks);
}

/** What each rank would need if every count were padded with zeros to a multiple of the ranks, as engines do that cut evenly only. */
export function paddedMemory(config: ModelConfig, ranks: number, { experts, expertColumns }: RankShare, format: MemoryFormat): RankMemory {
  const even = (count: number): { start: number; end: number } => ({ start: 0, end: Math.ceil(count / ranks) });
  const { moe } = config;
  const wholeExperts = intervalLength(expertColumns) === (moe?.expertFfnSize ?? 0) && intervalLength(experts) < (moe?.numExperts ?? 0);
  return rankMemory(
    config,
    {
      heads: { start: 0, end: paddedHeads(config, ranks) },
      kvHeads: even(config.numKvHeads),
      ffn: even(config.ffnSize),
      sharedFfn: even(moe?.sharedExpert?.ffnSize ?? 0),
      experts: wholeExperts ? even(moe?.numExperts ?? 0) : { start: 0, end: moe?.numExperts ?? 0 },
      expertColumns: wholeExperts ? { start: 0, end: moe?.expertFfnSize ?? 0 } : even(moe?.expertFfnSize ?? 0),
      vocab: even(config.vocabSize),
    },
    format,
  );
}

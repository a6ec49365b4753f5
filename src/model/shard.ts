/**
 * A model cut over the ranks of a group, as data: which slice of each parameter a rank has, and where the slice lies in files. Layers get
 * their group in `build.ts`, embedding and head here.
 *
 * Matrices whose outputs are cut (query, key, value, gate, up, embedding, head) lose rows; those whose inputs are (output, down) lose
 * columns; whole experts are runs of a stack. Norms and routers are whole everywhere.
 *
 * Legend: T tokens, H hidden, R chosen rows, V vocabulary.
 */
import type { Fp8Scaling } from "../backend/kernels.ts";
import type { ModelConfig } from "../config/model.ts";
import type { ExpertBlock } from "../nn/index.ts";
import type { TensorGroup } from "../parallel/group.ts";
import { vocabularyCrossEntropy } from "../parallel/vocabulary-loss.ts";
import type { RankShare } from "../config/rank-share.ts";
import { embedding, linear, numElements, type Shape, type Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { intervalLength, type Interval } from "../util/partition.ts";
import type { Piece } from "./names.ts";
import type { ParameterSpec } from "./parameters.ts";

/** A rank's place: the group, and what each of its ranks has. */
export interface ModelShard {
  readonly group: TensorGroup;
  /** By rank of the group. */
  readonly shares: readonly RankShare[];
  /** The ranks that tokens are exchanged with on their way to experts; absent or null: none, every rank of the group sees all tokens. */
  readonly block?: ExpertBlock | null;
}

/** The share of this rank. */
export function ownShare({ group, shares }: ModelShard): RankShare {
  const share = shares[group.rank];
  if (share === undefined || shares.length !== group.size)
    throw new MoeError("internal", `shard: ${shares.length} shares for ${group.size} ranks`);
  return share;
}

/** The configuration by which caches of a rank are made: its key-value heads (none is possible), everything else the model's. */
export function cacheConfigOf(config: ModelConfig, shard: ModelShard | null): ModelConfig {
  return shard === null ? config : { ...config, numKvHeads: intervalLength(ownShare(shard).kvHeads) };
}

type Cut = readonly [dim: number, interval: Interval];

/** In ascending dimensions. */
function cutsOf(name: string, { headDim }: ModelConfig, share: RankShare): readonly Cut[] {
  const heads = ({ start, end }: Interval): Interval => ({ start: start * headDim, end: end * headDim });
  const rest = name.replace(/^layers\.\d+\./, "");
  if (/^(embedding|head)\.weight$/.test(rest)) return [[0, share.vocab]];
  if (/^attention\.query\.(weight|bias)$/.test(rest)) return [[0, heads(share.heads)]];
  if (/^attention\.(key|value)\.(weight|bias)$/.test(rest)) return [[0, heads(share.kvHeads)]];
  if (rest === "attention.output.weight") return [[1, heads(share.heads)]];
  if (/^feedForward\.(gate|up)\.weight$/.test(rest)) return [[0, share.ffn]];
  if (rest === "feedForward.down.weight") return [[1, share.ffn]];
  if (/^moe\.shared\.(gate|up)\.weight$/.test(rest)) return [[0, share.sharedFfn]];
  if (rest === "moe.shared.down.weight") return [[1, share.sharedFfn]];
  if (!rest.startsWith("moe.experts.")) return [];
  return [
    [0, share.experts],
    [rest === "moe.experts.down" ? 2 : 1, share.expertColumns],
  ];
}

/** A rank's part of each parameter. */
export function shardSpecs(specs: readonly ParameterSpec[], config: ModelConfig, share: RankShare): ParameterSpec[] {
  return specs.map((spec) => {
    const slices = cutsOf(spec.name, config, share).flatMap(([dim, { start, end }]) => {
      const size = spec.shape[dim] ?? 0;
      return end - start === size ? [] : [{ dim, start, size, length: end - start }];
    });
    if (slices.length === 0) return spec;
    const shape = slices.reduce<Shape>((cut, { dim, length }) => cut.with(dim, length), spec.shape);
    return { ...spec, shape, slices: slices.map(({ dim, start, size }) => ({ dim, start, size })) };
  });
}

/** The parameter that a spec is a part of. */
export function wholeSpec(spec: ParameterSpec): ParameterSpec {
  const { slices = [], ...whole } = spec;
  return { ...whole, shape: slices.reduce<Shape>((shape, { dim, size }) => shape.with(dim, size), spec.shape) };
}

/**
 * Pieces of a part, from those of the whole parameter (in its order, without gaps): the same bytes of the file, less what belongs to other
 * ranks.
 */
export function slicedPieces(spec: ParameterSpec, whole: readonly Piece[]): readonly Piece[] {
  let shape = wholeSpec(spec).shape;
  let pieces = whole;
  for (const { dim, start } of spec.slices ?? []) {
    const length = spec.shape[dim] ?? 0;
    pieces = cutPieces(spec.name, pieces, shape, dim, start, length);
    shape = shape.with(dim, length);
  }
  return pieces;
}
/** Pieces of what is start..start+length-1 in dimension `dim` of a tensor of this shape. */
function cutPieces(name: string, whole: readonly Piece[], shape: Shape, dim: number, start: number, length: number): readonly Piece[] {
  const inner = numElements(shape.slice(dim + 1));
  const [runLength, stride, first] = [length * inner, (shape[dim] ?? 0) * inner, start * inner];
  const pieces: Piece[] = [];
  if (runLength === 0) return pieces;
  const numRuns = numElements(shape.slice(0, dim));
  let at = 0;
  for (let run = 0; run < numRuns; run++) {
    let [from, offset] = [run * stride + first, run * runLength];
    const end = from + runLength;
    while (from < end) {
      let piece = whole[at];
      while (piece !== undefined && piece.offset + piece.numElements <= from) piece = whole[++at];
      if (piece === undefined) throw new MoeError("internal", `shard: no piece of ${name} has element ${from}`);
      const n = Math.min(end, piece.offset + piece.numElements) - from;
      pieces.push({ ...piece, fileOffset: piece.fileOffset + from - piece.offset, offset, numElements: n });
      from += n;
      offset += n;
    }
  }
  return pieces;
}

const block = 128;

/** Whether the scales of a part are a part of the scales: a cut through blocks has none of its own. */
export function scalesCanBeCut({ slices = [], shape }: ParameterSpec, scaling: Fp8Scaling): boolean {
  if (scaling !== "block128") return true;
  return slices.every(({ dim, start, size }) => {
    const end = start + (shape[dim] ?? 0);
    return dim === shape.length - 3 || (start % block === 0 && (end % block === 0 || end === size));
  });
}

/** Scales of a part [E, N, K] or [N, K] from those of the whole, one matrix after another. */
export function slicedScales(spec: ParameterSpec, scaling: Fp8Scaling, values: Float32Array): Float32Array {
  const { slices = [], shape } = spec;
  if (slices.length === 0) return values;
  if (numElements(shape) === 0) return new Float32Array(0);
  const whole = wholeSpec(spec).shape;
  const [E, N, K] = [numElements(whole.slice(0, -2)), whole.at(-2) ?? 0, whole.at(-1) ?? 0];
  let grid = scaling === "tensor" ? [E, 1, 1] : scaling === "channel" ? [E, N, 1] : [E, Math.ceil(N / block), Math.ceil(K / block)];
  const units = scaling === "block128" ? [1, block, block] : [1, 1, 1];
  let cut = values;
  for (const slice of slices) {
    const dim = slice.dim + 3 - shape.length;
    const isCut = dim === 0 || scaling === "block128" || (scaling === "channel" && dim === 1);
    if (!isCut) continue;
    const unit = units[dim] ?? 1;
    const [start, end] = [Math.floor(slice.start / unit), Math.ceil((slice.start + (shape[slice.dim] ?? 0)) / unit)];
    cut = cutGrid(cut, grid, dim, start, end);
    grid = grid.with(dim, end - start);
  }
  return cut;
}
/** Entries start..end-1 in dimension `dim` of a grid. */
function cutGrid(values: Float32Array, grid: Shape, dim: number, start: number, end: number): Float32Array {
  const [outer, size, inner] = [numElements(grid.slice(0, dim)), grid[dim] ?? 0, numElements(grid.slice(dim + 1))];
  const out = new Float32Array(outer * (end - start) * inner);
  for (let o = 0; o < outer; o++) out.set(values.subarray((o * size + start) * inner, (o * size + end) * inner), o * (end - start) * inner);
  return out;
}

/**
 * [T, H]: rows of an embedding whose rows are spread over the ranks, in the table's dtype; under sequence parallelism, of the rank's own tokens.
 * Exact: all but one rank give zeros.
 */
export function embedShard(shard: ModelShard, table: Tensor, ids: Tensor): Tensor {
  const { start, end } = ownShare(shard).vocab;
  const { engine } = table;
  const shape = [ids.size, table.dim(1)];
  const local = ids.toInt32Array().map((id) => (id >= start && id < end ? id - start : -1));
  const dtype = table.dtype === "bf16" ? "bf16" : "f32";
  const part = end === start ? engine.zeros(shape, dtype) : embedding(table, engine.from(local, ids.shape, "i32"));
  return shard.group.leave(part, dtype);
}

/** f32 [R, V]: logits of a head whose rows are spread over the ranks, all of them on every rank. */
export function shardLogits(shard: ModelShard, hidden_RH: Tensor, head: Tensor): Tensor {
  const { engine } = hidden_RH;
  const part = head.dim(0) === 0 ? engine.empty([hidden_RH.dim(0), 0], "f32") : linear(hidden_RH, head, null, { outDtype: "f32" });
  return shard.group.gatherColumns(
    part,
    shard.shares.map(({ vocab }) => intervalLength(vocab)),
  );
}

/** `linearCrossEntropy` of a head whose rows are spread over the ranks; hidden [T, H] is what is between layers. The same loss on every rank. */
export function shardLoss(
  shard: ModelShard,
  hidden: Tensor,
  head: Tensor,
  targets: Tensor,
  scale: number,
): { loss: Tensor; perToken: Tensor } {
  const all_TH = shard.group.enter(hidden, targets.size);
  const vocabSize = Math.max(...shard.shares.map(({ vocab }) => vocab.end));
  const { vocab } = ownShare(shard);
  return vocabularyCrossEntropy(shard.group.communicator, all_TH, head, targets, { scale, vocab, vocabSize });
}

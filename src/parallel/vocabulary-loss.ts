/**
 * Cross-entropy over a vocabulary whose rows are spread over ranks: logits exist for a chunk of tokens and a part of the vocabulary at a time, never for all.
 *
 * Of each token the ranks tell each other two numbers, the logsumexp of their logits and the target's logit where they have it; every rank then
 * knows the loss. For the gradient a rank appends to its logits one more, the logsumexp of all the others': over these V_r + 1
 * the softmax is that of the whole vocabulary, and the kernel of one rank does the rest.
 *
 * Legend: T tokens, H hidden, V rows of this rank, M tokens of a chunk.
 */
import { defaultChunkRows, linearCrossEntropy, type LossChunk, type Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { intervalLength, type Interval } from "../util/partition.ts";
import type { Communicator } from "./communicator.ts";

export interface VocabularyLossOptions {
  /** Factor of the loss. */
  readonly scale: number;
  /** Rows of this rank, at least one. */
  readonly vocab: Interval;
  /** Rows of all ranks. */
  readonly vocabSize: number;
}

/**
 * `linearCrossEntropy` of x [T, H], which all ranks hold alike, with this rank's rows w [V, H] and targets i32 [T] in the numbering of the whole
 * vocabulary. The loss is the same on every rank; the gradient of x is this rank's part.
 */
export function vocabularyCrossEntropy(
  communicator: Communicator,
  x: Tensor,
  w: Tensor,
  targets: Tensor,
  { scale, vocab, vocabSize }: VocabularyLossOptions,
): { loss: Tensor; perToken: Tensor } {
  if (communicator.size === 1) return linearCrossEntropy(x, w, targets, { scale });
  const V = intervalLength(vocab);
  if (V === 0 || w.dim(0) !== V)
    throw new MoeError(
      "shape",
      `cross-entropy over ranks: rank ${communicator.rank} has ${w.dim(0)} rows of the vocabulary, expected ${V}, at least 1`,
    );
  const chunkLoss = (chunk: LossChunk): void => lossOfChunk(communicator, x, chunk, { scale, vocab });
  return linearCrossEntropy(x, w, targets, { scale, chunkRows: defaultChunkRows(vocabSize), chunkLoss });
}

function lossOfChunk(
  communicator: Communicator,
  { engine }: Tensor,
  { logits, perToken, targets, numRows: M, gradients }: LossChunk,
  { scale, vocab }: Pick<VocabularyLossOptions, "scale" | "vocab">,
): void {
  const { backend } = engine;
  const V = intervalLength(vocab);
  const wanted = new Int32Array(M);
  backend.read(wanted, targets);
  // A target of another rank: any row of ours will do to get our logsumexp.
  const local = wanted.map((target) => (target >= vocab.start && target < vocab.end ? target - vocab.start : 0));
  const mine = ownTerms(engine, logits, local, V);
  for (let i = 0; i < M; i++) if ((wanted[i] ?? -1) < vocab.start || (wanted[i] ?? -1) >= vocab.end) mine[M + i] = 0;
  const terms = gathered(communicator, engine, mine);
  const [losses, others] = [new Float32Array(M), new Float32Array(M)];
  for (let i = 0; i < M; i++) {
    const parts = terms.map((of) => of[i] ?? -Infinity);
    const target = terms.reduce((sum, of) => sum + (of[M + i] ?? 0), 0);
    losses[i] = (wanted[i] ?? -1) < 0 ? 0 : logSumExp(parts) - target;
    others[i] = logSumExp(parts.filter((_, rank) => rank !== communicator.rank));
  }
  backend.write(perToken, losses);
  if (gradients)
    toGradients(
      engine,
      logits,
      others,
      wanted.map((target, i) => (target < 0 ? -1 : isOf(vocab, target) ? (local[i] ?? 0) : V)),
      V,
      scale,
    );
}

function isOf({ start, end }: Interval, row: number): boolean {
  return row >= start && row < end;
}

/** Of each token: logsumexp of the logits [M, V], then the logit `local` of each. */
function ownTerms(engine: Tensor["engine"], logits: number, local: Int32Array, V: number): Float32Array {
  const { backend } = engine;
  const M = local.length;
  const terms = new Float32Array(2 * M);
  using loss = engine.detached([M], "f32");
  using target = engine.detached([M], "i32");
  using chosen = engine.detached([M], "f32");
  backend.write(target.ptr, local);
  backend.kernels.crossEntropy(loss.ptr, 0, logits, target.ptr, M, V, 1);
  backend.write(
    target.ptr,
    local.map((row, i) => i * V + row),
  );
  backend.kernels.gatherRows(chosen.ptr, logits, target.ptr, M, 4);
  const [losses, values] = [loss.toFloat32Array(), chosen.toFloat32Array()];
  for (let i = 0; i < M; i++) {
    terms[i] = (losses[i] ?? 0) + (values[i] ?? 0);
    terms[M + i] = values[i] ?? 0;
  }
  return terms;
}

function gathered(communicator: Communicator, engine: Tensor["engine"], mine: Float32Array): Float32Array[] {
  const { size } = communicator;
  using from = engine.detached([mine.length], "f32");
  using all = engine.detached([size * mine.length], "f32");
  engine.backend.write(from.ptr, mine);
  communicator.allGather(
    all.ptr,
    from.ptr,
    Array.from({ length: size }, () => mine.byteLength),
  );
  const flat = all.toFloat32Array();
  return Array.from({ length: size }, (_, r) => flat.subarray(r * mine.length, (r + 1) * mine.length));
}

/** Replaces logits [M, V] by the gradient of scale * loss. */
function toGradients(engine: Tensor["engine"], logits: number, others: Float32Array, targets: Int32Array, V: number, scale: number): void {
  const { backend } = engine;
  const { kernels } = backend;
  const M = others.length;
  const [rowBytes, wideBytes] = [4 * V, 4 * (V + 1)];
  using wide = engine.detached([M, V + 1], "f32");
  using column = engine.detached([M], "f32");
  using target = engine.detached([M], "i32");
  backend.write(column.ptr, others);
  backend.write(target.ptr, targets);
  kernels.copyRows(wide.ptr, logits, M, rowBytes, wideBytes, rowBytes);
  kernels.copyRows(wide.ptr + rowBytes, column.ptr, M, 4, wideBytes, 4);
  kernels.crossEntropy(column.ptr, wide.ptr, wide.ptr, target.ptr, M, V + 1, scale);
  kernels.copyRows(logits, wide.ptr, M, rowBytes, rowBytes, wideBytes);
}

function logSumExp(values: readonly number[]): number {
  const largest = Math.max(...values);
  if (!Number.isFinite(largest)) return largest;
  return largest + Math.log(values.reduce((sum, value) => sum + Math.exp(value - largest), 0));
}

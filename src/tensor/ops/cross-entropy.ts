/**
 * The output head and the loss in one: logits exist only for a chunk of rows at a time, never for all tokens (a 64K
 * vocabulary and 8K tokens would be 2 GB in f32). The gradients of a chunk are computed while its logits are there, so this
 * op is the end of the graph: it must be a root of `backward`.
 *
 * Legend: T tokens, H hidden, V vocabulary.
 */
import { dtypeCodes, type DTypeCode, type Ptr } from "../../backend/kernels.ts";
import { MoeError } from "../../util/errors.ts";
import type { Tape } from "../tape.ts";
import type { Tensor } from "../tensor.ts";
import { computeDtypes, expectTensor, shapeError } from "./check.ts";

export interface LinearCrossEntropyOptions {
  /** Factor of the loss, usually 1 / (loss-bearing tokens of the global batch). */
  readonly scale: number;
  /** Rows of logits that exist at once. A function of V by default; it fixes the order in which dw is summed, so it must not follow the threads. */
  readonly chunkRows?: number;
  /** Instead of the kernel for a whole vocabulary: for a rank whose `w` is some of its rows. */
  readonly chunkLoss?: (chunk: LossChunk) => void;
}

/** Some rows of logits, whose losses and gradients are asked for. */
export interface LossChunk {
  /** f32 [numRows, V]. With `gradients`, to be overwritten by those of scale * loss. */
  readonly logits: Ptr;
  /** f32 [numRows], to be written. */
  readonly perToken: Ptr;
  /** i32 [numRows]. */
  readonly targets: Ptr;
  readonly firstRow: number;
  readonly numRows: number;
  readonly gradients: boolean;
}

/** 32 MiB of logits: enough rows to keep the matrix products busy, at most 1024. */
export function defaultChunkRows(V: number): number {
  return Math.min(1024, Math.max(16, Math.floor((8 << 20) / V / 16) * 16));
}

/**
 * loss f32[1] = scale * sum over tokens with targets[t] >= 0 of -log softmax(x[t] . w^T)[targets[t]], and perToken f32[T]:
 * the unscaled terms (0 where the target is negative), without gradient. x [T, H], w [V, H], targets i32[T] below V.
 *
 * While a tape is active the gradients are computed here, that of a parameter `w` straight into it. Hence the loss must be
 * a root of `backward` with gradient 1: give factors as `scale`; with another gradient the backward throws `internal` if w
 * is a parameter (and scales otherwise). A tape that is dropped without running leaves w's gradient changed. Throws `shape`.
 */
export function linearCrossEntropy(
  x: Tensor,
  w: Tensor,
  targets: Tensor,
  options: LinearCrossEntropyOptions,
): { loss: Tensor; perToken: Tensor } {
  expectTensor("linearCrossEntropy", "w", w, [null, null], computeDtypes);
  const [V, H] = [w.dim(0), w.dim(1)];
  expectTensor("linearCrossEntropy", "x", x, [null, H], computeDtypes);
  const T = x.dim(0);
  expectTensor("linearCrossEntropy", "targets", targets, [T], ["i32"]);
  const { scale, chunkRows = defaultChunkRows(V), chunkLoss } = options;
  if (!(Number.isSafeInteger(chunkRows) && chunkRows > 0))
    throw shapeError("linearCrossEntropy", "chunkRows", "a positive integer", String(chunkRows));
  const { engine } = x;
  const perToken = engine.empty([T], "f32");
  const tape = x.requiresGrad || w.requiresGrad ? engine.tape : null;
  const gradients = tape === null ? { dx: null, dw: null } : allocate(tape, x, w);
  chunks({ x, w, targets, perToken, scale, chunkLoss, chunkRows: Math.min(chunkRows, Math.max(T, 1)), ...gradients });
  let sum = 0;
  for (const term of perToken.toFloat32Array()) sum += term;
  const loss = engine.from([sum * scale], [1], "f32");
  if (tape !== null) recordLoss(tape, x, w, loss, gradients);
  return { loss, perToken };
}

interface Gradients {
  readonly dx: Tensor | null;
  /** f32. `ownBuffer` is null when it is the parameter's own gradient. */
  readonly dw: { readonly ptr: Ptr; readonly accumulate: 0 | 1; readonly ownBuffer: Tensor | null } | null;
}

function allocate(tape: Tape, x: Tensor, w: Tensor): Gradients {
  const { engine } = x;
  const dx = x.requiresGrad ? engine.empty(x.shape, x.dtype) : null;
  if (!w.requiresGrad) return { dx, dw: null };
  if (w.parameter === null) {
    const ownBuffer = engine.zeros(w.shape, "f32");
    return { dx, dw: { ptr: ownBuffer.ptr, accumulate: 1, ownBuffer } };
  }
  // With no rows, no chunk would overwrite a fresh gradient.
  const target = tape.gradTarget(w, { zeroed: x.dim(0) === 0 });
  return { dx, dw: target === null ? null : { ptr: target.ptr, accumulate: target.accumulate, ownBuffer: null } };
}

interface Chunks extends Gradients {
  readonly x: Tensor;
  readonly w: Tensor;
  readonly targets: Tensor;
  readonly perToken: Tensor;
  readonly scale: number;
  readonly chunkRows: number;
  readonly chunkLoss: LinearCrossEntropyOptions["chunkLoss"];
}

function chunks({ x, w, targets, perToken, scale, chunkRows, chunkLoss, dx, dw }: Chunks): void {
  const { engine } = x;
  const { kernels } = engine.backend;
  const [T, V, H] = [x.dim(0), w.dim(0), w.dim(1)];
  const f32: DTypeCode = dtypeCodes.f32;
  const [xCode, wCode] = [dtypeCodes[x.dtype], dtypeCodes[w.dtype]];
  const rowBytes = x.byteLength / Math.max(T, 1);
  using logits = engine.detached([chunkRows, V], "f32");
  const dLogits = dx !== null || dw !== null ? logits.ptr : 0;
  let accumulate = dw?.accumulate ?? 0;
  for (let row = 0; row < T; row += chunkRows) {
    const M = Math.min(chunkRows, T - row);
    const xPtr = x.ptr + row * rowBytes;
    kernels.linearForward(logits.ptr, xPtr, w.ptr, 0, M, V, H, xCode, wCode, f32);
    const [perRow, targetsOfRow] = [perToken.ptr + 4 * row, targets.ptr + 4 * row];
    if (chunkLoss === undefined) kernels.crossEntropy(perRow, dLogits, logits.ptr, targetsOfRow, M, V, scale);
    else chunkLoss({ logits: logits.ptr, perToken: perRow, targets: targetsOfRow, firstRow: row, numRows: M, gradients: dLogits !== 0 });
    if (dx !== null) kernels.linearBackwardInput(dx.ptr + row * rowBytes, dLogits, w.ptr, M, V, H, f32, wCode, xCode, 0);
    if (dw !== null) kernels.linearBackwardWeight(dw.ptr, dLogits, xPtr, M, V, H, f32, xCode, accumulate);
    accumulate = 1;
  }
}

function recordLoss(tape: Tape, x: Tensor, w: Tensor, loss: Tensor, { dx, dw }: Gradients): void {
  const { kernels } = x.engine.backend;
  const direct = dw !== null && dw.ownBuffer === null;
  tape.record([x, w], loss, [dx, dw?.ownBuffer ?? null], (dOut, [savedDx, savedDw]) => {
    const upstream = dOut.item();
    if (upstream !== 1 && direct) {
      throw new MoeError(
        "internal",
        `linearCrossEntropy: the gradient of the loss must be 1 because that of w is already summed, got ${upstream}; give the factor as \`scale\``,
      );
    }
    for (const [input, grad] of [
      [x, savedDx],
      [w, savedDw],
    ] as const) {
      if (grad === null) continue;
      if (upstream !== 1) kernels.scale(grad.ptr, grad.ptr, grad.size, upstream, dtypeCodes[grad.dtype]);
      tape.addGrad(input, grad);
    }
  });
}

/**
 * One pass of the model over tokens of many sequences, and the rows of logits that are wanted of it, a bounded number at a time.
 * A row is only copied out of the backend where more than the place of its largest value is asked for.
 */
import { checkLargestLogit } from "../generate/index.ts";
import type { Decoder, PagedCache, PagedSequence } from "../model/index.ts";
import type { Tensor } from "../tensor/index.ts";

/** New tokens of one sequence. */
export interface StepEntry {
  readonly sequence: PagedSequence;
  /** Place of the first of them in the sequence. */
  readonly first: number;
  readonly ids: readonly number[];
  /** Which of them need logits, ascending. */
  readonly wanted: readonly number[];
}

/** Logits after one token. Valid during the visit. */
export interface StepRow {
  /** Place of the token in its sequence. */
  readonly place: number;
  /** f32 [V], copied once: not to be changed. */
  logits(): Float32Array;
  /** Index of the largest, ties to the lower. Throws `file` where that is not a finite number. */
  best(): number;
  /** Logarithm of the sum of exponentials of the row: what a logit lacks to be a log-probability. Throws as `best`. */
  logSumExp(): number;
}

export interface StepVisitor {
  /** False: the later rows of this entry are not wanted any more. */
  visit(entry: StepEntry, row: StepRow): boolean;
  /** Assignments i32 [E] of a layer with experts. */
  routed(layer: number, counts: Int32Array): void;
}

/** Bytes of logits that are held at once. */
const logitsBytes = 32 << 20;

export function forwardStep(model: Decoder, cache: PagedCache, entries: readonly StepEntry[], visitor: StepVisitor): void {
  const { engine, config } = model;
  engine.scope(() => {
    const { hidden_TH, routing } = model.forwardHidden(cache.extend(entries), { cache });
    for (const { layer, counts_GE } of routing) visitor.routed(layer, counts_GE.toInt32Array());
    let start = 0;
    const wanted = entries.flatMap((entry) => {
      const rows = entry.wanted.map((offset) => ({ entry, row: start + offset, place: entry.first + offset }));
      start += entry.ids.length;
      return rows;
    });
    const unwanted = new Set<StepEntry>();
    const step = Math.max(1, Math.floor(logitsBytes / 4 / config.vocabSize));
    for (let at = 0; at < wanted.length; at += step) {
      const part = wanted.slice(at, at + step).filter(({ entry }) => !unwanted.has(entry));
      if (part.length === 0) continue;
      engine.scope(() => {
        const rows = rowsOf(
          model.logits(
            hidden_TH,
            part.map(({ row }) => row),
          ),
        );
        for (const [i, { entry, place }] of part.entries()) {
          if (!unwanted.has(entry) && !visitor.visit(entry, { place, ...rows(i) })) unwanted.add(entry);
        }
      });
    }
  });
}

/** Row i of logits f32 [R, V]. */
function rowsOf(logits_RV: Tensor): (i: number) => Omit<StepRow, "place"> {
  const { engine } = logits_RV;
  const { kernels } = engine.backend;
  const [R, V] = [logits_RV.dim(0), logits_RV.dim(1)];
  let index: Tensor | null = null;
  let bests: Int32Array | null = null;
  let losses: Float32Array | null = null;
  const indexOfBest = (): Tensor => {
    if (index !== null) return index;
    index = engine.empty([R], "i32");
    kernels.argmaxRows(index.ptr, logits_RV.ptr, R, V);
    return index;
  };
  // Cross-entropy against the largest logit: what the row's sum adds to it.
  const crossEntropies = (): Float32Array => {
    const loss = engine.empty([R], "f32");
    kernels.crossEntropy(loss.ptr, 0, logits_RV.ptr, indexOfBest().ptr, R, V, 1);
    return loss.toFloat32Array();
  };
  const largest = (i: number): { best: number; logit: number } => {
    bests ??= indexOfBest().toInt32Array();
    const best = bests[i] ?? 0;
    const logit = logits_RV
      .view(-1, 1)
      .rows(i * V + best, i * V + best + 1)
      .item();
    checkLargestLogit(logit);
    return { best, logit };
  };
  return (i) => {
    let copy: Float32Array | null = null;
    return {
      logits: () => (copy ??= logits_RV.rows(i, i + 1).toFloat32Array()),
      best: () => largest(i).best,
      logSumExp: () => largest(i).logit + ((losses ??= crossEntropies())[i] ?? 0),
    };
  };
}

/**
 * What one forward pass reads: tokens of any number of documents in one flat row, without padding. Which keys a token sees
 * is two numbers a token, so separate sequences, packed documents and continued sequences (`kv-cache.ts`) are one code path.
 */
import { MoeError } from "../util/errors.ts";
import type { Engine, Tensor } from "../tensor/index.ts";

export interface Batch {
  /** i32 [T]: token ids. */
  readonly ids: Tensor;
  /** i32 [T]: position of each token in its document. */
  readonly positions: Tensor;
  /** i32 [T], non-decreasing: a token sees rows keyBase..keyEnd-1 of the keys. */
  readonly keyBase: Tensor;
  readonly keyEnd: Tensor;
  /** One more than the largest position. */
  readonly numPositions: number;
}

/**
 * A batch of whole documents, each seeing only itself, causally. Its tensors belong to the current scope. Throws `configuration` for an
 * id outside 0..vocabSize-1 (with the document and place) and for an empty document.
 *
 * ```ts
 * const batch = batchOfDocuments(engine, [[1, 5, 9], [1, 7]], { vocabSize: 10 });
 * ```
 */
export function batchOfDocuments(engine: Engine, documents: readonly ArrayLike<number>[], { vocabSize }: { vocabSize: number }): Batch {
  let start = 0;
  const runs = documents.map((ids) => {
    const run = { ids, firstPosition: 0, firstKey: start, firstRow: start };
    start += ids.length;
    return run;
  });
  return batchOfRuns(engine, runs, vocabSize);
}

/** Consecutive tokens of one sequence. */
export interface Run {
  readonly ids: ArrayLike<number>;
  /** Position of the first of them. */
  readonly firstPosition: number;
  /** Row of the sequence's first key. */
  readonly firstKey: number;
  /** Row that the key of the first of these tokens takes. */
  readonly firstRow: number;
}

/** A batch of runs whose keys lie in ascending rows. */
export function batchOfRuns(engine: Engine, runs: readonly Run[], vocabSize: number): Batch {
  const numTokens = runs.reduce((n, { ids }) => n + ids.length, 0);
  const arrays = {
    ids: new Int32Array(numTokens),
    positions: new Int32Array(numTokens),
    keyBase: new Int32Array(numTokens),
    keyEnd: new Int32Array(numTokens),
  };
  let t = 0;
  let numPositions = 0;
  for (const [index, run] of runs.entries()) {
    if (run.ids.length === 0) throw new MoeError("configuration", `batch: document ${index} of ${runs.length} has no tokens`);
    for (let i = 0; i < run.ids.length; i++, t++) {
      const id = run.ids[i] ?? -1;
      if (!(Number.isInteger(id) && id >= 0 && id < vocabSize)) {
        throw new MoeError(
          "configuration",
          `batch: token ${i} of document ${index} is ${id}, expected an id from 0 to ${vocabSize - 1} (the vocabulary)`,
        );
      }
      arrays.ids[t] = id;
      arrays.positions[t] = run.firstPosition + i;
      arrays.keyBase[t] = run.firstKey;
      arrays.keyEnd[t] = run.firstRow + i + 1;
    }
    numPositions = Math.max(numPositions, run.firstPosition + run.ids.length);
  }
  const tensor = (data: Int32Array): Tensor => engine.from(data, [numTokens], "i32");
  const { ids, positions, keyBase, keyEnd } = arrays;
  return { ids: tensor(ids), positions: tensor(positions), keyBase: tensor(keyBase), keyEnd: tensor(keyEnd), numPositions };
}

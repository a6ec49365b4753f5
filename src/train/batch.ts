/** From the data layer's arrays to the tensors that a model reads. */
import type { TokenBatch } from "../data/dataset.ts";
import type { Batch } from "../model/index.ts";
import type { Engine, Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";

/** Tensors of a token batch, in the current scope. */
export function toModelBatch(engine: Engine, tokens: TokenBatch): { batch: Batch; targets: Tensor } {
  const tensor = (data: Int32Array): Tensor => engine.from(data, [data.length], "i32");
  const { ids, positions, keyBase, keyEnd, targets } = tokens;
  let numPositions = 0;
  for (const position of positions) if (position >= numPositions) numPositions = position + 1;
  return {
    batch: { ids: tensor(ids), positions: tensor(positions), keyBase: tensor(keyBase), keyEnd: tensor(keyEnd), numPositions },
    targets: tensor(targets),
  };
}

/** Throws `configuration` when the data holds an id that the model has no embedding for. */
export function checkVocabulary(dataVocabulary: number, modelVocabulary: number, what: string): void {
  if (dataVocabulary > modelVocabulary) {
    throw new MoeError(
      "configuration",
      `${what}: the tokenizer has ${dataVocabulary} ids, the model's embedding ${modelVocabulary} rows; use the model's own tokenizer or a larger vocab_size`,
    );
  }
}

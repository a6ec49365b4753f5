/**
 * A run of a model's layers as a model of its own: what a pipeline stage has. The run with the first layer also has the embedding, the one with the last layer
 * the final norm and the output head. All names stay those of the whole model, so that files, optimizers and metrics need no translation.
 *
 * A tied embedding is then on two stages: the first looks up in it, the last multiplies by it. Each has a parameter `embedding.weight`, equal in
 * value; that their gradients are added up is up to whoever trains (`src/parallel/pipeline.ts`).
 */
import type { ModelConfig } from "../config/model.ts";
import { MoeError } from "../util/errors.ts";
import type { Interval } from "../util/partition.ts";
import type { ParameterSpec } from "./parameters.ts";

/** All layers. */
export function wholeSpan({ numLayers }: ModelConfig): Interval {
  return { start: 0, end: numLayers };
}

export function isFirstSpan({ start }: Interval): boolean {
  return start === 0;
}
export function isLastSpan({ end }: Interval, { numLayers }: ModelConfig): boolean {
  return end === numLayers;
}

/** The parameters of layers start..end-1, with embedding and head where they belong to these. Throws `configuration` for a run without layers. */
export function spanSpecs(specs: readonly ParameterSpec[], config: ModelConfig, span: Interval): ParameterSpec[] {
  const { start, end } = span;
  if (!(Number.isInteger(start) && Number.isInteger(end) && start >= 0 && start < end && end <= config.numLayers))
    throw new MoeError("configuration", `layers ${start}..${end}: expected at least one of the model's ${config.numLayers} layers`);
  const [first, last] = [isFirstSpan(span), isLastSpan(span, config)];
  return specs.filter(({ name }) => {
    const layer = /^layers\.(\d+)\./.exec(name)?.[1];
    if (layer !== undefined) return Number(layer) >= start && Number(layer) < end;
    return name === "embedding.weight" ? first || (last && config.tiedEmbeddings) : last;
  });
}

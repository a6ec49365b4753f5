/**
 * Who runs the forward and backward passes of a step: one model after another micro-batch (here), or the stages of a pipeline in the order of
 * their schedule (`parallel/pipeline.ts`). Either way gradients are added to the parameters, and what each micro-batch measured comes back.
 */
import type { RunConfig } from "../config/run.ts";
import type { Decoder, ForwardOptions } from "../model/index.ts";
import type { Recorder } from "../parallel/recorder.ts";
import { microForward, type MicroResult, type MicroStepInput } from "./micro-step.ts";

/** What happens beside the passes: communication that begins as early, and is waited for as late, as they allow. */
export interface StepHooks {
  /** Before the first use of a layer's weights in the step (-1: the embedding; the number of layers: final norm and head). */
  beforeLayer(layer: number): void;
  /** All gradients of a layer's parameters (numbers as above) are complete on this rank. */
  onGradients(layer: number): void;
}
export const noHooks: StepHooks = { beforeLayer: () => {}, onGradients: () => {} };

export interface StepExecutor {
  /** Forward and backward passes of these micro-batches, in any order. What is returned has their order, and the layers that this rank has. */
  run(micro: readonly MicroStepInput[], hooks: StepHooks): MicroResult[];
}

/** Layers of a model or stage in the order of the forward pass, with -1 for the embedding and the number of layers for final norm and head. */
export function layerNumbers({ layers: { start, end }, config }: Decoder): number[] {
  const first = start === 0 ? -1 : start;
  const last = end === config.numLayers ? end : end - 1;
  return Array.from({ length: last - first + 1 }, (_, i) => first + i);
}

/** What a micro-batch's passes tell the hooks, if it is the first, or, by the time of its backward pass, the last. */
export function toldBy(
  hooks: StepHooks,
  { isFirst, isLast }: { readonly isFirst: boolean; readonly isLast: () => boolean },
): Pick<ForwardOptions, "beforeLayer" | "afterBackward"> {
  if (hooks === noHooks) return {};
  return {
    beforeLayer: isFirst ? (layer) => hooks.beforeLayer(layer) : undefined,
    afterBackward: (layer) => {
      if (isLast()) hooks.onGradients(layer);
    },
  };
}
/** After the last backward pass: the embedding's gradients are complete. */
export function afterPasses(model: Decoder, hooks: StepHooks): void {
  if (layerNumbers(model)[0] === -1) hooks.onGradients(-1);
}

/** One micro-batch after another, on a model that is whole in this rank. */
export class SequentialExecutor implements StepExecutor {
  readonly #model: Decoder;
  readonly #config: RunConfig;
  readonly #recorder: Recorder | null;

  constructor(model: Decoder, config: RunConfig, recorder: Recorder | null = null) {
    this.#model = model;
    this.#config = config;
    this.#recorder = recorder;
  }
  run(micro: readonly MicroStepInput[], hooks: StepHooks): MicroResult[] {
    return micro.map((input, index) => {
      const told = toldBy(hooks, { isFirst: index === 0, isLast: () => index === micro.length - 1 });
      using forward = this.#pass("forward", index, () => microForward(this.#model, this.#config, { ...input, ...told }));
      this.#pass("backward", index, () => forward.backward(null));
      if (index === micro.length - 1) afterPasses(this.#model, hooks);
      return forward.result;
    });
  }

  #pass<T>(kind: "forward" | "backward", microBatch: number, run: () => T): T {
    return this.#recorder === null
      ? run()
      : this.#recorder.span({ name: `${kind} ${microBatch}`, track: "compute", args: { microBatch } }, run);
  }
}

/**
 * Forward and backward of one micro-batch: cross-entropy, and for every layer with experts the losses that keep the experts in
 * balance, each with its own coefficient. A micro-batch holds whole balance groups; with N_g groups, N_s sequences and N_t
 * tokens in the *global* batch, the gradient is that of
 *   scale * sum of cross-entropies + sum over layers of ( alpha_l / N_g * sum over groups of equation 4
 *     + switch / N_g * sum over groups of the Switch loss + sequence / N_s * sum over sequences of the same form
 *     + z / N_t * sum over tokens of logsumexp(logits)^2 ),
 * so that micro-batches add up to the same step however many there are.
 */
import { hasExperts, type ModelConfig } from "../config/model.ts";
import type { RunConfig } from "../config/run.ts";
import type { TokenBatch } from "../data/dataset.ts";
import { isLastSpan, type Decoder, type ForwardOptions, type HiddenOutput, type LayerRouting } from "../model/index.ts";
import type { RoutingContext } from "../nn/index.ts";
import { balanceLoss, routerStatistics, sequenceLoss, switchLoss, Tape, zLoss, type Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { toModelBatch } from "./batch.ts";
import { halvesOf, joinHalves, type MicroPart } from "./halves.ts";
import type { MicroRouting } from "./routing.ts";

export interface MicroStepInput {
  readonly tokens: TokenBatch;
  /** Index of the first sequence within the global batch. */
  readonly firstSequence: number;
  /** Optimizer steps done: the key of the router's noise. */
  readonly step: number;
  /** 1 / loss-bearing tokens of the global batch. */
  readonly scale: number;
  /** Of the auxiliary loss, one a layer with experts, of all the model's. */
  readonly coefficients: readonly number[];
  /** Gets what the layers with experts decided, during the forward pass: for comparisons. */
  readonly onRouting?: ((layers: readonly LayerRouting[], input: MicroStepInput) => void) | undefined;
}

export interface MicroResult {
  /** scale * sum of the tokens' cross-entropies. */
  readonly loss: number;
  /** One a layer with experts, ascending. */
  readonly routing: readonly MicroRouting[];
}

/** First rows of runs of `sequences` whole sequences, and the end of the last. */
export function offsetsOf({ numSequences, sequenceLength }: TokenBatch, sequences: number): number[] {
  return Array.from({ length: numSequences / sequences + 1 }, (_, g) => g * sequences * sequenceLength);
}

/** What routers are told while training on `tokens`, whose first sequence is number `firstSequence` of the global batch. */
export function routingContext(
  { moe, seed }: RunConfig,
  tokens: TokenBatch,
  { firstSequence, step }: { firstSequence: number; step: number },
): RoutingContext {
  const groupOffsets = offsetsOf(tokens, moe.balanceGroupSequences);
  const firstToken = firstSequence * tokens.sequenceLength;
  const rowOffsets = groupOffsets.slice(0, -1).map((row) => firstToken + row);
  return {
    groupOffsets,
    capacity: moe.capacityFactor === null ? null : { factor: moe.capacityFactor, dropBy: moe.dropBy, pad: moe.padToCapacity },
    jitter: moe.jitterEpsilon === 0 ? null : { epsilon: moe.jitterEpsilon, seed, step, rowOffsets },
    forcedBalance: moe.forcedBalance,
  };
}

/** Adds the micro-batch's gradients to those of the parameters. */
export function microStep(model: Decoder, config: RunConfig, input: MicroStepInput): MicroResult {
  using forward = microForward(model, config, input);
  forward.backward(null);
  return forward.result;
}

/** What a micro-batch left in a model, or a stage of one: until `backward` ran, or it is disposed. */
export interface MicroForward extends Disposable {
  /** Of a stage that has no head, the loss is 0. */
  readonly result: MicroResult;
  /** [T, H], for the stage after this; null where there is none. Gone with the rest, and may be disposed before: `backward` needs no more than who it was. */
  readonly hidden: Tensor | null;
  /**
   * Adds the gradients of the stage's own losses, and of what `hiddenGrad` (the gradient of `hidden`; null without) asks for, to those of the parameters.
   * Returns the gradient of the hidden states that came in, which the caller disposes (null where none did). Once.
   */
  backward(hiddenGrad: Tensor | null): Tensor | null;
}

/**
 * The forward pass of a micro-batch through a model, or through a stage: `hidden` [T, H] is what the stage before it gave, and stays the caller's.
 * `recomputeLayers`: of the stage; default: those of the run that are in it.
 */
export function microForward(
  model: Decoder,
  config: RunConfig,
  input: MicroStepInput & { readonly hidden?: Tensor; readonly recomputeLayers?: number } & Pick<
      ForwardOptions,
      "beforeLayer" | "afterBackward"
    >,
): MicroForward {
  const { engine, layers } = model;
  const { coefficients } = input;
  const tape = new Tape(engine);
  const before = numExpertLayers(model.config, layers.start);
  try {
    return engine.scope(() => {
      const hidden = input.hidden?.retain();
      if (hidden !== undefined) hidden.requiresGrad = true;
      const parts = forwardParts(model, config, input, { tape, hidden });
      const roots: Root[] = [];
      const results = parts.map(({ part, output, loss }) => {
        input.onRouting?.(output.routing, { ...input, ...part });
        if (loss !== null) roots.push({ value: loss.retain(), grad: 1 });
        const routing = output.routing.map((layer, index) => {
          const losses = routerLosses(layer, part.tokens, config, coefficients[before + index] ?? 0, tape);
          roots.push(...losses.roots.map(({ value, grad }) => ({ value: value.retain(), grad })));
          return losses.measured;
        });
        return { loss: loss?.item() ?? 0, routing };
      });
      const passedOn = isLastSpan(layers, model.config) ? null : (parts[0]?.output.hidden_TH.retain() ?? null);
      return new Recorded(tape, joinHalves(results), roots, hidden ?? null, passedOn);
    });
  } catch (error) {
    tape[Symbol.dispose]();
    throw error;
  }
}

type MicroForwardInput = Parameters<typeof microForward>[2];
/** What goes through the layers at once: a micro-batch, or one of its halves that take turns. */
interface ForwardPart {
  readonly part: MicroPart;
  readonly output: HiddenOutput;
  /** Null: on another stage. */
  readonly loss: Tensor | null;
}

function forwardParts(
  model: Decoder,
  config: RunConfig,
  input: MicroForwardInput,
  { tape, hidden }: { readonly tape: Tape; readonly hidden: Tensor | undefined },
): ForwardPart[] {
  const { engine, layers } = model;
  const { tokens, firstSequence, scale, beforeLayer, afterBackward } = input;
  const { recomputeLayers = Math.max(0, config.recomputeLayers - layers.start) } = input;
  const hasHead = isLastSpan(layers, model.config);
  const common = { recomputeLayers, beforeLayer, afterBackward };
  if (!config.layout.overlap) {
    const { batch, targets } = toModelBatch(engine, tokens);
    const options = { routing: routingContext(config, tokens, input), ...common, ...(hidden === undefined ? {} : { hidden }) };
    const output: HiddenOutput & { readonly loss?: Tensor } = engine.withTape(tape, () =>
      hasHead ? model.loss(batch, targets, { scale, ...options }) : model.forwardHidden(batch, options),
    );
    return [{ part: { tokens, firstSequence }, output, loss: output.loss ?? null }];
  }
  const halves = halvesOf({ tokens, firstSequence }, config.moe.balanceGroupSequences).map((part) => {
    const routing = routingContext(config, part.tokens, { ...input, ...part });
    return { part, routing, ...toModelBatch(engine, part.tokens) };
  });
  const outputs = engine.withTape(tape, () => model.forwardTurns(halves, common));
  return halves.flatMap(({ part, targets }, i) => {
    const output = outputs[i];
    if (output === undefined) return [];
    const loss = engine.withTape(tape, () => model.headLoss(output.hidden_TH, targets, scale).loss);
    return [{ part, output, loss }];
  });
}

/** Layers with experts among the first `numLayers`. */
function numExpertLayers(model: ModelConfig, numLayers: number): number {
  return Array.from({ length: numLayers }, (_, layer) => layer).filter((layer) => hasExperts(model, layer)).length;
}

class Recorded implements MicroForward {
  readonly result: MicroResult;
  readonly hidden: Tensor | null;
  readonly #tape: Tape;
  readonly #roots: readonly Root[];
  readonly #input: Tensor | null;

  constructor(tape: Tape, result: MicroResult, roots: readonly Root[], input: Tensor | null, hidden: Tensor | null) {
    this.#tape = tape;
    this.result = result;
    this.#roots = roots;
    this.#input = input;
    this.hidden = hidden;
  }

  backward(hiddenGrad: Tensor | null): Tensor | null {
    if ((hiddenGrad === null) !== (this.hidden === null))
      throw new MoeError(
        "internal",
        `a stage gave ${this.hidden === null ? "no " : ""}hidden states, and got ${hiddenGrad === null ? "no" : "a"} gradient of them`,
      );
    const passed = this.hidden === null || hiddenGrad === null ? [] : [{ value: this.hidden, grad: hiddenGrad }];
    this.#tape.backward([...this.#roots, ...passed]);
    const grad = this.#input === null ? null : this.#tape.takeGrad(this.#input);
    this[Symbol.dispose]();
    return grad;
  }
  [Symbol.dispose](): void {
    this.#tape[Symbol.dispose]();
    for (const { value } of this.#roots) value.dispose();
    this.#input?.dispose();
    this.hidden?.dispose();
  }
}

/** A loss and its coefficient in the total. */
interface Root {
  readonly value: Tensor;
  readonly grad: number;
}

function routerLosses(
  { layer, probs_TE, logits_TE, indices_TK, counts_GE }: LayerRouting,
  tokens: TokenBatch,
  { moe, batchSequences }: RunConfig,
  coefficient: number,
  tape: Tape,
): { measured: MicroRouting; roots: Root[] } {
  const { engine } = probs_TE;
  const groupOffsets = offsetsOf(tokens, moe.balanceGroupSequences);
  const roots: Root[] = [];
  // A loss that nobody trains on is measured off the tape.
  const term = (weight: number, make: () => Tensor): number => {
    const value = engine.withTape(weight === 0 ? null : tape, make);
    if (weight !== 0) roots.push({ value, grad: weight });
    return value.item();
  };
  const numGroups = batchSequences / moe.balanceGroupSequences;
  const numTokens = batchSequences * tokens.sequenceLength;
  const measured = {
    layer,
    counts: counts_GE.toInt32Array(),
    numTokens: groupOffsets.slice(1).map((end, g) => end - (groupOffsets[g] ?? 0)),
    auxiliaryLoss: term(coefficient / numGroups, () => balanceLoss(probs_TE, { groupOffsets })),
    switchLoss:
      moe.switchLossCoefficient === 0
        ? null
        : term(moe.switchLossCoefficient / numGroups, () => switchLoss(probs_TE, counts_GE, { groupOffsets })),
    sequenceLoss:
      moe.sequenceLossCoefficient === 0
        ? null
        : term(moe.sequenceLossCoefficient / batchSequences, () =>
            sequenceLoss(probs_TE, indices_TK, { groupOffsets: offsetsOf(tokens, 1) }),
          ),
    zLoss: term(moe.zLossCoefficient / numTokens, () => zLoss(logits_TE)),
    ...routerStatistics(probs_TE),
  };
  return { measured, roots };
}

/**
 * One optimizer step on one device: batches, forward and backward by micro-batch, clipping, AdamW, metrics.
 *
 * A step is a pure function of (weights, optimizer, step number): data order and schedule follow from the configuration and
 * the step, so a run that was killed and resumed ends with the same bits as one that was not. Cross-entropy is normalized by
 * the loss-bearing tokens of the whole global batch, however it is cut into micro-batches; each micro-batch is one balance
 * group, over which capacity and balance losses are computed and averaged.
 */
import { flopsPerToken } from "../config/model-counts.ts";
import { hasExperts } from "../config/model.ts";
import type { RunConfig } from "../config/run.ts";
import type { Dataset, TokenBatch } from "../data/dataset.ts";
import type { Decoder, LossOutput } from "../model/index.ts";
import { droppedAssignments, expertCapacity } from "../nn/index.ts";
import { AdamW, learningRateAt, type Schedule } from "../optim/index.ts";
import { Tape, type Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { toModelBatch } from "./batch.ts";
import type { TrainingState } from "./checkpoint.ts";

/** Routing of one layer with experts over one step. */
export interface LayerMetrics {
  readonly layer: number;
  /** Equation 4 of arXiv 2406.06563, mean over micro-batches. */
  readonly balanceLoss: number;
  /** Assignments of each expert before dropping, as a fraction of all: sums to 1. */
  readonly load: readonly number[];
  /** Dropped assignments over all assignments. In dropless training: 0. */
  readonly dropRate: number;
}

export interface StepMetrics {
  readonly step: number;
  /** Mean cross-entropy over the loss-bearing tokens of the step, nats. */
  readonly loss: number;
  /** Sum over layers of coefficient times balance loss; not part of `loss`. */
  readonly auxiliaryLoss: number;
  readonly learningRate: number;
  /** Before clipping. */
  readonly gradNorm: number;
  /** Loss-bearing tokens of the step. */
  readonly tokens: number;
  readonly seconds: number;
  /** Tokens of the batch, whether they bear loss or not, a second. */
  readonly tokensPerSecond: number;
  /** Model FLOPs (forward and backward, `flopsPerToken`) a second over `peakFlops`, or null where no peak is known. */
  readonly mfu: number | null;
  /** Most bytes that the engine had handed out at once, since the trainer was made. */
  readonly peakBytes: number;
  readonly layers: readonly LayerMetrics[];
}

interface MicroResult {
  readonly loss: number;
  readonly auxiliary: number;
  readonly balance: readonly number[];
  readonly counts: readonly Int32Array[];
  readonly tokens: number;
}

export class Trainer implements Disposable {
  readonly config: RunConfig;
  readonly model: Decoder;
  readonly optimizer: AdamW;
  readonly data: Dataset;
  /** FLOP/s against which MFU is stated. */
  readonly peakFlops: number | null;
  #state: TrainingState;

  /** The trainer owns its optimizer, not the model. `state` continues a run. */
  constructor(config: RunConfig, model: Decoder, data: Dataset, options: { peakFlops: number | null; state?: TrainingState }) {
    this.config = config;
    this.model = model;
    this.data = data;
    this.peakFlops = options.peakFlops;
    this.#state = options.state ?? { step: 0, sequences: 0, tokens: 0, flops: 0, seconds: 0 };
    const { beta1, beta2, epsilon, weightDecay } = config.optimizer;
    model.engine.backend.resetPeak();
    this.optimizer = new AdamW(model.engine, model.parameters.values(), { beta1, beta2, eps: epsilon, weightDecay });
  }

  get state(): TrainingState {
    return this.#state;
  }

  /** One optimizer step. A loss or gradient that is not finite throws `resource` and changes nothing. */
  step(): StepMetrics {
    const started = performance.now();
    const { config } = this;
    const micro = this.#microBatches();
    const numTargets = micro.reduce((n, batch) => n + batch.numTargets, 0);
    // A batch in which no token bears loss (conversations cut between the assistant's turns) has a loss and gradients of 0.
    const results = micro.map((batch) => this.#microStep(batch, 1 / Math.max(1, numTargets), micro.length));
    const loss = results.reduce((sum, r) => sum + r.loss, 0);
    this.#requireFinite(loss, "loss");
    const learningRate = learningRateAt(scheduleOf(config), this.#state.step);
    const { gradNorm } = this.optimizer.step({ learningRate, maxGradNorm: config.optimizer.clipNorm });
    this.#requireFinite(gradNorm, "gradient norm");
    this.optimizer.zeroGrad();
    const tokensSeen = config.batchSequences * config.data.sequenceLength;
    const flops = flopsPerToken(this.model.config, config.data.sequenceLength) * tokensSeen;
    const seconds = (performance.now() - started) / 1000;
    const before = this.#state;
    this.#state = {
      step: before.step + 1,
      sequences: before.sequences + config.batchSequences,
      tokens: before.tokens + numTargets,
      flops: before.flops + flops,
      seconds: before.seconds + seconds,
    };
    return {
      step: this.#state.step,
      loss,
      auxiliaryLoss: results.reduce((sum, r) => sum + r.auxiliary, 0),
      learningRate,
      gradNorm,
      tokens: numTargets,
      seconds,
      tokensPerSecond: tokensSeen / seconds,
      mfu: this.peakFlops === null ? null : flops / seconds / this.peakFlops,
      peakBytes: this.model.engine.backend.peakBytes,
      layers: this.#layerMetrics(results),
    };
  }

  #microBatches(): TokenBatch[] {
    const { batchSequences, microBatchSequences } = this.config;
    const batches: TokenBatch[] = [];
    for (let at = 0; at < batchSequences; at += microBatchSequences) {
      batches.push(this.data.batch(this.#state.sequences + at, microBatchSequences));
    }
    return batches;
  }

  #microStep(tokens: TokenBatch, scale: number, numMicro: number): MicroResult {
    const { engine } = this.model;
    const { auxiliaryLossCoefficient, capacityFactor, dropBy } = this.config.moe;
    const capacity = capacityFactor === null ? null : { factor: capacityFactor, dropBy };
    return engine.scope(() => {
      const { batch, targets } = toModelBatch(engine, tokens);
      using tape = new Tape(engine);
      const output: LossOutput = engine.withTape(tape, () =>
        this.model.loss(batch, targets, { scale, capacity, recomputeLayers: this.config.recomputeLayers }),
      );
      const balance = output.balanceLosses.map((value) => value.item());
      const counts = output.routing.map((routing) => routing.counts_E.toInt32Array());
      const alpha = auxiliaryLossCoefficient.type === "fixed" ? auxiliaryLossCoefficient.value : (auxiliaryLossCoefficient.alpha0 ?? auxiliaryLossCoefficient.alphaMax);
      const weight = alpha / numMicro;
      const auxiliaryRoots = weight === 0 ? [] : output.balanceLosses.map((value: Tensor) => ({ value, grad: weight }));
      const loss = output.loss.item();
      tape.backward([{ value: output.loss, grad: 1 }, ...auxiliaryRoots]);
      const auxiliary = balance.reduce((sum, value) => sum + value * weight, 0);
      return { loss, auxiliary, balance: balance.map((value) => value / numMicro), counts, tokens: tokens.ids.length };
    });
  }

  #requireFinite(value: number, what: string): void {
    if (Number.isFinite(value)) return;
    const culprit = this.#firstNonFinite();
    this.optimizer.zeroGrad();
    const where = culprit === null ? "" : ` (first in ${culprit})`;
    const advice = "Nothing was changed or saved by this step; try a lower learning rate or more warm-up from the last checkpoint";
    throw new MoeError("resource", `step ${this.#state.step + 1}: the ${what} is ${value}${where}. ${advice}`);
  }

  /** The first weight, in the order of the forward pass, that is not finite; otherwise the first such gradient. */
  #firstNonFinite(): string | null {
    const { engine, parameters } = this.model;
    for (const [name, parameter] of parameters) {
      if (!parameter.toFloat32Array().every(Number.isFinite)) return `the weights of ${name}`;
    }
    const gradient = engine.scope(() => this.optimizer.firstNonFinite());
    return gradient === null ? null : `the gradient of ${gradient}`;
  }

  #layerMetrics(results: readonly MicroResult[]): LayerMetrics[] {
    const { config } = this.model;
    const { moe } = config;
    if (moe === null) return [];
    const layers = Array.from({ length: config.numLayers }, (_, layer) => layer).filter((layer) => hasExperts(config, layer));
    const factor = this.config.moe.capacityFactor;
    return layers.map((layer, index) => {
      const totals = new Array<number>(moe.numExperts).fill(0);
      let dropped = 0;
      for (const { counts, tokens } of results) {
        const expertCounts = counts[index] ?? new Int32Array(0);
        for (const [expert, count] of expertCounts.entries()) totals[expert] = (totals[expert] ?? 0) + count;
        if (factor !== null) dropped += droppedAssignments(expertCounts, expertCapacity(factor, moe.topK, tokens, moe.numExperts));
      }
      const assignments = totals.reduce((a, b) => a + b, 0);
      return {
        layer,
        balanceLoss: results.reduce((sum, r) => sum + (r.balance[index] ?? 0), 0),
        load: totals.map((count) => count / Math.max(1, assignments)),
        dropRate: dropped / Math.max(1, assignments),
      };
    });
  }

  [Symbol.dispose](): void {
    this.optimizer[Symbol.dispose]();
  }
}

/** The learning-rate schedule of a run. */
export function scheduleOf({ schedule, optimizer: { learningRate }, numSteps: totalSteps }: RunConfig): Schedule {
  const { name, warmupSteps, decaySteps, decay, finalFraction } = schedule;
  const minLearningRate = finalFraction * learningRate;
  switch (name) {
    case "constant":
      return { name, learningRate, warmupSteps };
    case "linear":
    case "cosine":
      return { name, learningRate, warmupSteps, minLearningRate, totalSteps };
    case "wsd":
      return { name, learningRate, warmupSteps, minLearningRate, totalSteps, decaySteps, decay };
    default:
      return name satisfies never;
  }
}

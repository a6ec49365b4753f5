/**
 * One optimizer step: batches, forward and backward by micro-batch, clipping, AdamW, balance, metrics.
 *
 * A step is a pure function of (weights, optimizer, step number): data order and schedule follow from the configuration and
 * the step, so a run that was killed and resumed ends with the same bits as one that was not. Cross-entropy is normalized by
 * the loss-bearing tokens of the whole global batch, however it is cut into micro-batches; capacity and balance losses belong
 * to balance groups, which no cut splits (`micro-step.ts`). The coefficients and selection biases of a step come from the
 * steps before it (`coefficients.ts`, `routing.ts`).
 */
import { flopsPerToken } from "../config/model-counts.ts";
import { hasExperts } from "../config/model.ts";
import type { RunConfig } from "../config/run.ts";
import type { Dataset, TokenBatch } from "../data/dataset.ts";
import type { Decoder } from "../model/index.ts";
import { Recorder } from "../parallel/recorder.ts";
import { learningRateAt, type Schedule } from "../optim/index.ts";
import type { Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import type { TrainingState } from "./checkpoint.ts";
import { Coefficients } from "./coefficients.ts";
import type { MicroResult, MicroStepInput } from "./micro-step.ts";
import { optimizerParts, weightParts, type TensorPart } from "./parallel/parts.ts";
import { AloneRanks, type AxisTraffic, type StepOptimizer, type TrainingRanks } from "./ranks.ts";
import { layerMetrics, loadCounts, updatedBias, type LayerMetrics, type MicroRouting } from "./routing.ts";
import type { LayerSimilarity } from "./similarity.ts";

export interface StepMetrics {
  readonly step: number;
  /** Mean cross-entropy over the loss-bearing tokens of the step, nats. */
  readonly loss: number;
  /** Sum over layers of the routers' losses, each times its coefficient: what the step trained on beside `loss`. */
  readonly auxiliaryLoss: number;
  /** Present where routing is forced: nothing of this step says anything about a trained router. */
  readonly forcedBalance?: true;
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
  /** Most bytes that the engine (of several ranks: any) had handed out at once, since the trainer was made. */
  readonly peakBytes: number;
  /** Over several ranks: what they sent each other in this step, by axis of the layout. */
  readonly traffic?: Readonly<Record<string, AxisTraffic>>;
  readonly layers: readonly LayerMetrics[];
}

/** Sequences of the probe batch, at most. */
const probeSequences = 4;

export interface TrainerOptions {
  /** The ranks that train together. Default: this one alone. */
  readonly ranks?: TrainingRanks;
  /** Notes what the step does beside the passes. */
  readonly recorder?: Recorder;
  /** Gets what the layers with experts of this rank decided, micro-batch by micro-batch. */
  readonly onRouting?: MicroStepInput["onRouting"];
  /** FLOP/s against which MFU is stated, or null. */
  readonly peakFlops: number | null;
  /** Where a run goes on. */
  readonly state?: TrainingState;
  /** Adaptive coefficients of the next step, as a checkpoint has them. */
  readonly coefficients?: readonly number[] | null;
}

export class Trainer implements Disposable {
  readonly config: RunConfig;
  /** The model; of several ranks, what this one has of it (of its first stage). */
  readonly model: Decoder;
  readonly ranks: TrainingRanks;
  readonly optimizer: StepOptimizer;
  readonly data: Dataset;
  /** FLOP/s against which MFU is stated. */
  readonly peakFlops: number | null;
  /** Of the auxiliary losses, in the next step. */
  readonly coefficients: Coefficients;
  /** Layers with experts, ascending. */
  readonly #layers: readonly number[];
  readonly #recorder: Recorder;
  readonly #onRouting: MicroStepInput["onRouting"];
  #state: TrainingState;

  /** The trainer owns its optimizer, not the model. Throws `file` for coefficients of another model. */
  constructor(config: RunConfig, model: Decoder, data: Dataset, options: TrainerOptions) {
    this.config = config;
    this.model = model;
    this.data = data;
    this.ranks = options.ranks ?? new AloneRanks(model, config);
    this.#recorder = options.recorder ?? new Recorder(this.ranks.rank);
    this.#onRouting = options.onRouting;
    this.peakFlops = options.peakFlops;
    this.#state = options.state ?? { step: 0, sequences: 0, tokens: 0, flops: 0, seconds: 0 };
    this.#layers = Array.from({ length: model.config.numLayers }, (_, layer) => layer).filter((layer) => hasExperts(model.config, layer));
    this.coefficients = new Coefficients(config.moe.auxiliaryLossCoefficient, this.#layers.length, options.coefficients ?? null);
    const { beta1, beta2, epsilon, weightDecay } = config.optimizer;
    model.engine.backend.resetPeak();
    this.optimizer = this.ranks.makeOptimizer({ beta1, beta2, eps: epsilon, weightDecay });
  }

  get state(): TrainingState {
    return this.#state;
  }

  /** True where there are experts and routing is forced, for a benchmark. */
  get forcedBalance(): boolean {
    return this.config.moe.forcedBalance && this.#layers.length > 0;
  }

  /** How alike the experts of each layer are, on the first training sequences as probe: the same all through the run. */
  expertSimilarity(): LayerSimilarity[] {
    return this.ranks.expertSimilarity(this.data.batch(0, Math.min(probeSequences, this.config.batchSequences)));
  }

  /** One optimizer step. A loss or gradient that is not finite throws `resource` and changes nothing. */
  step(): StepMetrics {
    const started = performance.now();
    const { config, ranks } = this;
    const micro = this.#microBatches();
    const numTargets = micro.reduce((n, { tokens }) => n + tokens.numTargets, 0);
    // A batch in which no token bears loss (conversations cut between the assistant's turns) has a loss and gradients of 0.
    const common = {
      step: this.#state.step,
      scale: 1 / Math.max(1, numTargets),
      coefficients: this.coefficients.values,
      onRouting: this.#onRouting,
    };
    const { index, count } = ranks.share;
    const own = micro.slice((index * micro.length) / count, ((index + 1) * micro.length) / count);
    const results = ranks.gatherResults(
      ranks.executor.run(
        own.map((part) => ({ ...part, ...common })),
        ranks.hooks,
      ),
    );
    const loss = results.reduce((sum, r) => sum + r.loss, 0);
    this.#requireFinite(loss, "loss");
    const learningRate = learningRateAt(scheduleOf(config), this.#state.step);
    const update = { learningRate, maxGradNorm: config.optimizer.clipNorm };
    const { gradNorm } = this.#recorder.span({ name: "optimizer", track: "compute" }, () => this.optimizer.step(update));
    this.#requireFinite(gradNorm, "gradient norm");
    this.optimizer.zeroGrad();
    const layers = this.#layerMetrics(results);
    this.#balance(layers, results);
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
      auxiliaryLoss: layers.reduce((sum, layer) => sum + this.#weighted(layer), 0),
      ...(this.forcedBalance ? { forcedBalance: true } : {}),
      learningRate,
      gradNorm,
      tokens: numTargets,
      seconds,
      tokensPerSecond: tokensSeen / seconds,
      mfu: this.peakFlops === null ? null : flops / seconds / this.peakFlops,
      peakBytes: this.model.engine.backend.peakBytes,
      ...ranks.report(),
      layers,
    };
  }

  #microBatches(): { tokens: TokenBatch; firstSequence: number }[] {
    const { batchSequences, microBatchSequences } = this.config;
    return Array.from({ length: batchSequences / microBatchSequences }, (_, i) => {
      const firstSequence = i * microBatchSequences;
      return { firstSequence, tokens: this.data.batch(this.#state.sequences + firstSequence, microBatchSequences) };
    });
  }

  /** What the next step routes with: coefficients from drops, selection biases from loads, both of the whole global batch. */
  #balance(layers: readonly LayerMetrics[], results: readonly MicroResult[]): void {
    this.coefficients.update(layers.map(({ dropRate }) => dropRate));
    const { biasUpdateRate } = this.config.moe;
    if (biasUpdateRate === 0) return;
    for (const [index, layer] of this.#layers.entries()) {
      const model = this.ranks.models.find(({ layers: { start, end } }) => layer >= start && layer < end);
      if (model === undefined) continue;
      const bias = model.parameters.get(`layers.${layer}.moe.router.bias`);
      if (bias === undefined) throw new MoeError("internal", `layer ${layer}: moe.biasUpdateRate without a selection bias`);
      const counts = loadCounts(routingOf(results, index), bias.size);
      this.model.engine.backend.write(bias.ptr, updatedBias(bias.toFloat32Array(), counts, biasUpdateRate));
      bias.storage.version++;
    }
  }

  /** The losses of a layer times their coefficients. */
  #weighted({ coefficient, auxiliaryLoss, switchLoss, sequenceLoss, zLoss }: LayerMetrics): number {
    const { switchLossCoefficient, sequenceLossCoefficient, zLossCoefficient } = this.config.moe;
    return (
      coefficient * auxiliaryLoss +
      switchLossCoefficient * (switchLoss ?? 0) +
      sequenceLossCoefficient * (sequenceLoss ?? 0) +
      zLossCoefficient * zLoss
    );
  }

  #requireFinite(value: number, what: string): void {
    if (Number.isFinite(value)) return;
    const culprit = this.#firstNonFinite();
    this.optimizer.zeroGrad();
    const where = culprit === null ? "" : ` (first in ${culprit})`;
    const advice = "Nothing was changed or saved by this step; try a lower learning rate or more warm-up from the last checkpoint";
    throw new MoeError("resource", `step ${this.#state.step + 1}: the ${what} is ${value}${where}. ${advice}`);
  }

  /** The first weight, by rank and in the order of the forward pass, that is not finite; otherwise the first such gradient. */
  #firstNonFinite(): string | null {
    const { ranks } = this;
    const weight = [...this.#parameters()].find(([, parameter]) => !parameter.toFloat32Array().every(Number.isFinite))?.[0];
    const gradient = this.model.engine.scope(() => this.optimizer.firstNonFinite());
    const found = ranks.gather({ weight, gradient }).map((of, rank) => ({ ...of, on: ranks.size === 1 ? "" : ` on rank ${rank}` }));
    const first = found.find((of) => of.weight !== undefined);
    if (first?.weight !== undefined) return `the weights of ${first.weight}${first.on}`;
    const bad = found.find((of) => of.gradient !== null);
    return bad === undefined || bad.gradient === null ? null : `the gradient of ${bad.gradient}${bad.on}`;
  }
  /** What this rank has of the tensors of a checkpoint. */
  parts(): TensorPart[] {
    return [...this.ranks.models.flatMap(weightParts), ...this.optimizerParts()];
  }
  optimizerParts(): TensorPart[] {
    return optimizerParts(
      this.ranks.models.flatMap(({ specs }) => specs),
      this.optimizer.state().tensors,
      (parameter) => this.ranks.elementsOf(parameter),
    );
  }
  /** Of all that this rank has. */
  #parameters(): Map<string, Tensor> {
    return new Map(this.ranks.models.flatMap(({ parameters }) => [...parameters]));
  }

  #layerMetrics(results: readonly MicroResult[]): LayerMetrics[] {
    const { moe } = this.model.config;
    if (moe === null) return [];
    const { numExperts, topK } = moe;
    const { capacityFactor, virtualCapacityFactor } = this.config.moe;
    return this.#layers.map((layer, index) =>
      layerMetrics(routingOf(results, index), {
        layer,
        numExperts,
        topK,
        numScored: moe.scoring === "softmaxOfTopK" ? topK : numExperts,
        capacityFactor: capacityFactor ?? virtualCapacityFactor,
        coefficient: this.coefficients.values[index] ?? 0,
        numSequences: this.config.batchSequences,
      }),
    );
  }

  [Symbol.dispose](): void {
    this.optimizer[Symbol.dispose]();
  }
}

/** What the layer with experts number `index` did in each micro-batch. */
function routingOf(results: readonly MicroResult[], index: number): MicroRouting[] {
  return results.flatMap(({ routing }) => routing[index] ?? []);
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

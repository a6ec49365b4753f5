/**
 * A training run: a folder, and everything from a configuration to a trained model in it. The folder holds
 *   config.json      the complete configuration
 *   metrics.jsonl    one line a step, and one for every evaluation and measurement of experts (docs/metrics.md)
 *   samples.jsonl    texts with the experts of each token, where the configuration asks for them
 *   upcycling.json   the receipt, where the run began with an upcycled model
 *   tokens/          the tokenized data, made once
 *   checkpoints/     step-<n>, each a model that every other command opens
 *   lock             the process that trains here, while it does
 * `train` starts or resumes it; nothing else writes there.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { copyTokenizer, loadTokenizer } from "../checkpoint/tokenizer.ts";
import { checkAgainstModel, type RunConfig } from "../config/run.ts";
import type { Dataset } from "../data/index.ts";
import type { AxisTraffic, Communicator } from "../parallel/communicator.ts";
import { RecordedCommunicator, Recorder } from "../parallel/recorder.ts";
import { mergeAxes } from "../parallel/traffic.ts";
import type { Engine } from "../tensor/index.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { MoeError } from "../util/errors.ts";
import { lockFolder } from "../util/lock.ts";
import { checkVocabulary } from "./batch.ts";
import {
  pruneCheckpoints,
  readCarriedOptimizer,
  readCheckpointState,
  readOptimizerTensors,
  saveCheckpoint,
  type CheckpointState,
  type TrainingState,
} from "./checkpoint.ts";
import { evaluateWith, type Evaluation } from "./evaluate.ts";
import { modelSource, openRanks } from "./open-ranks.ts";
import { measurePeakFlops } from "./peak.ts";
import { prepareData, type RunData } from "./run-data.ts";
import {
  appendRecord,
  changedFields,
  keepReceipt,
  makeRunFolder,
  openRunFolder,
  readRunConfig,
  truncateRecords,
  writeRunConfig,
} from "./run-folder.ts";
import { writeSamples } from "./samples.ts";
import type { LayerSimilarity } from "./similarity.ts";
import { TimeLeft } from "./time-left.ts";
import { StepTrace } from "./step-trace.ts";
import { RunGroup } from "./run-group.ts";
import { runTokenizer } from "./tokenizer.ts";
import { Trainer, type StepMetrics } from "./trainer.ts";

export type TrainEvent =
  | { readonly type: "warning"; readonly message: string }
  | { readonly type: "tokenizing"; readonly documents: number; readonly characters: number; readonly tokens: number }
  | {
      readonly type: "start";
      readonly state: TrainingState;
      readonly numSteps: number;
      readonly peakFlops: number;
      /** Routing is forced, for a benchmark: name it wherever results are shown. */
      readonly forcedBalance: boolean;
    }
  | { readonly type: "step"; readonly metrics: StepMetrics; readonly secondsLeft: number }
  | { readonly type: "evaluation"; readonly step: number; readonly name: string; readonly evaluation: Evaluation }
  | { readonly type: "similarity"; readonly step: number; readonly layers: readonly LayerSimilarity[] }
  | { readonly type: "checkpoint"; readonly folder: string };

export interface TrainOptions {
  readonly engine: Engine;
  readonly config: RunConfig;
  readonly runFolder: string;
  /** Continue from the newest checkpoint of the folder, if it has one. Without it, a folder that has checkpoints is an error. */
  readonly resume?: boolean;
  /** Aborted: the step under way is finished, a checkpoint saved, and `train` returns with `stopped`. */
  readonly signal?: AbortSignal;
  readonly onEvent?: ((event: TrainEvent) => void) | undefined;
  /** The ranks that train together, as `layout` of the configuration says. All call `train` alike; rank 0 writes and reports. Default: this one alone. */
  readonly communicator?: Communicator;
  /** A Chrome trace of one step of all ranks goes here: of the third that this call trains, when nothing is new any more, or its last. */
  readonly traceFile?: string;
}

export interface TrainResult {
  readonly state: TrainingState;
  /** Last evaluation of each validation set. */
  readonly evaluations: Readonly<Record<string, Evaluation>>;
  /** The last checkpoint. */
  readonly folder: string;
  /** True when the signal ended the run early. */
  readonly stopped: boolean;
  /** True when routing was forced, for a benchmark. */
  readonly forcedBalance: boolean;
  /** What ranks said to each other in this call, all of them together, by axis; empty for one rank. */
  readonly traffic: readonly AxisTraffic[];
}

/**
 * Runs a configuration to its last step. Throws `configuration`, `file`, `resource` (disk, a loss that is not finite, a
 * signal while the text was still being read, another process that trains in this folder).
 *
 * ```ts
 * const result = await train({ engine, config: parseRunConfig(recipe), runFolder: "runs/first" });
 * ```
 */
export async function train(options: TrainOptions): Promise<TrainResult> {
  const { config, runFolder, engine, signal, resume = false } = options;
  const recorder = new Recorder(options.communicator?.rank ?? 0, () => engine.backend.liveBytes);
  const group = new RunGroup(engine, recorded(options.communicator, recorder));
  group.requireAlike(config);
  const onEvent = group.isFirst ? options.onEvent : undefined;
  if (group.isFirst) makeRunFolder(runFolder);
  using _ = group.isFirst ? lockFolder(runFolder, "a run folder that no process trains in") : null;
  const checkpoint = await group.first(() => openRunFolder(runFolder, resume));
  const state = await group.first(() => (checkpoint === null ? null : readCheckpointState(checkpoint)));
  if (checkpoint !== null) warnOfChanges(runFolder, config, checkpoint, onEvent);
  const tokenizerPath = await group.first(() => runTokenizer(config, runFolder, checkpoint));
  const tokenizer = await loadTokenizer(tokenizerPath);
  const onProgress = (progress: { documents: number; characters: number; tokens: number }): void =>
    onEvent?.({ type: "tokenizing", ...progress });
  using data = await group.inTurn(() =>
    prepareData({ config, runFolder, backend: engine.backend, tokenizer, tokenizerPath, signal, onProgress }),
  );
  if (checkpoint !== null && state !== null) checkResumable(checkpoint, state, config, data);
  const source = modelSource(config, checkpoint);
  checkVocabulary(tokenizer.vocabSize, source.config.vocabSize, tokenizerPath);
  for (const message of checkAgainstModel(config, source.config)) onEvent?.({ type: "warning", message });
  if (group.size > 1 && config.samples.intervalSteps > 0)
    onEvent?.({ type: "warning", message: "samples are not written by a run over ranks: samples.intervalSteps has no effect" });
  using opened = openRanks(engine, { world: group.world, config, source, recorder });
  const { ranks } = opened;
  const peakFlops = group.gather(measurePeakFlops(engine, config.precision)).reduce((a, b) => a + b, 0);
  const from = state === null ? {} : { state: state.training, coefficients: state.coefficients };
  const [model] = ranks.models;
  if (model === undefined) throw new MoeError("internal", "train: a rank without a part of the model");
  using trainer = new Trainer(config, model, data.train, { peakFlops, ranks, recorder, ...from });
  if (checkpoint !== null && state !== null) {
    readOptimizerTensors(checkpoint, trainer.optimizerParts());
    trainer.optimizer.loadState({ step: state.optimizerStep, tensors: trainer.optimizer.state().tensors });
    if (group.isFirst) truncateRecords(runFolder, state.training.step);
  } else if (config.model.from !== undefined) {
    takeCarriedOptimizer(config.model.from, trainer, onEvent);
    if (group.isFirst) keepReceipt(runFolder, config.model.from);
  }
  if (group.isFirst) writeRunConfig(runFolder, config);
  return await new Run({ ...options, onEvent }, { group, recorder }, trainer, data, checkpoint, {
    tokenizer,
    write: (folder) => {
      copyTokenizer(tokenizerPath, folder, tokenizer);
    },
  }).toTheEnd();
}

function recorded(communicator: Communicator | undefined, recorder: Recorder): Communicator | null {
  return communicator === undefined ? null : new RecordedCommunicator(communicator, recorder);
}

/** What `moe upcycle --optimizer carry` left beside the weights. */
function takeCarriedOptimizer(from: string, trainer: Trainer, onEvent: TrainOptions["onEvent"]): void {
  const step = readCarriedOptimizer(from, trainer.optimizerParts());
  if (step === null) return;
  trainer.optimizer.loadState({ step, tensors: trainer.optimizer.state().tensors });
  onEvent?.({ type: "warning", message: `the optimizer begins with the state of ${step} updates that upcycling carried over (${from})` });
}

/** The tokenizer of a run, and how it gets into a checkpoint. */
interface RunTokenizer {
  readonly tokenizer: Tokenizer;
  readonly write: (folder: string) => void;
}

/** The loop around the trainer's steps. */
class Run {
  readonly #options: TrainOptions;
  readonly #group: RunGroup;
  readonly #trace: StepTrace;
  readonly #trainer: Trainer;
  readonly #data: RunData;
  readonly #tokenizer: RunTokenizer;
  readonly #evaluations: Record<string, Evaluation> = {};
  readonly #timeLeft: TimeLeft;
  /** The checkpoint of the state as it is now, if there is one. */
  #saved: string | null;

  constructor(
    options: TrainOptions,
    { group, recorder }: { group: RunGroup; recorder: Recorder },
    trainer: Trainer,
    data: RunData,
    saved: string | null,
    tokenizer: RunTokenizer,
  ) {
    this.#options = options;
    this.#group = group;
    const { numSteps } = options.config;
    this.#trace = new StepTrace(options.traceFile ?? null, { group, recorder, step: Math.min(trainer.state.step + 3, numSteps) });
    this.#trainer = trainer;
    this.#data = data;
    this.#saved = saved;
    this.#tokenizer = tokenizer;
    this.#timeLeft = new TimeLeft(
      options.config,
      Array.from(data.validation.values(), (set) => set.numSequences),
    );
  }

  async toTheEnd(): Promise<TrainResult> {
    const { config, signal, onEvent } = this.#options;
    const trainer = this.#trainer;
    const { forcedBalance } = trainer;
    onEvent?.({ type: "start", state: trainer.state, numSteps: config.numSteps, peakFlops: trainer.peakFlops ?? 0, forcedBalance });
    if (trainer.state.step === 0) {
      this.#measureSimilarity();
      this.#sample();
    }
    while (trainer.state.step < config.numSteps && !this.#group.any(signal?.aborted === true)) {
      const metrics = this.#trace.around(trainer.state.step + 1, () => trainer.step());
      this.#saved = null;
      this.#timeLeft.step(metrics.seconds);
      if (isDue(metrics.step, config.logIntervalSteps) || metrics.step === config.numSteps) this.#log({ type: "step", ...metrics });
      onEvent?.({ type: "step", metrics, secondsLeft: this.#timeLeft.after(metrics.step) });
      // Lets signals and streams be heard between steps, and between a step and an evaluation.
      await nextTurn();
      this.#measureSimilarity();
      this.#sample();
      if (metrics.step < config.numSteps) {
        if (isDue(metrics.step, config.evaluation.intervalSteps)) await this.#evaluate();
        if (isDue(metrics.step, config.checkpoint.intervalSteps)) this.#saved = this.#save();
      }
    }
    const stopped = trainer.state.step < config.numSteps;
    // Saved first: an evaluation that fails or is killed costs no step.
    this.#saved ??= this.#save();
    if (!stopped) await this.#evaluate();
    const { world } = this.#group;
    const traffic = world === null ? [] : mergeAxes(this.#group.gather(world.axes));
    return { state: trainer.state, evaluations: this.#evaluations, folder: this.#saved, stopped, forcedBalance, traffic };
  }

  /** Every `moe.similarityInterval` steps, and before the first. */
  #measureSimilarity(): void {
    const { config, onEvent } = this.#options;
    const { step } = this.#trainer.state;
    if (!isDue(step, config.moe.similarityInterval)) return;
    const layers = this.#trainer.expertSimilarity();
    if (layers.length === 0) return;
    this.#log({ type: "similarity", step, layers });
    onEvent?.({ type: "similarity", step, layers });
  }

  /** Every `samples.intervalSteps` steps, and before the first. */
  #sample(): void {
    const { config, runFolder } = this.#options;
    const { step } = this.#trainer.state;
    if (!isDue(step, config.samples.intervalSteps) || this.#trainer.ranks.size > 1) return;
    const records = writeSamples(this.#trainer.model, this.#tokenizer.tokenizer, config, step);
    for (const record of records) appendRecord(runFolder, "samples", record);
  }

  async #evaluate(): Promise<void> {
    const { config, onEvent } = this.#options;
    const { step } = this.#trainer.state;
    let seconds = 0;
    for (const [name, dataset] of this.#data.validation) {
      const started = performance.now();
      const evaluation = evaluateSet(this.#trainer, dataset, config);
      seconds += (performance.now() - started) / 1000;
      // Told before it is written: JSON has no NaN.
      if (!Number.isFinite(evaluation.loss)) throw notFinite(step, name, evaluation.loss, this.#saved);
      this.#evaluations[name] = evaluation;
      this.#log({ type: "evaluation", step, name, ...evaluation });
      onEvent?.({ type: "evaluation", step, name, evaluation });
      await nextTurn();
    }
    this.#timeLeft.evaluation(seconds);
  }
  #save(): string {
    const { runFolder, config, onEvent } = this.#options;
    const started = performance.now();
    const { model, optimizer, coefficients, state: training, ranks } = this.#trainer;
    const state: CheckpointState = {
      training,
      precision: config.precision,
      dataFingerprint: this.#data.fingerprint,
      coefficients: coefficients.state,
      optimizerStep: optimizer.numSteps,
    };
    const writeTokenizer = this.#tokenizer.write;
    const folder = ranks.checkpoint(this.#trainer.parts(), (tensors) =>
      saveCheckpoint(runFolder, { config: model.config, dtype: model.dtype, tensors, state, writeTokenizer }),
    );
    if (this.#group.isFirst) pruneCheckpoints(runFolder, config.checkpoint.keep);
    this.#timeLeft.save((performance.now() - started) / 1000);
    onEvent?.({ type: "checkpoint", folder });
    return folder;
  }
  #log(record: object): void {
    if (!this.#group.isFirst) return;
    appendRecord(this.#options.runFolder, "metrics", this.#trainer.forcedBalance ? { ...record, forcedBalance: true } : record);
  }
}

function evaluateSet(trainer: Trainer, dataset: Dataset, config: RunConfig): Evaluation {
  const { maxSequences } = config.evaluation;
  return evaluateWith((batches) => trainer.ranks.tokenLosses(batches), dataset, {
    maxSequences,
    batchSequences: config.microBatchSequences,
  });
}

function notFinite(step: number, name: string, loss: number, saved: string | null): MoeError {
  const checkpoint = saved === null ? "This step was not saved: go on from the last checkpoint" : `The weights are in ${saved}`;
  const advice = `${checkpoint}; try a lower learning rate or more warm-up`;
  return new MoeError("resource", `step ${step}: the validation loss of ${name} is ${loss}. ${advice}`);
}

/** Whether something that happens every `interval` steps (0: never) happens after `step`. */
function isDue(step: number, interval: number): boolean {
  return interval > 0 && step % interval === 0;
}
async function nextTurn(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}

/** A resumed run goes on from its checkpoint's model; what else differs from how it began is said, not refused. */
function warnOfChanges(runFolder: string, config: RunConfig, checkpoint: string, onEvent: TrainOptions["onEvent"]): void {
  if (!existsSync(join(runFolder, "config.json"))) return;
  const changes = changedFields(readRunConfig(runFolder), config);
  const model = changes.filter((change) => change.startsWith("model."));
  if (model.length > 0) {
    throw new MoeError(
      "configuration",
      `${checkpoint}: the run began with another model (${model.join(", ")}); start a new run folder for it`,
    );
  }
  if (changes.length > 0) onEvent?.({ type: "warning", message: `resumed under a changed configuration: ${changes.join(", ")}` });
}

/** A position in the data means nothing in other data, and masters of bf16 weights are nowhere in an f32 run. */
function checkResumable(checkpoint: string, state: CheckpointState, config: RunConfig, data: RunData): void {
  const instead = `to go on from its weights, start a new run with model.from "${checkpoint}"`;
  if (state.precision !== config.precision) {
    throw new MoeError(
      "configuration",
      `${checkpoint}: saved with precision ${state.precision}, cannot resume with ${config.precision}; ${instead}`,
    );
  }
  if (state.dataFingerprint !== data.fingerprint) {
    const what = "the training text, the tokenizer, data.sequenceLength, data.documentMask or the seed changed since it was saved";
    throw new MoeError("configuration", `${checkpoint}: cannot resume, because ${what}; ${instead}`);
  }
}

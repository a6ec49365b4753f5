/**
 * A training run: a folder, and everything from a configuration to a trained model in it. The folder holds
 *   config.json      the complete configuration
 *   metrics.jsonl    one line a step, and one for every evaluation
 *   tokens/          the tokenized data, made once
 *   checkpoints/     step-<n>, each a model that every other command opens
 * `train` starts or resumes it; nothing else writes there.
 */
import { createHash } from "node:crypto";
import { appendFileSync, existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { copyTokenizer, loadTokenizer, tokenizerFiles } from "../checkpoint/tokenizer.ts";
import { fromHuggingFaceConfig } from "../config/model-huggingface.ts";
import { parseRunConfig, type DataSourceConfig, type RunConfig } from "../config/run.ts";
import { Dataset, prepareTokens, type EncodedConversation, type ChatMessage, type TokenFile } from "../data/index.ts";
import { Decoder, loadModel } from "../model/index.ts";
import type { Engine } from "../tensor/index.ts";
import { chatTokens } from "../tokenizer/chat.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { MoeError } from "../util/errors.ts";
import { removeTemporaries, systemError, writeFileAtomically } from "../util/files.ts";
import { checkVocabulary } from "./batch.ts";
import { listCheckpoints, pruneCheckpoints, readCheckpointState, readOptimizerTensors, saveCheckpoint, type TrainingState } from "./checkpoint.ts";
import { evaluate, type Evaluation } from "./evaluate.ts";
import { measurePeakFlops } from "./peak.ts";
import { Trainer, type StepMetrics } from "./trainer.ts";

export type TrainEvent =
  | { readonly type: "tokenizing"; readonly documents: number; readonly tokens: number }
  | { readonly type: "start"; readonly state: TrainingState; readonly numSteps: number; readonly peakFlops: number }
  | { readonly type: "step"; readonly metrics: StepMetrics; readonly secondsLeft: number }
  | { readonly type: "evaluation"; readonly step: number; readonly name: string; readonly evaluation: Evaluation }
  | { readonly type: "checkpoint"; readonly folder: string };

export interface TrainOptions {
  readonly engine: Engine;
  readonly config: RunConfig;
  readonly runFolder: string;
  /** Continue from the newest checkpoint of the folder. Without it, a folder that has checkpoints is an error. */
  readonly resume?: boolean;
  /** Aborted: the step under way is finished, a checkpoint saved, and `train` returns with `stopped`. */
  readonly signal?: AbortSignal;
  readonly onEvent?: (event: TrainEvent) => void;
}

export interface TrainResult {
  readonly state: TrainingState;
  /** Last evaluation of each validation set. */
  readonly evaluations: Readonly<Record<string, Evaluation>>;
  /** The last checkpoint. */
  readonly folder: string;
  /** True when the signal ended the run early. */
  readonly stopped: boolean;
}

/**
 * Runs a configuration to its last step. Throws `configuration`, `file`, `resource` (disk, a loss that is not finite).
 *
 * ```ts
 * const result = await train({ engine, config: parseRunConfig(recipe), runFolder: "runs/first" });
 * ```
 */
export async function train(options: TrainOptions): Promise<TrainResult> {
  const { config, runFolder, engine } = options;
  const checkpoint = startingPoint(options);
  const tokenizerFolder = config.tokenizer ?? config.model.from;
  if (tokenizerFolder === undefined) throw new MoeError("configuration", "run configuration: a new model (model.config) needs tokenizer, the folder of its tokenizer");
  const tokenizer = await loadTokenizer(tokenizerFolder);
  using data = await prepareData(options, tokenizer, tokenizerFolder);
  using model = openModel(engine, config, checkpoint);
  checkVocabulary(tokenizer.vocabSize, model.config.vocabSize, "run configuration");
  const state = checkpoint === null ? undefined : readCheckpointState(checkpoint);
  const peakFlops = measurePeakFlops(engine);
  using trainer = new Trainer(config, model, data.train, { peakFlops, ...(state === undefined ? {} : { state }) });
  if (checkpoint !== null && state !== undefined) {
    const { tensors } = trainer.optimizer.state();
    readOptimizerTensors(checkpoint, tensors);
    trainer.optimizer.loadState({ step: state.step, tensors });
    truncateMetrics(runFolder, state.step);
  }
  writeFileAtomically(join(runFolder, "config.json"), `${JSON.stringify(config, null, 2)}\n`);
  return await new Run(options, trainer, data.validation, (folder) => {
    copyTokenizer(tokenizerFolder, folder, tokenizer);
  }).toTheEnd();
}

/** The loop around the trainer's steps. */
class Run {
  readonly #options: TrainOptions;
  readonly #trainer: Trainer;
  readonly #validation: ReadonlyMap<string, Dataset>;
  readonly #writeTokenizer: (folder: string) => void;
  readonly #evaluations: Record<string, Evaluation> = {};
  readonly #metrics: string;

  constructor(options: TrainOptions, trainer: Trainer, validation: ReadonlyMap<string, Dataset>, writeTokenizer: (folder: string) => void) {
    this.#options = options;
    this.#trainer = trainer;
    this.#validation = validation;
    this.#writeTokenizer = writeTokenizer;
    this.#metrics = join(options.runFolder, "metrics.jsonl");
  }

  async toTheEnd(): Promise<TrainResult> {
    const { config, signal, onEvent } = this.#options;
    const trainer = this.#trainer;
    onEvent?.({ type: "start", state: trainer.state, numSteps: config.numSteps, peakFlops: trainer.peakFlops ?? 0 });
    let saved: string | null = null;
    const times: number[] = [];
    while (trainer.state.step < config.numSteps && signal?.aborted !== true) {
      const metrics = trainer.step();
      times.push(metrics.seconds);
      const recent = times.slice(-20);
      const secondsLeft = (recent.reduce((a, b) => a + b, 0) / recent.length) * (config.numSteps - metrics.step);
      if (metrics.step % config.logIntervalSteps === 0 || metrics.step === config.numSteps) this.#log({ type: "step", ...metrics });
      onEvent?.({ type: "step", metrics, secondsLeft });
      const { intervalSteps } = config.evaluation;
      if (intervalSteps > 0 && metrics.step % intervalSteps === 0 && metrics.step < config.numSteps) this.#evaluate();
      saved = null;
      if (config.checkpoint.intervalSteps > 0 && metrics.step % config.checkpoint.intervalSteps === 0) saved = this.#save();
      // Lets signals and streams be heard between steps.
      await new Promise((resolve) => setImmediate(resolve));
    }
    const stopped = trainer.state.step < config.numSteps;
    if (!stopped) this.#evaluate();
    saved ??= this.#save();
    return { state: trainer.state, evaluations: this.#evaluations, folder: saved, stopped };
  }

  #evaluate(): void {
    const { config, onEvent } = this.#options;
    const { step } = this.#trainer.state;
    for (const [name, dataset] of this.#validation) {
      const { maxSequences } = config.evaluation;
      const evaluation = evaluate(this.#trainer.model, dataset, { maxSequences, batchSequences: config.microBatchSequences });
      this.#evaluations[name] = evaluation;
      this.#log({ type: "evaluation", step, name, ...evaluation });
      onEvent?.({ type: "evaluation", step, name, evaluation });
    }
  }
  #save(): string {
    const { runFolder, config, onEvent } = this.#options;
    const { model, optimizer, state } = this.#trainer;
    const folder = saveCheckpoint(runFolder, { model, optimizer: optimizer.state().tensors, state, writeTokenizer: this.#writeTokenizer });
    pruneCheckpoints(runFolder, config.checkpoint.keep);
    onEvent?.({ type: "checkpoint", folder });
    return folder;
  }
  #log(record: object): void {
    try {
      appendFileSync(this.#metrics, `${JSON.stringify(record)}\n`);
    } catch (error) {
      throw systemError(this.#metrics, "a metrics file that can be appended to", error);
    }
  }
}

/** The checkpoint to resume from, or null for a fresh start. Makes the run folder. */
function startingPoint({ runFolder, resume = false }: TrainOptions): string | null {
  const newest = listCheckpoints(runFolder).at(-1) ?? null;
  if (newest !== null && !resume) {
    throw new MoeError("configuration", `${runFolder}: expected a new run folder, got one with checkpoints; resume it or choose another`);
  }
  try {
    mkdirSync(join(runFolder, "checkpoints"), { recursive: true });
    removeTemporaries(join(runFolder, "checkpoints"));
    if (newest === null) rmSync(join(runFolder, "metrics.jsonl"), { force: true });
  } catch (error) {
    throw systemError(runFolder, "a folder for the run", error);
  }
  return newest;
}

function openModel(engine: Engine, config: RunConfig, checkpoint: string | null): Decoder {
  const dtype = config.precision;
  if (checkpoint !== null) return loadModel(engine, checkpoint, { dtype, mapped: false });
  if (config.model.from !== undefined) return loadModel(engine, config.model.from, { dtype, mapped: false });
  return Decoder.initialize(engine, fromHuggingFaceConfig(config.model.config, "model.config"), { dtype, seed: config.seed });
}

class RunData implements Disposable {
  readonly train: Dataset;
  readonly validation: ReadonlyMap<string, Dataset>;
  readonly #files: readonly TokenFile[];

  constructor(train: Dataset, validation: ReadonlyMap<string, Dataset>, files: readonly TokenFile[]) {
    this.train = train;
    this.validation = validation;
    this.#files = files;
  }
  [Symbol.dispose](): void {
    for (const file of this.#files) file[Symbol.dispose]();
  }
}

async function prepareData({ config, runFolder, onEvent }: TrainOptions, tokenizer: Tokenizer, tokenizerFolder: string): Promise<RunData> {
  const folder = config.data.cacheDir ?? join(runFolder, "tokens");
  const files: TokenFile[] = [];
  const open = async (name: string, sources: readonly DataSourceConfig[], shuffle: boolean): Promise<Dataset> => {
    const file = await prepareTokens(join(folder, `${name}.tokens`), sources.map(asSource), {
      tokenizer,
      tokenizerFingerprint: tokenizerFingerprint(tokenizerFolder),
      ...(tokenizer.chatTemplate !== undefined && { encodeChat: (messages: readonly ChatMessage[]) => encodeConversation(tokenizer, messages) }),
      onProgress: ({ documents, tokens }) => onEvent?.({ type: "tokenizing", documents, tokens }),
    });
    files.push(file);
    const { sequenceLength, documentMask } = config.data;
    return new Dataset(file, { sequenceLength, documentMask, seed: config.seed, shuffle });
  };
  try {
    const train = await open("train", config.data.train, true);
    const validation = new Map<string, Dataset>();
    for (const [name, sources] of Object.entries(config.data.validation)) validation.set(name, await open(`validation-${safeName(name)}`, sources, false));
    return new RunData(train, validation, files);
  } catch (error) {
    for (const file of files) file[Symbol.dispose]();
    throw error;
  }
}

/** A conversation as its template renders it; only what the assistant wrote bears loss. */
function encodeConversation(tokenizer: Tokenizer, messages: readonly ChatMessage[]): EncodedConversation {
  const { ids, assistantMask } = chatTokens(tokenizer, messages.map(({ role, content }) => ({ role, content })));
  return { ids, mask: assistantMask };
}

function asSource({ path, format, field, separator }: DataSourceConfig): Parameters<typeof prepareTokens>[1][number] {
  return { path, ...(format && { format }), ...(field && { field }), ...(separator && { separator }) };
}
function safeName(name: string): string {
  if (!/^[\w.-]{1,64}$/.test(name) || name.startsWith(".")) throw new MoeError("configuration", `data.validation: expected names of letters, digits, ".", "_" and "-", got "${name}"`);
  return name;
}

function tokenizerFingerprint(folder: string): string {
  const hash = createHash("sha256");
  for (const name of tokenizerFiles) {
    const path = join(folder, name);
    if (existsSync(path)) hash.update(name).update(readFileSync(path));
  }
  if (existsSync(folder) && folder.endsWith(".gguf")) hash.update(folder);
  return hash.digest("hex");
}

/** Drops the metrics of steps after the checkpoint: they will be made again. A torn last line goes too. */
function truncateMetrics(runFolder: string, step: number): void {
  const path = join(runFolder, "metrics.jsonl");
  if (!existsSync(path)) return;
  const kept = readFileSync(path, "utf8")
    .split("\n")
    .filter((line) => {
      try {
        return (JSON.parse(line) as { step: number }).step <= step;
      } catch {
        return false;
      }
    });
  writeFileAtomically(path, kept.map((line) => `${line}\n`).join(""));
}

/** Configuration of an existing run. Throws `file` where there is none. */
export function readRunConfig(runFolder: string): RunConfig {
  const path = join(runFolder, "config.json");
  if (!existsSync(path)) throw new MoeError("file", `${path}: expected the configuration of a run, got no such file`);
  return parseRunConfig(JSON.parse(readFileSync(path, "utf8")), path);
}

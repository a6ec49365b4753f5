/**
 * The configuration of a training run: plain data, complete after parsing (what a run directory keeps as `config.json`).
 * Required fields have no default; a recipe is a function that returns one of these; `--set a.b=value` changes one field.
 */
import { z } from "zod";
import { MoeError } from "../util/errors.ts";
import { checkLayoutBatch, checkLayoutModel, completeLayout, layoutSchema, type Layout } from "./layout.ts";
import type { ModelConfig } from "./model.ts";
import { checkMoeTraining, completeMoeTraining, moeTrainingSchema, type CompleteMoeTraining } from "./run-moe.ts";
import { parseStrict } from "./strict.ts";

const positiveInteger = z.int().positive();

const dataSource = z.strictObject({
  /** Text, JSONL, chat JSONL or Parquet file. */
  path: z.string().min(1),
  format: z.enum(["text", "jsonl", "chat", "parquet"]).optional(),
  /** JSONL key or Parquet column of the text. */
  field: z.string().optional(),
  /** Plain text: the line between documents. */
  separator: z.string().optional(),
});

const schedule = z.strictObject({
  name: z.enum(["constant", "linear", "cosine", "wsd"]).default("cosine"),
  warmupSteps: z.int().nonnegative().default(0),
  /** WSD only: steps of the final decay. */
  decaySteps: z.int().nonnegative().default(0),
  /** WSD only: shape of the final decay. */
  decay: z.enum(["linear", "cosine", "sqrt"]).default("sqrt"),
  /** Where decay ends, as a fraction of the peak learning rate. */
  finalFraction: z.number().min(0).max(1).default(0.1),
});

export const runSchema = z.strictObject({
  model: z.strictObject({
    /** Checkpoint folder or GGUF file to start from. */
    from: z.string().optional(),
    /** Or: a configuration in the form of a Hugging Face config.json, initialized at random. */
    config: z.record(z.string(), z.unknown()).optional(),
  }),
  /** Folder or file of the tokenizer; default: the model's own. */
  tokenizer: z.string().optional(),
  /** Or: a byte-level BPE of this many ids, learned from the training text into the run folder. */
  newTokenizer: z.strictObject({ vocabSize: z.int().min(257) }).optional(),
  data: z.strictObject({
    train: z.array(dataSource).min(1),
    /** Named validation sets. */
    validation: z.record(z.string(), z.array(dataSource).min(1)).default({}),
    sequenceLength: positiveInteger,
    /** Attention and targets stop at document borders. */
    documentMask: z.boolean().default(true),
    /** Where tokenized files are kept; default: the run directory. */
    cacheDir: z.string().optional(),
  }),
  /** Sequences of one optimizer step, over all micro-batches. */
  batchSequences: positiveInteger,
  /** Sequences of one forward and backward pass (of one data-parallel rank). Must divide `batchSequences`. Default: all that a rank has. */
  microBatchSequences: positiveInteger.optional(),
  numSteps: positiveInteger,
  precision: z.enum(["f32", "bf16"]).default("f32"),
  seed: z.int().nonnegative().default(1),
  optimizer: z.strictObject({
    learningRate: z.number().positive(),
    beta1: z.number().min(0).lt(1).default(0.9),
    beta2: z.number().min(0).lt(1).default(0.95),
    epsilon: z.number().positive().default(1e-8),
    weightDecay: z.number().nonnegative().default(0.1),
    /** Global gradient norm is clipped to this; null: never. */
    clipNorm: z.number().positive().nullable().default(1),
  }),
  schedule: schedule.prefault({}),
  moe: moeTrainingSchema.prefault({}),
  /** How the run is spread over ranks (`layout.ts`). Default: one rank. */
  layout: layoutSchema.prefault({}),
  /** Decoder layers whose activations are recomputed in the backward pass. */
  recomputeLayers: z.int().nonnegative().default(0),
  evaluation: z
    .strictObject({
      /** 0: only at the end. */
      intervalSteps: z.int().nonnegative().default(0),
      /** Sequences of each validation set that are used. */
      maxSequences: positiveInteger.default(64),
    })
    .prefault({}),
  checkpoint: z
    .strictObject({
      /** 0: only at the end and on a signal. */
      intervalSteps: z.int().nonnegative().default(0),
      /** Newest checkpoints that are kept. */
      keep: positiveInteger.default(2),
    })
    .prefault({}),
  /** Texts written now and then, with the experts that took each token (`samples.jsonl`). */
  samples: z
    .strictObject({
      /** 0: never. Otherwise also before the first step. */
      intervalSteps: z.int().nonnegative().default(0),
      prompts: z.array(z.string()).max(64).default([""]),
      /** New tokens of each text. */
      maxTokens: positiveInteger.max(4096).default(48),
      /** 0: greedy. */
      temperature: z.number().nonnegative().default(0.8),
      topP: z.number().positive().max(1).default(0.95),
    })
    .prefault({}),
  logIntervalSteps: positiveInteger.default(1),
});

export type RunConfigInput = z.input<typeof runSchema>;
export type RunConfig = Readonly<z.output<typeof runSchema>> & {
  readonly microBatchSequences: number;
  readonly moe: CompleteMoeTraining;
};
export type DataSourceConfig = z.output<typeof dataSource>;

/** Checks and completes a run configuration. Throws `configuration` naming every problem. */
export function parseRunConfig(value: unknown, what = "run configuration"): RunConfig {
  const config = parseStrict(runSchema, value, what);
  const layout = completeLayout(config.layout, `${what}: layout`);
  if (layout.schedule === "zeroBubble") {
    throw new MoeError(
      "unsupported",
      `${what}: layout.schedule "zeroBubble" splits the backward pass, which is simulated, not run; use "1f1b" or "interleaved"`,
    );
  }
  if (config.batchSequences % layout.dp !== 0) {
    throw new MoeError("configuration", `${what}: layout.dp ${layout.dp} does not divide batchSequences ${config.batchSequences}`);
  }
  const microBatchSequences = config.layout.microBatchSequences ?? config.microBatchSequences ?? config.batchSequences / layout.dp;
  if (config.batchSequences % microBatchSequences !== 0) {
    throw new MoeError(
      "configuration",
      `${what}: microBatchSequences ${microBatchSequences} does not divide batchSequences ${config.batchSequences}`,
    );
  }
  if ((config.model.from === undefined) === (config.model.config === undefined)) {
    throw new MoeError("configuration", `${what}: give exactly one of model.from (a checkpoint) and model.config (a new model)`);
  }
  if (config.newTokenizer !== undefined && (config.tokenizer !== undefined || config.model.from !== undefined)) {
    const other =
      config.tokenizer === undefined ? `model.from "${config.model.from ?? ""}", which has its own` : `tokenizer "${config.tokenizer}"`;
    throw new MoeError("configuration", `${what}: newTokenizer contradicts ${other}`);
  }
  const { schedule: s, numSteps } = config;
  if (s.warmupSteps + s.decaySteps > numSteps) {
    throw new MoeError(
      "configuration",
      `${what}: schedule.warmupSteps ${s.warmupSteps} + decaySteps ${s.decaySteps} exceed numSteps ${numSteps}`,
    );
  }
  if (s.name !== "wsd" && s.decaySteps > 0) {
    throw new MoeError("configuration", `${what}: schedule.decaySteps ${s.decaySteps} needs schedule.name "wsd", got "${s.name}"`);
  }
  if (s.name === "wsd" && s.decaySteps === 0) {
    throw new MoeError("configuration", `${what}: schedule.name "wsd" needs schedule.decaySteps, got 0: it would be a constant schedule`);
  }
  const moe = completeMoeTraining(config.moe, microBatchSequences, what);
  const { batchSequences } = config;
  checkLayoutBatch(layout, { batchSequences, microBatchSequences, balanceGroupSequences: moe.balanceGroupSequences }, what);
  return { ...config, microBatchSequences, moe };
}

/** The layout of a run, complete. */
export function layoutOf({ layout }: Pick<RunConfig, "layout">): Layout {
  return completeLayout(layout, "run configuration: layout");
}

/**
 * Checks a run against the model that it trains: throws `configuration` for values that contradict it, returns a warning for
 * every option that has no effect on it.
 */
export function checkAgainstModel(config: RunConfig, model: ModelConfig): string[] {
  const { sequenceLength } = config.data;
  if (sequenceLength > model.maxPositions) {
    throw new MoeError(
      "configuration",
      `run configuration: data.sequenceLength ${sequenceLength} exceeds the model's max_position_embeddings ${model.maxPositions}`,
    );
  }
  if (config.samples.intervalSteps > 0 && config.samples.maxTokens >= model.maxPositions) {
    throw new MoeError(
      "configuration",
      `run configuration: samples.maxTokens ${config.samples.maxTokens} leaves no room for a prompt within the model's ${model.maxPositions} positions`,
    );
  }
  if (config.recomputeLayers > model.numLayers) {
    throw new MoeError(
      "configuration",
      `run configuration: recomputeLayers ${config.recomputeLayers} exceeds the model's ${model.numLayers} layers`,
    );
  }
  return [...checkMoeTraining(config.moe, model, sequenceLength), ...checkLayoutModel(layoutOf(config), model), ...ignoredOptions(config)];
}

/** Options that differ from their default and change nothing. */
function ignoredOptions({ schedule: s }: RunConfig): string[] {
  const defaults = schedule.parse({});
  const warnings: string[] = [];
  const ignored = (name: string, value: unknown, why: string): void => {
    warnings.push(`${name} ${JSON.stringify(value)} has no effect: ${why}`);
  };
  if (s.name === "constant" && s.finalFraction !== defaults.finalFraction)
    ignored("schedule.finalFraction", s.finalFraction, 'a "constant" schedule does not decay');
  if (s.name !== "wsd" && s.decay !== defaults.decay) ignored("schedule.decay", s.decay, `schedule.name is "${s.name}", not "wsd"`);
  return warnings;
}

/**
 * Applies `key=value` assignments with dotted keys; a value is JSON where it parses, otherwise text.
 * Returns a new object. Unknown keys are found by `parseRunConfig` afterwards.
 */
export function applySettings(config: unknown, settings: readonly string[]): unknown {
  if (typeof config !== "object" || config === null || Array.isArray(config)) {
    throw new MoeError("configuration", `run configuration: expected an object, got ${JSON.stringify(config)}`);
  }
  const result = structuredClone(config) as Record<string, unknown>;
  for (const setting of settings) {
    const at = setting.indexOf("=");
    if (at <= 0) throw new MoeError("usage", `--set ${setting}: expected key=value`);
    const path = setting.slice(0, at).split(".");
    let target: Record<string, unknown> = result;
    for (const key of path.slice(0, -1)) {
      const next = Object.hasOwn(target, key) ? target[key] : undefined;
      if (typeof next === "object" && next !== null) target = next as Record<string, unknown>;
      else {
        const created: Record<string, unknown> = {};
        Object.defineProperty(target, key, { value: created, enumerable: true, configurable: true, writable: true });
        target = created;
      }
    }
    const last = path.at(-1) ?? "";
    Object.defineProperty(target, last, {
      value: parsedValue(setting.slice(at + 1)),
      enumerable: true,
      configurable: true,
      writable: true,
    });
  }
  return result;
}

function parsedValue(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}

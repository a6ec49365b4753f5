/**
 * Checkpoints of a run: folders `checkpoints/step-<n>` that are a model in Hugging Face form (so every other command opens
 * them) with the rest of what resuming needs beside it:
 *   optimizer.safetensors  moments and f32 masters
 *   state.json             step, position in the data, totals; precision, adaptive coefficients, and a fingerprint of the data
 *   manifest.json          size and SHA-256 of each file, written last
 * A folder is written under a temporary name, flushed and renamed: a killed process never leaves one that loads wrongly.
 */
import { createHash } from "node:crypto";
import { closeSync, existsSync, readdirSync, readFileSync, renameSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { createSafetensors } from "../checkpoint/safetensors-writer.ts";
import { openSafetensors } from "../checkpoint/safetensors.ts";
import type { ModelConfig } from "../config/model.ts";
import { parameterSpecs, saveWholeModel, type ModelDType, type WholeTensor } from "../model/index.ts";
import { numElements } from "../tensor/index.ts";
import { fileError, MoeError } from "../util/errors.ts";
import { openForReading, readFully, systemError, temporaryName, writeDirectoryAtomically, writeFileAtomically } from "../util/files.ts";
import { optimizerNames, readParts, type TensorPart } from "./parallel/parts.ts";

/** What a checkpoint keeps besides tensors. */
export interface TrainingState {
  /** Optimizer steps done. */
  readonly step: number;
  /** Training sequences consumed: the position in the data. */
  readonly sequences: number;
  /** Loss-bearing tokens trained on. */
  readonly tokens: number;
  /** Model FLOPs spent, by `flopsPerToken`. */
  readonly flops: number;
  /** Wall-clock seconds of training, over all parts of the run. */
  readonly seconds: number;
}

/** What `state.json` holds. */
export interface CheckpointState {
  readonly training: TrainingState;
  readonly precision: "f32" | "bf16";
  /** Of the training sequences and their order. */
  readonly dataFingerprint: string;
  /** Adaptive coefficients of the auxiliary losses for the next step, one a layer with experts; null where there are none. */
  readonly coefficients: readonly number[] | null;
  /** Updates behind the optimizer's moments: more than `training.step` where an upcycling carried them over. */
  readonly optimizerStep: number;
}

const manifestName = "manifest.json";
const stateName = "state.json";
const optimizerName = "optimizer.safetensors";
const chunkBytes = 4 << 20;

export interface CheckpointContent {
  readonly config: ModelConfig;
  readonly dtype: ModelDType;
  /** By name: all parameters of the model, and all tensors of its optimizer, whoever holds them. */
  readonly tensors: ReadonlyMap<string, WholeTensor>;
  readonly state: CheckpointState;
  /** Puts the tokenizer into the folder. */
  readonly writeTokenizer: (folder: string) => void;
}

/** Writes `checkpoints/step-<n>` of a run and returns its path. Throws `resource` on a full disk; nothing is left then. */
export function saveCheckpoint(runFolder: string, content: CheckpointContent): string {
  const { config, dtype, tensors } = content;
  const folder = join(runFolder, "checkpoints", `step-${String(content.state.training.step).padStart(8, "0")}`);
  writeDirectoryAtomically(folder, (temporary) => {
    saveWholeModel({ config, dtype, parameters: tensors }, temporary);
    content.writeTokenizer(temporary);
    writeTensors(join(temporary, optimizerName), optimizerNames(parameterSpecs(config, dtype)), tensors);
    const { training, ...rest } = content.state;
    writeFileAtomically(join(temporary, stateName), `${JSON.stringify({ ...training, ...rest }, null, 2)}\n`);
    const files = Object.fromEntries(filesIn(temporary).map((name) => [name, fingerprint(join(temporary, name))]));
    writeFileAtomically(join(temporary, manifestName), `${JSON.stringify({ files }, null, 2)}\n`);
  });
  return folder;
}

function filesIn(folder: string): string[] {
  return readdirSync(folder)
    .filter((name) => name !== manifestName)
    .sort();
}

/** f32 tensors. Throws `internal` where one is missing. */
function writeTensors(path: string, names: readonly string[], tensors: ReadonlyMap<string, WholeTensor>): void {
  const chosen = names.map((name) => {
    const tensor = tensors.get(name);
    if (tensor?.dtype !== "f32") throw new MoeError("internal", `checkpoint: expected ${name} in f32, got ${tensor?.dtype ?? "nothing"}`);
    return [name, tensor] as const;
  });
  using writer = createSafetensors(
    path,
    chosen.map(([name, { shape }]) => ({ name, dtype: "F32" as const, shape })),
  );
  for (const [name, tensor] of chosen) {
    const byteLength = 4 * numElements(tensor.shape);
    for (let at = 0; at < byteLength; at += chunkBytes) {
      const chunk = new Uint8Array(Math.min(chunkBytes, byteLength - at));
      tensor.read(chunk, at);
      writer.write(name, chunk);
    }
  }
  writer.commit();
}

interface Fingerprint {
  readonly bytes: number;
  readonly sha256: string;
}

function fingerprint(path: string): Fingerprint {
  const { fd, size } = openForReading(path);
  try {
    const hash = createHash("sha256");
    const chunk = new Uint8Array(Math.min(chunkBytes, size));
    for (let at = 0; at < size; at += chunk.length) {
      const part = chunk.subarray(0, Math.min(chunk.length, size - at));
      readFully(fd, part, at, path);
      hash.update(part);
    }
    return { bytes: size, sha256: hash.digest("hex") };
  } finally {
    closeSync(fd);
  }
}

/** Checkpoint folders of a run, oldest first. */
export function listCheckpoints(runFolder: string): string[] {
  const parent = join(runFolder, "checkpoints");
  if (!existsSync(parent)) return [];
  return readdirSync(parent)
    .filter((name) => /^step-\d{8,}$/.test(name) && statSync(join(parent, name)).isDirectory())
    .sort((a, b) => Number(a.slice(5)) - Number(b.slice(5)))
    .map((name) => join(parent, name));
}

/** Removes all but the newest `keep` checkpoints of a run. Each loses its name first, so that none is ever half there. */
export function pruneCheckpoints(runFolder: string, keep: number): void {
  for (const folder of listCheckpoints(runFolder).slice(0, -keep)) {
    const doomed = temporaryName(folder);
    try {
      renameSync(folder, doomed);
      rmSync(doomed, { recursive: true, force: true });
    } catch (error) {
      throw systemError(folder, "an old checkpoint that can be removed", error);
    }
  }
}

/**
 * Verifies a checkpoint against its manifest and returns its state. Throws `file` naming what does not match; an older
 * checkpoint of the run may still be whole.
 */
export function readCheckpointState(folder: string): CheckpointState {
  const manifest = readJson(join(folder, manifestName)) as { files?: Record<string, Fingerprint> } | null;
  const files = manifest?.files ?? {};
  for (const name of [stateName, optimizerName, "config.json"]) {
    if (files[name] === undefined) throw fileError(join(folder, manifestName), `an entry for ${name}`, "none");
  }
  for (const [name, expected] of Object.entries(files)) {
    const path = join(folder, name);
    if (!existsSync(path))
      throw fileError(path, `the file of ${expected.bytes} bytes that ${manifestName} lists`, `no such file${remedy(folder)}`);
    const { bytes, sha256 } = fingerprint(path);
    if (bytes !== expected.bytes || sha256 !== expected.sha256) {
      const got = `${bytes} bytes with ${sha256}${remedy(folder)}`;
      throw fileError(path, `${expected.bytes} bytes with SHA-256 ${expected.sha256}, from ${manifestName}`, got);
    }
  }
  return readState(join(folder, stateName));
}

function remedy(folder: string): string {
  return `; the checkpoint is damaged: remove ${folder} to resume from the one before it`;
}

function readState(path: string): CheckpointState {
  const {
    precision,
    dataFingerprint,
    coefficients = null,
    optimizerStep: updates,
    ...training
  } = readJson(path) as Record<string, unknown>;
  for (const key of ["step", "sequences", "tokens", "flops", "seconds"]) {
    if (typeof training[key] !== "number") throw fileError(path, `a number "${key}"`, JSON.stringify(training[key]) ?? "none");
  }
  if (precision !== "f32" && precision !== "bf16") throw fileError(path, '"precision" f32 or bf16', JSON.stringify(precision) ?? "none");
  if (typeof dataFingerprint !== "string") throw fileError(path, '"dataFingerprint"', JSON.stringify(dataFingerprint) ?? "none");
  if (coefficients !== null && !(Array.isArray(coefficients) && coefficients.every(Number.isFinite)))
    throw fileError(path, '"coefficients", a list of numbers or null', JSON.stringify(coefficients));
  // Checkpoints of before say nothing: their optimizers began with the run.
  const optimizerStep = updates ?? training["step"];
  if (typeof optimizerStep !== "number") throw fileError(path, 'a number "optimizerStep"', JSON.stringify(updates));
  return {
    training: training as unknown as TrainingState,
    precision,
    dataFingerprint,
    coefficients: coefficients as number[] | null,
    optimizerStep,
  };
}

/** Fills this rank's parts of optimizer tensors from a checkpoint, written under whatever layout. Throws `file` when names or shapes differ. */
export function readOptimizerTensors(folder: string, parts: Iterable<TensorPart>): void {
  using file = openSafetensors(join(folder, optimizerName));
  readParts(file, parts);
}

/**
 * Fills optimizer tensors with the state that an upcycling carried over into the model folder `folder` (`optimizer.json`,
 * `optimizer.safetensors`), and gives the number of updates behind it; null, and nothing is changed, where it carried none. Masters
 * that the file does not have stay as they are made from the weights.
 */
export function readCarriedOptimizer(folder: string, parts: readonly TensorPart[]): number | null {
  const path = join(folder, "optimizer.json");
  if (!existsSync(path)) return null;
  const { step } = readJson(path) as { step?: unknown };
  if (typeof step !== "number" || !Number.isSafeInteger(step) || step < 0)
    throw fileError(path, 'a whole number "step"', JSON.stringify(step) ?? "none");
  using file = openSafetensors(join(folder, optimizerName));
  readParts(
    file,
    parts.filter(({ name }) => !name.endsWith(".master") || file.tensors.has(name)),
  );
  return step;
}

function readJson(path: string): unknown {
  if (!existsSync(path)) throw fileError(path, "part of a checkpoint", "no such file");
  try {
    return JSON.parse(readFileSync(path, "utf8")) as unknown;
  } catch (error) {
    throw fileError(path, "JSON", "text that does not parse", error);
  }
}

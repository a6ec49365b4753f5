/**
 * Sparse upcycling (arXiv 2212.05055; Skywork-MoE, arXiv 2406.06563, section 3): a dense checkpoint becomes a MoE checkpoint.
 * Which tensor is made how is `recipe.ts`, the making `maker.ts`, what pairs of families are possible `pairs.ts`.
 *
 * Streams: memory is that of the largest expert matrix and a few megabytes whatever the size of the model. The output grows in
 * `<out>.partial`, where a killed run is continued (`partial.ts`); it takes its name when it is whole, with a receipt
 * (`upcycling.json`) written last.
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { resolveModelPath } from "../checkpoint/model-path.ts";
import { planModelWeights, planSafetensors, type PlannedFile, type TensorDeclaration } from "../checkpoint/safetensors-writer.ts";
import { toHuggingFaceConfig } from "../config/model-huggingface.ts";
import { numActiveParams, numParams } from "../config/model-counts.ts";
import type { ModelConfig } from "../config/model.ts";
import { generationConfig, openModelSource, type ModelDType, type ModelSource } from "../model/index.ts";
import { MoeError } from "../util/errors.ts";
import { writeFileAtomically } from "../util/files.ts";
import { fileDtype, TensorMaker } from "./maker.ts";
import { openOptimizer, optimizerFile, optimizerTensors, trainedState, type OptimizerSource } from "./optimizer.ts";
import type { UpcycleOptions } from "./options.ts";
import { PartialFolder } from "./partial.ts";
import type { Probe } from "./probe.ts";
import { outputTensors, type OutputTensor, type Recipe } from "./recipe.ts";
import { costRule, expectedMemory, routingWarnings, type CostRule, type ExpectedMemory } from "./report.ts";
import { planTarget, type Exactness, type UpcycleTargetPlan } from "./target.ts";

/** Where one tensor of the output came from. */
export interface TensorOrigin {
  readonly name: string;
  readonly shape: readonly number[];
  /** `copied` as it is, `expert` made of a dense network's matrix, `router`, or `new` (zeros, normals). */
  readonly origin: "copied" | "expert" | "router" | "new";
  /** Tensor of the source, for copies and experts. */
  readonly source: string | null;
  /** 0: the dense model; from 1 on: the model of that number among `expertSources`. */
  readonly sourceModel: number | null;
  /** SHA-256 of the bytes written. */
  readonly sha256: string;
}

export interface UpcycleReceipt {
  readonly source: string;
  readonly sourceArchitecture: string;
  readonly architecture: string;
  /** Complete: every default filled in. */
  readonly options: UpcycleTargetPlan["options"] & { readonly dtype: ModelDType };
  readonly numParamsBefore: number;
  readonly numParamsAfter: number;
  /** Parameters that one token uses. */
  readonly numActiveParams: number;
  readonly exactness: Exactness;
  /** Comparison with the dense model on the probe text, and its routing; null where it was not asked for. */
  readonly maxOutputGap: number | null;
  readonly meanOutputGap: number | null;
  readonly probe: Probe | null;
  readonly warnings: readonly string[];
  readonly memory: ExpectedMemory;
  readonly cost: CostRule;
  /** Updates that the carried optimizer state has behind it; null where it starts anew. */
  readonly optimizerStep: number | null;
  /** Tensors that a run that was killed had left whole. */
  readonly numTensorsResumed: number;
  readonly tensors: readonly TensorOrigin[];
}

export interface UpcycleExtras {
  /** Router rows [copies, H] of a layer with experts, for `router.type` prompts (`promptRouterRows`). */
  readonly promptRows?: (layer: number) => Float32Array;
  /** Runs on the folder when all but the receipt is in it; what it gives goes into the receipt (`probeUpcycled`). */
  readonly probe?: (folder: string) => Probe;
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
}

/**
 * Writes the upcycled model of `densePath` (a folder with safetensors, or a GGUF file) into `outFolder`, which must not exist.
 * `copyTokenizer` is called with the unfinished folder. A run that was killed, or met a full disk, is continued by the same call.
 * Throws `usage` where `outFolder` exists, `configuration` (impossible pairs and options, with the failing check), `file`, `resource`.
 */
export function upcycle(
  densePath: string,
  outFolder: string,
  options: UpcycleOptions,
  copyTokenizer: (folder: string) => void = () => undefined,
  extras: UpcycleExtras = {},
): UpcycleReceipt {
  if (existsSync(outFolder)) throw new MoeError("usage", `upcycle: ${outFolder}: expected a folder that does not exist yet`);
  using job = new Job(densePath, options, extras);
  mkdirSync(dirname(outFolder), { recursive: true });
  const partial = new PartialFolder(outFolder, job.files, job.fingerprint);
  try {
    const receipt = job.run(partial, copyTokenizer);
    writeFileAtomically(join(partial.folder, "upcycling.json"), `${JSON.stringify(receipt, null, 2)}\n`);
    partial.publish();
    return receipt;
  } catch (error) {
    // What a full disk interrupted goes on from where it is; after any other error the same would happen again.
    if (!(error instanceof MoeError && error.kind === "resource")) partial.remove();
    else throw new MoeError("resource", `${error.message}; ${partial.folder} stays: the same command continues it`, { cause: error });
    throw error;
  } finally {
    partial[Symbol.dispose]();
  }
}

/** One upcycling: sources open, everything decided, nothing written. */
class Job implements Disposable {
  readonly files: readonly PlannedFile[];
  readonly fingerprint: string;
  readonly #path: string;
  readonly #sources: ModelSource[] = [];
  readonly #optimizer: OptimizerSource | null = null;
  readonly #plan: UpcycleTargetPlan;
  readonly #dtype: ModelDType;
  readonly #index: string | null;
  readonly #outputs: readonly OutputTensor[];
  readonly #numModelTensors: number;
  readonly #extras: UpcycleExtras;

  constructor(path: string, options: UpcycleOptions, extras: UpcycleExtras) {
    this.#path = path;
    this.#extras = extras;
    try {
      const dense = openModelSource(path);
      this.#sources.push(dense);
      this.#plan = planTarget(dense.config, options);
      const { options: checked } = this.#plan;
      this.#dtype = checked.dtype ?? (dense.storedAs === "BF16" ? "bf16" : "f32");
      for (const source of checked.expertSources) this.#sources.push(openExpertSource(source, dense));
      if (checked.optimizer === "carry") {
        if (checked.expertSources.length > 0)
          throw new MoeError("configuration", "upcycle: optimizer carry with expertSources: the moments belong to the dense model only");
        this.#optimizer = openOptimizer(path, dense.config);
      }
      const model = outputTensors(dense.config, this.#plan, this.#dtype);
      const state =
        this.#optimizer === null ? [] : optimizerTensors(dense.config, this.#plan, this.#dtype, this.#optimizer, this.#sources.length);
      this.#outputs = [...model, ...state];
      this.#numModelTensors = model.length;
      const planned = planModelWeights(model.map(declared), { maxShardBytes: checked.maxShardBytes });
      this.#index = planned.index;
      this.files = state.length === 0 ? planned.files : [...planned.files, planSafetensors(optimizerFile, state.map(declared))];
      this.fingerprint = this.#fingerprint();
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** Of everything that the output depends on: sources by name, size and time, options, and this format's version. */
  #fingerprint(): string {
    const sources = [this.#path, ...this.#plan.options.expertSources].map(sourceFiles);
    const tensors = this.#outputs.map(({ name, shape, dtype, recipe }) => [name, shape, dtype, recipe]);
    const hash = createHash("sha256").update(
      JSON.stringify({ version: 1, sources, config: this.#plan.config, options: this.#plan.options, tensors }),
    );
    if (this.#extras.promptRows !== undefined) {
      for (const { recipe } of this.#outputs) if (recipe.type === "router") hash.update(this.#extras.promptRows(recipe.layer));
    }
    return hash.digest("hex");
  }

  /** Writes everything but the receipt. */
  run(partial: PartialFolder, copyTokenizer: (folder: string) => void): UpcycleReceipt {
    const { config } = this.#plan;
    const { folder } = partial;
    this.#writeTensors(partial);
    partial.finishWeights(this.files);
    if (this.#index !== null) writeFileAtomically(join(folder, "model.safetensors.index.json"), this.#index);
    if (this.#optimizer !== null)
      writeFileAtomically(join(folder, "optimizer.json"), `${JSON.stringify({ step: this.#optimizer.step })}\n`);
    copyTokenizer(folder);
    writeFileAtomically(join(folder, "generation_config.json"), `${JSON.stringify(generationConfig(config), null, 2)}\n`);
    // Last of what makes it a model.
    const stored = this.#dtype === "f32" ? "float32" : "bfloat16";
    writeFileAtomically(join(folder, "config.json"), `${JSON.stringify(toHuggingFaceConfig(config, stored), null, 2)}\n`);
    return this.#receipt(partial, this.#extras.probe?.(folder) ?? null);
  }

  #writeTensors(partial: PartialFolder): void {
    const { options, config } = this.#plan;
    const readers = [...this.#sources, ...(this.#optimizer === null ? [] : [this.#optimizer.reader])];
    const maker = new TensorMaker({ readers, options, hiddenSize: config.hiddenSize, promptRows: this.#extras.promptRows ?? null });
    const totalBytes = this.files.reduce((sum, file) => sum + file.totalBytes, 0);
    let doneBytes = 0;
    let known: { matrix: string; hashes: Map<string, string> } = { matrix: "", hashes: new Map() };
    for (const [index, output] of this.#outputs.entries()) {
      const bytes = output.shape.reduce((a, b) => a * b, 1) * (output.dtype === "f32" ? 4 : 2);
      if (index >= partial.numResumed) {
        const key = TensorMaker.contentKey(output);
        // Experts of one matrix follow one another: hashes of another's are of no more use.
        const matrix = output.recipe.type === "expert" ? output.recipe.name : "";
        if (matrix !== known.matrix) known = { matrix, hashes: new Map() };
        const make = (write: (bytes: Uint8Array) => void): void => {
          maker.make(output, write);
        };
        const hash = partial.write(output.name, make, key === null ? null : (known.hashes.get(key) ?? null));
        if (key !== null) known.hashes.set(key, hash);
      }
      doneBytes += bytes;
      this.#extras.onProgress?.(doneBytes, totalBytes);
    }
  }

  #receipt(partial: PartialFolder, probe: Probe | null): UpcycleReceipt {
    const { config, options, exactness } = this.#plan;
    const dense = denseConfig(this.#sources);
    const denseTokens = options.denseTokens ?? trainedState(this.#path)?.tokens ?? null;
    return {
      source: this.#path,
      sourceArchitecture: dense.architecture,
      architecture: config.architecture,
      options: { ...options, dtype: this.#dtype },
      numParamsBefore: numParams(dense),
      numParamsAfter: numParams(config),
      numActiveParams: numActiveParams(config),
      exactness,
      maxOutputGap: probe?.maxOutputGap ?? null,
      meanOutputGap: probe?.meanOutputGap ?? null,
      probe,
      warnings: probe === null ? [] : routingWarnings(probe.routing, options.numExperts),
      memory: expectedMemory(config),
      cost: costRule(dense, config, denseTokens, options.budgetTokens),
      optimizerStep: this.#optimizer?.step ?? null,
      numTensorsResumed: partial.numResumed,
      tensors: this.#outputs.slice(0, this.#numModelTensors).map(({ name, shape, recipe }, i) => {
        return { name, shape, ...originOf(recipe), sha256: partial.hashes[i] ?? "" };
      }),
    };
  }

  [Symbol.dispose](): void {
    for (const source of this.#sources) source[Symbol.dispose]();
    this.#optimizer?.[Symbol.dispose]();
  }
}

function denseConfig([dense]: readonly ModelSource[]): ModelConfig {
  if (dense === undefined) throw new MoeError("internal", "upcycle: no source");
  return dense.config;
}
function declared({ name, shape, dtype }: OutputTensor): TensorDeclaration {
  return { name, dtype: fileDtype(dtype), shape };
}
function originOf(recipe: Recipe): Pick<TensorOrigin, "origin" | "source" | "sourceModel"> {
  if (recipe.type === "copy") return { origin: "copied", source: recipe.name, sourceModel: recipe.from };
  if (recipe.type === "expert") return { origin: "expert", source: recipe.name, sourceModel: recipe.from };
  return { origin: recipe.type === "router" ? "router" : "new", source: null, sourceModel: null };
}

/** Another dense model that experts are taken from: everything that shapes its tensors or its computation is the first one's. */
function openExpertSource(path: string, dense: ModelSource): ModelSource {
  const source = openModelSource(path);
  // Where they stop and how they were initialized is no part of what they compute.
  const compared = ({
    bosTokenId: _bos,
    eosTokenIds: _eos,
    padTokenId: _pad,
    initStd: _std,
    maxPositions: _max,
    ...config
  }: ModelConfig): [string, string][] => Object.entries(config).map(([key, value]) => [key, JSON.stringify(value)]);
  const others = new Map(compared(source.config));
  const different = compared(dense.config).filter(([key, value]) => others.get(key) !== value);
  if (different.length === 0) return source;
  source[Symbol.dispose]();
  const text = different.map(([key, value]) => `${key} ${value} and ${others.get(key) ?? "none"}`).join(", ");
  throw new MoeError("configuration", `upcycle: check expertSources.architecture failed: ${dense.path} and ${path} differ in ${text}`);
}

/** Files of a model with sizes and times: what tells a source that changed. */
function sourceFiles(path: string): (string | number)[][] {
  const found = resolveModelPath(path);
  const files =
    found.format === "gguf"
      ? [found.file]
      : readdirSync(found.folder)
          .filter((name) => name === "config.json" || name.endsWith(".safetensors"))
          .sort()
          .map((name) => join(found.folder, name));
  return files.map((file) => {
    const { size, mtimeMs } = statSync(file);
    return [file, size, mtimeMs];
  });
}

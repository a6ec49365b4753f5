/**
 * The whole loop on a small real text, on the machine at hand: tokenizer, a dense model, upcycling to 8 experts top-2, proof
 * that the MoE computes what the dense model does, then training on: the MoE, and for comparison the dense model, once with
 * the same tokens and once with the same training FLOPs. Same data order, same schedule, and each its own learning rate.
 * Whatever comes out is reported as it is.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { flopsPerToken, numActiveParams, numParams } from "../config/model-counts.ts";
import { toHuggingFaceConfig } from "../config/model-huggingface.ts";
import { modelPresets } from "../config/model-presets.ts";
import type { ModelConfig } from "../config/model.ts";
import { parseRunConfig, type RunConfig, type RunConfigInput } from "../config/run.ts";
import { generateText } from "../generate/index.ts";
import { loadModel } from "../model/index.ts";
import type { Engine } from "../tensor/index.ts";
import { copyTokenizer, loadTokenizer, writeTokenizerFiles } from "../checkpoint/tokenizer.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { trainByteBpe } from "../tokenizer/train.ts";
import { train, type Evaluation, type StepMetrics, type TrainEvent, type TrainResult } from "../train/index.ts";
import { upcycle, upcycledConfig, upcycleGap } from "../upcycle/index.ts";
import { MoeError } from "../util/errors.ts";
import { writeFileAtomically } from "../util/files.ts";
import { writeCorpus, type Corpus } from "./corpus.ts";

export interface QuickstartOptions {
  readonly engine: Engine;
  readonly runFolder: string;
  /** Size of the job: `full` takes one to three minutes on two cores, `smoke` seconds (for tests). */
  readonly size?: "full" | "smoke";
  readonly seed?: number;
  readonly signal?: AbortSignal;
  readonly onEvent?: (event: QuickstartEvent) => void;
}

export type QuickstartPhase = "dense" | "moe" | "dense, equal tokens" | "dense, equal FLOPs";
export type QuickstartEvent =
  | { readonly type: "note"; readonly text: string }
  | { readonly type: "train"; readonly phase: QuickstartPhase; readonly event: TrainEvent };

export interface QuickstartSample {
  readonly model: "dense" | "moe" | "dense longer";
  readonly text: string;
}

/** What `moe quickstart --json` prints. Losses in nats a token on the same held-out addresses. */
export interface QuickstartSummary {
  readonly engine: string;
  readonly isa: string;
  readonly numThreads: number;
  readonly denseValLoss: number;
  readonly denseValLossError: number;
  /** The dense model trained on with as many tokens as the MoE. */
  readonly denseLongerValLoss: number;
  readonly denseLongerValLossError: number;
  /** The dense model trained on with as many FLOPs as the MoE. */
  readonly denseEqualFlopsValLoss: number;
  readonly denseEqualFlopsValLossError: number;
  readonly moeValLoss: number;
  readonly moeValLossError: number;
  /** Largest absolute difference of logits over the largest absolute logit, MoE before training against dense. */
  readonly upcycleMaxGap: number;
  readonly numParams: number;
  readonly numActiveParams: number;
  readonly denseNumParams: number;
  readonly steps: { readonly dense: number; readonly moe: number; readonly denseEqualFlops: number };
  readonly tokensPerStep: number;
  /** Fraction of assignments of each expert over the last steps, by layer. */
  readonly expertLoad: readonly { readonly layer: number; readonly load: readonly number[] }[];
  readonly samples: readonly QuickstartSample[];
  readonly seconds: number;
  readonly runDir: string;
}

interface Plan {
  readonly denseSteps: number;
  readonly moeSteps: number;
  readonly batchSequences: number;
  readonly sequenceLength: number;
  readonly validationSequences: number;
  readonly sampleTokens: number;
}

/** WebAssembly and the reference are slower than native: fewer steps, so that the job stays within its minutes. */
function planFor(engine: Engine, size: "full" | "smoke"): Plan {
  const shape = { batchSequences: 8, sequenceLength: 128, validationSequences: 192, sampleTokens: 80 };
  if (size === "smoke")
    return { denseSteps: 6, moeSteps: 4, batchSequences: 4, sequenceLength: 64, validationSequences: 8, sampleTokens: 8 };
  if (engine.backend.name === "native") return { ...shape, denseSteps: 480, moeSteps: 160 };
  return { ...shape, denseSteps: 150, moeSteps: 50, validationSequences: 64 };
}

const numExperts = 8;
const topK = 2;
/** Peak rates: the best of 3, 6, 8 and 12e-3 for the dense model, and of 2, 4, 6 and 9e-3 for both when they train on. */
const learningRates = { dense: 6e-3, denseLonger: 4e-3, moe: 4e-3 } as const;

/** Runs it all in `runFolder`. Throws `configuration` when the folder holds a run already, `resource` when aborted. */
export async function quickstart(options: QuickstartOptions): Promise<QuickstartSummary> {
  const { engine, runFolder, size = "full", seed = 1 } = options;
  const started = performance.now();
  const plan = planFor(engine, size);
  const note = (text: string): void => options.onEvent?.({ type: "note", text });
  const corpus = writeCorpus(join(runFolder, "data"));
  const config: ModelConfig = { ...modelPresets.quickstart, maxPositions: Math.max(plan.sequenceLength, 512) };
  note(`${corpus.numDocuments} State of the Union addresses, ${(corpus.numCharacters / 1e6).toFixed(1)} million characters`);
  const tokenizerFolder = join(runFolder, "tokenizer");
  makeTokenizer(corpus, config.vocabSize, tokenizerFolder);
  const tokenizer = await loadTokenizer(tokenizerFolder);
  note(`byte-level BPE of ${tokenizer.vocabSize} tokens, trained on them`);
  const job = new Job(options, plan, corpus, tokenizerFolder, seed);

  const dense = await job.train("dense", { config: toHuggingFaceConfig(config, "float32") }, plan.denseSteps, learningRates.dense);
  const denseFolder = dense.folder;
  const upcycledFolder = join(runFolder, "upcycled");
  upcycle(denseFolder, upcycledFolder, { numExperts, topK, seed }, (folder) => {
    copyTokenizer(denseFolder, folder, tokenizer);
  });
  const upcycleMaxGap = gapBetween(engine, denseFolder, upcycledFolder, tokenizer, corpus);
  const moeConfig = upcycledConfig(config, { numExperts, topK });
  note(
    `upcycled to ${numExperts} experts, top-${topK}: ${numParams(moeConfig)} parameters, ${numActiveParams(moeConfig)} active; largest logit difference ${upcycleMaxGap.toExponential(1)}`,
  );

  const ratio = flopsPerToken(moeConfig, plan.sequenceLength) / flopsPerToken(config, plan.sequenceLength);
  const equalFlopsSteps = Math.round(plan.moeSteps * ratio);
  const moe = await job.train("moe", { from: upcycledFolder }, plan.moeSteps, learningRates.moe);
  const expertLoad = job.expertLoad();
  const longer = await job.train("dense, equal tokens", { from: denseFolder }, plan.moeSteps, learningRates.denseLonger);
  const equalFlops = await job.train("dense, equal FLOPs", { from: denseFolder }, equalFlopsSteps, learningRates.denseLonger);

  const before = validationOf(dense);
  const [moeEvaluation, longerEvaluation, equalEvaluation] = [validationOf(moe), validationOf(longer), validationOf(equalFlops)];
  const summary: QuickstartSummary = {
    engine: engine.backend.name,
    isa: engine.backend.isa,
    numThreads: engine.backend.numThreads,
    denseValLoss: before.loss,
    denseValLossError: before.standardError,
    denseLongerValLoss: longerEvaluation.loss,
    denseLongerValLossError: longerEvaluation.standardError,
    denseEqualFlopsValLoss: equalEvaluation.loss,
    denseEqualFlopsValLossError: equalEvaluation.standardError,
    moeValLoss: moeEvaluation.loss,
    moeValLossError: moeEvaluation.standardError,
    upcycleMaxGap,
    numParams: numParams(moeConfig),
    numActiveParams: numActiveParams(moeConfig),
    denseNumParams: numParams(config),
    steps: { dense: plan.denseSteps, moe: plan.moeSteps, denseEqualFlops: equalFlopsSteps },
    tokensPerStep: plan.batchSequences * plan.sequenceLength,
    expertLoad,
    samples: [
      { model: "dense", text: sample(engine, denseFolder, tokenizer, plan.sampleTokens) },
      { model: "moe", text: sample(engine, moe.folder, tokenizer, plan.sampleTokens) },
      { model: "dense longer", text: sample(engine, longer.folder, tokenizer, plan.sampleTokens) },
    ],
    seconds: (performance.now() - started) / 1000,
    runDir: runFolder,
  };
  writeFileAtomically(join(runFolder, "summary.json"), `${JSON.stringify(summary, null, 2)}\n`);
  return summary;
}

/** The training runs of one quickstart: what they share, and what the last one reported. */
class Job {
  readonly #options: QuickstartOptions;
  readonly #plan: Plan;
  readonly #corpus: Corpus;
  readonly #tokenizerFolder: string;
  readonly #seed: number;
  #lastSteps: StepMetrics[] = [];

  constructor(options: QuickstartOptions, plan: Plan, corpus: Corpus, tokenizerFolder: string, seed: number) {
    this.#options = options;
    this.#plan = plan;
    this.#corpus = corpus;
    this.#tokenizerFolder = tokenizerFolder;
    this.#seed = seed;
  }

  async train(phase: QuickstartPhase, model: RunConfigInput["model"], numSteps: number, learningRate: number): Promise<TrainResult> {
    const { engine, runFolder, signal, onEvent } = this.#options;
    this.#lastSteps = [];
    const result = await train({
      engine,
      config: this.#config(phase, model, numSteps, learningRate),
      runFolder: join(runFolder, phase.replaceAll(/[^a-z]+/gi, "-").toLowerCase()),
      ...(signal && { signal }),
      onEvent: (event) => {
        if (event.type === "step") this.#lastSteps = [...this.#lastSteps.slice(-15), event.metrics];
        onEvent?.({ type: "train", phase, event });
      },
    });
    if (result.stopped) throw new MoeError("resource", `quickstart: stopped during "${phase}"; what was finished is in ${runFolder}`);
    return result;
  }
  #config(phase: QuickstartPhase, model: RunConfigInput["model"], numSteps: number, learningRate: number): RunConfig {
    const { batchSequences, sequenceLength, validationSequences } = this.#plan;
    const input: RunConfigInput = {
      model,
      tokenizer: this.#tokenizerFolder,
      data: {
        train: [{ path: this.#corpus.trainPath }],
        validation: { validation: [{ path: this.#corpus.validationPath }] },
        sequenceLength,
        cacheDir: join(this.#options.runFolder, "data"),
      },
      batchSequences,
      numSteps,
      // The runs that follow the dense one all see the same new order.
      seed: phase === "dense" ? this.#seed : this.#seed + 1,
      optimizer: { learningRate },
      schedule: { name: "cosine", warmupSteps: Math.min(20, Math.floor(numSteps / 10)), finalFraction: 0.1 },
      evaluation: { maxSequences: validationSequences },
      checkpoint: { keep: 1 },
      // What the dashboard shows of experts beside their loads. Takes no random numbers of the run.
      ...(phase === "moe" && {
        moe: { similarityInterval: Math.ceil(numSteps / 4) },
        samples: {
          intervalSteps: Math.ceil(numSteps / 4),
          prompts: ["The people of the United States"],
          maxTokens: Math.min(40, sequenceLength / 2),
        },
      }),
    };
    return parseRunConfig(input, `quickstart, ${phase}`);
  }

  /** Mean expert load of the last run's last steps. */
  expertLoad(): { layer: number; load: number[] }[] {
    const steps = this.#lastSteps;
    return (steps.at(-1)?.layers ?? []).map(({ layer, load }, index) => ({
      layer,
      load: load.map((_, expert) => steps.reduce((sum, step) => sum + (step.layers[index]?.load[expert] ?? 0), 0) / steps.length),
    }));
  }
}

function makeTokenizer(corpus: Corpus, vocabSize: number, folder: string): void {
  const eosToken = "<|endoftext|>";
  mkdirSync(folder, { recursive: true });
  writeTokenizerFiles(trainByteBpe(corpus.trainTexts, { vocabSize, specialTokens: [eosToken], eosToken }), folder);
}

function gapBetween(engine: Engine, denseFolder: string, moeFolder: string, tokenizer: Tokenizer, corpus: Corpus): number {
  using dense = loadModel(engine, denseFolder);
  using moe = loadModel(engine, moeFolder);
  return upcycleGap(dense, moe, tokenizer.encode(corpus.trainTexts[0]?.slice(0, 2000) ?? "").subarray(0, 256)).maxGap;
}

function sample(engine: Engine, folder: string, tokenizer: Tokenizer, maxTokens: number): string {
  using model = loadModel(engine, folder);
  return generateText(model, tokenizer, "The people of the United States", { maxTokens, temperature: 0.7, topP: 0.9, seed: 1 }).text;
}

function validationOf(result: TrainResult): Evaluation {
  const evaluation = result.evaluations["validation"];
  if (evaluation === undefined) throw new MoeError("internal", "quickstart: a run without a validation loss");
  return evaluation;
}

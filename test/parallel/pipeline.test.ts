/** Pipelines over real ranks: the passes of a step give the bits of one rank, hold what the schedule says, and end when a rank does. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { loadBackend } from "../../src/backend/load.ts";
import { fromHuggingFaceConfig } from "../../src/config/model-huggingface.ts";
import { parseRunConfig, type RunConfigInput } from "../../src/config/run.ts";
import { Dataset } from "../../src/data/index.ts";
import { Decoder } from "../../src/model/index.ts";
import { startRanks } from "../../src/parallel/index.ts";
import { Engine } from "../../src/tensor/index.ts";
import { noHooks, SequentialExecutor } from "../../src/train/executor.ts";
import type { MicroResult } from "../../src/train/micro-step.ts";
import { joinResults } from "../../src/train/parallel/pipeline.ts";
import { pipelineSchedule } from "../../src/util/pipeline-schedule.ts";
import { tinyModel, tinyRun, unevenTokens } from "../train/harness.ts";
import { microInputs, type PipelineJob, type PipelineOutcome } from "./pipeline-job.ts";

const folder = mkdtempSync(join(tmpdir(), "moe-pipeline-"));
unevenTokens(folder)[Symbol.dispose]();
const tokens = join(folder, "uneven.tokens");
const engine = new Engine(await loadBackend({ numThreads: 1 }));
afterAll(() => {
  expect(engine.backend.liveBytes).toBe(0);
  engine[Symbol.dispose]();
  rmSync(folder, { recursive: true, force: true });
});
/** Threads start slowly on a machine that others use. */
const patience = 120_000;

type Changes = Partial<Omit<PipelineJob, "run">> & { readonly run?: Partial<RunConfigInput>; readonly hf?: Record<string, unknown> };

/** Seven layers with experts, capacity per sequence, noise, six micro-batches of unequal numbers of targets. */
function jobOf({ run, hf, ...rest }: Changes): PipelineJob {
  const moe = { capacityFactor: 1, balanceGroupSequences: 1, jitterEpsilon: 0.01, zLossCoefficient: 0.001, auxiliaryLossCoefficient: 0.01 };
  return {
    model: { ...tinyModel("skywork"), num_hidden_layers: 7, ...hf },
    run: { ...tinyRun(folder, "skywork"), batchSequences: 6, microBatchSequences: 1, moe, ...run },
    layout: {},
    dtype: "f32",
    tokens,
    ...rest,
  };
}

interface Expected {
  readonly results: readonly MicroResult[];
  readonly gradients: ReadonlyMap<string, Float32Array>;
}
/** The same step on one rank. */
function oneRank({ model, run, dtype }: PipelineJob): Expected {
  const config = parseRunConfig(run);
  using file = unevenTokens(folder);
  using decoder = Decoder.initialize(engine, fromHuggingFaceConfig(model, "test"), { dtype, seed: 1 });
  const inputs = microInputs(new Dataset(file, { sequenceLength: 32, seed: 1 }), config, decoder.config.numLayers);
  const results = new SequentialExecutor(decoder, config).run(inputs, noHooks);
  const gradients = new Map<string, Float32Array>();
  for (const [name, { parameter }] of decoder.parameters) if (parameter?.grad) gradients.set(name, parameter.grad.toFloat32Array());
  return { results, gradients };
}
async function ranks(job: PipelineJob, size: number, timeoutMs = patience): Promise<PipelineOutcome[]> {
  const entry = new URL("./pipeline-rank.ts", import.meta.url);
  return (await startRanks({ size, entry, data: job, backend: { numThreads: 1 }, timeoutMs }).results) as PipelineOutcome[];
}

test.each<readonly [string, number, Changes]>([
  ["2 ranks, 7 layers as [4, 3]", 2, { layout: { pp: 2 } }],
  [
    "3 ranks, 7 layers as [2, 4, 1], each stage with its own count of recomputed layers",
    3,
    { layout: { pp: 3, layers: [2, 4, 1], recompute: [2, 1, 0] } },
  ],
  ["2 ranks, interleaved, 3 stages each", 2, { layout: { pp: 2, interleave: 3, schedule: "interleaved", layers: [1, 1, 2, 1, 1, 1] } }],
  ["4 ranks, fewer micro-batches than ranks", 4, { layout: { pp: 4 }, run: { microBatchSequences: 2 } }],
  ["2 ranks, bf16", 2, { layout: { pp: 2 }, dtype: "bf16", run: { precision: "bf16" } }],
  ["2 ranks, recompute by the run's count", 2, { layout: { pp: 2 }, run: { recomputeLayers: 5 } }],
])(
  "%s: losses, routing and gradients have the bits of one rank",
  async (_, size, changes) => {
    const job = jobOf(changes);
    const outcomes = await ranks(job, size);
    const expected = oneRank(job);
    for (const [microBatch, result] of expected.results.entries()) {
      const parts = outcomes.flatMap(({ results }) => results[microBatch] ?? []);
      expect(joinResults(parts)).toEqual(result);
    }
    const gradients = new Map(outcomes.flatMap((outcome) => outcome.gradients.map(([, name, values]) => [name, values] as const)));
    expect([...gradients.keys()].toSorted()).toEqual([...expected.gradients.keys()].toSorted());
    for (const [name, values] of expected.gradients) expect(gradients.get(name), name).toEqual(values);
    for (const { leaked } of outcomes) expect(leaked).toBe(0);
  },
  patience,
);

test(
  "a tied embedding gets two parts of its gradient, on the first and on the last stage",
  async () => {
    const job = jobOf({ layout: { pp: 2 }, hf: { tie_word_embeddings: true } });
    const outcomes = await ranks(job, 2);
    const expected = oneRank(job).gradients.get("embedding.weight") ?? new Float32Array();
    const parts = outcomes.map(({ gradients }) => gradients.find(([, name]) => name === "embedding.weight")?.[2] ?? new Float32Array());
    for (const [i, value] of expected.entries())
      expect(Math.abs((parts[0]?.[i] ?? NaN) + (parts[1]?.[i] ?? NaN) - value)).toBeLessThan(2e-6);
  },
  patience,
);

test(
  "a rank runs what the schedule says in its order, and holds nothing after the step but gradients",
  async () => {
    const layout = { pp: 2, interleave: 2, schedule: "interleaved" } as const;
    const outcomes = await ranks(jobOf({ layout }), 2);
    const schedule = pipelineSchedule({ name: "interleaved", numRanks: 2, numMicroBatches: 6, stagesPerRank: 2 });
    for (const [rank, { operations }] of outcomes.entries()) {
      const passes = operations.filter((text) => /^(forward|backward) /.test(text));
      expect(passes).toEqual(schedule[rank]?.map(({ kind, stage, microBatch }) => `${kind} ${stage} ${microBatch}`));
    }
    // The table of rotations of the first step: 32 positions of 8 pairs of f32, a stage.
    const [first] = outcomes;
    for (const { liveAfterStep } of outcomes) expect(liveAfterStep).toBe(first?.liveAfterStep);
    expect(first?.liveAfterStep).toBeLessThan(20_000);
  },
  patience,
);

test(
  "an error in one stage ends every rank and comes out with its rank",
  async () => {
    await expect(ranks(jobOf({ layout: { pp: 3 }, failing: 1 }), 3)).rejects.toThrow(/rank 1: .*stage 1 breaks/);
  },
  patience,
);

test(
  "a schedule that splits the backward pass is refused before anybody waits",
  async () => {
    await expect(ranks(jobOf({ layout: { pp: 2, schedule: "zeroBubble" } }), 2)).rejects.toThrow(/simulated, not run; use "1f1b"/);
  },
  patience,
);

/** What the lab's runs left behind, read back: curves of the validation loss and of what routers did. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { seeds } from "./experiments.ts";
import { interval, type Interval } from "./statistics.ts";

export interface LayerRecord {
  readonly layer: number;
  readonly dropRate: number;
  readonly coefficient: number;
  readonly max1OverMax2: number;
  readonly max2OverMax3: number;
}
export interface StepRecord {
  readonly type: "step";
  readonly step: number;
  readonly loss: number;
  readonly seconds: number;
  readonly layers: readonly LayerRecord[];
}
interface EvaluationRecord {
  readonly type: "evaluation";
  readonly step: number;
  readonly loss: number;
}
interface SimilarityRecord {
  readonly type: "similarity";
  readonly step: number;
  readonly layers: readonly { readonly weights: { readonly mean: number } }[];
}
export interface RunRecord {
  readonly validation: ReadonlyMap<number, number>;
  readonly steps: readonly StepRecord[];
  /** Mean pairwise cosine of the experts' weights by step, mean over layers. */
  readonly similarity: ReadonlyMap<number, number>;
  /** Folder of the last checkpoint. */
  readonly folder: string;
}

/** One run. A step that was repeated after a resume counts once, as it was last. */
export function readRun(out: string, experiment: string, seed: number): RunRecord {
  const runFolder = join(out, `${experiment}-seed${seed}`);
  const validation = new Map<number, number>();
  const steps = new Map<number, StepRecord>();
  const similarity = new Map<number, number>();
  for (const line of readFileSync(join(runFolder, "metrics.jsonl"), "utf8").trim().split("\n")) {
    const record = JSON.parse(line) as EvaluationRecord | StepRecord | SimilarityRecord;
    if (record.type === "evaluation") validation.set(record.step, record.loss);
    if (record.type === "step") steps.set(record.step, record);
    if (record.type === "similarity") similarity.set(record.step, meanOf(record.layers.map(({ weights }) => weights.mean)));
  }
  const { folder } = JSON.parse(readFileSync(join(runFolder, "result.json"), "utf8")) as { folder: string };
  return { validation, steps: [...steps.values()].sort((a, b) => a.step - b.step), similarity, folder };
}

export function readSeeds(out: string, experiment: string): RunRecord[] {
  return seeds.map((seed) => readRun(out, experiment, seed));
}

/** Validation loss of each seed after `step` (null: the last). */
export function lossesAt(runs: readonly RunRecord[], step: number | null): number[] {
  return runs.map(({ validation }) => (step === null ? [...validation.values()].at(-1) : validation.get(step)) ?? Number.NaN);
}

/** Mean of a layer's value over all layers (or one) and the last `count` steps, for each seed. */
export function lateMean(runs: readonly RunRecord[], value: (layer: LayerRecord) => number | undefined, count = 64): number[] {
  return runs.map(({ steps }) => {
    const values = steps.slice(-count).flatMap(({ layers }) => layers.map(value).filter((x) => x !== undefined));
    return meanOf(values);
  });
}
/** The last measured similarity of experts, of each seed. */
export function lastSimilarity(runs: readonly RunRecord[]): number[] {
  return runs.map(({ similarity }) => [...similarity.values()].at(-1) ?? Number.NaN);
}
function meanOf(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0) / values.length;
}

export interface CurvePoint {
  readonly x: number;
  readonly y: number;
  readonly half: number;
}
function point(x: number, values: readonly number[]): CurvePoint {
  const { mean, half }: Interval = interval(values);
  return { x, y: mean, half };
}
/** Validation loss by step, mean over seeds. */
export function validationCurve(runs: readonly RunRecord[]): CurvePoint[] {
  return [...(runs[0]?.validation.keys() ?? [])].map((step) => point(step, lossesAt(runs, step)));
}
/** Similarity of experts by step, mean over seeds. */
export function similarityCurve(runs: readonly RunRecord[]): CurvePoint[] {
  return [...(runs[0]?.similarity.keys() ?? [])].map((step) =>
    point(
      step,
      runs.map(({ similarity }) => similarity.get(step) ?? Number.NaN),
    ),
  );
}
/** A layer's value by step, averaged over windows of `window` steps and over layers (or the layers of `only`), mean over seeds. */
export function layerCurve(
  runs: readonly RunRecord[],
  value: (layer: LayerRecord) => number | undefined,
  { window = 16, only }: { window?: number; only?: number } = {},
): CurvePoint[] {
  const numSteps = runs[0]?.steps.length ?? 0;
  const curve: CurvePoint[] = [];
  for (let from = 0; from + window <= numSteps; from += window) {
    const perSeed = runs.map(({ steps }) => {
      const inWindow = steps.slice(from, from + window).flatMap(({ layers }) => layers);
      const values = inWindow.filter(({ layer }) => only === undefined || layer === only).flatMap((layer) => value(layer) ?? []);
      return meanOf(values);
    });
    if (perSeed.every(Number.isFinite)) curve.push(point(from + window, perSeed));
  }
  return curve;
}

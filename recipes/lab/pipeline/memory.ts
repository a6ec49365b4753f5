/**
 * Peak memory of stages under counts of recomputed layers. Under 1F1B stage s holds P - s micro-batches, so the first needs most, and one count for
 * all stages recomputes in the last what would have fitted. A stage's peak depends on its own count only: runs with the same count everywhere
 * measure all there is to choose from.
 */
import { numLayers } from "./model.ts";
import { LabSession } from "./session.ts";

export interface MemoryResult {
  readonly numStages: number;
  readonly numMicroBatches: number;
  /** peaks[count][stage]: bytes, every stage recomputing `count` of its layers. */
  readonly peaks: readonly (readonly number[])[];
  readonly limitBytes: number;
  /** The least count of each stage under the limit, and what its ranks then measured. */
  readonly counts: readonly number[];
  readonly countsPeaks: readonly number[];
  /** The least count for all stages under the limit; null: none fits. */
  readonly evenCount: number | null;
}

/** Layers of a stage: all stages have the same number here. */
const numStages = 4;
const perStage = numLayers / numStages;

/** The limit is a little below what the first stage takes with half of its layers recomputed, so that this count, if even, breaks it. */
export async function measureMemory(numMicroBatches: number): Promise<MemoryResult> {
  const even = Array.from({ length: perStage + 1 }, (_, count) => Array<number>(numStages).fill(count));
  const peaks = await peaksOf(even, numMicroBatches);
  const middle = peaks[perStage >> 1]?.[0] ?? 0;
  const limitBytes = Math.floor(0.98 * middle);
  const fits = (stage: number): number => peaks.findIndex((of) => (of[stage] ?? Infinity) <= limitBytes);
  const counts = Array.from({ length: numStages }, (_, stage) => fits(stage));
  if (counts.includes(-1)) throw new Error(`no count of recomputed layers fits ${limitBytes} bytes`);
  const [countsPeaks = []] = await peaksOf([counts], numMicroBatches);
  const evenIndex = peaks.findIndex((of) => of.every((bytes) => bytes <= limitBytes));
  return { numStages, numMicroBatches, peaks, limitBytes, counts, countsPeaks, evenCount: evenIndex < 0 ? null : evenIndex };
}

/** Peaks of each stage, for each list of counts: of a session of its own, in its second step, when nothing is made any more. */
async function peaksOf(recomputes: readonly (readonly number[])[], numMicroBatches: number): Promise<number[][]> {
  const peaks: number[][] = [];
  for (const recompute of recomputes) {
    const session = await LabSession.start(numStages, 1, [{ layout: { pp: numStages, recompute: [...recompute] }, numMicroBatches }]);
    await session.step(0);
    const steps = await session.step(0);
    peaks.push(steps.map(({ peakBytes }) => peakBytes));
    await session.end();
  }
  return peaks;
}

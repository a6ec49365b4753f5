/**
 * How a row of the benchmark is measured: both sides in one run, taking turns (A B A B ...), one computing at a time, after a
 * warm-up of each; what is reported is the median of a side's samples.
 *
 * Between two turns there is a pause. PyTorch's and llama.cpp's OpenMP threads spin for some milliseconds after their last parallel
 * loop, and they are left to do so, because telling them not to would slow them down inside a step; the pause lets them fall asleep
 * before the other side starts. Our own threads sleep after a quarter of a millisecond.
 *
 * Nothing here knows what is measured.
 */
import { setTimeout as sleep } from "node:timers/promises";

/** Milliseconds between turns: libgomp spins for up to about 10. */
const pauseMs = 30;

/** One line of `--json`. Samples are rates (larger is better), except where `unit` is one of `smallerIsBetter` or a share. */
export interface Row {
  readonly name: string;
  readonly ours: readonly number[];
  /** Empty where the rival did not run: see `note`. */
  readonly rival: readonly number[];
  readonly unit: "GFLOP/s" | "GB/s" | "tokens/s" | "rows/s" | "bytes" | "ms" | "perplexity" | "share";
  /** What median(ours) / median(rival) must reach; where smaller is better, what it must not exceed; for a share, what median(ours) itself must not exceed. Null where the rival did not run and the bar needs it. */
  readonly bar: number | null;
  /** What the machine can do at most, in the same unit, sampled between the turns. */
  readonly roof?: readonly number[];
  /** Further rivals, or the same in another precision. */
  readonly others?: Readonly<Record<string, readonly number[]>>;
  readonly note?: string;
}

/** Units of which less is better. */
export function smallerIsBetter(unit: Row["unit"]): boolean {
  return unit === "bytes" || unit === "ms" || unit === "perplexity";
}

/** Who takes turns. `sample` runs once and returns a rate. */
export interface Side {
  readonly sample: () => number | Promise<number>;
}

export interface Effort {
  /** Samples of each side. */
  readonly samples: number;
  /** Turns of each side that do not count. */
  readonly warmups: number;
  /** Least length of one sample of a short operation. */
  readonly sampleSeconds: number;
}

export const efforts = {
  full: { samples: 7, warmups: 2, sampleSeconds: 0.04 },
  quick: { samples: 3, warmups: 1, sampleSeconds: 0.01 },
} as const satisfies Record<string, Effort>;

/** Samples of every side, in the sides' order. */
export async function interleave(sides: readonly Side[], { samples, warmups }: Pick<Effort, "samples" | "warmups">): Promise<number[][]> {
  const taken = sides.map((): number[] => []);
  for (let round = -warmups; round < samples; round++) {
    for (const [index, side] of sides.entries()) {
      const value = await side.sample();
      if (round >= 0) taken[index]?.push(value);
      await sleep(pauseMs);
    }
  }
  return taken;
}

/** Median; NaN of nothing. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2;
}

/** Calls that make one sample last at least `seconds`, from the time of one call. */
export function callsFor(seconds: number, oneCall: number): number {
  return Math.max(1, Math.min(10_000, Math.ceil(seconds / Math.max(oneCall, 1e-7))));
}

/** Seconds that `calls` calls of `fn` take. */
export function timeCalls(fn: () => void, calls: number): number {
  const started = performance.now();
  for (let i = 0; i < calls; i++) fn();
  return (performance.now() - started) / 1000;
}

/** Of several series of samples, the one with the larger median (the faster of two ways to run the same rival). */
export function fastest(series: readonly (readonly number[])[]): readonly number[] {
  let best: readonly number[] = [];
  for (const samples of series) if (samples.length > 0 && !(median(samples) <= median(best))) best = samples;
  return best;
}

/** What three seeds say: means with 95% intervals (Student's t), and differences paired by seed. */

/** Two-sided 95% quantiles of Student's t by degrees of freedom, from 1. */
const quantiles = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262] as const;

export interface Interval {
  readonly mean: number;
  /** Half the width of the 95% interval; NaN of fewer than two values. */
  readonly half: number;
}

/** Mean and 95% interval. */
export function interval(values: readonly number[]): Interval {
  const n = values.length;
  const mean = values.reduce((a, b) => a + b, 0) / n;
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1);
  return { mean, half: n < 2 ? Number.NaN : (quantiles[n - 2] ?? 1.96) * Math.sqrt(variance / n) };
}

/** Interval of a - b by seed. */
export function difference(a: readonly number[], b: readonly number[]): Interval {
  return interval(a.map((value, i) => value - (b[i] ?? Number.NaN)));
}

export type Verdict = "reproduces" | "contradicted" | "not resolved";

/** What an interval says of the claim that the value is below 0. */
export function below0({ mean, half }: Interval): Verdict {
  if (mean + half < 0) return "reproduces";
  return mean - half > 0 ? "contradicted" : "not resolved";
}
/** `1.234 ± 0.005`. */
export function text({ mean, half }: Interval, digits = 4): string {
  return `${mean.toFixed(digits)} ± ${half.toFixed(digits)}`;
}

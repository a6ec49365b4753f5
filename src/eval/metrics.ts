/** From the values of samples to the numbers that are reported, with their standard errors. */
import { MoeError } from "../util/errors.ts";
import type { Aggregation, MetricValue } from "./task.ts";

export function mean(values: readonly number[]): number {
  return values.reduce((sum, x) => sum + x, 0) / values.length;
}

/** Standard error of a mean: sample deviation (n - 1) over the root of n. `N/A` for fewer than two values. */
export function meanStandardError(values: readonly number[]): number | "N/A" {
  if (values.length < 2) return "N/A";
  const mu = mean(values);
  return Math.sqrt(values.reduce((sum, x) => sum + (x - mu) ** 2, 0) / (values.length - 1)) / Math.sqrt(values.length);
}

/** A metric over all samples. Perplexities are exp(-total log-likelihood / total count), so long texts weigh more. */
export function aggregate(aggregation: Aggregation, values: readonly MetricValue[]): { value: number; standardError: number | "N/A" } {
  if (aggregation === "mean") {
    const numbers = values.map((value) => {
      if (typeof value === "number") return value;
      throw new MoeError("internal", "metrics: a mean of weighted values");
    });
    return { value: mean(numbers), standardError: meanStandardError(numbers) };
  }
  let [total, count] = [0, 0];
  for (const value of values) {
    if (typeof value === "number") throw new MoeError("internal", "metrics: a weighted mean of plain values");
    total += value[0];
    count += value[1];
  }
  const value = aggregation === "weighted_perplexity" ? Math.exp(-total / count) : -total / count / Math.LN2;
  return { value, standardError: "N/A" };
}

/** Mean of means, weighted by samples. */
export function weightedMean(values: readonly number[], sizes: readonly number[]): number {
  const total = sizes.reduce((sum, n) => sum + n, 0);
  return values.reduce((sum, x, i) => sum + x * (sizes[i] ?? 0), 0) / total;
}

/** Standard error of such a mean, from the pooled variance of the parts. `N/A` where a part has none. */
export function pooledStandardError(errors: readonly (number | "N/A")[], sizes: readonly number[]): number | "N/A" {
  const total = sizes.reduce((sum, n) => sum + n, 0);
  let variance = 0;
  for (const [i, error] of errors.entries()) {
    const n = sizes[i] ?? 0;
    if (error === "N/A") return "N/A";
    variance += (n - 1) * error ** 2 * n;
  }
  return Math.sqrt(variance / (total - sizes.length) / total);
}
/** Probability that one of k draws without replacement from n samples with c right ones is right (arXiv 2107.03374, equation 1). */
export function passAtK(n: number, c: number, k: number): number {
  let allWrong = 1;
  for (let i = n - c + 1; i <= n; i++) allWrong *= 1 - k / i;
  return n - c < k ? 1 : 1 - allWrong;
}

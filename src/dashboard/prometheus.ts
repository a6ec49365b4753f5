/** Readings of a served model from two texts of its `/metrics`: differences of counters, quantiles of histograms' differences. */
import type { MaybeNumber, ServerReading } from "./api.ts";

/** Samples by name and labels as written, e.g. `moe_expert_tokens_total{layer="0",expert="3"}`. */
export type Samples = ReadonlyMap<string, number>;

const maxLines = 200_000;

/** Parses Prometheus' text format; lines that are none are passed over. */
export function parseSamples(text: string): Samples {
  const samples = new Map<string, number>();
  for (const line of text.split("\n", maxLines)) {
    if (line.startsWith("#") || line === "") continue;
    const at = line.lastIndexOf(" ");
    const value = Number(line.slice(at + 1));
    if (at > 0 && Number.isFinite(value)) samples.set(line.slice(0, at), value);
  }
  return samples;
}

/** Expert counts of `moe_expert_tokens_total`: layer to counts. */
function expertCounts(samples: Samples): Map<number, number[]> {
  const layers = new Map<number, number[]>();
  for (const [name, value] of samples) {
    if (!name.startsWith("moe_expert_tokens_total{")) continue;
    const layer = Number(/layer="(\d{1,6})"/.exec(name)?.[1]);
    const expert = Number(/expert="(\d{1,6})"/.exec(name)?.[1]);
    if (Number.isNaN(layer) || Number.isNaN(expert) || expert > 4096) continue;
    const counts = layers.get(layer) ?? [];
    counts[expert] = value;
    layers.set(layer, counts);
  }
  return new Map([...layers].toSorted(([a], [b]) => a - b));
}

/** Quantile `q` of what a histogram counted between two readings, by linear interpolation within its bucket; null where it counted nothing. */
export function histogramQuantile(before: Samples | null, now: Samples, name: string, q: number): MaybeNumber {
  const buckets: { bound: number; count: number }[] = [];
  for (const [key, value] of now) {
    if (!key.startsWith(`${name}_bucket{`)) continue;
    const bound = /le="([^"]+)"/.exec(key)?.[1] ?? "";
    buckets.push({ bound: bound === "+Inf" ? Infinity : Number(bound), count: value - (before?.get(key) ?? 0) });
  }
  buckets.sort((a, b) => a.bound - b.bound);
  const total = buckets.at(-1)?.count ?? 0;
  if (total <= 0) return null;
  const rank = q * total;
  const index = buckets.findIndex(({ count }) => count >= rank);
  const [bucket, below] = [buckets[index], buckets[index - 1]];
  if (bucket === undefined) return null;
  const lower = below?.bound ?? 0;
  // Beyond the last bound nothing is known but that it is larger.
  if (!Number.isFinite(bucket.bound)) return lower;
  const inside = bucket.count - (below?.count ?? 0);
  return inside <= 0 ? bucket.bound : lower + ((bucket.bound - lower) * (rank - (below?.count ?? 0))) / inside;
}

/** What happened between two readings, `seconds` apart; `before` is null for the first. */
export function readingOf(before: Samples | null, now: Samples, { time, seconds }: { time: number; seconds: number }): ServerReading {
  const gauge = (name: string): number => now.get(name) ?? 0;
  const restarted = before !== null && (now.get("moe_engine_steps_total") ?? 0) < (before.get("moe_engine_steps_total") ?? 0);
  const earlier = restarted ? null : before;
  const rate = (name: string): MaybeNumber =>
    earlier === null || seconds <= 0 ? null : Math.max(0, gauge(name) - (earlier.get(name) ?? 0)) / seconds;
  const quantiles = (name: string): { p50: MaybeNumber; p95: MaybeNumber } => ({
    p50: histogramQuantile(earlier, now, name, 0.5),
    p95: histogramQuantile(earlier, now, name, 0.95),
  });
  const countsBefore = earlier === null ? new Map<number, number[]>() : expertCounts(earlier);
  return {
    time,
    running: gauge("moe_requests_running"),
    waiting: gauge("moe_requests_waiting"),
    cacheUsage: gauge("moe_kv_cache_usage_ratio"),
    generatedPerSecond: rate("moe_generated_tokens_total"),
    promptPerSecond: rate("moe_prompt_tokens_total"),
    timeToFirstToken: quantiles("moe_time_to_first_token_seconds"),
    interTokenLatency: quantiles("moe_inter_token_latency_seconds"),
    experts: [...expertCounts(now)].map(([layer, counts]) => {
      const total = Array.from(counts, (count) => count ?? 0);
      const from = countsBefore.get(layer);
      return { layer, total, tokens: total.map((count, expert) => Math.max(0, count - (from?.[expert] ?? 0))) };
    }),
  };
}

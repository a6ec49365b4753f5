/** What `/metrics` tells Prometheus. Counters of the engine are those that its thread reported last; asking never waits for it. */
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from "prom-client";
import type { EngineClient } from "./engine-client.ts";
import { imbalance } from "./expert-recorder.ts";
import type { EngineStats } from "./protocol.ts";

const latencyBuckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

export class ServerMetrics {
  readonly registry = new Registry();
  readonly requests: Counter<"route" | "status">;
  readonly rejected: Counter<"reason">;
  readonly duration: Histogram<"route">;
  readonly timeToFirstToken: Histogram;
  readonly interTokenLatency: Histogram;
  readonly finished: Counter<"reason">;

  constructor(engine: EngineClient) {
    const registers = [this.registry];
    collectDefaultMetrics({ register: this.registry, prefix: "moe_" });
    this.requests = new Counter({ name: "moe_http_requests_total", help: "Requests answered", labelNames: ["route", "status"], registers });
    this.rejected = new Counter({ name: "moe_requests_rejected_total", help: "Requests turned away", labelNames: ["reason"], registers });
    this.finished = new Counter({ name: "moe_answers_total", help: "Answers made, by how they ended", labelNames: ["reason"], registers });
    this.duration = new Histogram({
      name: "moe_request_duration_seconds",
      help: "From a request's arrival to the end of its answer",
      labelNames: ["route"],
      buckets: latencyBuckets,
      registers,
    });
    this.timeToFirstToken = new Histogram({
      name: "moe_time_to_first_token_seconds",
      help: "From a request's arrival to its first token",
      buckets: latencyBuckets,
      registers,
    });
    this.interTokenLatency = new Histogram({
      name: "moe_inter_token_latency_seconds",
      help: "Between two tokens of an answer",
      buckets: latencyBuckets,
      registers,
    });
    this.#engineGauges(engine);
    this.#engineCounters(engine);
    this.#expertLoad(engine);
  }

  #engineGauges(engine: EngineClient): void {
    const gauge = (name: string, help: string, read: (stats: EngineStats) => number): void => {
      this.registry.registerMetric(
        new Gauge({
          name,
          help,
          registers: [],
          collect() {
            this.set(read(engine.stats));
          },
        }),
      );
    };
    gauge("moe_requests_running", "Answers that the engine makes at the moment", ({ running }) => running);
    gauge("moe_requests_waiting", "Answers that wait for a place", ({ waiting }) => waiting);
    gauge("moe_kv_cache_usage_ratio", "Share of the KV cache's blocks that answers use", ({ blocksUsed, blocksTotal }) =>
      blocksTotal === 0 ? 0 : blocksUsed / blocksTotal,
    );
    gauge("moe_kv_cache_blocks", "Blocks of the KV cache", ({ blocksTotal }) => blocksTotal);
    gauge("moe_kv_cache_idle_blocks", "Blocks kept for prompts that may begin the same way", ({ blocksIdle }) => blocksIdle);
    gauge("moe_tensor_bytes", "Bytes of tensors that are alive", ({ liveBytes }) => liveBytes);
  }
  #engineCounters(engine: EngineClient): void {
    const counter = (name: string, help: string, read: (stats: EngineStats) => number): void => {
      this.registry.registerMetric(
        new Counter({
          name,
          help,
          registers: [],
          collect() {
            this.reset();
            this.inc(read(engine.stats));
          },
        }),
      );
    };
    counter("moe_prompt_tokens_total", "Prompt tokens of requests that began", ({ promptTokens }) => promptTokens);
    counter("moe_prefix_cache_hit_tokens_total", "Those of them that the prefix cache had", ({ cachedPromptTokens }) => cachedPromptTokens);
    counter("moe_generated_tokens_total", "New tokens", ({ generatedTokens }) => generatedTokens);
    counter("moe_computed_tokens_total", "Tokens that passed through the model", ({ computedTokens }) => computedTokens);
    counter("moe_engine_steps_total", "Forward passes", ({ steps }) => steps);
    counter("moe_preemptions_total", "Answers that gave their blocks back and began again", ({ preemptions }) => preemptions);
    counter("moe_draft_tokens_total", "Guessed tokens", ({ draftedTokens }) => draftedTokens);
    counter("moe_draft_accepted_tokens_total", "Guessed tokens that were right", ({ acceptedTokens }) => acceptedTokens);
  }
  #expertLoad(engine: EngineClient): void {
    this.registry.registerMetric(
      new Counter({
        name: "moe_expert_tokens_total",
        help: "Tokens that each expert got",
        labelNames: ["layer", "expert"],
        registers: [],
        collect() {
          this.reset();
          for (const [layer, counts] of engine.experts)
            for (const [expert, count] of counts.entries()) this.inc({ layer: String(layer), expert: String(expert) }, count);
        },
      }),
    );
    this.registry.registerMetric(
      new Gauge({
        name: "moe_expert_imbalance_ratio",
        help: "Load of the busiest expert over the mean load, by layer",
        labelNames: ["layer"],
        registers: [],
        collect() {
          for (const [layer, counts] of engine.experts) this.set({ layer: String(layer) }, imbalance(counts));
        },
      }),
    );
  }
}

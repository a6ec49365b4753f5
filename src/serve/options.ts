/** What a serving engine is told when it is made, and what it tells of itself. */
import type { CacheDType } from "../model/index.ts";
import type { Drafter } from "./drafter.ts";

export interface ServingOptions {
  /** Bytes of the KV cache: sequences under way and beginnings that are kept. */
  readonly cacheBytes: number;
  /** Element type of the cache. Default: the model's. */
  readonly cacheDtype?: CacheDType;
  /** Sequences that run at once. Default 32. */
  readonly maxRunning?: number;
  /** Prompt and output of one sequence. Default: the positions that the model was made for. */
  readonly maxContext?: number;
  /** Tokens of one step. Default 512. */
  readonly tokenBudget?: number;
  /** Keep beginnings for later requests. Default true. */
  readonly prefixCache?: boolean;
  /** Guesses tokens (`NgramDrafter`, `ModelDrafter`). The engine disposes it. */
  readonly drafter?: Drafter;
  /** Guessed tokens of a sequence in one step. Default 4. */
  readonly maxDraftTokens?: number;
}

/** What the engine is and did; counters since it was made. */
export interface ServingStats {
  readonly running: number;
  readonly waiting: number;
  readonly blocksTotal: number;
  /** Blocks of sequences that run. */
  readonly blocksUsed: number;
  /** Blocks that are kept for who may begin the same way. */
  readonly blocksIdle: number;
  readonly steps: number;
  /** Tokens that passed through the model. */
  readonly computedTokens: number;
  readonly generatedTokens: number;
  /** Prompt tokens of requests that began, and how many of them the prefix cache had. */
  readonly promptTokens: number;
  readonly cachedPromptTokens: number;
  readonly preemptions: number;
  readonly draftedTokens: number;
  readonly acceptedTokens: number;
}

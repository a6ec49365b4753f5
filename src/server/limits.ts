/** What the server takes on: how much of what, for how long. Data and one counter; nothing here knows of HTTP. */
import { ApiError, badRequest } from "./errors.ts";

export interface Limits {
  /** Bytes of a request's body. */
  readonly bodyBytes: number;
  /** Answers that are made at once: the engine's sequences. */
  readonly maxBatch: number;
  /** Answers that may wait for a place among those. */
  readonly maxQueue: number;
  /** HTTP requests under way, of any kind but /health. */
  readonly maxRequests: number;
  /** Milliseconds from a request's arrival to the end of its answer. */
  readonly timeoutMs: number;
  /** Milliseconds that requests under way get when the server is asked to end. */
  readonly drainMs: number;
}

export const defaultLimits: Limits = {
  bodyBytes: 1 << 20,
  maxBatch: 16,
  maxQueue: 128,
  maxRequests: 1024,
  timeoutMs: 600_000,
  drainMs: 30_000,
};

/** Counts answers under way, and turns away what would have to wait behind too many. */
export class Admission {
  readonly #limits: Pick<Limits, "maxBatch" | "maxQueue">;
  #underWay = 0;
  /** Seconds that an answer took lately (exponential mean). */
  #secondsPerAnswer = 1;

  constructor(limits: Pick<Limits, "maxBatch" | "maxQueue">) {
    this.#limits = limits;
  }
  get underWay(): number {
    return this.#underWay;
  }

  /** Takes on `answers` more; the returned function gives their places back. Throws 429 where too many wait, 400 where no wait would help. */
  admit(answers: number): () => void {
    const { maxBatch, maxQueue } = this.#limits;
    const capacity = maxBatch + maxQueue;
    if (answers > capacity)
      throw badRequest(`${answers} answers (prompts times n or best_of) in one request; this server takes ${capacity} at most`, "n");
    if (this.#underWay + answers > capacity) {
      const ahead = this.#underWay + answers - capacity;
      const retryAfter = Math.min(60, Math.max(1, Math.ceil((ahead * this.#secondsPerAnswer) / maxBatch)));
      throw new ApiError(429, `the queue is full: ${this.#underWay} answers are under way, ${capacity} at most`, {
        code: "queue_full",
        retryAfter,
      });
    }
    this.#underWay += answers;
    const started = performance.now();
    let isOver = false;
    return () => {
      if (isOver) return;
      isOver = true;
      this.#underWay -= answers;
      this.#secondsPerAnswer = 0.8 * this.#secondsPerAnswer + 0.2 * ((performance.now() - started) / 1000);
    };
  }
}

/**
 * What the serving engine takes and gives: plain data and one callback. Not a protocol: HTTP, JSON and error shapes are the server's.
 *
 * A request has one prompt and `n` choices. Every choice is decided by (prompt, options, seed, index of the choice) alone: what else the
 * engine does at the time changes nothing, down to the bits of the log-probabilities.
 */
import type { SamplingOptions } from "../generate/index.ts";

/** Which tokens may come next: one per choice, told of every token that was taken. `json-schema` makes them. */
export interface TokenConstraint {
  /**
   * Bit t % 32 of word floor(t / 32) is set where token t may come next. `endAllowed` says whether the text may end here; ids that end a
   * generation are then added by the engine. The array may be shared: it is only read.
   */
  allowed(): { readonly mask: Uint32Array; readonly endAllowed: boolean };
  /** Goes on by a token that `allowed` named. */
  accept(id: number): void;
  /** An independent copy in the same state. */
  clone(): TokenConstraint;
}

export interface GenerationRequest {
  /** At least one id. */
  readonly promptIds: ArrayLike<number>;
  /** New tokens of a choice at most. 0: only `promptLogprobs` are made. */
  readonly maxTokens: number;
  readonly sampling?: Partial<SamplingOptions>;
  /** Default 0. */
  readonly seed?: number;
  /** Choices. Default 1. */
  readonly n?: number;
  /** A choice ends when its text contains one of these, and is cut before it. */
  readonly stop?: readonly string[];
  /** Ids that end a choice besides those of the model and tokenizer. */
  readonly stopIds?: readonly number[];
  /** Go on beyond end ids (they are then ordinary tokens). Default false. */
  readonly ignoreEnd?: boolean;
  /** Log-probability of each new token, with those of the n most probable ones. Absent: none. */
  readonly logprobs?: number;
  /** The same for the prompt's tokens from the second on. Nothing is then taken from the prefix cache. */
  readonly promptLogprobs?: number;
  readonly constraint?: TokenConstraint;
  /** Leave control tokens in the text. Default false. */
  readonly keepSpecialTokens?: boolean;
  /** Speculate where the engine has a drafter. Changes speed only. Default true. */
  readonly speculate?: boolean;
}

/** Natural logarithms of probabilities under the model itself: before penalties, temperature, filters and constraints. */
export interface TokenLogprobs {
  readonly id: number;
  readonly logprob: number;
  /** The most probable tokens, descending (ties: lower id first). */
  readonly top: readonly { readonly id: number; readonly logprob: number }[];
}

/** `stop`: an end id or a stop string. `length`: maxTokens, or the context is full. */
export type ServeFinishReason = "stop" | "length" | "aborted" | "error";

export type GenerationEvent =
  /** Once, before any token, where `promptLogprobs` was asked for: entry i is of prompt token i + 1. */
  | { readonly type: "prompt"; readonly logprobs: readonly TokenLogprobs[] }
  /**
   * A new token of a choice. `text` is what became certain with it: it may be empty, and lacks what may begin a stop string. An id that
   * ends the choice is not sent.
   */
  | { readonly type: "token"; readonly choice: number; readonly id: number; readonly text: string; readonly logprobs: TokenLogprobs | null }
  /** The end of a choice, with text that was held back. The last event of its choice. */
  | {
      readonly type: "finish";
      readonly choice: number;
      readonly reason: ServeFinishReason;
      readonly text: string;
      /** The stop string or id that ended it. */
      readonly stoppedBy: string | number | null;
      readonly error: Error | null;
    }
  /** The last event of a request, after the finish of every choice. */
  | { readonly type: "end"; readonly usage: RequestUsage };

export interface RequestUsage {
  readonly promptTokens: number;
  /** Prompt tokens whose keys and values were in the prefix cache when the request began. */
  readonly cachedTokens: number;
  /** New tokens of all choices, end ids included. */
  readonly generatedTokens: number;
  /** From `submit` to the first token, milliseconds; null without one. */
  readonly firstTokenMs: number | null;
}

export type GenerationListener = (event: GenerationEvent) => void;

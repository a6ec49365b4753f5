/**
 * Guesses of the next tokens (speculative decoding, arXiv 2211.17192). The engine computes them in the same pass as the token before them and
 * keeps those that it would have chosen itself, so a guess changes how many tokens a step gives, never which.
 */

export interface DraftRequest {
  /** The same object for the same sequence, step after step. */
  readonly key: object;
  /** Prompt and output so far. */
  readonly ids: readonly number[];
  /** Tokens that are of use at most. */
  readonly limit: number;
}

export interface Drafter extends Disposable {
  /** Guesses for each request, in order; none is fine. */
  propose(requests: readonly DraftRequest[]): readonly (readonly number[])[];
  /** The sequence has ended, or lost its place; it may come back. */
  release(key: object): void;
}

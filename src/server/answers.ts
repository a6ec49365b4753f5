/** Collects the events of a request's tasks into whole answers. */
import type { TaskEvent, TokenLogprob, TokenText } from "./protocol.ts";

export interface Answer {
  readonly text: string;
  readonly tokens: readonly TokenLogprob[];
  readonly reason: "stop" | "length";
  readonly stoppedBy: string | number | null;
}
export interface EchoedPrompt {
  readonly text: string;
  readonly tokens: readonly TokenText[];
  /** Entry i is of token i + 1. */
  readonly logprobs: readonly TokenLogprob[];
}

interface Draft {
  text: string;
  readonly tokens: TokenLogprob[];
  reason: "stop" | "length";
  stoppedBy: string | number | null;
}

export class Answers {
  readonly #choices: Draft[][];
  readonly #prompts: { text: string; tokens: readonly TokenText[]; logprobs: readonly TokenLogprob[] }[];

  constructor(numTasks: number) {
    this.#choices = Array.from({ length: numTasks }, () => []);
    this.#prompts = Array.from({ length: numTasks }, () => ({ text: "", tokens: [], logprobs: [] }));
  }
  receive(index: number, event: TaskEvent): void {
    const prompt = this.#prompts[index];
    if (prompt === undefined) return;
    if (event.type === "accepted" && event.prompt !== null) ({ text: prompt.text, tokens: prompt.tokens } = event.prompt);
    else if (event.type === "prompt") prompt.logprobs = event.logprobs;
    else if (event.type === "token") {
      const draft = this.#draft(index, event.choice);
      draft.text += event.text;
      if (event.logprobs !== null) draft.tokens.push(event.logprobs);
    } else if (event.type === "finish") {
      const draft = this.#draft(index, event.choice);
      draft.text += event.text;
      draft.reason = event.reason === "length" ? "length" : "stop";
      draft.stoppedBy = event.stoppedBy;
    }
  }
  #draft(index: number, choice: number): Draft {
    const choices = this.#choices[index] ?? [];
    return (choices[choice] ??= { text: "", tokens: [], reason: "stop", stoppedBy: null });
  }

  /** The answers to prompt `index`, in order. */
  of(index: number): readonly Answer[] {
    return this.#choices[index] ?? [];
  }
  prompt(index: number): EchoedPrompt {
    return this.#prompts[index] ?? { text: "", tokens: [], logprobs: [] };
  }
  /** The `n` answers to a prompt with the highest mean log-probability, best first; all of them, in order, where there are no more. */
  best(index: number, n: number): readonly Answer[] {
    const score = ({ tokens }: Answer): number =>
      tokens.length === 0 ? Number.NEGATIVE_INFINITY : tokens.reduce((sum, { logprob }) => sum + logprob, 0) / tokens.length;
    const candidates = this.of(index);
    if (candidates.length <= n) return candidates;
    return candidates.toSorted((a, b) => score(b) - score(a) || 0).slice(0, n);
  }
}

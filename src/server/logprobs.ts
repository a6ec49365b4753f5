/** Log-probabilities in OpenAI's two forms. JSON has no infinity: what is impossible is -9999. */
import type { EchoedPrompt } from "./answers.ts";
import type { TokenLogprob, TokenText, TokenWithLogprob } from "./protocol.ts";

export interface CompletionLogprobs {
  readonly tokens: readonly string[];
  readonly token_logprobs: readonly (number | null)[];
  readonly top_logprobs: readonly (Readonly<Record<string, number>> | null)[] | null;
  readonly text_offset: readonly number[];
}

function finite(logprob: number): number {
  return Math.max(-9999, logprob);
}

/** A token as a key: bytes that are no text by themselves would all read alike. */
function keyOf({ text, bytes }: TokenText): string {
  return text.includes("\ufffd") ? `bytes:${bytes.map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("")}` : text;
}

function topOf({ top, ...chosen }: TokenLogprob): Record<string, number> {
  const entries = new Map<string, number>();
  // The more probable of two tokens that read alike keeps the name.
  for (const entry of [...top, chosen]) if (!entries.has(keyOf(entry))) entries.set(keyOf(entry), finite(entry.logprob));
  return Object.fromEntries(entries);
}

/** Of /v1/completions. `offset`: length of the text before the first of `tokens`. */
export function completionLogprobs(tokens: readonly TokenLogprob[], numTop: number, offset: number): CompletionLogprobs {
  let at = offset;
  return {
    tokens: tokens.map(keyOf),
    token_logprobs: tokens.map(({ logprob }) => finite(logprob)),
    top_logprobs: numTop === 0 ? null : tokens.map(topOf),
    text_offset: tokens.map(({ text }) => {
      at += text.length;
      return at - text.length;
    }),
  };
}

/** The prompt's part, where it is echoed: nothing is known of the first token. */
export function promptLogprobs({ tokens, logprobs }: EchoedPrompt, numTop: number): CompletionLogprobs {
  const [first] = tokens;
  if (first === undefined) return completionLogprobs([], numTop, 0);
  const rest = completionLogprobs(logprobs, numTop, first.text.length);
  return {
    tokens: [keyOf(first), ...rest.tokens],
    token_logprobs: [null, ...rest.token_logprobs],
    top_logprobs: rest.top_logprobs === null ? null : [null, ...rest.top_logprobs],
    text_offset: [0, ...rest.text_offset],
  };
}

export function joinLogprobs(a: CompletionLogprobs, b: CompletionLogprobs): CompletionLogprobs {
  return {
    tokens: [...a.tokens, ...b.tokens],
    token_logprobs: [...a.token_logprobs, ...b.token_logprobs],
    top_logprobs: a.top_logprobs === null || b.top_logprobs === null ? null : [...a.top_logprobs, ...b.top_logprobs],
    text_offset: [...a.text_offset, ...b.text_offset],
  };
}

interface ChatEntry {
  readonly token: string;
  readonly logprob: number;
  readonly bytes: readonly number[];
}
function chatEntry({ text, logprob, bytes }: TokenWithLogprob): ChatEntry {
  return { token: text, logprob: finite(logprob), bytes };
}
/** Of /v1/chat/completions. */
export function chatLogprobs(tokens: readonly TokenLogprob[]): {
  content: readonly (ChatEntry & { top_logprobs: readonly ChatEntry[] })[];
  refusal: null;
} {
  return { content: tokens.map((token) => ({ ...chatEntry(token), top_logprobs: token.top.map(chatEntry) })), refusal: null };
}

/**
 * How many tokens of which sequence one step computes. A pure function, so that its promises are tests: who decodes is never
 * held up by who still reads its prompt; prompts are read in order of arrival, in parts where they are long (chunked prefill,
 * arXiv 2308.16369); and a prompt that would fill the step leaves half of it to those behind it, as far as they can use it.
 */

/**
 * Tokens for each sequence, 0 where it waits for the next step. `remaining` are tokens that are not computed yet, in order of arrival (1: the
 * sequence decodes); `tokenBudget` bounds the sum, except that every decoding sequence gets its token.
 */
export function planTokens(remaining: readonly number[], tokenBudget: number): number[] {
  const plan = remaining.map((count): number => (count === 1 ? 1 : 0));
  let left = tokenBudget - plan.reduce((a, b) => a + b, 0);
  const prompts = [...remaining.keys()].filter((i) => (remaining[i] ?? 0) > 1);
  const give = (i: number, most: number): void => {
    const count = Math.max(0, Math.min((remaining[i] ?? 0) - (plan[i] ?? 0), most, left));
    plan[i] = (plan[i] ?? 0) + count;
    left -= count;
  };
  for (const [order, i] of prompts.entries()) {
    const isLong = (remaining[i] ?? 0) > left && order < prompts.length - 1;
    give(i, isLong ? Math.ceil(left / 2) : left);
  }
  for (const i of prompts) give(i, left);
  return plan;
}

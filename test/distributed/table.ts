/** How far a run over ranks is from that of one rank, and the table of all such runs (docs/layouts.md). */
import { writeFileSync } from "node:fs";
import { numRanks } from "../../src/config/layout.ts";
import { layoutOf, parseRunConfig } from "../../src/config/run.ts";
import { compareRouting } from "../../src/nn/index.ts";
import { runOf, type Choices, type Expected, type LayoutCase, type Outcome } from "./job.ts";

export interface Comparison {
  readonly name: string;
  readonly ranks: number;
  readonly strategy: string;
  /** Largest relative difference of a step's loss. */
  readonly loss: number;
  /** Largest relative L2 distance of a tensor, and which. */
  readonly weights: { readonly largest: number; readonly name: string };
  readonly drops: number;
  readonly coefficients: number;
  /** Choices compared: tokens x layers x steps. */
  readonly tokens: number;
  /** Of these, those that chose another expert, and the largest distance of the probabilities that changed places. */
  readonly flips: { readonly count: number; readonly margin: number };
}

export function compared(one: LayoutCase, expected: Expected, got: Outcome): Comparison {
  const layout = layoutOf(parseRunConfig(runOf(one, 20)));
  let weights = { largest: 0, name: "" };
  for (const [name, values] of expected.weights) {
    const distance = relativeL2(values, got.weights.get(name));
    if (!(distance <= weights.largest)) weights = { largest: distance, name };
  }
  return {
    name: one.name,
    ranks: numRanks(layout),
    strategy: one.model === "dense" ? "-" : layout.strategy,
    loss: largest(expected.losses.map((loss, i) => relative(loss, got.losses[i]))),
    weights,
    drops: got.drops.reduce((a, b) => a + b, 0),
    coefficients: largest(expected.coefficients.flatMap((step, i) => step.map((value, l) => relative(value, got.coefficients[i]?.[l])))),
    ...flipsOf(expected.choices, got.choices),
  };
}

/** Every micro-batch, layer and step of one rank's run has to be in the other. */
function flipsOf(expected: Choices, got: Choices): Pick<Comparison, "tokens" | "flips"> {
  let [tokens, count, margin] = [0, 0, 0];
  for (const [key, choice] of expected) {
    const other = got.get(key);
    if (other === undefined) return { tokens, flips: { count: Infinity, margin: Infinity } };
    const { numTokens, flips, largestMargin } = compareRouting(choice, other, 2);
    tokens += numTokens;
    count += flips.length;
    margin = Math.max(margin, largestMargin);
  }
  return { tokens, flips: { count, margin } };
}

function largest(values: readonly number[]): number {
  return values.reduce((most, value) => (value <= most ? most : value), 0);
}
function relative(expected: number, got: number | undefined): number {
  return Math.abs((got ?? NaN) - expected) / Math.max(1e-30, Math.abs(expected));
}
function relativeL2(expected: Float32Array, got: Float32Array | undefined): number {
  if (got?.length !== expected.length) return Infinity;
  let [difference, norm] = [0, 0];
  for (const [i, value] of expected.entries()) {
    difference += (value - (got[i] ?? NaN)) ** 2;
    norm += value ** 2;
  }
  return Math.sqrt(difference) / Math.max(1e-30, Math.sqrt(norm));
}

/** Writes the table. */
export async function tableOf(comparisons: readonly Comparison[], document: URL): Promise<void> {
  const rows = comparisons.map(
    ({ name, ranks, strategy, loss, weights, drops, coefficients, tokens, flips }) =>
      `| ${name} | ${ranks} | ${strategy} | ${loss.toExponential(1)} | ${weights.largest.toExponential(1)} | ${drops} | ${coefficients.toExponential(1)} | ${tokens === 0 ? "-" : `${flips.count} of ${tokens}${flips.count === 0 ? "" : ` (margin ${flips.margin.toExponential(1)})`}`} |`,
  );
  const text = `# Layouts against one rank

Written by \`MOE_LONG=1 npx vitest run test/distributed/layouts.test.ts\`, which also asserts the bounds: twenty steps in f32 of tiny models (9 query heads over 3 key-value heads, 5 or 6 experts,
300 ids), capacity 1.1, jitter, adaptive coefficients, balance groups of one sequence, unequal loss masks. Losses within 1e-5, weights within 1e-4 (relative L2 of a tensor),
dropped assignments equal, coefficients within 1e-5. A flip is a token that chose another expert in some layer and step; its margin is how far apart the probabilities of the two are.

| layout | ranks | experts | largest relative loss difference | largest weight distance | dropped (equal) | coefficients | flips |
| --- | --- | --- | --- | --- | --- | --- | --- |
${rows.join("\n")}
`;
  writeFileSync(document, text);
}

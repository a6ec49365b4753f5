/** The report's claims (arXiv 2406.06563), each as a quantity of which our runs say whether it is below 0. */
import { earlyStep, evaluationInterval } from "./experiments.ts";
import { lastSimilarity, lateMean, lossesAt, type LayerRecord, type RunRecord } from "./results.ts";
import { below0, difference, text, type Interval, type Verdict } from "./statistics.ts";

export type Runs = Readonly<Record<string, readonly RunRecord[]>>;

export interface Judged {
  readonly claim: string;
  readonly paper: string;
  readonly ours: string;
  readonly verdict: Verdict;
}

/** The evaluation next to a third of the budget. */
export const thirdOfBudget = Math.round(earlyStep / evaluationInterval) * evaluationInterval;

export function judgeClaims(runs: Runs): Judged[] {
  const of = (name: string): readonly RunRecord[] => runs[name] ?? [];
  const loss = (name: string, step: number | null = null): number[] => lossesAt(of(name), step);
  const late = (name: string, value: (layer: LayerRecord) => number | undefined): number[] => lateMean(of(name), value);
  const judge = (claim: string, paper: string, what: string, value: Interval): Judged => ({
    claim,
    paper,
    ours: `${what}: ${text(value)}`,
    verdict: below0(value),
  });
  const lossGap = (a: string, b: string, step: number | null = null): Interval => difference(loss(a, step), loss(b, step));
  return [
    judge(
      "Normalization lowers the loss",
      "lambda 1: 2.339, none: 2.357",
      "loss of lambda 1 minus none",
      lossGap("lambda-1", "lambda-none"),
    ),
    judge(
      "A larger lambda lowers it further",
      "lambda 2: 2.336, lambda 0.5: 2.345",
      "loss of lambda 2 minus 0.5",
      lossGap("lambda-2", "lambda-0.5"),
    ),
    judge(
      "Normalization halves the drop rate",
      "lambda 1: 0.011, none: 0.022",
      "drop rate of lambda 1 minus none",
      difference(
        late("lambda-1", (l) => l.dropRate),
        late("lambda-none", (l) => l.dropRate),
      ),
    ),
    judge(
      "Without normalization the gate goes flat",
      "Max1/Max2 1.0 without, 3.1 with lambda 1",
      "Max1/Max2 without minus with lambda 1",
      difference(
        late("lambda-none", (l) => l.max1OverMax2),
        late("lambda-1", (l) => l.max1OverMax2),
      ),
    ),
    judge(
      "A larger lambda sharpens the gate",
      "Max1/Max2 1.55, 3.1, 5.55 for 0.5, 1, 2",
      "Max1/Max2 of lambda 0.5 minus 2",
      difference(
        late("lambda-0.5", (l) => l.max1OverMax2),
        late("lambda-2", (l) => l.max1OverMax2),
      ),
    ),
    judge(
      "Adaptive coefficients beat a large fixed one",
      "no number published",
      "loss of adaptive (at most 1) minus fixed 1",
      lossGap("adaptive-scaled", "lambda-1"),
    ),
    judge(
      "Adaptive coefficients drop less than a small fixed one",
      "no number published",
      "drop rate of adaptive (at most 1) minus fixed 0.1",
      difference(
        late("adaptive-scaled", (l) => l.dropRate),
        late("fixed-0.1", (l) => l.dropRate),
      ),
    ),
    judge(
      "Coefficients settle below half of their start",
      "0.0003 to 0.0017, from 0.010",
      "coefficient of adaptive (at most 1) minus 0.5",
      difference(
        late("adaptive-scaled", (l) => l.coefficient),
        late("adaptive-scaled", () => 0.5),
      ),
    ),
    judge(
      "The paper's own coefficients (at most 0.01) balance: under 5% dropped",
      "0.001 to 0.009 dropped",
      "drop rate of adaptive (at most 0.01) minus 0.05",
      difference(
        late("adaptive", (l) => l.dropRate),
        late("adaptive", () => 0.05),
      ),
    ),
    judge(
      "With a third of the dense budget, upcycling beats training from scratch",
      "about 2.26 against 2.265",
      `loss of early minus from scratch at step ${thirdOfBudget}`,
      lossGap("early", "scratch", thirdOfBudget),
    ),
    judge(
      "With the whole dense budget, training from scratch beats upcycling",
      "2.20 against 2.23 (re-warmed)",
      "loss of from scratch minus re-warmed",
      lossGap("scratch", "late-rewarmed"),
    ),
    judge(
      "A re-warmed rate beats a constant low one",
      "2.23 against 2.25",
      "loss of re-warmed minus constant",
      lossGap("late-rewarmed", "late-constant"),
    ),
    judge(
      "A re-warmed rate makes experts less alike than a constant low one",
      "similarity 0.15 against 0.23",
      "similarity of re-warmed minus constant",
      difference(lastSimilarity(of("late-rewarmed")), lastSimilarity(of("late-constant"))),
    ),
    judge(
      "A MoE beats a dense model of as many active parameters",
      "implied",
      "loss of the MoE (from scratch) minus dense",
      lossGap("scratch", "dense-equal"),
    ),
    judge(
      "A MoE is as good as a dense model of three times as many active parameters",
      '"the quality of 70B at the cost of 20B"',
      "loss of the MoE (from scratch) minus dense",
      lossGap("scratch", "dense-threefold"),
    ),
  ];
}

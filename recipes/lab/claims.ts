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

interface Claim {
  readonly claim: string;
  /** What the report shows. */
  readonly paper: string;
  /** The quantity that is below 0 where the claim holds, in words and from our runs. */
  readonly what: string;
  readonly value: (runs: Runs) => Interval;
}

function of(runs: Runs, name: string): readonly RunRecord[] {
  return runs[name] ?? [];
}
function lossGap(runs: Runs, a: string, b: string, step: number | null = null): Interval {
  return difference(lossesAt(of(runs, a), step), lossesAt(of(runs, b), step));
}
function late(runs: Runs, name: string, value: (layer: LayerRecord) => number | undefined): number[] {
  return lateMean(of(runs, name), value);
}

const claims: readonly Claim[] = [
  {
    claim: "Normalization lowers the loss",
    paper: "lambda 1: 2.339, none: 2.357",
    what: "loss of lambda 1 minus none",
    value: (runs) => lossGap(runs, "lambda-1", "lambda-none"),
  },
  {
    claim: "A larger lambda lowers it further",
    paper: "lambda 2: 2.336, lambda 0.5: 2.345",
    what: "loss of lambda 2 minus 0.5",
    value: (runs) => lossGap(runs, "lambda-2", "lambda-0.5"),
  },
  {
    claim: "Normalization lowers the drop rate",
    paper: "lambda 1: 0.011, none: 0.022",
    what: "drop rate of lambda 1 minus none",
    value: (runs) =>
      difference(
        late(runs, "lambda-1", (l) => l.dropRate),
        late(runs, "lambda-none", (l) => l.dropRate),
      ),
  },
  {
    claim: "Without normalization the gate is flatter",
    paper: "Max1/Max2 1.0 without, 3.1 with lambda 1",
    what: "Max1/Max2 without minus with lambda 1",
    value: (runs) =>
      difference(
        late(runs, "lambda-none", (l) => l.max1OverMax2),
        late(runs, "lambda-1", (l) => l.max1OverMax2),
      ),
  },
  {
    claim: "A larger lambda sharpens the gate",
    paper: "Max1/Max2 1.55, 3.1, 5.55 for 0.5, 1, 2",
    what: "Max1/Max2 of lambda 0.5 minus 2",
    value: (runs) =>
      difference(
        late(runs, "lambda-0.5", (l) => l.max1OverMax2),
        late(runs, "lambda-2", (l) => l.max1OverMax2),
      ),
  },
  {
    claim: "Adaptive coefficients beat a large fixed one",
    paper: "no number published",
    what: "loss of adaptive (at most 1) minus fixed 1",
    value: (runs) => lossGap(runs, "adaptive-scaled", "lambda-1"),
  },
  {
    claim: "Adaptive coefficients drop less than a small fixed one",
    paper: "no number published",
    what: "drop rate of adaptive (at most 1) minus fixed 0.1",
    value: (runs) =>
      difference(
        late(runs, "adaptive-scaled", (l) => l.dropRate),
        late(runs, "fixed-0.1", (l) => l.dropRate),
      ),
  },
  {
    claim: "Coefficients settle below half of their start",
    paper: "0.0003 to 0.0017, from 0.010",
    what: "coefficient of adaptive (at most 1) minus 0.5",
    value: (runs) =>
      difference(
        late(runs, "adaptive-scaled", (l) => l.coefficient),
        late(runs, "adaptive-scaled", () => 0.5),
      ),
  },
  {
    claim: "The paper's own coefficients (at most 0.01) balance: under 5% dropped",
    paper: "0.001 to 0.009 dropped",
    what: "drop rate of adaptive (at most 0.01) minus 0.05",
    value: (runs) =>
      difference(
        late(runs, "adaptive", (l) => l.dropRate),
        late(runs, "adaptive", () => 0.05),
      ),
  },
  {
    claim: "With a third of the dense budget, upcycling beats training from scratch",
    paper: "about 2.26 against 2.265",
    what: `loss of early minus from scratch at step ${thirdOfBudget}`,
    value: (runs) => lossGap(runs, "early", "scratch", thirdOfBudget),
  },
  {
    claim: "With the whole dense budget, training from scratch beats upcycling",
    paper: "2.20 against 2.23 (re-warmed)",
    what: "loss of from scratch minus re-warmed",
    value: (runs) => lossGap(runs, "scratch", "late-rewarmed"),
  },
  {
    claim: "A re-warmed rate beats a constant low one",
    paper: "2.23 against 2.25",
    what: "loss of re-warmed minus constant",
    value: (runs) => lossGap(runs, "late-rewarmed", "late-constant"),
  },
  {
    claim: "A re-warmed rate makes experts less alike than a constant low one",
    paper: "similarity 0.15 against 0.23",
    what: "similarity of re-warmed minus constant",
    value: (runs) => difference(lastSimilarity(of(runs, "late-rewarmed")), lastSimilarity(of(runs, "late-constant"))),
  },
  {
    claim: "A MoE beats a dense model of as many active parameters",
    paper: "implied",
    what: "loss of the MoE (from scratch) minus dense",
    value: (runs) => lossGap(runs, "scratch", "dense-equal"),
  },
  {
    claim: "A MoE is as good as a dense model of three times as many active parameters",
    paper: '"the quality of 70B at the cost of 20B"',
    what: "loss of the MoE (from scratch) minus dense",
    value: (runs) => lossGap(runs, "scratch", "dense-threefold"),
  },
];

/** Every claim with what our runs say of it. */
export function judgeClaims(runs: Runs): Judged[] {
  return claims.map(({ claim, paper, what, value }) => {
    const found = value(runs);
    return { claim, paper, ours: `${what}: ${text(found)}`, verdict: below0(found) };
  });
}

/** Errors of ours and of the baselines on splits of one kind. */
import { errorsOf, mean, predictorNames, predictors, type PredictorName, type Split } from "./planner-splits.ts";

/** Errors of every predictor on every split of one kind. */
export interface Score {
  readonly name: string;
  readonly title: string;
  readonly bar: number;
  readonly splits: readonly Split[];
  /** By predictor and split: |predicted / measured - 1| of each row. */
  readonly errors: Readonly<Record<PredictorName, readonly (readonly number[])[]>>;
}

export function scoreOf(name: string, title: string, bar: number, splits: readonly Split[]): Score {
  const of = (who: PredictorName): number[][] => splits.map((split) => errorsOf(predictors[who], split));
  const errors = {
    ours: of("ours"),
    "one constant": of("one constant"),
    "nearest neighbours": of("nearest neighbours"),
    regression: of("regression"),
    "quadratic regression": of("quadratic regression"),
  };
  return { name, title, bar, splits, errors };
}

/** Mean error of each split. */
export function meansOf(score: Score, who: PredictorName): number[] {
  return score.errors[who].map(mean);
}

/** The baseline with the least error over all splits. */
export function bestBaseline(score: Score): PredictorName {
  const others = predictorNames.filter((who) => who !== "ours");
  return others.reduce((a, b) => (mean(meansOf(score, b)) < mean(meansOf(score, a)) ? b : a));
}

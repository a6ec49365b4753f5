/**
 * Theme `planner`: errors of the planner's step times on measured runs, ours and the best baseline's on the same splits, as shares (0.05: five
 * percent off on average). Nothing here is timed but, with `--only planner.runtime`, our own trainer's steps (`planner-runtime.ts`); `--only planner.memory` runs it for its peak memory. Without `--only`
 * it also writes `docs/planner-accuracy.md`.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { wanted, type Context } from "./context.ts";
import type { Row } from "./measure.ts";
import { memoryRows } from "./planner-memory.ts";
import { accuracyPage } from "./planner-report.ts";
import { runtimeRows } from "./planner-runtime.ts";
import { calibrate13b, predict13b, skywork13b } from "./planner-skywork.ts";
import { bestBaseline, meansOf, scoreOf, type Score } from "./planner-score.ts";
import { halves, hiddenSize, leaveOut, loadRows, modelSize, type Split } from "./planner-splits.ts";

/** What is scored, each from the rows of both files. */
const kinds = {
  "planner.single.halves": (single) => ["one node, five random halves", 0.08, halves(single)],
  "planner.multi.halves": (_, multi) => ["several nodes, five random halves", 0.1, halves(multi)],
  "planner.single.size": (single) => ["one node, one model size left out", 0.12, leaveOut(single, modelSize)],
  "planner.single.hidden": (single) => ["one node, one hidden size left out", 0.12, leaveOut(single, hiddenSize)],
  "planner.multi.size": (_, multi) => ["several nodes, one model size left out", 0.12, leaveOut(multi, modelSize)],
  "planner.transfer": (single, multi) => ["from one node to several", 0.15, [{ label: "all rows", fit: single, test: multi }]],
} as const satisfies Record<string, (single: Split["fit"], multi: Split["fit"]) => readonly [string, number, readonly Split[]]>;

export async function* plannerRows(context: Context): AsyncGenerator<Row> {
  const names = wanted(context, [...Object.keys(kinds), "planner.skywork13b"]);
  const [single, multi] = [loadRows("single"), loadRows("multi")];
  const scores: Score[] = [];
  for (const name of names) {
    // Rows are computed one after the other; the caller prints each as it comes.
    await Promise.resolve();
    const kind = Object.entries(kinds).find(([key]) => key === name)?.[1];
    if (kind === undefined) {
      yield skyworkRow(name);
      continue;
    }
    if (single === null || multi === null) {
      yield { name, ours: [], rival: [], unit: "share", bar: null, note: "no measured rows here: MOE_SHARED_DATA names their folder" };
      continue;
    }
    const [title, bar, splits] = kind(single, multi);
    const score = scoreOf(name, title, bar, splits);
    scores.push(score);
    const best = bestBaseline(score);
    yield { name, ours: meansOf(score, "ours"), rival: meansOf(score, best), unit: "share", bar, note: `rival: ${best}` };
  }
  yield* runtimeRows(context);
  yield* memoryRows(context);
  if (context.only !== "" || single === null || multi === null) return;
  const page = join(import.meta.dirname, "..", "docs", "planner-accuracy.md");
  writeFileSync(page, accuracyPage(scores, { single, multi }));
  context.log(`wrote ${page}`);
}

function skyworkRow(name: string): Row {
  const efficiency = calibrate13b();
  const errors = skywork13b
    .filter(({ measured }) => measured > 0)
    .map(({ layout, measured }) => Math.abs(predict13b(layout, efficiency).tokensPerGpuPerSecond / measured - 1));
  return { name, ours: [Math.max(...errors)], rival: [], unit: "share", bar: 0.07, note: "the largest error of five rows" };
}

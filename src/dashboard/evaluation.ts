/** Rows of a result file in lm-evaluation-harness's form, as `moe eval` writes it: groups before what they contain. */
import type { EvaluationAnswer, EvaluationRow } from "./api.ts";
import { asArray, asCount, asNumber, asObject, asText } from "./record.ts";

const maxRows = 2000;

export function evaluationAnswer(name: string, json: Readonly<Record<string, unknown>>): EvaluationAnswer {
  const results = asObject(json["results"]) ?? {};
  const subtasks = asObject(json["group_subtasks"]) ?? {};
  const childrenOf = (task: string): string[] =>
    (Object.hasOwn(subtasks, task) ? asArray(subtasks[task]) : []).flatMap((child) => asText(child, 200) ?? []);
  const inner = new Set(Object.keys(subtasks).flatMap(childrenOf));
  const rows: EvaluationRow[] = [];
  const seen = new Set<string>();
  const visit = (task: string, depth: number): void => {
    // A file that names a group inside itself would never end.
    if (seen.has(task) || depth > 8 || rows.length >= maxRows || !Object.hasOwn(results, task)) return;
    seen.add(task);
    rows.push(...rowsOf(json, task, asObject(results[task]) ?? {}, depth));
    for (const child of childrenOf(task)) visit(child, depth + 1);
  };
  for (const task of Object.keys(results)) if (!inner.has(task)) visit(task, 0);
  // Groups that contain one another are nobody's top: they are shown all the same.
  for (const task of Object.keys(results)) visit(task, 0);
  const config = asObject(json["config"]);
  const date = asNumber(json["date"]);
  return {
    kind: "evaluation",
    name,
    model: asText(json["model_name"]) ?? asText(config?.["model"]),
    date: Number.isNaN(date) ? null : date,
    rows: rows.slice(0, maxRows),
  };
}

function rowsOf(
  json: Readonly<Record<string, unknown>>,
  task: string,
  scores: Readonly<Record<string, unknown>>,
  depth: number,
): EvaluationRow[] {
  const label = asText(scores["alias"], 200) ?? task.slice(0, 200);
  const better = asObject(asObject(json["higher_is_better"])?.[task]);
  return Object.entries(scores).flatMap(([key, value]): EvaluationRow[] => {
    const [metric = "", filter] = key.slice(0, 200).split(",");
    if (filter === undefined || metric.endsWith("_stderr") || typeof value !== "number" || !Number.isFinite(value)) return [];
    const error = asNumber(scores[`${metric}_stderr,${filter}`]);
    const higher = better?.[metric];
    return [
      {
        task: label,
        depth,
        filter,
        shots: asCount(asObject(json["n-shot"])?.[task]),
        metric,
        value,
        standardError: Number.isNaN(error) ? null : error,
        higherIsBetter: typeof higher === "boolean" ? higher : null,
      },
    ];
  });
}

/** Every task by name, and perplexity on any file as `perplexity:<path>`. */
import { didYouMean } from "../../util/nearest.ts";
import { MoeError } from "../../util/errors.ts";
import { isGroup, type Task, type TaskGroup } from "../task.ts";
import { gsm8kTask, humanEvalTask } from "./generation.ts";
import { hendrycksMathTasks, math500Task, minervaMathTasks } from "./math.ts";
import { perplexityTask, wikitextTask } from "./perplexity.ts";
import { cevalTasks, cmmluTasks, mmluTasks } from "./multiple-choice.ts";

const perplexityPrefix = "perplexity:";

/** All tasks and groups by name, groups before what they contain. */
export function allTasks(): ReadonlyMap<string, Task | TaskGroup> {
  const byName = new Map<string, Task | TaskGroup>();
  const add = (item: Task | TaskGroup): void => {
    byName.set(item.name, item);
    if (isGroup(item)) item.children.forEach(add);
  };
  [
    mmluTasks(),
    cmmluTasks(),
    cevalTasks(),
    gsm8kTask(),
    minervaMathTasks(),
    math500Task(),
    hendrycksMathTasks(),
    humanEvalTask(),
    wikitextTask(),
  ].forEach(add);
  return byName;
}

/** The tasks of these names, each once. Throws `usage` for a name that is none, with the nearest that is one. */
export function chooseTasks(names: readonly string[]): readonly (Task | TaskGroup)[] {
  const known = allTasks();
  if (names.length === 0) throw new MoeError("usage", `evaluation: expected at least one task, got none; there are ${topNames(known)}`);
  return [...new Set(names)].map((name) => {
    if (name.startsWith(perplexityPrefix)) return perplexityTask(name, name.slice(perplexityPrefix.length));
    const task = known.get(name);
    if (task !== undefined) return task;
    throw new MoeError("usage", `unknown task ${name}${didYouMean(name, known.keys())}; there are ${topNames(known)}`);
  });
}

function topNames(known: ReadonlyMap<string, Task | TaskGroup>): string {
  const inner = new Set([...known.values()].flatMap((item) => (isGroup(item) ? item.children : [])));
  return [...[...known.values()].filter((item) => !inner.has(item)).map(({ name }) => name), `${perplexityPrefix}<file>`].join(", ");
}
